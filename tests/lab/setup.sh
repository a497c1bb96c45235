#!/usr/bin/env bash
# Installs what building, testing and the demonstration need, and only what is missing (Debian and its kin).
#
#   setup.sh [PROGRAM...]     programs that only the caller needs, each in a package of the same name
set -euo pipefail

needed=()
# need PACKAGE PATH-OR-COMMAND
need() {
    if [[ $2 == /* ]]; then [[ -e $2 ]] && return; else PATH=$PATH:/usr/sbin:/sbin command -v "$2" >/dev/null && return; fi
    needed+=("$1")
}
need etcd-server etcd
need etcd-client etcdctl
need protobuf-compiler protoc
# protoc's own include path is beside its program when it was installed by hand.
protoc=$(command -v protoc || echo /usr/bin/protoc)
well_known=google/protobuf/empty.proto
[[ -e $(dirname "$(dirname "$protoc")")/include/$well_known ]] || need libprotobuf-dev "/usr/include/$well_known"
need iproute2 ip
need iproute2 bridge
need iputils-ping ping
need util-linux nsenter
need tcpdump tcpdump
need nftables nft
need jq jq
# For tests that set one program's clock.
need libfaketime "$(compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' | head -n 1 || true)"
need make make
need build-essential cc
for program in "$@"; do need "$program" "$program"; done

if ((${#needed[@]})); then
    mapfile -t needed < <(printf '%s\n' "${needed[@]}" | sort -u)
    if ! command -v apt-get >/dev/null; then
        echo "missing: ${needed[*]} (names of Debian packages; there is no apt-get here: install them by hand)" >&2
        exit 1
    fi
    echo "installing ${needed[*]}"
    as_root=()
    [[ $EUID == 0 ]] || as_root=(sudo)
    log=$(mktemp)
    apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1; }
    # A package list that is there may do; a fresh one is fetched when it does not.
    if ! apt install -y --no-install-recommends "${needed[@]}" &&
        ! { apt update && apt install -y --no-install-recommends "${needed[@]}"; }; then
        cat "$log" >&2
        echo "could not install ${needed[*]}" >&2
        exit 1
    fi
    rm -f "$log"
fi

if ! command -v cargo >/dev/null; then
    echo "missing: cargo (Rust 1.90 or later): https://rustup.rs" >&2
    exit 1
fi
