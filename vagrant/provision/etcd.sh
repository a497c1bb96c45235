#!/usr/bin/env bash
# etcd on this machine, if it is to have one: Debian's etcd-server as the only member (WEFT_ETCD=one: the first
# machine) or as one of all (WEFT_ETCD=all), listening on the private network and on loopback.
#
# No TLS and no passwords: the store of a lab on a network of its own. What a real store needs is in
# docs of etcd's and in weftd.toml's [etcd] table.
#
# Environment:
#   WEFT_ETCD      one | all
#   WEFT_NODE      this machine's name, one of those in WEFT_CLUSTER
#   WEFT_CLUSTER   host1=192.168.56.11,host2=192.168.56.12,…  every machine, the first one first
#   WEFT_ETCD_RESET=1   throw the store's data away when its membership is to change
# Runs as root; may run again. Works in a chroot without systemd as far as installing and enabling goes.
set -euo pipefail

: "${WEFT_ETCD:?one or all}" "${WEFT_NODE:?}" "${WEFT_CLUSTER:?}"
export DEBIAN_FRONTEND=noninteractive
here=$(dirname "$0")
data=/var/lib/etcd/weft

die() {
    echo "etcd.sh: $*" >&2
    exit 1
}

running_systemd() { [ -d /run/systemd/system ]; }

# "name=address" of each machine, and this one's address.
IFS=, read -ra machines <<<"$WEFT_CLUSTER"
address=
for machine in "${machines[@]}"; do
    [[ $machine == ?*=?* ]] || die "WEFT_CLUSTER: '$machine' is not name=address"
    [ "${machine%%=*}" != "$WEFT_NODE" ] || address=${machine#*=}
done
[ -n "$address" ] || die "WEFT_CLUSTER names no $WEFT_NODE: $WEFT_CLUSTER"

case $WEFT_ETCD in
    one) members=("${machines[0]}") ;;
    all) members=("${machines[@]}") ;;
    *) die "WEFT_ETCD is '$WEFT_ETCD', not one or all" ;;
esac

is_member=no
initial=
for member in "${members[@]}"; do
    [ "${member%%=*}" != "$WEFT_NODE" ] || is_member=yes
    initial+=${initial:+,}${member%%=*}=http://${member#*=}:2380
done

if [ "$is_member" = no ]; then
    # A machine that was a member before must not go on being one with an old membership.
    if [ -e /etc/weft/etcd.env ]; then
        systemctl disable etcd.service
        if running_systemd; then systemctl stop etcd.service; fi
        rm -f /etc/weft/etcd.env
        rm -rf /etc/systemd/system/etcd.service.d
    fi
    echo "etcd.sh: no etcd on $WEFT_NODE (WEFT_ETCD=$WEFT_ETCD)"
    exit 0
fi

# A store's membership is fixed when its data is first written; changing these variables alone would leave
# members that refuse each other.
if [ -e /etc/weft/etcd.env ] && ! grep -qxF "ETCD_INITIAL_CLUSTER=$initial" /etc/weft/etcd.env; then
    [ "${WEFT_ETCD_RESET:-}" = 1 ] ||
        die "the store here has another membership; provision every machine with WEFT_ETCD_RESET=1 to empty it"
    if running_systemd; then systemctl stop etcd.service; fi
    rm -rf "$data"
fi

# Masked while it is installed: the package would start a store of its own, alone, on loopback, with data
# that then decides its membership.
if ! dpkg-query -W -f '${db:Status-Status}' etcd-server 2>/dev/null | grep -qx installed; then
    systemctl mask etcd.service
    apt-get -q install -y --no-install-recommends etcd-server
    systemctl unmask etcd.service
fi

install -d -m 0755 /etc/weft
cat >/etc/weft/etcd.env.new <<ENV
ETCD_NAME=$WEFT_NODE
ETCD_DATA_DIR=$data
ETCD_LISTEN_CLIENT_URLS=http://$address:2379,http://127.0.0.1:2379
ETCD_ADVERTISE_CLIENT_URLS=http://$address:2379
ETCD_LISTEN_PEER_URLS=http://$address:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://$address:2380
ETCD_INITIAL_CLUSTER=$initial
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_INITIAL_CLUSTER_TOKEN=weft-lab
ETCD_AUTO_COMPACTION_MODE=periodic
ETCD_AUTO_COMPACTION_RETENTION=1h
ENV
changed=no
if ! cmp -s /etc/weft/etcd.env.new /etc/weft/etcd.env; then changed=yes; fi
mv /etc/weft/etcd.env.new /etc/weft/etcd.env
install -d -m 0700 -o etcd -g etcd "$data"
install -D -m 0644 "$here/../systemd/etcd-weft.conf" /etc/systemd/system/etcd.service.d/weft.conf

systemctl enable etcd.service
if running_systemd; then
    systemctl daemon-reload
    # Not waited for: a first member of three is ready only when a second one has come.
    if [ "$changed" = yes ]; then
        systemctl restart --no-block etcd.service
    else
        systemctl start --no-block etcd.service
    fi
fi
echo "etcd.sh: $WEFT_NODE is a member of: $initial"
