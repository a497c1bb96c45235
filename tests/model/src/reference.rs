//! What must hold at every moment, said by something that sees nothing but etcd's history. It knows the records' forms,
//! and none of the code that decides: it counts addresses one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_core::record::{Change, Guard, Transaction, Write};
use weft_store_schema::{
    AddressClaimDocument, EndpointDocument, EndpointRef, Key, NetworkDocument, NetworkName, NodeName, Prefix,
    RemovedDocument, Vni, VniClaimDocument, decode,
};

use crate::{
    doing::Flight,
    etcd::{Etcd, key_of, revision_of},
};

/// What is wrong, if something is.
pub(crate) type Verdict = Result<(), String>;

macro_rules! must {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+));
        }
    };
}
pub(crate) use must;

/// Who wrote.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Writer<'a> {
    /// An agent, by this transaction.
    Agent(&'a Flight),
    /// Somebody with etcdctl.
    Hand,
    /// A lease has ended.
    Lease,
}

/// A network, address by address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Space {
    /// What endpoints may hold.
    pub(crate) admitted: BTreeSet<IpAddr>,
    /// What is chosen for those that do not ask, in subnets.
    pub(crate) pools: Vec<BTreeSet<IpAddr>>,
    vni: Option<u64>,
    created: i64,
}

impl Space {
    fn of(document: &NetworkDocument) -> Self {
        let mut space = Self {
            vni: document.vni,
            ..Self::default()
        };
        for subnet in &document.subnets {
            let Some((first, bits)) = subnet.cidr.split_once('/') else {
                continue;
            };
            let (Ok(first), Ok(bits)) = (first.parse::<IpAddr>(), bits.parse::<u32>()) else {
                continue;
            };
            let size = 1_u128 << (if first.is_ipv4() { 32 } else { 128 } - bits);
            let at = |n: u128| match first {
                IpAddr::V4(a) => IpAddr::V4((u32::from(a) + n as u32).into()),
                IpAddr::V6(a) => IpAddr::V6((u128::from(a) + n).into()),
            };
            let within = |text: &str, address: IpAddr| {
                let (from, to) = text.split_once('-').unwrap_or((text, text));
                let (from, to) = (from.parse::<IpAddr>(), to.parse::<IpAddr>());
                from.is_ok_and(|from| from <= address) && to.is_ok_and(|to| address <= to)
            };
            let mut pool = BTreeSet::new();
            // Not the network's own, not the gateway, not the broadcast address.
            for address in (2..size).map(at) {
                let last = first.is_ipv4() && address == at(size - 1);
                if !last && !subnet.reserved.iter().any(|r| within(r, address)) {
                    space.admitted.insert(address);
                    if subnet.range.as_ref().is_none_or(|range| within(range, address)) {
                        pool.insert(address);
                    }
                }
            }
            space.pools.push(pool);
        }
        space
    }

    /// The families, as whether they are IPv4.
    pub(crate) fn families(&self) -> BTreeSet<bool> {
        self.pools.iter().flatten().map(IpAddr::is_ipv4).collect()
    }
}

/// An endpoint's record.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) created: i64,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) requested: Vec<IpAddr>,
}

/// A claim.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// The endpoint; none for a reservation.
    pub(crate) endpoint: Option<EndpointRef>,
    at: i64,
    leased: bool,
}

/// What became of a key.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    pub(crate) key: Key,
    /// When it was put (true) and deleted.
    turns: Vec<(i64, bool)>,
}

impl Turns {
    /// Whether the key was in this state (last written at a revision, or absent) at any time from `since` on.
    pub(crate) fn were(&self, state: Option<i64>, since: i64) -> bool {
        let turns = &self.turns;
        match state {
            Some(at) => turns
                .iter()
                .position(|(r, put)| *r == at && *put)
                .is_some_and(|i| {
                    let next = turns.get(i + 1);
                    next.is_none_or(|(r, _)| *r > since)
                }),
            None => {
                let at_then = turns.iter().rev().find(|(r, _)| *r <= since);
                at_then.is_none_or(|(_, put)| !put) || turns.iter().any(|(r, put)| *r > since && !put)
            }
        }
    }
}

pub(crate) type Spot = (NetworkName, IpAddr);

/// etcd's history, as far as it matters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reference {
    prefix: Prefix,
    revision: i64,
    pub(crate) spaces: BTreeMap<NetworkName, Space>,
    pub(crate) records: BTreeMap<EndpointRef, Record>,
    pub(crate) claims: BTreeMap<Spot, Claim>,
    released: BTreeMap<Spot, i64>,
    vnis: BTreeMap<u64, NetworkName>,
    peers: BTreeSet<NodeName>,
    /// Claims that are to be given up by a chore of the node that has them, by their revisions: left behind by hand, or
    /// by a record that was completed with other addresses.
    orphans: BTreeMap<Spot, i64>,
    /// Lives of nodes that are over, and at which revision that was.
    pub(crate) ended: BTreeMap<(NodeName, String), i64>,
    /// When an endpoint last gave an address up.
    pub(crate) given_up: BTreeMap<Spot, u64>,
    log: BTreeMap<Vec<u8>, Turns>,
}

impl Reference {
    /// Takes in what has happened since the last time, which is one revision at most.
    pub(crate) fn observe(&mut self, etcd: &Etcd, writer: Writer<'_>, clock: u64) -> Verdict {
        let changes: Vec<Change> = etcd.since(self.revision).cloned().collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.revision = revision_of(&changes[0]);
        if let Writer::Agent(flight) = writer {
            self.check_meant(flight)?;
            self.check_lives(flight)?;
        }
        let (before, vnis) = (self.claims.clone(), self.vnis.clone());
        for change in &changes {
            self.apply(etcd, change, writer)?;
        }
        self.check_released(&before, writer, clock)?;
        if let Writer::Agent(flight) = writer {
            self.check_written(&flight.transaction)?;
            self.check_whose(&before, &flight.life.0)?;
            self.check_vnis(&vnis)?;
        }
        self.check()
    }

    fn apply(&mut self, etcd: &Etcd, change: &Change, writer: Writer<'_>) -> Verdict {
        let (key, value) = match change {
            Change::Put(entry) => (&entry.key, Some(entry)),
            Change::Deleted { key, .. } => (key, None),
        };
        let bad = |what: &dyn std::fmt::Display| format!("a record that is none: {what}");
        let parsed = self.prefix.parse(key).map_err(|e| bad(&e))?;
        let turns = self.log.entry(key.clone()).or_insert_with(|| Turns {
            key: parsed.clone(),
            turns: Vec::new(),
        });
        turns.turns.push((revision_of(change), value.is_some()));
        match parsed {
            Key::Network(name) => match value {
                Some(entry) => {
                    let document: NetworkDocument = decode(&entry.value).map_err(|e| bad(&e))?;
                    let mut space = Space::of(&document);
                    space.created = entry.create_revision;
                    self.spaces.insert(name, space);
                }
                None => drop(self.spaces.remove(&name)),
            },
            Key::Endpoint(name) => {
                match value {
                    Some(entry) => {
                        let document: EndpointDocument = decode(&entry.value).map_err(|e| bad(&e))?;
                        let parse =
                            |texts: &[String]| texts.iter().filter_map(|text| text.parse().ok()).collect();
                        let record = Record {
                            created: entry.create_revision,
                            addresses: parse(&document.addresses),
                            requested: parse(&document.requested_addresses),
                        };
                        self.records.insert(name.clone(), record);
                    }
                    None => drop(self.records.remove(&name)),
                }
                let completed =
                    match writer {
                        Writer::Hand => true,
                        // Another node's agent leaves the claims to the endpoint's own.
                        Writer::Agent(flight) if flight.life.0 != name.node => true,
                        Writer::Agent(flight) => flight.transaction.guards.iter().any(
                            |guard| matches!(guard, Guard::Unchanged(Key::Endpoint(of), _) if *of == name),
                        ),
                        Writer::Lease => false,
                    };
                let own = matches!(writer, Writer::Agent(flight) if flight.life.0 == name.node);
                if completed && (value.is_some() || !own) {
                    self.orphan(&name);
                }
            }
            Key::Address(network, address) => match value {
                Some(entry) => {
                    let document: AddressClaimDocument = decode(&entry.value).map_err(|e| bad(&e))?;
                    let holder = document.endpoint.as_deref().and_then(|text| text.split_once('/'));
                    let endpoint = holder.and_then(|(node, id)| {
                        Some(EndpointRef {
                            network: network.clone(),
                            node: node.parse().ok()?,
                            id: id.parse().ok()?,
                        })
                    });
                    must!(
                        endpoint.is_some() != document.reservation.is_some(),
                        "a claim of nobody: {document:?}"
                    );
                    if endpoint.is_none() {
                        // Who reserves an address and lets it go leaves no trace of who had it before.
                        self.given_up.remove(&(network.clone(), address));
                    }
                    let claim = Claim {
                        endpoint,
                        at: entry.mod_revision,
                        leased: etcd.lease_of(key).is_some(),
                    };
                    self.claims.insert((network, address), claim);
                }
                None => drop(self.claims.remove(&(network, address))),
            },
            Key::Released(network, address) => match value {
                Some(entry) => drop(self.released.insert((network, address), entry.mod_revision)),
                None => drop(self.released.remove(&(network, address))),
            },
            Key::Vni(vni) => match value {
                Some(entry) => {
                    let document: VniClaimDocument = decode(&entry.value).map_err(|e| bad(&e))?;
                    let name = document.network.parse().map_err(|e| bad(&e))?;
                    self.vnis.insert(vni.get().into(), name);
                }
                None => drop(self.vnis.remove(&u64::from(vni.get()))),
            },
            Key::Peer(node) => match value {
                Some(_) => drop(self.peers.insert(node)),
                None => drop(self.peers.remove(&node)),
            },
            Key::Removed(node) => {
                if let Some(entry) = value {
                    let document: RemovedDocument = decode(&entry.value).map_err(|e| bad(&e))?;
                    let life = document.incarnation.unwrap_or_default();
                    self.ended.insert((node, life), entry.mod_revision);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Nothing that was worked out in a life of a node that is over happens to endpoints and addresses.
    fn check_lives(&self, flight: &Flight) -> Verdict {
        let mut writes = flight.transaction.writes.iter();
        let about = writes.any(|write| {
            matches!(
                write.key(),
                Some(Key::Endpoint(_) | Key::Address(..) | Key::Released(..))
            )
        });
        let over = self.ended.get(&flight.life).filter(|_| about);
        must!(
            over.is_none(),
            "{:?} has ended at {over:?}, and writes about addresses",
            flight.life
        );
        Ok(())
    }

    /// What a record does not name any more is for the node's agent to give up.
    fn orphan(&mut self, name: &EndpointRef) {
        let named = self.records.get(name).map(|record| &record.addresses);
        for ((network, address), claim) in &self.claims {
            if claim.endpoint.as_ref() == Some(name) && named.is_none_or(|named| !named.contains(address)) {
                self.orphans.insert((network.clone(), *address), claim.at);
            }
        }
    }

    /// What a transaction takes over or gives up is what it was when it was worked out.
    fn check_meant(&self, flight: &Flight) -> Verdict {
        for write in &flight.transaction.writes {
            let Some(Key::Address(network, address)) = write.key() else {
                continue;
            };
            let there = self
                .claims
                .get(&(network.clone(), *address))
                .map(|claim| claim.at);
            let key = Key::Address(network.clone(), *address);
            let meant = flight.means.iter().find(|(of, _)| *of == key).map(|(_, at)| *at);
            must!(
                there.is_none() || there == meant,
                "{key} is another claim (of revision {there:?}) than the one that was meant ({meant:?})"
            );
        }
        Ok(())
    }

    /// An address that an endpoint gave up leaves a trace while its network is there.
    fn check_released(&mut self, before: &BTreeMap<Spot, Claim>, writer: Writer<'_>, clock: u64) -> Verdict {
        for (spot, claim) in before {
            if self.claims.contains_key(spot) || claim.endpoint.is_none() {
                continue;
            }
            self.given_up.insert(spot.clone(), clock);
            let traced = self.released.get(spot) == Some(&self.revision);
            // One of a network that is gone leaves none, although there may be another of that name by now.
            let space = self.spaces.get(&spot.0).filter(|space| space.created < claim.at);
            let needed = matches!(writer, Writer::Agent(_)) && space.is_some();
            must!(traced || !needed, "{spot:?} was given up without a trace");
        }
        Ok(())
    }

    /// What a node holds, another one gives up only if there is no record of the node: its agent alone sees its interfaces.
    fn check_whose(&self, before: &BTreeMap<Spot, Claim>, by: &NodeName) -> Verdict {
        for (spot, claim) in before {
            let Some(name) = &claim.endpoint else { continue };
            let kept = self.claims.get(spot).and_then(|claim| claim.endpoint.as_ref()) == Some(name);
            must!(
                kept || name.node == *by || !self.peers.contains(&name.node),
                "{by} has given up what {name} holds"
            );
        }
        Ok(())
    }

    /// A VNI is free, or another network's, once nothing is claimed for an endpoint of the one that had it.
    fn check_vnis(&self, before: &BTreeMap<u64, NetworkName>) -> Verdict {
        for (vni, name) in before
            .iter()
            .filter(|(vni, name)| self.vnis.get(*vni) != Some(*name))
        {
            let there = self.spaces.get(name);
            must!(
                there.is_some_and(|space| space.vni.is_some_and(|other| other != *vni))
                    || !self.is_carried(name),
                "VNI {vni} is not {name}'s any more, and a host may carry it"
            );
        }
        Ok(())
    }

    /// Whether an endpoint of a network may be on a host's interfaces.
    pub(crate) fn is_carried(&self, network: &NetworkName) -> bool {
        let mut claims = self.claims.iter();
        claims.any(|((of, _), claim)| of == network && claim.endpoint.is_some())
    }

    /// Whether an address of a network is claimed, or only reserved.
    pub(crate) fn is_claimed_of(&self, network: &NetworkName) -> bool {
        self.claims.keys().any(|(of, _)| of == network)
    }

    /// The network that a VNI is claimed for.
    pub(crate) fn network_of(&self, vni: Vni) -> Option<&NetworkName> {
        self.vnis.get(&u64::from(vni.get()))
    }

    /// Both families or neither, and nothing that is not open.
    fn check_written(&self, transaction: &Transaction) -> Verdict {
        for write in &transaction.writes {
            let Write::Put(Key::Endpoint(name), _) = write else {
                continue;
            };
            let (Some(record), Some(space)) = (self.records.get(name), self.spaces.get(&name.network)) else {
                return Err(format!("{name} was written without its network"));
            };
            let families: BTreeSet<bool> = record.addresses.iter().map(IpAddr::is_ipv4).collect();
            must!(
                families == space.families(),
                "{name} has {:?}, which is not an address of each family",
                record.addresses
            );
        }
        Ok(())
    }

    fn check(&mut self) -> Verdict {
        let (claims, records) = (&self.claims, &self.records);
        let is_named = |spot: &Spot, claim: &Claim| {
            let record = claim.endpoint.as_ref().and_then(|name| records.get(name));
            record.is_some_and(|record| record.addresses.contains(&spot.1))
        };
        self.orphans.retain(|spot, at| {
            let claim = claims.get(spot).filter(|claim| claim.at == *at);
            claim.is_some_and(|claim| !is_named(spot, claim))
        });
        for (spot, claim) in claims {
            let (network, address) = spot;
            match &claim.endpoint {
                None => must!(claim.leased, "{address} of {network} is reserved for ever"),
                Some(name) => {
                    must!(!claim.leased, "{address} of {name} ends with a lease");
                    must!(
                        is_named(spot, claim) || self.orphans.contains_key(spot),
                        "{address} is claimed for {name}, which does not have it"
                    );
                }
            }
            // A reservation may outlive its network: it ends soon.
            let orphan = self.orphans.contains_key(spot) || claim.endpoint.is_none();
            let space = self.spaces.get(network);
            must!(
                orphan || space.is_some_and(|space| space.admitted.contains(address)),
                "{address} is claimed, and {network} does not have it to give"
            );
            must!(
                !self.released.contains_key(spot),
                "{address} of {network} is claimed, and said to be free"
            );
        }
        let mut held: BTreeMap<(&NetworkName, IpAddr), &EndpointRef> = BTreeMap::new();
        for (name, record) in records {
            must!(self.spaces.contains_key(&name.network), "{name} has no network");
            for address in &record.addresses {
                if let Some(other) = held.insert((&name.network, *address), name) {
                    return Err(format!("{address} is held by {other} and by {name}"));
                }
                let claim = claims.get(&(name.network.clone(), *address));
                must!(
                    claim.is_some_and(|claim| claim.endpoint.as_ref() == Some(name)),
                    "{name} has {address}, and the claim is {claim:?}"
                );
            }
        }
        for (name, space) in &self.spaces {
            if let Some(vni) = space.vni {
                let holder = self.vnis.get(&vni);
                must!(
                    holder == Some(name),
                    "{name} has VNI {vni}, which is claimed for {holder:?}"
                );
            }
        }
        Ok(())
    }

    /// At rest: no claim without its endpoint, unless that waits for another address; nothing reserved for nobody.
    ///
    /// What was left behind by hand in a network that its node does not have in view is for the audit.
    pub(crate) fn check_at_rest(
        &self,
        waits: impl Fn(&EndpointRef) -> bool,
        in_view: impl Fn(&EndpointRef) -> bool,
    ) -> Verdict {
        for spot in self.orphans.keys() {
            let holder = self.claims.get(spot).and_then(|claim| claim.endpoint.as_ref());
            must!(
                holder.is_some_and(|holder| waits(holder) || !in_view(holder)),
                "{spot:?} is left behind by {holder:?}"
            );
        }
        let reserved = self.claims.iter().find(|(_, claim)| claim.endpoint.is_none());
        must!(reserved.is_none(), "still reserved: {reserved:?}");
        for (name, space) in &self.spaces {
            must!(space.vni.is_some(), "{name} has no VNI");
        }
        for (vni, name) in &self.vnis {
            let has = self.spaces.get(name).and_then(|space| space.vni);
            must!(
                has == Some(*vni) || !self.spaces.contains_key(name) && self.is_carried(name),
                "VNI {vni} is claimed for {name}, which has {has:?}"
            );
        }
        Ok(())
    }

    /// Who holds an address.
    pub(crate) fn holder(&self, network: &NetworkName, address: IpAddr) -> Option<&Claim> {
        self.claims.get(&(network.clone(), address))
    }

    /// What became of the keys below a directory, of all that ever were.
    pub(crate) fn below<'a>(&'a self, directory: &'a str) -> impl Iterator<Item = &'a Turns> {
        let from = self.log.range(directory.as_bytes().to_vec()..);
        from.take_while(move |(key, _)| key.starts_with(directory.as_bytes()))
            .map(|(_, turns)| turns)
    }

    /// Whether anybody but `own` wrote one of these keys after a revision.
    pub(crate) fn others_wrote(
        &self,
        etcd: &Etcd,
        keys: &BTreeSet<Vec<u8>>,
        since: i64,
        own: &[i64],
    ) -> bool {
        let mut changes = etcd.since(since);
        changes.any(|change| keys.contains(key_of(change)) && !own.contains(&revision_of(change)))
    }
}
