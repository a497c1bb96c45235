//! What should be in the kernel of each host and in each container: a second opinion, written from docs/records.md and
//! docs/ARCHITECTURE.md alone. Pure: the records of one revision go in, a picture comes out.
//!
//! It speaks of a store in which all is well: every record is valid, every address claimed by who names it. What is
//! then not wanted must not be there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::records::{Endpoint, Name, Network, Records};

/// Objects by name, and what they are like, in words. [`crate::kernel`] makes the same words of what is there.
pub type Picture = BTreeMap<String, String>;

/// The UDP port of all tunnels.
const PORT: u16 = 4789;

/// What a bridge port is like.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// Sends on broadcast and multicast.
    pub floods: bool,
    /// Answers for neighbours.
    pub suppresses: bool,
}

/// The words for a bridge port, wherever they come from.
pub(crate) fn port_words(flag: impl Fn(&str) -> bool) -> String {
    let on: Vec<&str> = [
        "learning",
        "flood",
        "mcast_flood",
        "bcast_flood",
        "neigh_suppress",
    ]
    .into_iter()
    .filter(|name| flag(name))
    .collect();
    format!("port of br0 with [{}]", on.join(" "))
}

impl Port {
    fn words(self) -> String {
        port_words(|name| match name {
            "mcast_flood" | "bcast_flood" => self.floods,
            "neigh_suppress" => self.suppresses,
            _ => false,
        })
    }
}

/// What should be on a host, and in the containers that its endpoints name.
#[must_use]
pub fn on_host(records: &Records, node: &str, without: &BTreeSet<Name>) -> Picture {
    let mut picture = Picture::new();
    let networks: BTreeSet<&String> = records
        .endpoints
        .keys()
        .filter(|name| name.node == node)
        .map(|name| &name.network)
        .collect();
    for network in networks {
        if let Some(record) = records.networks.get(network) {
            of_network(records, network, record, node, without, &mut picture);
        }
    }
    picture
}

/// The MTU of a network: its own, else what the narrowest underlay leaves, the same on all hosts.
fn mtu(records: &Records, network: &Network) -> u64 {
    let narrowest = records.peers.values().map(|peer| peer.mtu).min().unwrap_or(0);
    let all_v4 = records
        .peers
        .values()
        .all(|peer| peer.vteps.iter().any(IpAddr::is_ipv4));
    network.mtu.unwrap_or(narrowest - if all_v4 { 50 } else { 70 })
}

/// Where a node's tunnel ends for another one: by IPv4 if both have it.
fn vtep(records: &Records, here: &str, there: &str) -> Option<IpAddr> {
    let of = |node: &str, v4: bool| {
        let vteps = records.peers.get(node).map(|peer| peer.vteps.as_slice());
        vteps.into_iter().flatten().find(|a| a.is_ipv4() == v4).copied()
    };
    [true, false]
        .into_iter()
        .find_map(|v4| of(here, v4).and(of(there, v4)))
}

fn tunnel(v4: bool) -> &'static str {
    if v4 { "vx4" } else { "vx6" }
}

fn of_network(
    records: &Records,
    network: &str,
    record: &Network,
    node: &str,
    without: &BTreeSet<Name>,
    picture: &mut Picture,
) {
    let mtu = mtu(records, record);
    let mut put = |object: String, words: String| picture.insert(format!("{network}: {object}"), words);
    put(
        "br0".to_owned(),
        format!("bridge, mtu {mtu}, up, snooping off, IPv6 on, link-local off"),
    );
    let vteps = records.peers.get(node).map(|peer| peer.vteps.clone());
    for local in vteps.into_iter().flatten() {
        let port = Port {
            floods: false,
            suppresses: true,
        };
        let vni = record.vni.unwrap_or(0);
        put(
            tunnel(local.is_ipv4()).to_owned(),
            format!(
                "vxlan {vni} from {local} port {PORT}, mtu {mtu}, up, learning off, {}",
                port.words()
            ),
        );
    }
    let members = records.endpoints.iter();
    let members = members.filter(|(name, _)| name.network == network && !without.contains(name));
    for (name, endpoint) in members {
        if name.node == node {
            let alias = alias(name, endpoint);
            let port = Port {
                floods: true,
                suppresses: false,
            };
            put(
                format!("port of {name}"),
                format!("veth, alias {alias:?}, mtu {mtu}, up, {}", port.words()),
            );
            put(
                format!("entry {} in the bridge", endpoint.mac),
                format!("to the port of {name}"),
            );
        } else if let Some(vtep) = vtep(records, node, &name.node) {
            let tunnel = tunnel(vtep.is_ipv4());
            put(
                format!("entry {} in the bridge", endpoint.mac),
                format!("to {tunnel}"),
            );
            put(
                format!("entry {} in {tunnel}", endpoint.mac),
                format!("to {vtep}"),
            );
            for address in &endpoint.addresses {
                put(
                    format!("neighbour {address}"),
                    format!("{}, for good, ours", endpoint.mac),
                );
            }
        }
    }
}

fn alias(name: &Name, endpoint: &Endpoint) -> String {
    format!("weft {name} {}", endpoint.label).trim_end().to_owned()
}

/// What should be in containers, by path and interface.
#[must_use]
pub fn in_containers(records: &Records, without: &BTreeSet<Name>) -> Picture {
    let endpoints = records.endpoints.iter();
    endpoints
        .filter(|(name, _)| !without.contains(name))
        .filter_map(|(name, endpoint)| {
            let network = records.networks.get(&name.network)?;
            let subnets: Vec<Subnet> = network.cidrs.iter().filter_map(|cidr| Subnet::of(cidr)).collect();
            let addresses = endpoint.addresses.iter().map(|address| {
                let subnet = subnets.iter().find(|subnet| subnet.has(*address));
                format!("{address}/{}", subnet.map_or(0, |subnet| subnet.bits))
            });
            // To the other subnets of a family in which it has an address.
            let beside = subnets.iter().filter(|subnet| {
                let mut family = endpoint
                    .addresses
                    .iter()
                    .filter(|a| a.is_ipv4() == subnet.first.is_ipv4());
                family.clone().next().is_some() && family.all(|address| !subnet.has(*address))
            });
            let words = interface_words(
                &alias(name, endpoint),
                &endpoint.mac,
                mtu(records, network),
                &addresses.collect(),
                &beside
                    .map(|subnet| format!("{}/{}", subnet.first, subnet.bits))
                    .collect(),
            );
            Some((format!("{} {}", endpoint.netns, endpoint.ifname), words))
        })
        .collect()
}

/// The words for the interface of a container, wherever they come from.
pub(crate) fn interface_words(
    alias: &str,
    mac: &str,
    mtu: u64,
    addresses: &BTreeSet<String>,
    routes: &BTreeSet<String>,
) -> String {
    format!("{mac}, alias {alias:?}, mtu {mtu}, up, {addresses:?}, routes {routes:?}")
}

/// A subnet.
struct Subnet {
    first: IpAddr,
    bits: u32,
}

impl Subnet {
    fn of(cidr: &str) -> Option<Self> {
        let (first, bits) = cidr.split_once('/')?;
        Some(Self {
            first: first.parse().ok()?,
            bits: bits.parse().ok()?,
        })
    }

    fn has(&self, address: IpAddr) -> bool {
        let (one, other, all) = match (self.first, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        let rest = all - self.bits;
        u128::checked_shr(one, rest) == u128::checked_shr(other, rest)
    }
}

/// In what two pictures differ, an object a line: what is there and should not be, what is missing, what is otherwise.
#[must_use]
pub fn differences(there: &Picture, wanted: &Picture) -> Vec<String> {
    let objects: BTreeSet<&String> = there.keys().chain(wanted.keys()).collect();
    objects
        .into_iter()
        .filter_map(|object| match (there.get(object), wanted.get(object)) {
            (Some(is), Some(should)) if is == should => None,
            (Some(is), Some(should)) => Some(format!("wrong: {object}: is {is}; should be {should}")),
            (Some(is), None) => Some(format!("too much: {object}: {is}")),
            (None, Some(should)) => Some(format!("missing: {object}: {should}")),
            (None, None) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::PREFIX;

    fn records() -> Records {
        let mut records = Records::default();
        for (key, value) in [
            (
                "networks/blue",
                r#"{"subnets":[{"cidr":"10.1.0.0/24"},{"cidr":"10.2.0.0/22"},{"cidr":"fd00::/64"}],"vni":7}"#,
            ),
            ("peers/host1", r#"{"vteps":["10.99.0.1","fd99::1"]}"#),
            ("peers/host2", r#"{"vteps":["10.99.0.2"],"mtu":1400}"#),
            (
                "endpoints/blue/host1/a",
                r#"{"name":"the a","attachment":{"netns":"/run/netns/a","ifname":"eth1"},
                    "addresses":["10.2.3.2","fd00::2"],"mac":"02:42:0a:02:03:02"}"#,
            ),
            (
                "endpoints/blue/host2/b",
                r#"{"attachment":{"netns":"/run/netns/b"},"addresses":["10.1.0.3"],"mac":"02:42:0a:01:00:03"}"#,
            ),
        ] {
            records.put(&format!("{PREFIX}{key}"), value.as_bytes(), 3);
        }
        records
    }

    #[track_caller]
    fn has(picture: &Picture, wanted: &[(&str, &str)]) {
        let wanted: Picture = wanted
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let differences = differences(picture, &wanted);
        assert!(differences.is_empty(), "{differences:#?}");
    }

    #[test]
    fn a_host_has_what_the_records_say() {
        let port = "port of br0 with [mcast_flood bcast_flood]";
        let tunnel = "mtu 1350, up, learning off, port of br0 with [neigh_suppress]";
        has(
            &on_host(&records(), "host1", &BTreeSet::new()),
            &[
                (
                    "blue: br0",
                    "bridge, mtu 1350, up, snooping off, IPv6 on, link-local off",
                ),
                (
                    "blue: vx4",
                    &format!("vxlan 7 from 10.99.0.1 port 4789, {tunnel}"),
                ),
                ("blue: vx6", &format!("vxlan 7 from fd99::1 port 4789, {tunnel}")),
                (
                    "blue: port of blue/host1/a",
                    &format!("veth, alias \"weft blue/host1/a the a\", mtu 1350, up, {port}"),
                ),
                (
                    "blue: entry 02:42:0a:02:03:02 in the bridge",
                    "to the port of blue/host1/a",
                ),
                ("blue: entry 02:42:0a:01:00:03 in the bridge", "to vx4"),
                ("blue: entry 02:42:0a:01:00:03 in vx4", "to 10.99.0.2"),
                ("blue: neighbour 10.1.0.3", "02:42:0a:01:00:03, for good, ours"),
            ],
        );
        assert!(on_host(&records(), "host3", &BTreeSet::new()).is_empty());
    }

    #[test]
    fn containers_have_what_the_records_say() {
        has(
            &in_containers(&records(), &BTreeSet::new()),
            &[
                (
                    "/run/netns/a eth1",
                    "02:42:0a:02:03:02, alias \"weft blue/host1/a the a\", mtu 1350, up, \
                     {\"10.2.3.2/22\", \"fd00::2/64\"}, routes {\"10.1.0.0/24\"}",
                ),
                (
                    "/run/netns/b eth0",
                    "02:42:0a:01:00:03, alias \"weft blue/host2/b\", mtu 1350, up, \
                     {\"10.1.0.3/24\"}, routes {\"10.2.0.0/22\"}",
                ),
            ],
        );
    }

    #[test]
    fn without_ipv4_everywhere_the_overhead_is_that_of_ipv6() {
        let mut records = records();
        records.put("/weft/v1/peers/host3", br#"{"vteps":["fd99::3"]}"#, 9);
        assert_eq!(mtu(&records, &records.networks["blue"]), 1330);
        assert_eq!(
            vtep(&records, "host1", "host3"),
            Some(IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, 3]))
        );
        assert_eq!(vtep(&records, "host2", "host3"), None);
    }

    #[test]
    fn each_difference_is_told() {
        let picture = |pairs: &[(&str, &str)]| -> Picture {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let told = differences(
            &picture(&[("a", "1"), ("b", "1"), ("c", "1")]),
            &picture(&[("b", "1"), ("c", "2"), ("d", "1")]),
        );
        assert_eq!(
            told,
            ["too much: a: 1", "wrong: c: is 1; should be 2", "missing: d: 1"]
        );
    }
}
