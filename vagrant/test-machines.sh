#!/usr/bin/env bash
# The lab of the Vagrantfile without Vagrant: three Debian 12 machines under qemu, each with an uplink and a private
# network, provisioned over ssh by the same scripts, driven by the same driver and tests/lab/drive.sh, and the
# hardened unit checked on each. README.md says what this shows and what it cannot.
#
#   sudo vagrant/test-machines.sh [provision|drive|check|shell]...     (default: provision drive check)
#
#   provision   run the provisioning scripts on the three machines, as `vagrant up` would
#   drive       tests/lab/drive.sh over driver-vagrant.sh
#   check       check-unit.sh on each machine, with a network that has an endpoint there; then a reboot of host3
#   shell       wait at a prompt, with WEFT_SSH_CONFIG set, before taking it all down
#
# Needs root, debootstrap, qemu-system-x86, qemu-utils, openssh-client, jq, e2fsprogs, the Debian mirror of this
# machine's apt (the machines use it too), and release binaries that run on Debian 12 in ../target/release (or
# WEFT_BIN). 5 GB under TMPDIR and 3 GB of memory. The processors are emulated, so that it runs where there is no
# KVM: ten minutes and more. Removes what it made, also on Ctrl-C.
#
# Environment:
#   WEFT_ETCD=one|all          where etcd runs                                          (one)
#   WEFT_MEMORY, WEFT_CPUS     MB of memory and processors of each machine              (1024, 1)
#   WEFT_ACCEL=tcg|kvm         kvm is faster, where it works                            (tcg)
#   WEFT_BIN                   the folder of the binaries                               (../target/release)
#   WEFT_MIRROR                the Debian mirror, if apt's is not to be used
#   WEFT_IMAGE=FILE            keep the installed system in FILE, and start from it when it is there already
# shellcheck disable=SC2317  # functions given to wait_for
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
etcd=${WEFT_ETCD:-one}
bin=${WEFT_BIN:-$here/../target/release}
cluster=host1=192.168.56.11,host2=192.168.56.12,host3=192.168.56.13
work=
pids=()

say() { printf '\n== %s\n' "$*"; }
die() {
    echo "test-machines.sh: $*" >&2
    exit 1
}

finish() {
    local status=$? pid
    trap - EXIT
    trap '' INT TERM
    if [ "$status" != 0 ] && [ -n "$work" ]; then
        tail -n 15 "$work"/host?.console 2>/dev/null | cut -c 1-160 >&2 || true
    fi
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    [ -z "$work" ] || rm -rf --one-file-system "$work"
    exit "$status"
}

# on N CMD…: as root on machine N, words unchanged.
on() {
    local line
    printf -v line '%q ' "${@:2}"
    ssh -n -F "$work/ssh_config" "host$1" "sudo $line"
}

# wait_for SECONDS WHAT CMD…
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || die "no $what in time"
        sleep 0.5
    done
}

listening() { ss -Hltn "sport = :$1" | grep -q .; }

# A free TCP port on loopback.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# The system every machine starts from: Debian's own kernel, ssh, and two adapters named as in the box.
build_image() {
    local image=$1 root=$work/root
    "$here/test/debian-root.sh" "$root" linux-image-amd64 openssh-server
    cat >"$root/etc/systemd/network/10-uplink.network" <<'NETWORK'
[Match]
Name=eth0
[Network]
DHCP=ipv4
[DHCPv4]
UseDNS=yes
NETWORK
    # Here an address of its own is given to each machine at boot (kernel command line: weft.address=).
    cat >"$root/etc/systemd/system/weft-private.service" <<'UNIT'
[Unit]
Description=the private network's address, as Vagrant would configure it
Wants=network-pre.target sys-subsystem-net-devices-eth1.device
After=network-pre.target sys-subsystem-net-devices-eth1.device
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'a=$(sed -n "s/.*weft.address=\\([^ ]*\\).*/\\1/p" /proc/cmdline); ip addr replace $a/24 dev eth1; ip link set eth1 up'
[Install]
WantedBy=multi-user.target
UNIT
    chroot "$root" systemctl -q enable systemd-networkd.service weft-private.service
    rm -f "$root/etc/resolv.conf"
    # The user-mode network's own name server.
    echo "nameserver 10.0.2.3" >"$root/etc/resolv.conf"
    echo "/dev/vda / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
    echo "vagrant ALL=(ALL) NOPASSWD: ALL" >"$root/etc/sudoers.d/vagrant"
    echo "127.0.0.1 localhost host1 host2 host3" >"$root/etc/hosts"
    rm -f "$image.key" "$image.key.pub"
    ssh-keygen -q -t ed25519 -N '' -C weft-test -f "$image.key"
    install -d -m 0700 -o 1000 -g 1000 "$root/home/vagrant/.ssh"
    install -m 0600 -o 1000 -g 1000 "$image.key.pub" "$root/home/vagrant/.ssh/authorized_keys"
    rm -rf "$root"/var/cache/apt/archives/*.deb
    cp "$root"/boot/vmlinuz-* "$image.vmlinuz"
    cp "$root"/boot/initrd.img-* "$image.initrd"
    mkfs.ext4 -q -d "$root" "$image.new" 6G
    mv "$image.new" "$image"
    rm -rf --one-file-system "$root"
}

# The private network is a hub inside host1's qemu: the others' adapters are connected to it over loopback.
start_machines() {
    local n port args
    local accel=${WEFT_ACCEL:-tcg}
    say "three machines (qemu, $accel)"
    : >"$work/ssh_config"
    local hub2 hub3
    hub2=$(free_port)
    hub3=$(free_port)
    for n in 1 2 3; do
        port=$(free_port)
        qemu-img create -q -f qcow2 -F raw -b "$image" "$work/host$n.qcow2"
        # shellcheck disable=SC2054  # the commas are qemu's
        case $n in
            1) args=(-netdev "socket,id=to2,listen=127.0.0.1:$hub2" -netdev hubport,id=h2,hubid=7,netdev=to2
                -netdev "socket,id=to3,listen=127.0.0.1:$hub3" -netdev hubport,id=h3,hubid=7,netdev=to3
                -netdev hubport,id=private,hubid=7) ;;
            2) args=(-netdev "socket,id=private,connect=127.0.0.1:$hub2") ;;
            3) args=(-netdev "socket,id=private,connect=127.0.0.1:$hub3") ;;
        esac
        qemu-system-x86_64 -accel "$accel" -cpu max -smp "${WEFT_CPUS:-1}" -m "${WEFT_MEMORY:-1024}" \
            -nodefaults -display none -serial "file:$work/host$n.console" \
            -kernel "$image.vmlinuz" -initrd "$image.initrd" \
            -append "root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.hostname=host$n weft.address=192.168.56.1$n" \
            -drive "file=$work/host$n.qcow2,if=virtio,format=qcow2,cache=unsafe" \
            -device virtio-rng-pci \
            -netdev "user,id=uplink,hostfwd=tcp:127.0.0.1:$port-:22" -device "virtio-net-pci,netdev=uplink,mac=52:54:00:00:01:0$n" \
            "${args[@]}" -device "virtio-net-pci,netdev=private,mac=52:54:00:00:02:0$n" &
        pids+=($!)
        cat >>"$work/ssh_config" <<SSH
Host host$n
  HostName 127.0.0.1
  Port $port
  User vagrant
  IdentityFile $image.key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ConnectTimeout 5
SSH
        # host1 must listen before the others connect.
        [ "$n" != 1 ] || wait_for 20 "host1's hub" listening "$hub3"
    done
    for n in 1 2 3; do wait_for 300 "ssh to host$n" on "$n" true; done
}

# As the Vagrantfile does it: the folder, the binaries, the four scripts, one machine after another.
provision() {
    local n step begin
    for n in 1 2 3; do
        begin=$SECONDS
        on "$n" mkdir -p /weft
        tar -C "$here/.." --exclude=.vagrant -cf - vagrant | ssh -F "$work/ssh_config" "host$n" sudo tar -C /weft -xf -
        tar -C "$bin" -cf - weftd weft | ssh -F "$work/ssh_config" "host$n" "mkdir -p /tmp/weft-bin && tar -C /tmp/weft-bin -xf -"
        for step in packages etcd binaries weftd; do
            on "$n" env WEFT_ETCD="$etcd" WEFT_NODE="host$n" WEFT_CLUSTER="$cluster" \
                bash "/weft/vagrant/provision/$step.sh" >"$work/host$n.$step.log" 2>&1 || {
                tail -n 40 "$work/host$n.$step.log" >&2
                die "$step.sh failed on host$n"
            }
            tail -n 1 "$work/host$n.$step.log"
        done
        echo "host$n provisioned in $((SECONDS - begin)) s"
    done
    local members=1
    [ "$etcd" = one ] || members=3
    healthy() { [ "$(on 1 env ETCDCTL_API=3 etcdctl endpoint health --cluster 2>&1 | grep -c 'is healthy')" = "$members" ]; }
    wait_for 120 "healthy store of $members" healthy
    echo "the store is healthy: $members member(s)"
    for n in 1 2 3; do
        wait_for 60 "active weftd on host$n" on "$n" systemctl is-active weftd.service
        echo "host$n: weftd is active: $(on "$n" weft version | tr '\n' ' ')"
    done
}

drive() { WEFT_SSH_CONFIG=$work/ssh_config bash "$here/../tests/lab/drive.sh" "$here/driver-vagrant.sh"; }

kv() { on 1 env ETCDCTL_API=3 etcdctl "$@"; }
container() { on "$1" ip netns add "$2" && on "$1" ip -n "$2" link set lo up; }
pings() { on "$1" ip netns exec "$2" ping -n -c 1 -W 2 "$3"; }
address() {
    on "$1" ip netns exec "$2" ip -j -4 addr show dev eth0 | jq -er '.[0].addr_info[] | select(.scope == "global").local'
}

check() {
    local n bad=0
    kv put /weft/v1/networks/units '{"subnets":[{"cidr":"10.77.0.0/24"}]}' >/dev/null
    for n in 1 2 3; do
        container "$n" "u$n"
        kv put "/weft/v1/endpoints/units/host$n/u$n" "{\"attachment\":{\"netns\":\"/run/netns/u$n\"}}" >/dev/null
    done
    for n in 1 2 3; do wait_for 30 "address of u$n" address "$n" "u$n"; done
    for n in 1 2 3; do wait_for 30 "answer from u$n" pings "$((n % 3 + 1))" "u$((n % 3 + 1))" "$(address "$n" "u$n")"; done
    for n in 1 2 3; do
        say "check-unit.sh on host$n"
        on "$n" bash /weft/vagrant/check-unit.sh units || bad=1
        # With weftd stopped, killed and started meanwhile.
        pings "$((n % 3 + 1))" "u$((n % 3 + 1))" "$(address "$n" "u$n")" >/dev/null || die "u$n does not answer after its agent's restarts"
    done

    say "a reboot of host3"
    local boot
    boot=$(on 3 cat /proc/sys/kernel/random/boot_id)
    on 3 systemctl reboot || true
    rebooted() {
        local now
        now=$(on 3 cat /proc/sys/kernel/random/boot_id) && [ "$now" != "$boot" ]
    }
    wait_for 300 "host3 after its reboot" rebooted
    wait_for 60 "active weftd on host3" on 3 systemctl is-active weftd.service
    echo "ok      weftd is active again"
    # Its container went with the machine; one with the same path takes the endpoint's place by itself.
    container 3 u3
    wait_for 30 "address of u3" address 3 u3
    wait_for 30 "answer from u3" pings 1 u1 "$(address 3 u3)"
    echo "ok      its endpoint is back, at $(address 3 u3)"
    on 3 bash /weft/vagrant/check-unit.sh units || bad=1

    for n in 1 2 3; do
        kv del "/weft/v1/endpoints/units/host$n/u$n" >/dev/null
        on "$n" ip netns del "u$n"
    done
    kv del /weft/v1/networks/units >/dev/null
    return "$bad"
}

interactive() {
    echo "ssh -F $work/ssh_config host1, for instance; leave this shell to take the machines down."
    WEFT_SSH_CONFIG=$work/ssh_config bash -i || true
}

steps=("$@")
[ "$#" != 0 ] || steps=(provision drive check)
for step in "${steps[@]}"; do
    case $step in
        provision | drive | check | shell) ;;
        *)
            sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
            exit 2
            ;;
    esac
done
[ "$(id -u)" = 0 ] || die "needs root"
for tool in debootstrap qemu-system-x86_64 qemu-img ssh jq mkfs.ext4 python3; do
    command -v "$tool" >/dev/null || die "needs $tool"
done
if [ ! -x "$bin/weftd" ] || [ ! -x "$bin/weft" ]; then
    die "no weftd and weft in $bin (cargo build --release -p weftd -p weft-cli)"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/weft-machines.XXXXXX")
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
image=${WEFT_IMAGE:-$work/debian.img}
if [ ! -e "$image" ]; then
    say "a Debian 12 system in $image"
    build_image "$image"
fi
start_machines
for step in "${steps[@]}"; do
    say "$step"
    case $step in
        shell) interactive ;;
        *) "$step" ;;
    esac
done
