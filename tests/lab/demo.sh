#!/usr/bin/env bash
# `make demo`: three hosts as network namespaces, a real etcd, a weftd on each host, and the story of drive.sh.
# Installs and builds what is missing. KEEP=1 leaves the lab up; UNDERLAY=v4|v6|dual (default v4).
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=${CARGO_TARGET_DIR:-target}/debug
make --no-print-directory -s setup
cargo build --locked -p weftd -p weft-cli -p weft-lab
bin=$(realpath "$bin")
as_root=()
[[ $EUID == 0 ]] || as_root=(sudo env "PATH=$PATH" "TERM=${TERM:-dumb}" ${NO_COLOR:+"NO_COLOR=$NO_COLOR"})
# Asked for here, where a person sees it, not in the background.
[[ $EUID == 0 ]] || sudo true

up=("${as_root[@]}" "$bin/weft-lab" up --hosts 3 --underlay "${UNDERLAY:-v4}" --bin-dir "$bin")
lab=''
finish() {
    local status=$?
    trap - EXIT
    trap '' INT TERM
    if [[ -z ${KEEP:-} ]]; then
        # The end of its input ends the lab; the sweep is for one that was interrupted while it was being built.
        if [[ -n ${holder_pid:-} ]]; then
            exec {hold}>&-
            wait "$holder_pid" || true
        fi
        "${as_root[@]}" "$bin/weft-lab" sweep
    elif [[ -n $lab ]]; then
        cat <<END

The lab stays up:
  $bin/weft-lab exec $lab 1 ip addr                  # in host 1 (its eth0 is the underlay)
  $bin/weft-lab exec $lab 1/blue bridge fdb show     # in network blue's namespace on host 1
  $bin/weft-lab exec $lab c-c1 ping 10.1.0.2         # in container c1
  $bin/weft-lab weft $lab 1 endpoint list            # ask host 1's agent
  $bin/weft-lab agent $lab 1 stop                    # or start, restart, kill: what it forwards stays
  WEFT_LAB=$lab $bin/weft-lab etcdctl get --prefix /weft/v1/
  tail -f /run/weft-lab/$lab/h1/weftd.log
  make lab-down                                      # take it down
END
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [[ -n ${KEEP:-} ]]; then
    environment=$("${up[@]}")
else
    # Held by its standard input: however this script ends, the lab ends with it.
    coproc HOLDER { exec "${up[@]}" --hold; }
    # shellcheck disable=SC2153 # set by coproc
    holder_pid=$HOLDER_PID
    exec {hold}>&"${HOLDER[1]}" {heard}<&"${HOLDER[0]}"
    # The copies of coproc itself, so that closing ours closes the last.
    eval "exec ${HOLDER[1]}>&- ${HOLDER[0]}<&-"
    environment=''
    while read -r line <&"$heard"; do
        environment+=$line$'\n'
        [[ $line != WEFT_LAB_BIN=* ]] || break
    done
    [[ $environment == *WEFT_LAB_BIN=* ]] || exit 1
fi
lab=$(sed -n 's/^WEFT_LAB=//p' <<<"$environment")
printf '%s\n' "Three hosts, one etcd, one weftd a host. The lab is $lab; host N is the namespace wl$lab-hN."
mapfile -t variables < <(grep '=' <<<"$environment")
"${as_root[@]}" env "${variables[@]}" "WEFT_LAB_CMD=$bin/weft-lab" ${KEEP:+"KEEP=$KEEP"} \
    bash tests/lab/drive.sh tests/lab/driver-namespaces.sh
