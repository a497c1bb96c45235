#!/usr/bin/env bash
# Runs the provisioning scripts for real, in a Debian 12 system of its own (debootstrap, chroot, with mount,
# process and, for what listens, network namespaces of its own), and checks what they leave behind. README.md
# says what this shows and what it cannot.
#
#   sudo vagrant/test-provision.sh
#
# Needs root, debootstrap, and the Debian mirror of this machine's apt (or WEFT_MIRROR=URL); about two minutes
# and 1 GB under TMPDIR. Removes what it made, also on Ctrl-C.
#
# Environment:
#   WEFT_BIN   folder with weftd and weft (default: ../target/release). Without them a stand-in that only
#              answers --version is installed: the scripts and the unit are tested, the agent is not.
# shellcheck disable=SC2016  # what stands in single quotes is expanded in the chroot
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cluster=host1=192.168.56.11,host2=192.168.56.12,host3=192.168.56.13
passed=0
failed=0

say() { printf '\n== %s\n' "$*"; }

# check "what must hold" command…
check() {
    local what=$1
    shift
    if "$@" >"$work/check.out" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what   ($*)"
        sed 's/^/        /' "$work/check.out"
    fi
}

refuses() { ! "$@"; }

in_root() { chroot "$work/root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"; }

# provision SCRIPT NODE ETCD [NAME=VALUE…]: as Vagrant's shell provisioner runs it.
provision() {
    local script=$1 node=$2 etcd=$3
    shift 3
    in_root WEFT_NODE="$node" WEFT_ETCD="$etcd" WEFT_CLUSTER="$cluster" "$@" \
        bash "/weft/vagrant/provision/$script.sh" >"$work/$script.log" 2>&1 || {
        sed 's/^/        /' "$work/$script.log"
        return 1
    }
}

has_line() { in_root grep -qxF "$2" "$1"; }

# Is this file TOML with these values? (jq-like, without needing a TOML tool of Debian's in the chroot)
toml_says() {
    python3 - "$work/root/etc/weft/weftd.toml" "$@" <<'PY'
import sys, tomllib
config = tomllib.load(open(sys.argv[1], "rb"))
node, address, *endpoints = sys.argv[2:]
assert config["node"] == node, config["node"]
assert config["underlay"]["addresses"] == [address], config["underlay"]
assert config["etcd"]["endpoints"] == [f"http://{e}:2379" for e in endpoints], config["etcd"]
PY
}

prepare() {
    work=$1
    mount --make-rprivate /
    mount -t proc proc "$work/root/proc"
    mount -t sysfs -o ro sysfs "$work/root/sys"
    mount -t tmpfs -o mode=0755 tmpfs "$work/root/run"
    mount --rbind /dev "$work/root/dev"
    mkdir -p "$work/root/weft/vagrant" "$work/root/tmp/weft-bin"
    mount --bind "$here" "$work/root/weft/vagrant"
    mount -o remount,ro,bind "$work/root/weft/vagrant"
    # What Vagrant's machines have from their box: names of servers, the time.
    cp /etc/resolv.conf "$work/root/etc/resolv.conf"

    local bin=${WEFT_BIN:-$here/../target/release}
    if [ -x "$bin/weftd" ] && [ -x "$bin/weft" ]; then
        cp "$bin/weftd" "$bin/weft" "$work/root/tmp/weft-bin/"
        agent=real
    else
        printf '#!/bin/sh\necho "stand-in 0"\n' | tee "$work/root/tmp/weft-bin/weftd" >"$work/root/tmp/weft-bin/weft"
        agent=stand-in
    fi
}

test_packages() {
    say "packages.sh"
    check "installs the tools" provision packages host1 one
    check "etcdctl, ip, nft, tcpdump, jq are there" in_root sh -c 'command -v etcdctl ip nft tcpdump jq'
    check "again" provision packages host1 one
}

test_etcd() {
    say "etcd.sh"
    check "host2 of WEFT_ETCD=one gets no etcd" provision etcd host2 one
    check "… indeed none" refuses in_root dpkg-query -s etcd-server
    check "host1 of WEFT_ETCD=one" provision etcd host1 one
    check "the package did not make a store of its own" in_root test ! -e /var/lib/etcd/default/member
    check "enabled, not masked" in_root sh -c '[ "$(systemctl is-enabled etcd.service)" = enabled ]'
    check "one member" has_line /etc/weft/etcd.env ETCD_INITIAL_CLUSTER=host1=http://192.168.56.11:2380
    check "unit and drop-in verify" in_root systemd-analyze verify --man=no etcd.service
    check "again" provision etcd host1 one
    check "a change of members is refused" refuses provision etcd host1 all
    check "… unless asked for" provision etcd host1 all WEFT_ETCD_RESET=1
    check "a wrong WEFT_ETCD is refused" refuses provision etcd host1 two
    check "a node outside the cluster is refused" refuses provision etcd host9 all

    # Three members, from the files the script wrote for each, in a network namespace with their addresses.
    local node
    for node in host1 host2 host3; do
        check "$node of WEFT_ETCD=all" provision etcd "$node" all
        cp "$work/root/etc/weft/etcd.env" "$work/root/root/$node.env"
    done
    check "the three files make a cluster of three" unshare --net "$0" --members "$work"
    check "a former member goes back to having no etcd" provision etcd host2 one
    check "… its service disabled" in_root sh -c '[ "$(systemctl is-enabled etcd.service)" = disabled ]'
    check "back to one member" provision etcd host1 one
}

# In a network namespace of its own: the three members by hand, until each says it is healthy.
members() {
    work=$1
    local pids=() node rc=1
    ip link set lo up
    for node in 11 12 13; do ip addr add "192.168.56.$node/24" dev lo; done
    for node in host1 host2 host3; do
        in_root install -d -m 0700 -o etcd -g etcd "/root/members" "/tmp/$node.data"
        in_root bash -c "set -a; . /root/$node.env; ETCD_DATA_DIR=/tmp/$node.data
            # Loopback is one for the three here.
            ETCD_LISTEN_CLIENT_URLS=\$ETCD_ADVERTISE_CLIENT_URLS
            exec setpriv --reuid etcd --regid etcd --clear-groups etcd" >"$work/$node.log" 2>&1 &
        pids+=($!)
    done
    local deadline=$((SECONDS + 60))
    while [ "$SECONDS" -lt "$deadline" ]; do
        if in_root ETCDCTL_API=3 etcdctl --endpoints http://192.168.56.13:2379 endpoint health --cluster 2>&1 |
            tee "$work/health" | grep -c 'is healthy' | grep -qx 3; then
            rc=0
            break
        fi
        sleep 0.2
    done
    cat "$work/health"
    [ "$rc" = 0 ] || tail -n 5 "$work"/host?.log
    kill "${pids[@]}"
    wait
    return "$rc"
}

test_binaries() {
    say "binaries.sh ($agent binaries)"
    check "installs the binaries handed over" provision binaries host1 one
    check "they run" in_root sh -c 'weftd --version && weft --version'
    check "without binaries and source it says so" refuses provision binaries host2 one WEFT_BIN_DIR=/nowhere
    # As one from a computer with a newer C library: there, and not running.
    printf 'no program\n' >"$work/root/tmp/broken"
    in_root sh -c 'mkdir -p /tmp/broken-bin && cp /tmp/broken /tmp/broken-bin/weftd && cp /tmp/broken /tmp/broken-bin/weft'
    check "binaries that do not run are not installed" refuses provision binaries host2 one WEFT_BIN_DIR=/tmp/broken-bin
    check "… and the old ones are still there" in_root weftd --version
}

test_weftd() {
    say "weftd.sh and the unit"
    check "host1, one store" provision weftd host1 one
    check "its configuration" toml_says host1 192.168.56.11 192.168.56.11
    check "host3, store on all" provision weftd host3 all
    check "its configuration" toml_says host3 192.168.56.13 192.168.56.11 192.168.56.12 192.168.56.13
    check "again" provision weftd host3 all
    check "the group weft exists" in_root getent group weft
    check "the operator is in it" in_root sh -c 'id -nG vagrant | grep -qw weft'
    check "/run/netns is there, readable" in_root sh -c '[ "$(stat -c %a:%U /run/netns)" = 755:root ]'
    check "enabled" in_root sh -c '[ "$(systemctl is-enabled weftd.service)" = enabled ]'
    check "the unit verifies without a word" in_root sh -c '[ -z "$(systemd-analyze verify weftd.service 2>&1)" ]'
    check "nothing in it makes a mount namespace" refuses in_root grep -qE \
        '^(Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)|ProcSubset|Private(Tmp|Devices|Mounts|IPC|Users|Network)|MountFlags|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths|TemporaryFileSystem|Root(Directory|Image)|MountImages|Extension(Images|Directories)|LogNamespace|DynamicUser)=' \
        /etc/systemd/system/weftd.service
    # 10 is a unit with no protection, 0 one with all of it. The half that is about the file system is out of
    # reach for weftd; this holds the rest in place.
    check "systemd's exposure score is at most 4.7" in_root systemd-analyze security --offline=true --threshold=47 weftd.service
    in_root systemd-analyze security --offline=true weftd.service --no-pager | tail -n 1
    if [ "$agent" = real ]; then
        check "weftd takes the configuration (it has no store here: it must wait, not fail on it)" \
            unshare --net "$0" --start "$work"
    fi
}

# weftd with the configuration of host1, in a network namespace with its address and no store: it must run on
# and say that the store is away, and end cleanly when asked.
start() {
    work=$1
    ip link set lo up
    ip addr add 192.168.56.13/24 dev lo
    mkdir -p "$work/root/run/weft" "$work/root/var/lib/weft"
    chroot "$work/root" weftd --config /etc/weft/weftd.toml >"$work/weftd.log" 2>&1 &
    local pid=$! rc=0
    local deadline=$((SECONDS + 10))
    until [ -S "$work/root/run/weft/weftd.sock" ] || [ "$SECONDS" -ge "$deadline" ]; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/weftd.log"
    kill -0 "$pid" || return 1
    [ -S "$work/root/run/weft/weftd.sock" ] || rc=1
    kill "$pid"
    wait "$pid" || rc=$?
    [ "$rc" = 0 ] || echo "it ended with $rc"
    return "$rc"
}

inside() {
    prepare "$1"
    test_packages
    test_etcd
    test_binaries
    test_weftd
    [ "$agent" = real ] || printf '\nNo weftd and weft in %s: a stand-in took their place.\n' "${WEFT_BIN:-target/release}"
    printf '\n%d passed, %d failed\n' "$passed" "$failed"
    [ "$failed" = 0 ]
}

case ${1:-} in
    --inside) inside "$2" ;;
    --members) members "$2" ;;
    --start) start "$2" ;;
    "")
        work=$(mktemp -d "${TMPDIR:-/tmp}/weft-provision.XXXXXX")
        # One file system: a mount left behind by accident is not followed.
        trap 'rm -rf --one-file-system "$work"' EXIT
        trap 'exit 130' INT TERM
        say "a Debian 12 system in $work/root"
        "$here/test/debian-root.sh" "$work/root"
        unshare --mount --pid --fork --uts --ipc --kill-child "$0" --inside "$work"
        ;;
    *)
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
        exit 2
        ;;
esac
