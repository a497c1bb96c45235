# shellcheck shell=bash
# Driver for tests/lab/drive.sh: the three Vagrant machines, over ssh. The interface is described in drive.sh.
#
#   tests/lab/drive.sh vagrant/driver-vagrant.sh
#
# Asks Vagrant once for its ssh configuration: a `vagrant ssh` for each command would cost seconds. WEFT_SSH_CONFIG=FILE: an ssh configuration that knows host1, host2 and host3, in
# place of Vagrant's; test-machines.sh uses that.

weft_ssh_dir=$(mktemp -d "${TMPDIR:-/tmp}/weft-ssh.XXXXXX")
weft_ssh_config=$weft_ssh_dir/config
if [ -n "${WEFT_SSH_CONFIG:-}" ]; then
    cat "$WEFT_SSH_CONFIG" >"$weft_ssh_config"
else
    # From this file's folder: Vagrant finds its machines by where it is called.
    (cd "$(dirname "${BASH_SOURCE[0]}")" && vagrant ssh-config host1 host2 host3) >"$weft_ssh_config" || {
        rm -rf "$weft_ssh_dir"
        echo "driver-vagrant.sh: are the machines up? (cd vagrant && vagrant up)" >&2
        exit 1
    }
fi
# One connection a machine, kept by a process of ssh's in the background until driver_close, or until it has been idle
# for ten minutes. It must hold none of this shell's descriptors, or whoever reads our output waits for it.
weft_ssh_socket=${weft_ssh_dir%/*}/weft-ssh-$$-%n
for weft_host in host1 host2 host3; do
    ssh -n -F "$weft_ssh_config" -o ControlMaster=yes -o "ControlPath=$weft_ssh_socket" -o ControlPersist=600 \
        "$weft_host" true >/dev/null 2>"$weft_ssh_dir/errors" || {
        cat "$weft_ssh_dir/errors" >&2
        rm -rf "$weft_ssh_dir"
        echo "driver-vagrant.sh: no ssh to $weft_host" >&2
        exit 1
    }
done
rm -rf "$weft_ssh_dir"

# Machines, emulated ones too, may be slow.
# shellcheck disable=SC2034  # read by drive.sh
PATIENCE=120

driver_close() {
    local host
    for host in host1 host2 host3; do
        ssh -F none -o "ControlPath=$weft_ssh_socket" -O exit "$host" 2>/dev/null || true
    done
}

# The remote shell would take the words apart again: each goes quoted. No command of a demonstration takes five
# minutes; one whose caller was interrupted ends by that.
on_host() {
    local line
    printf -v line '%q ' "${@:2}"
    ssh -n -F none -o "ControlPath=$weft_ssh_socket" -o LogLevel=ERROR "host$1" "sudo timeout 300 $line"
}

# host1 has a member of the store in both of WEFT_ETCD's ways.
kv() { on_host 1 env ETCDCTL_API=3 ETCDCTL_ENDPOINTS=http://127.0.0.1:2379 etcdctl "$@"; }

container_add() {
    on_host "$1" ip netns add "$2"
    on_host "$1" ip -n "$2" link set lo up
}
