#!/usr/bin/env bash
# What every machine of the lab needs from Debian: the tools that look at a data plane, and etcd's client.
#
# Environment: none. Runs as root; may run again. Works in a chroot without systemd.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive

apt-get -q update
apt-get -q install -y --no-install-recommends \
    ca-certificates curl etcd-client iproute2 iputils-ping jq nftables procps tcpdump

# Debian's kernel has these as modules. A machine whose kernel lacks them cannot carry an overlay, and it is
# better to hear that now than from the agent.
install -D -m 0644 "$(dirname "$0")/../systemd/modules-load.conf" /etc/modules-load.d/weft.conf
if [ -d /run/systemd/system ]; then
    systemctl restart systemd-modules-load.service
fi
