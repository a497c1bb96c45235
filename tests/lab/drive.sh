#!/usr/bin/env bash
# The demonstration: drives a lab of three hosts with nothing but `etcdctl put` and `etcdctl del`, and shows what
# the agents make of it. It does not know what the hosts are: a driver file says how to reach them.
#
#   drive.sh DRIVER      source DRIVER, tell the story, remove what was made (KEEP=1: leave it)
#
# A driver is a bash file that defines
#
#   on_host N CMD...          run CMD as root on host N (1, 2, 3), in the host's own network namespace. Arguments arrive
#                             unchanged (over ssh: quote them with printf %q); standard input is not used
#   kv ARGS...                etcdctl, API 3, against the cluster's etcd
#   container_add N NAME      on host N make a "container": a network namespace with loopback up, nothing else
#
# and may define, where these defaults do not fit:
#
#   container_del N NAME      default: on_host N ip netns del NAME
#   container_netns N NAME    print the container's path as the agent of host N sees it; default: /run/netns/NAME
#   in_container N NAME CMD.. run CMD in the container; default: on_host N ip netns exec NAME CMD...
#   network_netns N NETWORK   print the path of the network's namespace on host N; default: /run/netns/weft-NETWORK
#   node_name N               print the node name of host N; default: hostN
#
#   driver_close              called at the very end; default: nothing
#
# and may set PREFIX (default /weft/v1/) and PATIENCE (seconds until a wait fails; default 20). Agents and etcd run before this starts. bash, ip, bridge, ping, nsenter.
set -euo pipefail

driver=${1:?usage: drive.sh DRIVER}
PREFIX=/weft/v1/
PATIENCE=20
NETWORK=blue

# The defaults; a driver may define its own in their place.
# shellcheck disable=SC2329
{
    container_del() { on_host "$1" ip netns del "$2"; }
    container_netns() { echo "/run/netns/$2"; }
    in_container() { on_host "$1" ip netns exec "${@:2}"; }
    network_netns() { echo "/run/netns/weft-$2"; }
    node_name() { echo "host$1"; }
    driver_close() { :; }
}

# shellcheck source=tests/lab/driver-namespaces.sh
source "$driver"

# --- how it looks ---------------------------------------------------------------------------------------------

if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' cyan=$'\e[36m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' yellow='' cyan='' plain=''
fi
step=0
chapter() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" "$step" "$1" "$plain"; }
say() { printf '   %s%s%s\n' "$dim" "$1" "$plain"; }
shown() { printf '   %s$ %s%s\n' "$yellow" "$*" "$plain"; }
good() { printf '   %s✓%s %s\n' "$green" "$plain" "$1"; }
die() { printf '%s✗ %s%s\n' "$red" "$1" "$plain" >&2; exit 1; }
indent() { sed 's/^[[:space:]]*/     /; s/[[:space:]]*$//'; }
# What stands out in a listing: addresses of the underlay, which are what the overlay hides.
marked() { sed -E "s/(dst|local) ([0-9a-f.:]+)/\1 ${cyan}\2${plain}/" | indent; }

# --- the few verbs of the story -------------------------------------------------------------------------------

put() { shown "etcdctl put $PREFIX$1 '$2'"; kv put "$PREFIX$1" "$2" >/dev/null; }
del() { shown "etcdctl del $PREFIX$1"; kv del "$PREFIX$1" >/dev/null; }
endpoint_key() { echo "endpoints/$NETWORK/$(node_name "$1")/$2"; }
attachment() { printf '{"attachment":{"netns":"%s"}}' "$(container_netns "$1" "$2")"; }
in_network() { local n=$1; shift; on_host "$n" nsenter "--net=$(network_netns "$n" "$NETWORK")" "$@"; }
# address N NAME 4|6: the container's address on eth0, nothing while it has none.
address() {
    local family=inet
    [[ $3 == 6 ]] && family=inet6
    { in_container "$1" "$2" ip -o addr show dev eth0 scope global 2>/dev/null || true; } |
        awk -v family="$family" '$3 == family && !/tentative/ { sub("/.*", "", $4); print $4; exit }'
}
mac() { in_container "$1" "$2" ip -o link show dev eth0 | sed -E 's/.*link\/ether ([0-9a-f:]+).*/\1/'; }
has_both() { [[ -n $(address "$1" "$2" 4) && -n $(address "$1" "$2" 6) ]]; }
# entries N MAC: what host N has for it, tunnel's entries and neighbours.
entries() { { in_network "$1" bridge fdb show && in_network "$1" ip neigh show nud all; } 2>/dev/null | grep -F "$2"; }
# knows N MAC: host N has the tunnel's entry for it, and the neighbours of both families.
knows() {
    local found
    found=$(entries "$@") && [[ $found == *" dst "* && $(grep -c lladdr <<<"$found") == 2 ]]
}
knows_not() { ! entries "$@" >/dev/null; }
# wait_for WHAT CMD...: until CMD succeeds.
wait_for() {
    local what=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@"; do
        ((SECONDS < end)) || die "not within $PATIENCE seconds: $what"
        sleep 0.02
    done
}
# ping_ms N NAME ADDRESS: the round trip in milliseconds; fails without an answer.
ping_ms() {
    in_container "$1" "$2" ping -n -c 2 -i 0.1 -W 2 "$3" 2>/dev/null |
        sed -nE 's/.*time=([0-9.]+) ms.*/\1/p' | tail -1 | grep .
}

containers=()
made=()
new_container() {
    container_add "$1" "$2" >/dev/null
    containers+=("$1 $2")
}
finish() {
    local status=$? entry
    trap - EXIT
    trap '' INT TERM
    [[ -n ${prober:-} ]] && kill -- "-$prober" 2>/dev/null
    [[ -n ${answered:-} ]] && rm -f "$answered"
    if [[ -z ${KEEP:-} ]]; then
        for entry in "${made[@]}"; do kv del "$PREFIX$entry" >/dev/null 2>&1; done
        for entry in "${containers[@]}"; do
            # shellcheck disable=SC2086 # two words: host and name
            container_del $entry >/dev/null 2>&1
        done
    fi
    driver_close
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the story ------------------------------------------------------------------------------------------------

chapter "A network is one key in etcd"
made+=("networks/$NETWORK")
put "networks/$NETWORK" '{"subnets":[{"cidr":"10.1.0.0/16"},{"cidr":"fd00:1::/64"}]}'

chapter "A container on each host, attached by one key each"
say "A container is a network namespace. No agent is called: each host's weftd watches etcd and fills in what is"
say "missing (network number, addresses, MAC) by compare-and-swap, so that no two hosts can take the same."
for n in 1 2 3; do
    new_container "$n" "c$n"
    made+=("$(endpoint_key "$n" "c$n")")
    put "$(endpoint_key "$n" "c$n")" "$(attachment "$n" "c$n")"
done
for n in 1 2 3; do
    wait_for "c$n has its addresses" has_both "$n" "c$n"
    good "c$n on $(node_name "$n"): $(address "$n" "c$n" 4)  $(address "$n" "c$n" 6)  $(mac "$n" "c$n")"
done
for n in 1 2 3; do
    for m in 1 2 3; do
        [[ $n == "$m" ]] || wait_for "$(node_name "$n") forwards to c$m" knows "$n" "$(mac "$m" "c$m")"
    done
done

chapter "What the agents programmed into their kernels"
say "Each host keeps the network in a namespace of its own. The tunnel's end (VTEP) is a VXLAN device in there: it"
say "wraps Ethernet frames in UDP to another host, marked with the network's number (VNI, here after \"id\")."
shown "ip -d link show type vxlan        # on $(node_name 1)"
in_network 1 ip -d link show type vxlan |
    awk '/^[0-9]+:/ { name = $2 } $1 == "vxlan" { line = ""; for (i = 1; i <= NF; i++) {
            if ($i == "id" || $i == "local" || $i == "dstport" || $i == "dev") line = line " " $i " " $(++i)
            if ($i == "nolearning") line = line " nolearning" }
        sub("[@:].*", "", name); print name ": vxlan" line }' | marked
say "A bridge joins it with the containers:"
shown "ip link show master br0"
in_network 1 ip -o link show master br0 |
    sed -E 's/^[0-9]+: ([^:@]+).*alias (.*)/\1  \2/; s/^[0-9]+: ([^:@]+).*/\1/' | marked
say "Which MAC is behind which host: the forwarding database (FDB). Written from etcd, never learned from traffic."
for n in 1 2 3; do
    shown "bridge fdb show | grep dst         # on $(node_name "$n")"
    in_network "$n" bridge fdb show | grep ' dst ' | sed 's/ link-netnsid [0-9]*//' | sort | marked
done
say "Which address has which MAC: neighbours. The bridge answers ARP and ND from them (neighbour suppression), so no"
say "broadcast ever crosses the underlay."
shown "ip neigh show dev br0 nud all | grep extern_learn        # on $(node_name 1)"
in_network 1 ip neigh show dev br0 nud all | grep extern_learn | sort | marked

chapter "Every container reaches every other"
for n in 1 2 3; do
    for m in 1 2 3; do
        [[ $n == "$m" ]] && continue
        line="c$n → c$m "
        for family in 4 6; do
            to=$(address "$m" "c$m" "$family")
            ms=$(ping_ms "$n" "c$n" "$to") || die "c$n cannot ping c$m at $to"
            line+="  $to $ms ms"
        done
        good "$line"
    done
done

chapter "From put to the first answered ping"
target=$(address 1 c1 4)
new_container 2 late
say "A new container on $(node_name 2) tries c1 without a pause; nobody has attached it yet. Now:"
answered=$(mktemp)
# The clock is read on the host of the prober both times. A process group of its own (-m), to be ended as a whole.
set -m
# shellcheck disable=SC2016 # expanded over there
in_container 2 late timeout "$PATIENCE" bash -c \
    'until ping -n -q -c 1 -W 1 "$0" >/dev/null 2>&1; do :; done; date +%s%N' "$target" >"$answered" &
prober=$!
set +m
made+=("$(endpoint_key 2 late)")
record=$(attachment 2 late)
start=$(on_host 2 date +%s%N)
before=$(date +%s%N)
kv put "$PREFIX$(endpoint_key 2 late)" "$record" >/dev/null
after=$(date +%s%N)
shown "etcdctl put $PREFIX$(endpoint_key 2 late) '$record'"
wait "$prober" || die "c1 never answered"
prober=
milliseconds() { printf '%d.%d' $(($1 / 1000000)) $(($1 / 100000 % 10)); }
good "${bold}$(milliseconds $(($(cat "$answered") - start))) ms${plain} from starting etcdctl to the first answer ($(milliseconds $((after - before))) ms of them etcdctl itself)"

chapter "Delete a key, and it is gone everywhere"
gone=$(mac 3 c3)
to=$(address 3 c3 4)
del "$(endpoint_key 3 c3)"
for n in 1 2 3; do
    wait_for "$(node_name "$n") forgets $gone" knows_not "$n" "$gone"
    good "$(node_name "$n") no longer knows $gone"
done
if ping_ms 1 c1 "$to" >/dev/null; then die "c3 still answers at $to"; fi
good "c1 → c3  $to: no answer"
claim_gone() { [[ -z $(kv get --keys-only "${PREFIX}addresses/$NETWORK/$to") ]]; }
wait_for "the claim of $to is released" claim_gone
good "$to is free for another endpoint"
ms=$(ping_ms 1 c1 "$(address 2 c2 4)") || die "c1 lost c2"
good "c1 → c2  untouched ($ms ms)"
