#!/usr/bin/env bash
# weftd as a service: its group, directories, configuration and unit; started unless it has nothing to run in.
#
# Environment:
#   WEFT_ETCD      one | all: which machines are etcd's members
#   WEFT_NODE      this machine's name, one of those in WEFT_CLUSTER
#   WEFT_CLUSTER   host1=192.168.56.11,host2=192.168.56.12,…  every machine, the first one first
#   WEFT_OPERATOR  an account that may use the agent's socket (default: vagrant, if there is one)
# Runs as root, after binaries.sh; may run again.
set -euo pipefail

: "${WEFT_ETCD:?one or all}" "${WEFT_NODE:?}" "${WEFT_CLUSTER:?}"
here=$(dirname "$0")

die() {
    echo "weftd.sh: $*" >&2
    exit 1
}

running_systemd() { [ -d /run/systemd/system ]; }

IFS=, read -ra machines <<<"$WEFT_CLUSTER"
address=
for machine in "${machines[@]}"; do
    [ "${machine%%=*}" != "$WEFT_NODE" ] || address=${machine#*=}
done
[ -n "$address" ] || die "WEFT_CLUSTER names no $WEFT_NODE: $WEFT_CLUSTER"
[ "$WEFT_ETCD" = all ] || machines=("${machines[0]}")
endpoints=
for machine in "${machines[@]}"; do
    endpoints+=${endpoints:+, }\"http://${machine#*=}:2379\"
done

install -D -m 0644 "$here/../systemd/sysusers.conf" /etc/sysusers.d/weft.conf
install -D -m 0644 "$here/../systemd/tmpfiles.conf" /etc/tmpfiles.d/weft.conf
systemd-sysusers /etc/sysusers.d/weft.conf
systemd-tmpfiles --create /etc/tmpfiles.d/weft.conf
operator=${WEFT_OPERATOR:-vagrant}
if id "$operator" >/dev/null 2>&1; then
    usermod -aG weft "$operator"
fi

# The lines marked "per machine" of the example, each exactly once.
install -d -m 0755 /etc/weft
example=$here/../weftd.toml
for key in node endpoints addresses; do
    [ "$(grep -c "^$key = .*# per machine" "$example")" = 1 ] || die "$example: not one line '$key = … # per machine'"
done
sed -e "s|^node = .*# per machine.*|node = \"$WEFT_NODE\"|" \
    -e "s|^endpoints = .*# per machine.*|endpoints = [$endpoints]|" \
    -e "s|^addresses = .*# per machine.*|addresses = [\"$address\"]|" \
    "$example" >/etc/weft/weftd.toml
chmod 0644 /etc/weft/weftd.toml

install -m 0644 "$here/../systemd/weftd.service" /etc/systemd/system/weftd.service
systemd-analyze verify /etc/systemd/system/weftd.service
systemctl enable weftd.service
if running_systemd; then
    systemctl daemon-reload
    # Not waited for: it is ready when etcd has answered, and etcd may need a machine that is yet to come.
    systemctl restart --no-block weftd.service
fi
echo "weftd.sh: $WEFT_NODE at $address, store at $endpoints"
