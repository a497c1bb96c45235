//! The settings that are tried, one at a time: of devices that live, as scripts that make them and take them back; of
//! devices for life, and what does them no good to be changed, as two ways to make one by hand.

use crate::{BY_HAND, hand::Hand};

/// Where a setting is made, on both hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Container,
    Network,
    Host,
    Switch,
}

/// A setting of something that lives.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    /// Where, made how, and taken back how: scripts.
    pub(crate) steps: &'static [(Place, &'static str, &'static str)],
}

use Place::{Container, Host, Network, Switch};

pub(crate) const SETTINGS: [Setting; 16] = [
    Setting {
        name: "bridge-nf-call-iptables on in the network's namespace (the kernel's default)",
        steps: &[(
            Network,
            "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables",
            "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables",
        )],
    },
    Setting {
        name: "conntrack on the host (an nft rule with `ct state`)",
        steps: &[(Host, CONNTRACK, "nft delete table inet tracked")],
    },
    Setting {
        name: "the same, `notrack` for UDP port 4789",
        steps: &[(
            Host,
            "nft -f - <<'END'
table inet tracked {
    chain in { type filter hook input priority 0; ct state invalid drop; }
    chain out { type filter hook output priority 0; ct state invalid drop; }
    chain raw_in { type filter hook prerouting priority raw; udp dport 4789 notrack; }
    chain raw_out { type filter hook output priority raw; udp dport 4789 notrack; }
}
END",
            "nft delete table inet tracked",
        )],
    },
    Setting {
        name: "receive steering (RPS) to both processors on vx4",
        steps: &[(
            Network,
            "echo 3 >/sys/class/net/vx4/queues/rx-0/rps_cpus",
            "echo 0 >/sys/class/net/vx4/queues/rx-0/rps_cpus",
        )],
    },
    Setting {
        name: "RPS to both processors on the veths' host ends",
        steps: &[(
            Network,
            "for d in /sys/class/net/ve*; do echo 3 >\"$d/queues/rx-0/rps_cpus\"; done",
            "for d in /sys/class/net/ve*; do echo 0 >\"$d/queues/rx-0/rps_cpus\"; done",
        )],
    },
    Setting {
        name: "RPS to both processors on the containers' ends",
        steps: &[(
            Container,
            "echo 3 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
            "echo 0 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
        )],
    },
    Setting {
        name: "RPS to the receiver's processor on the containers' ends",
        steps: &[(
            Container,
            "echo 2 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
            "echo 0 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
        )],
    },
    Setting {
        name: "RPS to the receiver's processor on the hosts' underlay interface",
        steps: &[(
            Host,
            "echo 2 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
            "echo 0 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
        )],
    },
    Setting {
        name: "txqueuelen 10000 on veths and vx4",
        steps: &[
            (
                Container,
                "ip link set eth0 txqueuelen 10000",
                "ip link set eth0 txqueuelen 1000",
            ),
            (
                Network,
                "for d in /sys/class/net/v*; do ip link set \"${d##*/}\" txqueuelen 10000; done",
                "for d in /sys/class/net/v*; do ip link set \"${d##*/}\" txqueuelen 1000; done",
            ),
        ],
    },
    Setting {
        name: "learning and flooding on vx4's port",
        steps: &[(
            Network,
            "bridge link set dev vx4 learning on flood on",
            "bridge link set dev vx4 learning off flood off",
        )],
    },
    Setting {
        name: "neigh_suppress off on vx4's port",
        steps: &[(
            Network,
            "bridge link set dev vx4 neigh_suppress off",
            "bridge link set dev vx4 neigh_suppress on",
        )],
    },
    Setting {
        name: "the bridge skipped both ways (tc redirect)",
        steps: &[(
            Network,
            "d=$(cd /sys/class/net && echo ve*)
tc qdisc add dev $d clsact
tc qdisc add dev vx4 clsact
tc filter add dev $d ingress protocol ip u32 match u32 0 0 action mirred egress redirect dev vx4
tc filter add dev vx4 ingress protocol ip u32 match u32 0 0 action mirred egress redirect dev $d",
            "tc qdisc del dev \"$(cd /sys/class/net && echo ve*)\" clsact; tc qdisc del dev vx4 clsact",
        )],
    },
    Setting {
        name: "MTU 8950 over 9000",
        steps: &[
            (
                Switch,
                "for d in br0 h1 h2; do ip link set $d mtu 9000; done",
                "for d in h1 h2 br0; do ip link set $d mtu 1500; done",
            ),
            (Host, "ip link set eth0 mtu 9000", "ip link set eth0 mtu 1500"),
            (
                Network,
                "for d in /sys/class/net/v* /sys/class/net/br0; do ip link set \"${d##*/}\" mtu 8950; done",
                "for d in /sys/class/net/v* /sys/class/net/br0; do ip link set \"${d##*/}\" mtu 1450; done",
            ),
            (
                Container,
                "ip link set eth0 mtu 8950",
                "ip link set eth0 mtu 1450",
            ),
        ],
    },
    Setting {
        name: "no TCP segmentation offload in the containers",
        steps: &[(
            Container,
            "ethtool -K eth0 tso off gso off",
            "ethtool -K eth0 gso on tso on",
        )],
    },
    Setting {
        name: "no checksum offload in the containers",
        steps: &[(
            Container,
            "ethtool -K eth0 tx off",
            "ethtool -K eth0 tx on; ethtool -K eth0 tso on",
        )],
    },
    Setting {
        name: "nothing (how far two turns of the same differ)",
        steps: &[],
    },
];

const CONNTRACK: &str = "nft -f - <<'END'
table inet tracked {
    chain in { type filter hook input priority 0; ct state invalid drop; }
    chain out { type filter hook output priority 0; ct state invalid drop; }
}
END";

/// Addresses of both hosts for what goes over IPv6.
pub(crate) const V6: [&str; 2] = ["fd99::1", "fd99::2"];

/// A device's option for life: the device without it and with it.
pub(crate) const OPTIONS: [(Hand, Hand); 11] = [
    (
        BY_HAND_AGAIN,
        Hand {
            name: "no UDP checksum (noudpcsum)",
            number: 11,
            options: "noudpcsum",
            port: 4791,
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "don't-fragment set on the outside (df set)",
            number: 12,
            options: "df set",
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "one source port for all flows (srcport)",
            number: 13,
            options: "srcport 50000 50001",
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "a time to live given (ttl 64)",
            number: 14,
            options: "ttl 64",
            ..BY_HAND_AGAIN
        },
    ),
    // Not switched to and fro: a VXLAN device that had threads was seen to let no datagrams through any more, also after they
    // were turned off again (Linux 6.18, a busy machine).
    (
        BY_HAND_AGAIN,
        Hand {
            name: "GRO on both ends of the containers' veths",
            number: 18,
            then: ["ethtool -K hv18 gro on", "ethtool -K eth0 gro on"],
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "GRO on the containers' ends",
            number: 19,
            then: ["", "ethtool -K eth0 gro on"],
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "GRO and threaded NAPI on the containers' ends",
            number: 20,
            then: ["", "ethtool -K eth0 gro on; echo 1 >/sys/class/net/eth0/threaded"],
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "threaded NAPI on the VXLAN device",
            number: 17,
            then: ["echo 1 >/sys/class/net/hx17/threaded", ""],
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "two queues each way in the containers' veths",
            number: 21,
            then: ["ethtool -L hv21 rx 2 tx 2", "ethtool -L eth0 rx 2 tx 2"],
            ..BY_HAND_AGAIN
        },
    ),
    (
        BY_HAND_AGAIN,
        Hand {
            name: "over IPv6",
            ..OVER_V6
        },
    ),
    (
        OVER_V6,
        Hand {
            name: "over IPv6, no UDP checksum, against IPv6 with it",
            number: 16,
            options: "udp6zerocsumtx udp6zerocsumrx",
            port: 4792,
            ..OVER_V6
        },
    ),
];

const BY_HAND_AGAIN: Hand = Hand {
    number: 10,
    ..BY_HAND
};

const OVER_V6: Hand = Hand {
    name: "over IPv6",
    number: 15,
    hosts: V6,
    port: 4793,
    mtu: 1430,
    options: "",
    then: ["", ""],
};
