//! Several agents with views of different age write to one store: what must hold at every moment, and what in
//! the end.

use std::net::IpAddr;

use proptest::{collection, prelude::*, sample::select};
use weft_core::{
    claims::{self, Choosing, Refusal},
    dirty::Dirty,
    fence::fenced,
    record::{Committed, Guard, Transaction},
};
use weft_store_schema::{
    AddressClaim, AttachmentDocument, Endpoint, EndpointDocument, EndpointRef, Key, Network, NetworkDocument,
    NetworkName, Prefix, SubnetDocument, VniClaim,
};

use crate::{
    agent::Agent,
    convergence::{agents, config},
    records::{Edit, Families, IDS, NETWORKS, NODES, any_edit},
    store::Store,
};

/// What agents are asked for, and when their news and writes arrive.
#[derive(Debug, Clone)]
pub(crate) enum Deed {
    Create(usize, &'static str, Option<u64>),
    Delete(usize, &'static str),
    Attach(usize, &'static str, &'static str, Vec<&'static str>),
    Detach(usize, &'static str, &'static str),
    /// As etcdctl does: the least that is an endpoint, where there is none.
    PutMinimal(usize, &'static str, &'static str),
    /// An agent works out the write of one of its chores.
    Chore(usize, usize),
    /// An agent reads the news.
    Sync(usize),
    /// One of the writes under way arrives.
    Arrive(usize),
    /// Anything at all, by hand.
    ByHand(Edit),
}

fn wish() -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![
        4 => Just(vec![]),
        1 => select(vec!["10.1.0.1", "10.1.0.2", "10.1.0.5", "10.1.0.7", "10.9.0.1", "fd00:1::5"]).prop_map(|a| vec![a]),
    ]
}

pub(crate) fn deed() -> impl Strategy<Value = Deed> {
    let (n, network, id) = (0_usize..3, select(&NETWORKS[..]), select(&IDS[..]));
    let vni = proptest::option::weighted(0.3, select(vec![100_u64, 101]));
    prop_oneof![
        1 => (n.clone(), network.clone(), vni).prop_map(|(n, net, vni)| Deed::Create(n, net, vni)),
        1 => (n.clone(), network.clone()).prop_map(|(n, net)| Deed::Delete(n, net)),
        5 => (n.clone(), network.clone(), id.clone(), wish()).prop_map(|(n, net, id, w)| Deed::Attach(n, net, id, w)),
        3 => (n.clone(), network.clone(), id.clone()).prop_map(|(n, net, id)| Deed::Detach(n, net, id)),
        2 => (n.clone(), network, id).prop_map(|(n, net, id)| Deed::PutMinimal(n, net, id)),
        6 => (n.clone(), 0_usize..6).prop_map(|(n, nth)| Deed::Chore(n, nth)),
        3 => n.prop_map(Deed::Sync),
        8 => (0_usize..4).prop_map(Deed::Arrive),
    ]
}

pub(crate) struct Cluster {
    pub(crate) store: Store,
    pub(crate) agents: Vec<Agent>,
    /// Writes under way, with who sent them.
    pub(crate) flying: Vec<(usize, Transaction)>,
}

pub(crate) fn endpoint(n: usize, network: &str, id: &str) -> EndpointRef {
    EndpointRef {
        network: network.parse().unwrap(),
        node: NODES[n].parse().unwrap(),
        id: id.parse().unwrap(),
    }
}

pub(crate) fn minimal() -> EndpointDocument {
    EndpointDocument {
        attachment: AttachmentDocument {
            netns: "/run/netns/x".to_owned(),
            ifname: None,
        },
        ..EndpointDocument::default()
    }
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let mut agents = agents([Families::V4; 3]);
        let store = Store::new();
        for agent in &mut agents {
            // Who is asked for something looks at all of it.
            agent.pinned = NETWORKS.iter().map(|n| n.parse().unwrap()).collect();
            agent.sync(&store);
        }
        Self {
            store,
            agents,
            flying: Vec::new(),
        }
    }

    fn fly(&mut self, n: usize, transaction: Result<Transaction, Refusal>) {
        // A refusal is an answer: nothing is written.
        if let Ok(transaction) = transaction {
            let transaction = fenced(&self.agents[n].snapshot, transaction);
            assert!(transaction.writes.len() + transaction.guards.len() <= 128);
            self.flying.push((n, transaction));
        }
    }

    pub(crate) fn take(&mut self, deed: &Deed) {
        let none = Choosing::default();
        match deed {
            Deed::Create(n, network, vni) => {
                let subnets = ["10.1.0.0/29", "fd00:1::/125"].map(|cidr| SubnetDocument {
                    cidr: cidr.to_owned(),
                    ..SubnetDocument::default()
                });
                let document = NetworkDocument {
                    subnets: subnets.into(),
                    vni: *vni,
                    ..NetworkDocument::default()
                };
                let made =
                    claims::create_network(&self.agents[*n].snapshot, &network.parse().unwrap(), &document);
                self.fly(*n, made);
            }
            Deed::Delete(n, network) => {
                let made = claims::delete_network(&self.agents[*n].snapshot, &network.parse().unwrap());
                self.fly(*n, made);
            }
            Deed::Attach(n, network, id, wish) => {
                let document = EndpointDocument {
                    requested_addresses: wish.iter().map(ToString::to_string).collect(),
                    ..minimal()
                };
                let name = endpoint(*n, network, id);
                let made = claims::attach(&self.agents[*n].snapshot, &name, document, None, &none);
                self.fly(*n, made);
            }
            Deed::Detach(n, network, id) => {
                let made = claims::detach(&self.agents[*n].snapshot, &endpoint(*n, network, id));
                self.fly(*n, made);
            }
            Deed::PutMinimal(n, network, id) => {
                let name = Key::Endpoint(endpoint(*n, network, id));
                let there = self.store.read(&Key::Network(network.parse().unwrap())).is_some();
                if there && self.store.read(&name).is_none() {
                    let name = Prefix::default().key(&name);
                    self.store
                        .put(name.as_bytes(), &weft_store_schema::encode(&minimal()));
                }
            }
            Deed::Chore(n, nth) => {
                let agent = &mut self.agents[*n];
                if let Some(chore) = agent.book.iter().nth(*nth).cloned()
                    && let Ok(Some(transaction)) = agent.transaction(&chore)
                {
                    self.flying.push((*n, transaction));
                }
            }
            Deed::Sync(n) => self.agents[*n].sync(&self.store),
            Deed::Arrive(nth) => {
                if *nth < self.flying.len() {
                    let (n, transaction) = self.flying.swap_remove(*nth);
                    let node = self.agents[n].node().clone();
                    self.store.commit(&transaction, &node);
                }
            }
            Deed::ByHand(edit) => edit.apply(&mut self.store),
        }
    }

    /// Everything arrives, everybody reads, and does what is owed, until nothing more comes of it. Returns
    /// what was refused.
    pub(crate) fn come_to_rest(&mut self) -> Vec<Refusal> {
        for (n, transaction) in std::mem::take(&mut self.flying) {
            let node = self.agents[n].node().clone();
            self.store.commit(&transaction, &node);
        }
        for _ in 0..20 {
            let (mut refused, mut wrote) = (Vec::new(), false);
            for agent in &mut self.agents {
                agent.sync(&self.store);
                for chore in agent.book.clone() {
                    match agent.transaction(&chore) {
                        Ok(None) => {}
                        Ok(Some(transaction)) => {
                            let committed = self.store.commit(&transaction, agent.node());
                            let empty = transaction.guards.iter().any(|g| matches!(g, Guard::Empty(_)));
                            let done = matches!(committed, Committed::Yes { .. });
                            assert!(done || empty, "{chore:?} with a fresh view: {transaction:#?}");
                            wrote |= done;
                            agent.sync(&self.store);
                        }
                        Err(refusal) => refused.push(refusal),
                    }
                }
            }
            if !wrote {
                for agent in &self.agents {
                    let owed =
                        weft_core::chores::chores(&agent.snapshot, &agent.peer(), &Dirty::everything());
                    assert!(owed.iter().all(|chore| agent.book.contains(chore)), "{owed:?}");
                }
                return refused;
            }
        }
        panic!("the chores come to no end");
    }

    fn networks(&self) -> Vec<(NetworkName, Network)> {
        let networks = self
            .store
            .entries()
            .filter_map(|e| match Prefix::default().parse(&e.key) {
                Ok(Key::Network(name)) => Some((name, Network::decode(&e.value).ok()?)),
                _ => None,
            });
        networks.collect()
    }

    /// No claim without an endpoint that names the address, none of an endpoint's addresses without its claim,
    /// no endpoint without its network; a VNI is one network's, and its claim says whose.
    fn check(&self) -> Result<(), TestCaseError> {
        for entry in self.store.entries() {
            match Prefix::default().parse(&entry.key).unwrap() {
                Key::Address(network, address) => {
                    let claim = AddressClaim::decode(&entry.value).unwrap();
                    let holder = EndpointRef {
                        network,
                        node: claim.node,
                        id: claim.id,
                    };
                    let record = self.store.read(&Key::Endpoint(holder.clone()));
                    let named = record
                        .is_some_and(|r| Endpoint::decode(&r.value).unwrap().addresses.contains(&address));
                    prop_assert!(named, "{address} is claimed by {holder}, which does not have it");
                }
                Key::Endpoint(name) => {
                    let record = Endpoint::decode(&entry.value).unwrap();
                    for address in &record.addresses {
                        let claim = self.store.read(&Key::Address(name.network.clone(), *address));
                        let held = claim.is_some_and(|c| {
                            let claim = AddressClaim::decode(&c.value).unwrap();
                            (claim.node, claim.id) == (name.node.clone(), name.id.clone())
                        });
                        prop_assert!(held, "{name} has {address} without a claim");
                    }
                    let network = self.store.read(&Key::Network(name.network.clone()));
                    prop_assert!(network.is_some(), "{name} has no network");
                    let network = Network::decode(&network.unwrap().value).unwrap();
                    for address in &record.addresses {
                        let subnet = network.subnet_of(*address).unwrap();
                        prop_assert!(subnet.admits(*address), "{name} has {address}");
                    }
                }
                Key::Vni(vni) => {
                    let claim = VniClaim::decode(&entry.value).unwrap();
                    let record = self.store.read(&Key::Network(claim.network.clone()));
                    let addresses = Prefix::default().addresses_of(&claim.network);
                    prop_assert!(
                        record.is_some() || !self.store.list(&addresses).is_empty(),
                        "{vni} is claimed for {}, which is not there",
                        claim.network
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// In the end: whoever can be completed is, and nothing is claimed that is not named.
    fn check_at_rest(&self, refused: &[Refusal]) -> Result<(), TestCaseError> {
        let networks = self.networks();
        for (name, network) in &networks {
            if let Some(vni) = network.vni {
                let same = networks
                    .iter()
                    .filter(|(_, other)| other.vni == Some(vni))
                    .count();
                let claim = self.store.read(&Key::Vni(vni));
                let holder = claim
                    .and_then(|c| VniClaim::decode(&c.value).ok())
                    .map(|claim| claim.network);
                // A network whose record was deleted keeps its VNI while it has endpoints or addresses; one whose record
                // cannot be read may well name it.
                let keeps = |holder: &NetworkName| match self.store.read(&Key::Network(holder.clone())) {
                    Some(record) => Network::decode(&record.value).is_err(),
                    None => {
                        let prefix = Prefix::default();
                        let left = [prefix.endpoints_of(holder), prefix.addresses_of(holder)];
                        left.iter()
                            .any(|directory| !self.store.list(directory).is_empty())
                    }
                };
                let own = holder.as_ref() == Some(name);
                let others = same > 1 || claim.is_some() && holder.as_ref().is_none_or(keeps);
                prop_assert!(own || others, "{name} does not hold its VNI");
            } else {
                prop_assert!(false, "{name} has no VNI");
            }
        }
        for entry in self.store.entries() {
            match Prefix::default().parse(&entry.key) {
                Ok(Key::Endpoint(name)) => {
                    let Ok(record) = Endpoint::decode(&entry.value) else {
                        continue;
                    };
                    let complete = !record.addresses.is_empty() && record.mac.is_some();
                    let claimed = record.addresses.iter().all(|a| self.holds(&name, *a));
                    prop_assert!(
                        complete && claimed || !refused.is_empty(),
                        "{name} is left as it is"
                    );
                }
                Ok(Key::Address(network, address)) => {
                    let Ok(claim) = AddressClaim::decode(&entry.value) else {
                        continue;
                    };
                    let holder = EndpointRef {
                        network,
                        node: claim.node,
                        id: claim.id,
                    };
                    let Some(record) = self.store.read(&Key::Endpoint(holder.clone())) else {
                        prop_assert!(false, "{address} is still claimed by {holder}, which is gone");
                        continue;
                    };
                    // One that is bad, or cannot be completed, keeps what it has.
                    if let Ok(record) = Endpoint::decode(&record.value)
                        && !record.addresses.is_empty()
                        && refused.is_empty()
                    {
                        prop_assert!(record.addresses.contains(&address), "{holder} claims {address}");
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn holds(&self, name: &EndpointRef, address: IpAddr) -> bool {
        let claim = self.store.read(&Key::Address(name.network.clone(), address));
        // One that turned bad is what it was, to those who have seen it.
        claim.is_some_and(|claim| match AddressClaim::decode(&claim.value) {
            Ok(claim) => (&claim.node, &claim.id) == (&name.node, &name.id),
            Err(_) => true,
        })
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever agents and API do, however old their views are and however late their writes arrive: at every
    /// moment an address is held if and only if its endpoint exists.
    #[test]
    fn an_address_is_held_exactly_while_its_endpoint_exists(deeds in collection::vec(deed(), 1..60)) {
        let mut cluster = Cluster::new();
        for deed in &deeds {
            cluster.take(deed);
            cluster.check()?;
        }
        let refused = cluster.come_to_rest();
        cluster.check()?;
        cluster.check_at_rest(&refused)?;
        for refusal in &refused {
            prop_assert!(matches!(refusal, Refusal::Full { .. }), "{refusal}");
        }
        prop_assert!(cluster.networks().len() <= 2);
    }

    /// Whatever people write and delete by hand beside it: in the end it is put right as far as it can be.
    #[test]
    fn what_is_done_by_hand_is_put_right(
        deeds in collection::vec(prop_oneof![3 => deed(), 2 => any_edit().prop_map(Deed::ByHand)], 1..60),
    ) {
        let mut cluster = Cluster::new();
        for deed in &deeds {
            cluster.take(deed);
        }
        let refused = cluster.come_to_rest();
        cluster.check_at_rest(&refused)?;
    }
}
