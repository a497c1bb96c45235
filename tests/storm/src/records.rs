//! The records of the store at one revision, read as anybody may read them, and what must hold among them at every
//! revision. Pure. It must not know how an agent decides anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

/// Where the records lie.
pub const PREFIX: &str = "/weft/v1/";

/// The name of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Its network.
    pub network: String,
    /// Its node.
    pub node: String,
    /// Its id.
    pub id: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.node, self.id)
    }
}

/// What a network's record says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// Its VNI once it has one.
    pub vni: Option<u64>,
    /// The MTU that it sets, if it does.
    pub mtu: Option<u64>,
    /// Its subnets as written.
    pub cidrs: Vec<String>,
}

/// What a peer's record says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// Where its tunnels end.
    pub vteps: Vec<IpAddr>,
    /// MTU of its underlay.
    pub mtu: u64,
}

/// What an endpoint's record says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Its name for people; empty for none.
    pub label: String,
    /// Path of its container's namespace.
    pub netns: String,
    /// Name of its interface there.
    pub ifname: String,
    /// The addresses that it holds.
    pub addresses: BTreeSet<IpAddr>,
    /// Its MAC address, lower case; empty while it has none.
    pub mac: String,
    /// The revision at which the record was created.
    pub created: i64,
}

/// All records of one revision that the checks are about. Keys of other kinds are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// Networks.
    pub networks: BTreeMap<String, Network>,
    /// Endpoints.
    pub endpoints: BTreeMap<Name, Endpoint>,
    /// Who holds an address of a network, as `<node>/<id>`; `None` for a reservation, which no endpoint has adopted.
    pub claims: BTreeMap<(String, IpAddr), Option<String>>,
    /// Which network holds a VNI.
    pub vnis: BTreeMap<u64, String>,
    /// Nodes.
    pub peers: BTreeMap<String, Peer>,
    /// Nodes whose agent says that it is there, and those whose agent says how it is.
    pub presence: [BTreeSet<String>; 2],
    /// Keys whose value could not be understood, and why.
    pub bad: BTreeMap<String, String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Records {
    /// Takes in a key that was put.
    pub fn put(&mut self, key: &str, value: &[u8], created: i64) {
        self.delete(key);
        if let Err(why) = self.try_put(key, value, created) {
            self.bad.insert(key.to_owned(), why);
        }
    }

    fn try_put(&mut self, key: &str, value: &[u8], created: i64) -> Result<(), String> {
        let parts: Vec<&str> = key.strip_prefix(PREFIX).unwrap_or(key).split('/').collect();
        match parts.as_slice() {
            ["alive", node] => drop(self.presence[0].insert((*node).to_owned())),
            ["status", node] => drop(self.presence[1].insert((*node).to_owned())),
            _ => {}
        }
        if !["networks", "endpoints", "addresses", "vnis", "peers"].contains(&parts[0]) {
            return Ok(());
        }
        let value: Value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        match parts.as_slice() {
            ["networks", network] => {
                let subnets = value["subnets"].as_array().into_iter().flatten();
                let record = Network {
                    vni: value["vni"].as_u64(),
                    mtu: value["mtu"].as_u64(),
                    cidrs: subnets.map(|subnet| text(&subnet["cidr"])).collect(),
                };
                self.networks.insert((*network).to_owned(), record);
            }
            ["endpoints", network, node, id] => {
                let name = Name {
                    network: (*network).to_owned(),
                    node: (*node).to_owned(),
                    id: (*id).to_owned(),
                };
                let listed = value["addresses"].as_array().into_iter().flatten();
                let addresses: Result<_, _> = listed.map(|a| text(a).parse::<IpAddr>()).collect();
                let attachment = &value["attachment"];
                let endpoint = Endpoint {
                    label: text(&value["name"]),
                    ifname: attachment["ifname"].as_str().unwrap_or("eth0").to_owned(),
                    netns: text(&attachment["netns"]),
                    addresses: addresses.map_err(|error| format!("addresses: {error}"))?,
                    mac: text(&value["mac"]).to_lowercase(),
                    created,
                };
                self.endpoints.insert(name, endpoint);
            }
            ["addresses", network, address] => {
                let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
                let holder = value["endpoint"].as_str().map(str::to_owned);
                if holder.is_none() && value["reservation"].is_null() {
                    return Err("neither an endpoint nor a reservation".to_owned());
                }
                self.claims.insert(((*network).to_owned(), address), holder);
            }
            ["vnis", vni] => {
                let vni = vni.parse().map_err(|error| format!("{vni}: {error}"))?;
                let network = value["network"].as_str().ok_or("no network")?;
                self.vnis.insert(vni, network.to_owned());
            }
            ["peers", node] => {
                let listed = value["vteps"].as_array().into_iter().flatten();
                let vteps: Result<_, _> = listed.map(|a| text(a).parse::<IpAddr>()).collect();
                let peer = Peer {
                    vteps: vteps.map_err(|error| format!("vteps: {error}"))?,
                    mtu: value["mtu"].as_u64().unwrap_or(1500),
                };
                self.peers.insert((*node).to_owned(), peer);
            }
            _ => return Err("no key of weft's".to_owned()),
        }
        Ok(())
    }

    /// Takes in a key that was deleted.
    pub fn delete(&mut self, key: &str) {
        self.bad.remove(key);
        let parts: Vec<&str> = key.strip_prefix(PREFIX).unwrap_or(key).split('/').collect();
        match parts.as_slice() {
            ["networks", network] => drop(self.networks.remove(*network)),
            ["endpoints", network, node, id] => drop(self.endpoints.remove(&Name {
                network: (*network).to_owned(),
                node: (*node).to_owned(),
                id: (*id).to_owned(),
            })),
            ["addresses", network, address] => {
                if let Ok(address) = address.parse() {
                    self.claims.remove(&((*network).to_owned(), address));
                }
            }
            ["vnis", vni] => {
                if let Ok(vni) = vni.parse() {
                    self.vnis.remove(&vni);
                }
            }
            ["peers", node] => drop(self.peers.remove(*node)),
            ["alive", node] => drop(self.presence[0].remove(*node)),
            ["status", node] => drop(self.presence[1].remove(*node)),
            _ => {}
        }
    }

    /// What does not hold although it must at every revision, as each change is one transaction:
    /// no address is named by two endpoints of a network; every address that an endpoint names is claimed by it;
    /// every claim's endpoint exists and names the address; a network's VNI is claimed by it.
    ///
    /// This is so where everything is written through agents. An operator who deletes or spoils an endpoint's record by
    /// hand leaves its claims, until the node's agent has taken the address off the interface and gives them up, or the
    /// record is put right; likewise a network's. So in networks that are written `by_hand` claims may be of nobody while
    /// that goes on, and bad records lie about.
    #[must_use]
    pub fn violations(&self, by_hand: &BTreeSet<String>) -> Vec<String> {
        let bad = self.bad.iter().filter(|_| by_hand.is_empty());
        let mut wrong: Vec<String> = bad
            .map(|(key, why)| format!("{key} cannot be read: {why}"))
            .chain(self.doubles())
            .collect();
        for (name, endpoint) in &self.endpoints {
            for address in &endpoint.addresses {
                let mine = format!("{}/{}", name.node, name.id);
                match self.claims.get(&(name.network.clone(), *address)) {
                    Some(Some(holder)) if *holder == mine => {}
                    Some(Some(holder)) => {
                        wrong.push(format!("{name} names {address}, which {holder} has claimed"));
                    }
                    Some(None) => wrong.push(format!("{name} names {address}, which is only reserved")),
                    None => wrong.push(format!("{name} names {address}, which nobody has claimed")),
                }
            }
        }
        for ((network, address), holder) in &self.claims {
            let Some(holder) = holder else { continue };
            if by_hand.contains(network) {
                continue;
            }
            let (node, id) = holder.split_once('/').unwrap_or((holder, ""));
            let name = Name {
                network: network.clone(),
                node: node.to_owned(),
                id: id.to_owned(),
            };
            match self.endpoints.get(&name) {
                None => wrong.push(format!(
                    "{address} of {network} is claimed by {holder}, which does not exist"
                )),
                Some(endpoint) if !endpoint.addresses.contains(address) => {
                    wrong.push(format!("{address} is claimed by {name}, which does not name it"));
                }
                Some(_) => {}
            }
        }
        for (network, record) in &self.networks {
            let Some(vni) = record.vni else { continue };
            if self.vnis.get(&vni) != Some(network) && !by_hand.contains(network) {
                let holder = self.vnis.get(&vni);
                wrong.push(format!(
                    "network {network} has VNI {vni}, which {holder:?} has claimed"
                ));
            }
        }
        wrong
    }

    /// Addresses that two endpoints of a network name: that is wrong whoever has written the records.
    #[must_use]
    pub fn doubles(&self) -> Vec<String> {
        let mut named: BTreeMap<(&str, IpAddr), &Name> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (name, endpoint) in &self.endpoints {
            for address in &endpoint.addresses {
                if let Some(other) = named.insert((&name.network, *address), name) {
                    wrong.push(format!("{address} is in the records of both {other} and {name}"));
                }
            }
        }
        wrong
    }

    /// What must not be left when all has settled: claims of VNIs that their network has not. While something is going on
    /// they may lie there: a network that is deleted keeps its VNI until no host carries it any more.
    #[must_use]
    pub fn left_over(&self) -> Vec<String> {
        let has = |network: &String| self.networks.get(network).and_then(|record| record.vni);
        let claims = self.vnis.iter();
        claims
            .filter(|(vni, network)| has(network) != Some(**vni))
            .map(|(vni, network)| {
                format!(
                    "VNI {vni} is claimed by network {network}, which has {:?}",
                    has(network)
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Records {
        let mut records = Records::default();
        for (key, value) in [
            ("networks/blue", r#"{"subnets":[{"cidr":"10.1.0.0/24"}],"vni":7}"#),
            ("vnis/7", r#"{"network":"blue"}"#),
            (
                "endpoints/blue/host1/a",
                r#"{"attachment":{"netns":"/run/netns/a"},"addresses":["10.1.0.2","fd00::2"],"mac":"02:42:0A:01:00:02"}"#,
            ),
            ("addresses/blue/10.1.0.2", r#"{"endpoint":"host1/a"}"#),
            ("addresses/blue/fd00::2", r#"{"endpoint":"host1/a"}"#),
            ("addresses/blue/10.1.0.9", r#"{"reservation":"host1/x"}"#),
            ("alive/host1", "any"),
        ] {
            records.put(&format!("{PREFIX}{key}"), value.as_bytes(), 3);
        }
        records
    }

    #[track_caller]
    fn finds(change: impl FnOnce(&mut Records), words: &str) {
        let mut records = sound();
        change(&mut records);
        let wrong = records.violations(&BTreeSet::new());
        assert!(wrong.iter().any(|text| text.contains(words)), "{wrong:?}");
    }

    #[test]
    fn what_is_sound_passes() {
        assert_eq!(sound().violations(&BTreeSet::new()), Vec::<String>::new());
        assert_eq!(
            sound().endpoints.values().next().unwrap().mac,
            "02:42:0a:01:00:02"
        );
    }

    #[test]
    fn each_kind_of_damage_is_found() {
        finds(
            |r| r.delete("/weft/v1/addresses/blue/fd00::2"),
            "fd00::2, which nobody has claimed",
        );
        finds(
            |r| r.delete("/weft/v1/endpoints/blue/host1/a"),
            "claimed by host1/a, which does not exist",
        );
        finds(
            |r| {
                r.put(
                    "/weft/v1/endpoints/blue/host2/b",
                    br#"{"addresses":["10.1.0.2"]}"#,
                    4,
                );
            },
            "in the records of both",
        );
        finds(
            |r| {
                r.put(
                    "/weft/v1/addresses/blue/10.1.0.2",
                    br#"{"endpoint":"host2/b"}"#,
                    4,
                );
            },
            "which host2/b has claimed",
        );
        finds(
            |r| {
                r.put(
                    "/weft/v1/addresses/blue/10.1.0.3",
                    br#"{"endpoint":"host1/a"}"#,
                    4,
                );
            },
            "which does not name it",
        );
        finds(|r| r.delete("/weft/v1/vnis/7"), "has VNI 7");
        let mut records = sound();
        assert_eq!(records.left_over(), Vec::<String>::new());
        records.delete("/weft/v1/networks/blue");
        assert_eq!(records.left_over().len(), 1);
        finds(|r| r.put("/weft/v1/vnis/8", b"[", 4), "vnis/8 cannot be read");
    }

    #[test]
    fn what_is_written_by_hand_may_leave_claims_but_takes_none() {
        let by_hand = BTreeSet::from(["blue".to_owned()]);
        let mut records = sound();
        records.delete("/weft/v1/endpoints/blue/host1/a");
        records.put("/weft/v1/networks/blue", b"{", 4);
        assert_eq!(records.violations(&by_hand), Vec::<String>::new());
        assert_eq!(records.violations(&BTreeSet::new()).len(), 3);
        records.put(
            "/weft/v1/endpoints/blue/host2/b",
            br#"{"addresses":["10.1.0.2"]}"#,
            5,
        );
        assert_eq!(records.violations(&by_hand).len(), 1);
    }
}
