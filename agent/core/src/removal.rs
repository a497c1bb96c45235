//! What a node holds in the cluster, and the transaction that ends its life there.
//!
//! The transaction comes first: from then on nothing that an agent of that life writes about endpoints and addresses
//! can happen (see [`crate::fence`]), so that what is listed after it is all that there will ever be of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_store_schema::{
    AddressClaim, Endpoint, EndpointRef, Holder, Key, NodeName, Peer, PeerKind, Prefix, RemovedDocument,
    encode,
};

use crate::record::{Entry, Guard, Transaction, Write};

/// An endpoint of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub name: EndpointRef,
    /// Its name for people.
    pub title: Option<Box<str>>,
    /// What it names, and what is claimed for it.
    pub addresses: BTreeSet<IpAddr>,
    /// The revision at which it was made.
    pub create_revision: i64,
}

/// What a node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its peer record's revision, and the record if it can be read.
    pub peer: Option<(i64, Option<Peer>)>,
    /// The revision at which its peer record was made; 0 if it has none.
    pub peer_since: i64,
    /// The revision of the mark of an earlier removal.
    pub mark: Option<i64>,
    /// Whether an agent keeps its presence up.
    pub alive: bool,
    /// Its endpoints, ordered by name.
    pub endpoints: Vec<Held>,
    /// Addresses claimed for endpoints of it that do not exist.
    pub strays: Vec<(EndpointRef, IpAddr)>,
}

impl Holdings {
    /// What a node holds by these records, which are all of the cluster's.
    pub fn of(prefix: &Prefix, entries: &[Entry], node: &NodeName) -> Self {
        let mut holdings = Self::default();
        let mut endpoints: BTreeMap<EndpointRef, Held> = BTreeMap::new();
        let mut claims: Vec<(EndpointRef, IpAddr)> = Vec::new();
        for entry in entries {
            let Ok(key) = prefix.parse(&entry.key) else {
                continue;
            };
            match key {
                Key::Peer(of) if of == *node => {
                    holdings.peer = Some((entry.mod_revision, Peer::decode(&entry.value).ok()));
                    holdings.peer_since = entry.create_revision;
                }
                Key::Removed(of) if of == *node => holdings.mark = Some(entry.mod_revision),
                Key::Alive(of) if of == *node => holdings.alive = true,
                Key::Endpoint(name) if name.node == *node => {
                    let endpoint = Endpoint::decode(&entry.value).ok();
                    let held = Held {
                        name: name.clone(),
                        title: endpoint.as_ref().and_then(|e| e.name().map(Into::into)),
                        addresses: endpoint.iter().flat_map(|e| &e.addresses).copied().collect(),
                        create_revision: entry.create_revision,
                    };
                    endpoints.insert(name, held);
                }
                Key::Address(network, address) => {
                    let claim = AddressClaim::decode(&entry.value).ok();
                    if let Some(claim) = claim.filter(|c| c.node == *node && c.holder == Holder::Endpoint) {
                        let name = EndpointRef {
                            network,
                            node: claim.node,
                            id: claim.id,
                        };
                        claims.push((name, address));
                    }
                }
                _ => {}
            }
        }
        for (name, address) in claims {
            match endpoints.get_mut(&name) {
                Some(held) => drop(held.addresses.insert(address)),
                None => holdings.strays.push((name, address)),
            }
        }
        holdings.endpoints = endpoints.into_values().collect();
        holdings
    }

    /// Whether there is nothing of the node, and never was as far as one can see.
    pub fn is_unknown(&self) -> bool {
        self.peer.is_none() && self.mark.is_none() && self.endpoints.is_empty() && self.strays.is_empty()
    }

    /// Whether the life that is there now is not the one that was there in `earlier` holdings, read at `revision`: the
    /// node was removed, and has come back.
    pub fn is_another_life(&self, earlier: &Self, revision: i64) -> bool {
        fn life(holdings: &Holdings) -> Option<&str> {
            holdings.peer.as_ref()?.1.as_ref()?.incarnation.as_deref()
        }
        self.peer_since > revision && life(self) != life(earlier)
    }

    /// The transaction that ends the node's life in the cluster, on behalf of the node `by`; none if it has ended.
    /// It cannot happen while an agent of it is there, unless by force.
    pub fn end(&self, node: &NodeName, by: &NodeName, force: bool) -> Option<Transaction> {
        let (peer_key, mark_key) = (Key::Peer(node.clone()), Key::Removed(node.clone()));
        let mut transaction = Transaction::default();
        match &self.peer {
            Some((at, _)) => {
                transaction.guards.push(Guard::Unchanged(peer_key.clone(), *at));
                transaction.writes.push(Write::Delete(peer_key));
            }
            None if self.mark.is_some() => return None,
            None => transaction.guards.push(Guard::Absent(peer_key)),
        }
        transaction.guards.push(match self.mark {
            Some(at) => Guard::Unchanged(mark_key.clone(), at),
            None => Guard::Absent(mark_key.clone()),
        });
        if !force {
            transaction.guards.push(Guard::Absent(Key::Alive(node.clone())));
        }
        let peer = self.peer.as_ref().and_then(|(_, peer)| peer.as_ref());
        // Nobody comes back to an external one and needs to be told.
        if peer.is_none_or(|peer| peer.kind == PeerKind::Agent) {
            let incarnation = peer.and_then(|peer| peer.incarnation.as_deref());
            let mark = RemovedDocument {
                version: None,
                incarnation: incarnation.map(str::to_owned),
                by: Some(by.to_string()),
                endpoints: self.endpoints.len() as u64,
                held: self.told(),
            };
            transaction.writes.push(Write::Put(mark_key, encode(&mark)));
        } else if self.mark.is_some() {
            transaction.writes.push(Write::Delete(mark_key));
        }
        Some(transaction)
    }

    fn told(&self) -> Vec<String> {
        let tell = |held: &Held| {
            let addresses = held.addresses.iter().map(|address| format!(" {address}"));
            format!(
                "{}/{}{}",
                held.name.network,
                held.name.id,
                addresses.collect::<String>()
            )
        };
        let endpoints = self.endpoints.iter().take(RemovedDocument::MOST_HELD);
        endpoints.map(tell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(records: &[(&str, &str)]) -> Vec<Entry> {
        let entry = |(i, (key, value)): (usize, &(&str, &str))| Entry {
            key: format!("/weft/v1/{key}").into_bytes(),
            value: value.as_bytes().to_vec(),
            create_revision: i as i64 + 2,
            mod_revision: i as i64 + 2,
        };
        records.iter().enumerate().map(entry).collect()
    }

    fn of(records: &[(&str, &str)]) -> Holdings {
        Holdings::of(&Prefix::default(), &entries(records), &"host3".parse().unwrap())
    }

    fn end(holdings: &Holdings, force: bool) -> Option<Transaction> {
        holdings.end(&"host3".parse().unwrap(), &"host1".parse().unwrap(), force)
    }

    const WORLD: &[(&str, &str)] = &[
        ("peers/host3", r#"{"vteps":["10.99.0.3"],"incarnation":"i3"}"#),
        (
            "endpoints/blue/host3/web",
            r#"{"attachment":{"netns":"/run/netns/w"},"addresses":["10.1.0.5"],"name":"front"}"#,
        ),
        ("endpoints/blue/host3/bad", "{"),
        (
            "endpoints/blue/host1/web",
            r#"{"attachment":{"netns":"/run/netns/w"}}"#,
        ),
        ("addresses/blue/10.1.0.5", r#"{"endpoint":"host3/web"}"#),
        ("addresses/blue/fd00::5", r#"{"endpoint":"host3/web"}"#),
        ("addresses/blue/10.1.0.6", r#"{"endpoint":"host3/bad"}"#),
        ("addresses/blue/10.1.0.7", r#"{"endpoint":"host3/gone"}"#),
        ("addresses/blue/10.1.0.8", r#"{"endpoint":"host1/web"}"#),
        ("addresses/blue/10.1.0.9", r#"{"reservation":"host3/soon"}"#),
    ];

    #[test]
    fn all_that_a_node_holds_is_found() {
        let holdings = of(WORLD);
        let told: Vec<String> = holdings.told();
        assert_eq!(told, ["blue/bad 10.1.0.6", "blue/web 10.1.0.5 fd00::5"]);
        assert_eq!(
            holdings.strays,
            [(
                EndpointRef {
                    network: "blue".parse().unwrap(),
                    node: "host3".parse().unwrap(),
                    id: "gone".parse().unwrap(),
                },
                "10.1.0.7".parse().unwrap()
            )]
        );
        assert_eq!(holdings.endpoints[1].title.as_deref(), Some("front"));
        assert!(!holdings.alive && !holdings.is_unknown());
        assert!(of(&[("peers/host1", "{}"), ("alive/host3", "{}")]).is_unknown());
    }

    #[test]
    fn a_life_is_ended_once_and_only_as_it_was_seen() {
        let holdings = of(WORLD);
        let transaction = end(&holdings, false).unwrap();
        let key = |text: &str| {
            Prefix::default()
                .parse(format!("/weft/v1/{text}").as_bytes())
                .unwrap()
        };
        assert_eq!(
            transaction.guards,
            [
                Guard::Unchanged(key("peers/host3"), 2),
                Guard::Absent(key("removed/host3")),
                Guard::Absent(key("alive/host3")),
            ]
        );
        let Write::Put(_, mark) = &transaction.writes[1] else {
            panic!("{transaction:?}")
        };
        let mark = RemovedDocument::decode(mark).unwrap();
        assert_eq!((mark.incarnation.as_deref(), mark.endpoints), (Some("i3"), 2));
        assert_eq!(end(&holdings, true).unwrap().guards.len(), 2);
        assert_eq!(end(&of(&[("removed/host3", r#"{"endpoints":0}"#)]), false), None);
        // Endpoints of a node that has no record: a mark for whoever comes as that node.
        let orphaned = end(&of(&WORLD[1..]), false).unwrap();
        assert_eq!(orphaned.writes.len(), 1);
        assert_eq!(orphaned.guards[0], Guard::Absent(key("peers/host3")));
    }

    #[test]
    fn who_has_come_back_is_not_who_was_to_be_removed() {
        let earlier = of(&WORLD[..2]);
        assert!(!earlier.is_another_life(&earlier, 9));
        let now = |since: usize, life: &str| {
            let record = format!(r#"{{"vteps":["10.99.0.3"],"incarnation":"{life}"}}"#);
            let mut records = vec![("alive/host3", "{}"); since - 2];
            records.push(("peers/host3", &record));
            of(&records)
        };
        assert!(!now(9, "i4").is_another_life(&earlier, 9), "it was there before");
        assert!(
            !now(10, "i3").is_another_life(&earlier, 9),
            "a record put back by hand"
        );
        assert!(now(10, "i4").is_another_life(&earlier, 9));
        assert!(!of(&WORLD[1..2]).is_another_life(&earlier, 9), "it is gone");
    }

    #[test]
    fn an_external_peer_leaves_no_mark() {
        let holdings = of(&[("peers/host3", r#"{"vteps":["10.99.0.3"],"kind":"external"}"#)]);
        let transaction = end(&holdings, false).unwrap();
        assert_eq!(transaction.writes.len(), 1, "{transaction:?}");
    }
}
