#!/usr/bin/env bash
# A Debian 12 system in a new directory: what the Vagrant box is before provisioning, near enough.
#
#   debian-root.sh DIR [PACKAGE…]
#
# The mirror is the one this machine's apt uses for Debian bookworm; on a machine with other sources, say it:
# WEFT_MIRROR=URL. Needs root and debootstrap. DIR must not exist; whoever calls this removes it.
set -euo pipefail

root=${1:?debian-root.sh DIR [PACKAGE…]}
shift
[ ! -e "$root" ] || { echo "debian-root.sh: $root exists" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "debian-root.sh: needs root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "debian-root.sh: needs debootstrap (apt-get install debootstrap)" >&2; exit 1; }

mirror=${WEFT_MIRROR:-}
if [ -z "$mirror" ]; then
    # shellcheck disable=SC2016  # apt-get expands these
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(LABEL) $(CREATED_BY)' |
        awk '$2 == "bookworm" && $3 == "Debian" && $4 == "Packages" {print $1; exit}')
    [ -n "$mirror" ] || {
        echo "debian-root.sh: this machine's apt has no source for Debian bookworm (apt-get update?); set WEFT_MIRROR=URL" >&2
        exit 1
    }
fi

include=systemd,systemd-sysv,dbus,ca-certificates,iproute2,sudo,kmod,udev
for package in "$@"; do include+=,$package; done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! debootstrap --variant=minbase --include="$include" bookworm "$root" "$mirror" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "debian-root.sh: debootstrap failed" >&2
    exit 1
fi
# Each machine that starts from this makes its own at its first boot. With one identity for all, a DHCP server gives all
# of them one address.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
# The box's account.
chroot "$root" useradd -m -s /bin/bash vagrant
