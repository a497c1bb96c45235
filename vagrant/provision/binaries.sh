#!/usr/bin/env bash
# weftd and weft into /usr/local/bin: the binaries handed over, if they run here; else, where the source is,
# built from it.
#
# Debian 12's rustc (1.63) is too old for this source (see rust-version in Cargo.toml), so a build installs
# rustup's toolchain, with network access to rustup's and crates.io's servers.
#
# Environment:
#   WEFT_BIN_DIR      where handed-over binaries lie, if any (default /tmp/weft-bin)
#   WEFT_SOURCE       the source tree, if this machine may build (default: none)
#   WEFT_TOOLCHAIN    rustup toolchain for a build (default: 1.95.0)
# Runs as root; may run again.
set -euo pipefail

bin_dir=${WEFT_BIN_DIR:-/tmp/weft-bin}
source=${WEFT_SOURCE:-}
target=/var/cache/weft/target

# Does this binary run on this system? One built on a newer one asks for a newer C library and does not.
runs() { [ -f "$1" ] && chmod 0755 "$1" && "$1" --version >/dev/null 2>&1; }

install_from() {
    local name
    for name in weftd weft; do
        # Under a new inode: a running weftd goes on with its old one until it is restarted.
        install -m 0755 "$1/$name" "/usr/local/bin/.$name.new"
        mv "/usr/local/bin/.$name.new" "/usr/local/bin/$name"
    done
    echo "binaries.sh: from $1: $(/usr/local/bin/weftd --version), $(/usr/local/bin/weft --version)"
}

build() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q install -y --no-install-recommends \
        build-essential ca-certificates curl libprotobuf-dev pkg-config protobuf-compiler
    export CARGO_HOME=/var/cache/weft/cargo RUSTUP_HOME=/var/cache/weft/rustup
    export PATH=$CARGO_HOME/bin:$PATH
    if ! command -v cargo >/dev/null || ! rustup --version >/dev/null 2>&1; then
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o /tmp/rustup-init.sh
        sh /tmp/rustup-init.sh -y --no-modify-path --profile minimal --default-toolchain "${WEFT_TOOLCHAIN:-1.95.0}"
        rm -f /tmp/rustup-init.sh
    fi
    # A machine of 2 GB holds one optimising compiler at a time, hardly two.
    local jobs memory_kib
    memory_kib=$(awk '/^MemTotal:/ {print $2}' /proc/meminfo)
    jobs=$((memory_kib < 3500000 ? 1 : $(nproc)))
    (cd "$source" && CARGO_TARGET_DIR=$target cargo build --locked --release --jobs "$jobs" -p weftd -p weft-cli)
}

if runs "$bin_dir/weftd" && runs "$bin_dir/weft"; then
    install_from "$bin_dir"
elif [ -n "$source" ] && [ -f "$source/Cargo.toml" ]; then
    if [ -e "$bin_dir/weftd" ]; then
        echo "binaries.sh: the binaries handed over do not run here; building from $source" >&2
    fi
    build
    install_from "$target/release"
else
    echo "binaries.sh: no binaries in $bin_dir that run here, and no source to build from." >&2
    echo "binaries.sh: the first machine builds them: bring it up before the others." >&2
    exit 1
fi
