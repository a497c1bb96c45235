#!/usr/bin/env bash
# On a machine where weftd runs under systemd: is the running process confined as weftd.service says, and does what
# it made belong to the host and stay when it goes? Stops and starts the service.
#
#   sudo vagrant/check-unit.sh [NETWORK]     NETWORK: one this host has an endpoint in
set -euo pipefail

network=${1:-}
passed=0
failed=0

check() {
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what   ($*)"
    fi
}

main_pid() { systemctl show -p MainPID --value weftd.service; }
is() { [ "$1" = "$2" ] || { echo "        is '$1', not '$2'" >&2; return 1; }; }
status_line() { awk -v key="$1:" '$1 == key {print $2}' "/proc/$(main_pid)/status"; }
same_namespace() { is "$(readlink "/proc/$(main_pid)/ns/$1")" "$(readlink "/proc/1/ns/$1")"; }
mounted() { grep -q " /run/netns/weft-$network " /proc/1/mountinfo; }
# The data plane of the network, as the kernel tells it: devices by index, forwarding and neighbour entries.
picture() {
    ip -n "weft-$network" -o link show | awk '{print $1, $2}'
    ip netns exec "weft-$network" bridge fdb show | sort
    ip -n "weft-$network" neigh show nud permanent nud noarp | sort
}
wait_active() {
    local deadline=$((SECONDS + 30))
    until [ "$(systemctl is-active weftd.service)" = active ]; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

check "the unit is active: its first pass is done" wait_active
check "it shares the host's mount namespace" same_namespace mnt
check "it shares the host's network namespace" same_namespace net
own_namespace() { [ "$(readlink "/proc/$(main_pid)/ns/$1")" != "$(readlink "/proc/1/ns/$1")" ]; }
check "it has a UTS namespace of its own" own_namespace uts
# CAP_CHOWN 0, CAP_NET_BROADCAST 11, CAP_NET_ADMIN 12, CAP_NET_RAW 13, CAP_SYS_ADMIN 21
capabilities=$(printf '%016x' $((1 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 21)))
check "its capabilities, bounding" is "$(status_line CapBnd)" "$capabilities"
check "its capabilities, effective" is "$(status_line CapEff)" "$capabilities"
check "it cannot gain any" is "$(status_line NoNewPrivs)" 1
check "system calls are filtered" is "$(status_line Seccomp)" 2
check "the socket is the group weft's" is "$(stat -c %a:%U:%G /run/weft/weftd.sock)" 660:root:weft
check "a member of the group may ask" runuser -u vagrant -g weft -- weft status -o json >/dev/null
refuses() { ! "$@" >/dev/null 2>&1; }
check "nobody else may" refuses runuser -u nobody -- weft status -o json
check "/run/netns stays readable" is "$(stat -c %a /run/netns)" 755

if [ -n "$network" ]; then
    check "the network's namespace is mounted in the host" mounted
    before=$(picture)
    systemctl stop weftd.service
    check "stopped: still mounted" mounted
    check "stopped: the same devices and entries" is "$(picture)" "$before"
    systemctl start weftd.service
    check "started: active" wait_active
    check "started: the same devices and entries" is "$(picture)" "$before"
    pid=$(main_pid)
    kill -KILL "$pid"
    check "killed: still mounted" mounted
    check "killed: the same devices and entries" is "$(picture)" "$before"
    restarted() { [ "$(main_pid)" != "$pid" ] && [ "$(main_pid)" != 0 ] && [ "$(systemctl is-active weftd.service)" = active ]; }
    deadline=$((SECONDS + 30))
    until restarted || [ "$SECONDS" -ge "$deadline" ]; do sleep 0.1; done
    check "killed: systemd started it again" restarted
    check "killed: the same devices and entries afterwards" is "$(picture)" "$before"
fi

# What the unit refuses and weftd wanted fails with EPERM; weftd logs its failures.
refusals() { journalctl -q -b -u weftd.service --no-pager | grep -iE 'not permitted|EPERM' || true; }
check "its log names nothing that was not permitted" is "$(refusals)" ""

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
