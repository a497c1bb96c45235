# shellcheck shell=bash
# Driver for drive.sh: a lab of namespaces on this machine, made by `weft-lab up`. The interface is described in
# drive.sh. Expects the variables that `weft-lab up` prints, and WEFT_LAB_CMD: the program itself.

on_host() { "$WEFT_LAB_CMD" exec "$WEFT_LAB" "$1" -- "${@:2}" </dev/null; }
kv() { WEFT_LAB=$WEFT_LAB "$WEFT_LAB_CMD" etcdctl -- "$@" </dev/null; }

# All hosts share this machine's /run/netns: names carry the lab's own prefix there.
container_add() { "$WEFT_LAB_CMD" container "$WEFT_LAB" "$2"; }
container_del() { "$WEFT_LAB_CMD" container "$WEFT_LAB" "$2" --remove; }
container_netns() { echo "/run/netns/${WEFT_LAB_PREFIX}c-$2"; }
in_container() { "$WEFT_LAB_CMD" exec "$WEFT_LAB" "c-$2" -- "${@:3}" </dev/null; }
network_netns() { echo "$WEFT_LAB_DIR/h$1/netns/weft-$2"; }
