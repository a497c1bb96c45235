#!/usr/bin/env bash
# Docker 20.10 on etcd, as two hosts on one machine: what weft is measured against. Needs root.
#
#   docker.sh fetch CACHE            downloads and unpacks docker.io, containerd and runc (Debian 12; installs nothing)
#   docker.sh up DIR CACHE           two daemons joined by an underlay, one etcd, one overlay network `ov`
#   docker.sh containers DIR CACHE HOST COUNT    running containers h<HOST>c0, h<HOST>c1, ... on host 1 or 2, in no network
#   docker.sh down DIR               ends and removes all of it
#
# The API of the daemon on host N is at DIR/hN/d.sock, the network namespaces of host N and of the switch between them are at
# DIR/netns/N and DIR/netns/sw. DIR has to be on a disk that overlayfs can be put on.
set -euo pipefail

say() { echo "docker.sh: $*" >&2; }

fetch() { # CACHE
    local cache=$1
    [[ -x $cache/root/usr/sbin/dockerd ]] && return
    command -v apt-get >/dev/null || { say "no apt-get to download Docker with"; return 1; }
    mkdir -p "$cache"
    (cd "$cache" && apt-get -qq download docker.io containerd runc >/dev/null 2>"$cache/apt.log") ||
        { say "apt-get cannot download docker.io: $(tail -1 "$cache/apt.log")"; return 1; }
    case $(echo "$cache"/docker.io_*.deb) in
        */docker.io_20.10.*) ;;
        *) say "this distribution's docker.io is not 20.10, the last with a cluster store"; return 1 ;;
    esac
    local package
    for package in "$cache"/*.deb; do dpkg-deb -x "$package" "$cache/root"; done
}

# Names of everything that is made, from the directory alone.
name() { echo "wbd$(basename "$1" | cksum | cut -d' ' -f1 | head -c 6)"; }

up() { # DIR CACHE
    local dir=$1 cache=$2 ns host tool
    ns=$(name "$dir")
    for tool in dockerd containerd runc; do
        [[ -n $(find "$cache/root/usr" -name "$tool" -type f) ]] || { say "no $tool in $cache"; return 1; }
    done
    [[ -d /sys/fs/cgroup/pids ]] || { say "needs version 1 control groups mounted at /sys/fs/cgroup"; return 1; }
    mkdir -p "$dir/netns"
    ip netns add "$ns-sw"
    ip -n "$ns-sw" link add br0 type bridge
    ip -n "$ns-sw" link set br0 up
    ln -s "/run/netns/$ns-sw" "$dir/netns/sw"
    for host in 1 2 100; do
        ip netns add "$ns-$host"
        ln -s "/run/netns/$ns-$host" "$dir/netns/$host"
        ip -n "$ns-$host" link set lo up
        ip -n "$ns-$host" link add eth0 type veth peer name "p$host" netns "$ns-sw"
        ip -n "$ns-sw" link set "p$host" master br0 up
        ip -n "$ns-$host" addr add "10.98.0.$host/24" dev eth0
        ip -n "$ns-$host" link set eth0 up
        # Leads nowhere; a daemon wants one.
        ip -n "$ns-$host" route add default via 10.98.0.254
    done
    nsenter --net="/run/netns/$ns-100" etcd --enable-v2 --name kv --data-dir "$dir/etcd" \
        --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://10.98.0.100:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --log-level error </dev/null >"$dir/etcd.log" 2>&1 &
    echo $! >"$dir/etcd.pid"
    for host in 1 2; do daemon "$dir" "$cache" "$host"; done
    wait_for 30 "etcd answers" nsenter --net="/run/netns/$ns-100" etcdctl --endpoints http://127.0.0.1:2379 endpoint health
    for host in 1 2; do
        wait_for 60 "the daemon on host $host answers: $(tail -1 "$dir/h$host/dockerd.log")" client "$cache" "$dir" "$host" version
    done
    client "$cache" "$dir" 1 network create --driver overlay --subnet 10.50.0.0/16 ov >/dev/null
    wait_for 20 "host 2 knows the network" client "$cache" "$dir" 2 network inspect ov
    local root=$dir/rootfs
    mkdir -p "$root"/{bin,lib64,etc,proc,sys,dev}
    # An image with nothing but something that waits.
    cp "$(command -v sleep)" "$root/bin/"
    ldd "$(command -v sleep)" | grep -o '/[^ ]*' | while read -r lib; do
        mkdir -p "$root$(dirname "$lib")"
        cp -L "$lib" "$root$lib"
    done
    tar -C "$root" -cf "$dir/rootfs.tar" .
    for host in 1 2; do
        client "$cache" "$dir" "$host" import "$dir/rootfs.tar" sleeper >/dev/null
    done
}

daemon() { # DIR CACHE HOST: a daemon in network, mount and host name spaces of its own
    local dir=$1 cache=$2 host=$3 h
    h=$(name "$dir")-$host
    mkdir -p "$dir/h$host/root" "$dir/h$host/exec"
    # shellcheck disable=SC2016
    nsenter --net="/run/netns/$h" unshare --mount --uts --propagation private bash -c '
        h=$1 d=$2 cache=$3 host=$4
        hostname "$h"
        for c in pids freezer; do mkdir -p "/sys/fs/cgroup/$c/$h"; echo $$ >"/sys/fs/cgroup/$c/$h/cgroup.procs"; done
        # A sysfs of this network namespace, with the control groups carried over: the daemon needs both.
        mount -t tmpfs tmpfs /run
        mkdir -p /run/docker/plugins /run/lock /run/cg
        mount --rbind /sys/fs/cgroup /run/cg
        mount -t sysfs sysfs /sys
        mount --rbind /run/cg /sys/fs/cgroup
        umount -l /run/cg
        export PATH=$cache/root/usr/sbin:$cache/root/usr/bin:$PATH
        exec dockerd --data-root "$d/root" --exec-root "$d/exec" -H "unix://$d/d.sock" --pidfile "$d/pid" \
            --cgroup-parent "/$h" --storage-driver overlay2 \
            --cluster-store etcd://10.98.0.100:2379 --cluster-advertise "10.98.0.$host:2376"
        ' _ "$h" "$dir/h$host" "$cache" "$host" </dev/null >"$dir/h$host/dockerd.log" 2>&1 &
    echo $! >"$dir/h$host/started.pid"
}

wait_for() { # SECONDS WHAT COMMAND...: until it succeeds
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { say "not in time: $what"; return 1; }
        sleep 0.1
    done
}

client() { # CACHE DIR HOST ARGS...
    local cache=$1 dir=$2 host=$3
    shift 3
    "$cache/root/usr/bin/docker" -H "unix://$dir/h$host/d.sock" "$@"
}

containers() { # DIR CACHE HOST COUNT
    local dir=$1 cache=$2 host=$3 count=$4 n
    for ((n = 0; n < count; n++)); do
        client "$cache" "$dir" "$host" run -d --name "h${host}c$n" --network none sleeper /bin/sleep 100000 >/dev/null
        # Only a container without that network may enter another.
        client "$cache" "$dir" "$host" network disconnect none "h${host}c$n"
    done
}

down() { # DIR
    local dir=$1 ns group round
    ns=$(name "$dir")
    for round in 1 2 3; do
        for group in "/sys/fs/cgroup/pids/$ns-1" "/sys/fs/cgroup/pids/$ns-2"; do
            [[ -d $group ]] || continue
            # Every process below is one of this run's.
            find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null | xargs -r kill -9 2>/dev/null || :
        done
        sleep 0.2
    done
    [[ ! -f $dir/etcd.pid ]] || kill "$(cat "$dir/etcd.pid")" 2>/dev/null || :
    local host
    for host in 1 2 100 sw; do ip netns del "$ns-$host" 2>/dev/null || :; done
    find /sys/fs/cgroup/*/ -depth -type d -path "*/$ns-*" -exec rmdir {} + 2>/dev/null || :
    rm -rf "$dir" 2>/dev/null || :
}

command=${1:-}
shift || :
case $command in
    fetch | up | containers | down) "$command" "$@" ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
