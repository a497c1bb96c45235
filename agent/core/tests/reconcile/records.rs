//! A small world in which everything collides: three hosts, two networks, few ids, addresses, MACs and VNIs.

use std::net::IpAddr;

use proptest::{
    prelude::*,
    sample::{select, subsequence},
};
use serde_json::{Value, json};
use weft_core::desired::Host;
use weft_store_schema::{Key, NodeName, Prefix};

use crate::store::Store;

pub(crate) const NODES: [&str; 3] = ["host1", "host2", "host3"];
pub(crate) const NETWORKS: [&str; 2] = ["blue", "red"];
pub(crate) const IDS: [&str; 3] = ["a", "b", "c"];
pub(crate) const ADDRESSES: [&str; 7] = [
    "10.1.0.2",
    "10.1.0.3",
    "10.1.0.4",
    "10.2.0.2",
    "fd00:1::2",
    "fd00:1::3",
    "10.7.0.1",
];
pub(crate) const MACS: [&str; 3] = ["02:42:0a:01:00:02", "02:42:0a:01:00:03", "06:00:00:00:00:01"];
pub(crate) const VNIS: [u32; 3] = [100, 101, 102];

/// A node's name.
pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// What a host has beside its records.
pub(crate) fn host(number: usize, families: Families) -> Host {
    let v4: IpAddr = format!("10.99.0.{number}").parse().unwrap();
    let v6: IpAddr = format!("fd99::{number}").parse().unwrap();
    Host {
        v4: families.v4().then_some(v4),
        v6: families.v6().then_some(v6),
        mtu: 1500,
        port: 4789,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    Both,
}

impl Families {
    fn v4(self) -> bool {
        self != Self::V6
    }

    fn v6(self) -> bool {
        self != Self::V4
    }
}

pub(crate) fn families() -> impl Strategy<Value = Families> {
    select(vec![Families::V4, Families::V6, Families::Both])
}

/// A key below the prefix, and what it is to hold; none to delete it.
#[derive(Clone)]
pub(crate) struct Edit {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

/// As the stories have it, to be copied from there.
impl std::fmt::Debug for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "put {} {value}", self.key),
            None => write!(f, "delete {}", self.key),
        }
    }
}

impl Edit {
    pub(crate) fn put(key: impl Into<String>, value: &Value) -> Self {
        Self {
            key: key.into(),
            value: Some(value.to_string()),
        }
    }

    pub(crate) fn apply(&self, store: &mut Store) {
        let key = Store::key(&self.key);
        match &self.value {
            Some(value) => store.put(&key, value.as_bytes()),
            None => store.delete(&key),
        }
    }
}

fn maybe<T: Clone + std::fmt::Debug>(
    weight: f64,
    of: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(weight, of)
}

pub(crate) fn subnets() -> impl Strategy<Value = Value> {
    select(vec![
        json!([{"cidr": "10.1.0.0/29"}]),
        json!([{"cidr": "10.1.0.0/29"}, {"cidr": "fd00:1::/64"}]),
        json!([{"cidr": "fd00:1::/64"}]),
        json!([{"cidr": "10.1.0.0/29"}, {"cidr": "10.2.0.0/24"}, {"cidr": "10.3.0.0/24"}]),
    ])
}

pub(crate) fn network_record(vni: Option<u32>, subnets: &Value, mtu: Option<u32>, multicast: bool) -> Value {
    let mut record = json!({"subnets": subnets});
    if let Some(vni) = vni {
        record["vni"] = vni.into();
    }
    if let Some(mtu) = mtu {
        record["mtu"] = mtu.into();
    }
    if multicast {
        record["multicast"] = true.into();
    }
    record
}

fn network_edit() -> impl Strategy<Value = Edit> {
    let value = (
        maybe(0.8, select(&VNIS[..])),
        subnets(),
        maybe(0.2, select(vec![1400, 9000])),
        any::<bool>(),
    )
        .prop_map(|(vni, subnets, mtu, multicast)| network_record(vni, &subnets, mtu, multicast).to_string());
    let value = prop_oneof![
        8 => value.prop_map(Some),
        1 => Just(Some(r#"{"subnets":[{"cidr":"10.1.0.1/29"}]}"#.to_owned())),
        2 => Just(None),
    ];
    (select(&NETWORKS[..]), value).prop_map(|(network, value)| Edit {
        key: format!("networks/{network}"),
        value,
    })
}

pub(crate) fn peer_record(number: usize, families: Families, other: bool, mtu: Option<u32>) -> Value {
    let mut vteps: Vec<String> = Vec::new();
    let third = u8::from(other);
    if families.v4() {
        vteps.push(format!("10.99.{third}.{number}"));
    }
    if families.v6() {
        vteps.push(format!("fd99::{third}:{number}"));
    }
    let mut record = json!({"vteps": vteps});
    if let Some(mtu) = mtu {
        record["mtu"] = mtu.into();
    }
    record
}

fn peer_edit() -> impl Strategy<Value = Edit> {
    let value = (
        1_usize..4,
        families(),
        any::<bool>(),
        maybe(0.3, select(vec![1400, 9000])),
    )
        .prop_map(|(number, families, other, mtu)| {
            (
                number,
                Some(peer_record(number, families, other, mtu).to_string()),
            )
        });
    let value = prop_oneof![
        8 => value,
        // The VTEP of another host.
        1 => (1_usize..4, families()).prop_map(|(number, f)| (number, Some(peer_record(2, f, false, None).to_string()))),
        1 => (1_usize..4).prop_map(|number| (number, Some(r#"{"vteps":[]}"#.to_owned()))),
        2 => (1_usize..4).prop_map(|number| (number, None)),
    ];
    value.prop_map(|(number, value)| Edit {
        key: format!("peers/host{number}"),
        value,
    })
}

fn endpoint_edit() -> impl Strategy<Value = Edit> {
    let few = |n| subsequence(ADDRESSES.to_vec(), 0..=n);
    let value = (
        select(vec!["/run/netns/x", "/run/netns/y"]),
        maybe(0.3, Just("eth1")),
        few(2),
        prop_oneof![3 => Just(vec![]), 1 => few(1)],
        maybe(0.8, select(&MACS[..])),
        maybe(0.2, Just("web")),
    )
        .prop_map(|(netns, ifname, addresses, requested, mac, name)| {
            let mut record = json!({"attachment": {"netns": netns}});
            if let Some(ifname) = ifname {
                record["attachment"]["ifname"] = ifname.into();
            }
            if !addresses.is_empty() {
                record["addresses"] = addresses.into();
            }
            if !requested.is_empty() {
                record["requested_addresses"] = requested.into();
            }
            if let Some(mac) = mac {
                record["mac"] = mac.into();
            }
            if let Some(name) = name {
                record["name"] = name.into();
            }
            record.to_string()
        });
    let value = prop_oneof![
        12 => value.prop_map(Some),
        1 => Just(Some(r#"{"attachment":{"netns":"web"}}"#.to_owned())),
        4 => Just(None),
    ];
    (endpoint_name(), value).prop_map(|((network, node, id), value)| Edit {
        key: format!("endpoints/{network}/{node}/{id}"),
        value,
    })
}

fn endpoint_name() -> impl Strategy<Value = (&'static str, &'static str, &'static str)> {
    (select(&NETWORKS[..]), select(&NODES[..]), select(&IDS[..]))
}

fn claim_edit() -> impl Strategy<Value = Edit> {
    let value = prop_oneof![
        8 => (select(&NODES[..]), select(&IDS[..])).prop_map(|(node, id)| Some(json!({"endpoint": format!("{node}/{id}")}).to_string())),
        1 => Just(Some(r#"{"endpoint":"nobody"}"#.to_owned())),
        2 => Just(None),
    ];
    (select(&NETWORKS[..]), select(&ADDRESSES[..]), value).prop_map(|(network, address, value)| Edit {
        key: format!("addresses/{network}/{address}"),
        value,
    })
}

fn vni_edit() -> impl Strategy<Value = Edit> {
    let value = prop_oneof![
        8 => select(&NETWORKS[..]).prop_map(|network| Some(json!({"network": network}).to_string())),
        1 => Just(Some("7".to_owned())),
        2 => Just(None),
    ];
    (select(&VNIS[..]), value).prop_map(|(vni, value)| Edit {
        key: format!("vnis/{vni}"),
        value,
    })
}

fn stray_edit() -> impl Strategy<Value = Edit> {
    let key = select(vec![
        "networks/a/b",
        "endpoints/blue/host1",
        "peers/",
        "addresses/blue/10.1.0.02",
        "vnis/0",
        "alive/host1",
        "what",
    ]);
    (key, maybe(0.7, Just("{}".to_owned()))).prop_map(|(key, value)| Edit {
        key: key.to_owned(),
        value,
    })
}

/// Anything that anybody could write or delete. Boxed: unboxed, many of them overflow a test's stack.
pub(crate) fn any_edit() -> BoxedStrategy<Edit> {
    prop_oneof![
        3 => network_edit().boxed(),
        3 => peer_edit().boxed(),
        10 => endpoint_edit().boxed(),
        8 => claim_edit().boxed(),
        2 => vni_edit().boxed(),
        1 => stray_edit().boxed(),
    ]
    .boxed()
}

/// A world in which every record is valid and complete, so that it alone says what every host should hold: what
/// each key of the universe is to hold, or that it is not to be.
pub(crate) fn world(hosts: [Families; 3]) -> impl Strategy<Value = Vec<Edit>> {
    let peers = (
        any::<[bool; 3]>(),
        proptest::array::uniform3(maybe(0.2, select(vec![1400, 9000]))),
    );
    let networks = (
        subnets(),
        subnets(),
        0_usize..3,
        maybe(0.3, select(vec![1400, 9000])),
        any::<[bool; 3]>(),
    );
    let endpoints = proptest::collection::vec(maybe(0.6, whole_endpoint()), 18);
    let claims = proptest::collection::vec((0_usize..9, any::<bool>()), 14);
    (peers, networks, endpoints, claims).prop_map(move |(peers, networks, endpoints, claims)| {
        let mut edits = Vec::new();
        for (n, families) in hosts.into_iter().enumerate() {
            let record = peer_record(n + 1, families, peers.0[n], peers.1[n]);
            edits.push(Edit::put(format!("peers/host{}", n + 1), &record));
        }
        let (blue, red, swap, mtu, claimed) = networks;
        let vnis = [VNIS[swap], VNIS[(swap + 1) % 3]];
        edits.push(Edit::put(
            "networks/blue",
            &network_record(Some(vnis[0]), &blue, mtu, false),
        ));
        edits.push(Edit::put(
            "networks/red",
            &network_record(Some(vnis[1]), &red, None, false),
        ));
        for (n, vni) in VNIS.iter().enumerate() {
            let holder = vnis.iter().position(|v| v == vni).filter(|_| claimed[n]);
            let value = holder.map(|h| json!({"network": NETWORKS[h]}).to_string());
            edits.push(Edit {
                key: format!("vnis/{vni}"),
                value,
            });
        }
        let names: Vec<String> = NETWORKS
            .iter()
            .flat_map(|network| NODES.iter().map(move |node| (network, node)))
            .flat_map(|(network, node)| IDS.iter().map(move |id| format!("{network}/{node}/{id}")))
            .collect();
        // Every address has a claim: of an endpoint that names it if there is one, mostly.
        for (at, (network, address)) in NETWORKS
            .iter()
            .flat_map(|n| ADDRESSES.iter().map(move |a| (n, a)))
            .enumerate()
        {
            let naming: Vec<&str> = names
                .iter()
                .zip(&endpoints)
                .filter(|(name, e)| {
                    let named = e
                        .as_ref()
                        .is_some_and(|e| e["addresses"].as_array().unwrap().contains(&json!(address)));
                    name.starts_with(network) && named
                })
                .map(|(name, _)| name.split_once('/').unwrap().1)
                .collect();
            let (nth, one_of_them) = claims[at];
            let anybody = format!("{}/{}", NODES[nth / 3], IDS[nth % 3]);
            let holder = if naming.is_empty() || !one_of_them && nth == 0 {
                anybody
            } else {
                naming[nth % naming.len()].to_owned()
            };
            edits.push(Edit::put(
                format!("addresses/{network}/{address}"),
                &json!({"endpoint": holder}),
            ));
        }
        for (name, record) in names.iter().zip(endpoints) {
            edits.push(Edit {
                key: format!("endpoints/{name}"),
                value: record.map(|r| r.to_string()),
            });
        }
        edits
    })
}

fn whole_endpoint() -> impl Strategy<Value = Value> {
    let place = (
        select(vec!["/run/netns/x", "/run/netns/y"]),
        select(vec!["eth0", "eth1"]),
    );
    (
        place,
        subsequence(ADDRESSES.to_vec(), 1..=2),
        select(&MACS[..]),
        maybe(0.2, Just("web")),
    )
        .prop_map(|((netns, ifname), addresses, mac, name)| {
            let mut record =
                json!({"attachment": {"netns": netns, "ifname": ifname}, "addresses": addresses, "mac": mac});
            if let Some(name) = name {
                record["name"] = name.into();
            }
            record
        })
}

/// Names that a `Key` is known by.
pub(crate) fn key(rest: &str) -> Key {
    Prefix::default().parse(&Store::key(rest)).unwrap()
}
