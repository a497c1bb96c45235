//! The records of a whole cluster as they were at one revision, decoded; what cannot be decoded is a finding.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_store_schema::{
    AddressClaim, AliveDocument, BarrierDocument, Endpoint, EndpointRef, Holder, Key, Network, NetworkName,
    NodeName, PassedDocument, Peer, Prefix, RecordError, ReleasedDocument, RemovedDocument, StatusDocument,
    Vni, VniClaim, decode,
};

use super::{Counts, Finding, FindingKind, Held};
use crate::record::{Entry, Guard};

/// A record that is there.
#[derive(Debug)]
pub(super) struct Record<T> {
    /// What it says; none if it cannot be read.
    pub(super) value: Option<T>,
    pub(super) create_revision: i64,
    pub(super) mod_revision: i64,
    pub(super) leased: bool,
}

/// All records.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) networks: BTreeMap<NetworkName, Record<Network>>,
    pub(super) vnis: BTreeMap<Vni, Record<VniClaim>>,
    pub(super) peers: BTreeMap<NodeName, Record<Peer>>,
    pub(super) removed: BTreeMap<NodeName, Record<RemovedDocument>>,
    pub(super) endpoints: BTreeMap<EndpointRef, Record<Endpoint>>,
    pub(super) claims: BTreeMap<(NetworkName, IpAddr), Record<AddressClaim>>,
    pub(super) released: BTreeMap<(NetworkName, IpAddr), Record<ReleasedDocument>>,
    /// The networks below whose directory of endpoints is any key, be it one that cannot be read.
    pub(super) with_endpoints: BTreeSet<NetworkName>,
    /// The networks below whose directory of claims is a key or a claim that cannot be read.
    with_unread_claims: BTreeSet<NetworkName>,
    /// Keys of records that are held, and not among these.
    held: BTreeSet<Key>,
    /// Whether they are held because the store is not believed.
    distrusted: bool,
}

impl Records {
    /// Decodes all entries.
    pub(super) fn read(
        prefix: &Prefix,
        entries: &[Entry],
        leased: &BTreeSet<Vec<u8>>,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let mut records = Self::default();
        for entry in entries {
            let text = String::from_utf8_lossy(&entry.key);
            let shown = text.strip_prefix(prefix.as_str()).unwrap_or(&text);
            let read = match prefix.parse(&entry.key) {
                Ok(key) => records.take(key, entry, leased.contains(&entry.key)),
                Err(error) => Err(error.to_string()),
            };
            let network_in = |directory: &str| {
                let (network, _) = shown.strip_prefix(directory)?.split_once('/')?;
                network.parse::<NetworkName>().ok()
            };
            records.with_endpoints.extend(network_in("endpoints/"));
            if read.is_err() {
                records.with_unread_claims.extend(network_in("addresses/"));
            }
            if let Err(message) = read {
                findings.push(Finding {
                    key: shown.to_owned(),
                    kind: FindingKind::Unreadable,
                    message,
                    remedy: "put it right, or delete it, with etcdctl".to_owned(),
                    mend: None,
                    after: None,
                });
            }
        }
        records
    }

    fn take(&mut self, key: Key, entry: &Entry, leased: bool) -> Result<(), String> {
        fn note<K: Ord, T>(
            map: &mut BTreeMap<K, Record<T>>,
            key: K,
            (entry, leased): (&Entry, bool),
            value: Result<T, RecordError>,
        ) -> Result<(), String> {
            let (value, error) = match value {
                Ok(value) => (Some(value), Ok(())),
                Err(error) => (None, Err(error.to_string())),
            };
            let record = Record {
                value,
                create_revision: entry.create_revision,
                mod_revision: entry.mod_revision,
                leased,
            };
            map.insert(key, record);
            error
        }
        let at = (entry, leased);
        let bytes = entry.value.as_slice();
        let only = |read: Result<(), RecordError>| read.map_err(|error| error.to_string());
        match key {
            Key::Network(name) => note(&mut self.networks, name, at, Network::decode(bytes)),
            Key::Vni(vni) => note(&mut self.vnis, vni, at, VniClaim::decode(bytes)),
            Key::Peer(node) => note(&mut self.peers, node, at, Peer::decode(bytes)),
            Key::Removed(node) => note(&mut self.removed, node, at, RemovedDocument::decode(bytes)),
            Key::Endpoint(name) => note(&mut self.endpoints, name, at, Endpoint::decode(bytes)),
            Key::Address(network, address) => note(
                &mut self.claims,
                (network, address),
                at,
                AddressClaim::decode(bytes),
            ),
            Key::Released(network, address) => note(
                &mut self.released,
                (network, address),
                at,
                ReleasedDocument::decode(bytes),
            ),
            Key::Alive(_) => only(decode::<AliveDocument>(bytes).map(drop)),
            Key::Status(_) => only(decode::<StatusDocument>(bytes).map(drop)),
            Key::Barrier(..) => only(BarrierDocument::decode(bytes).map(drop)),
            Key::Passed(..) => only(decode::<PassedDocument>(bytes).map(drop)),
        }
    }

    /// Notes what the host that is asked holds. What is among the records is not held any more, or not yet.
    pub(super) fn hold(&mut self, held: &Held) {
        let is_missing = |key: &&Key| match key {
            Key::Network(name) => !self.networks.contains_key(name),
            Key::Vni(vni) => !self.vnis.contains_key(vni),
            Key::Peer(node) => !self.peers.contains_key(node),
            Key::Endpoint(name) => !self.endpoints.contains_key(name),
            Key::Address(network, address) => !self.claims.contains_key(&(network.clone(), *address)),
            _ => false,
        };
        self.distrusted = held.because.is_some();
        self.held = held.keys.iter().filter(is_missing).cloned().collect();
        let networks = self.held.iter().filter_map(|key| match key {
            Key::Endpoint(name) => Some(name.network.clone()),
            _ => None,
        });
        self.with_endpoints.extend(networks);
    }

    /// What is held and the store does not have.
    pub(super) fn held(&self) -> &BTreeSet<Key> {
        &self.held
    }

    /// Of it, what there is to be said in one for all. A node's record that was deleted alone is its agent's to write again:
    /// that is said of the endpoints that name the node.
    pub(super) fn told_as_held(&self) -> Vec<&Key> {
        let told = self.held.iter();
        told.filter(|key| self.distrusted || !matches!(key, Key::Peer(_)))
            .collect()
    }

    /// Whether a network has a record, if only a held one.
    pub(super) fn has_network(&self, name: &NetworkName) -> bool {
        self.networks.contains_key(name) || self.held.contains(&Key::Network(name.clone()))
    }

    /// Whether a node has a record, if only a held one.
    pub(super) fn has_peer(&self, node: &NodeName) -> bool {
        self.peers.contains_key(node) || self.held.contains(&Key::Peer(node.clone()))
    }

    /// Whether a node has no record, and nothing else says so.
    pub(super) fn lacks_peer(&self, node: &NodeName) -> bool {
        !(self.peers.contains_key(node) || self.distrusted && self.has_peer(node))
    }

    /// Whether any address of a network is claimed.
    pub(super) fn is_claimed_in(&self, network: &NetworkName) -> bool {
        self.with_unread_claims.contains(network) || self.claims.keys().any(|(of, _)| of == network)
    }

    /// Whether addresses of a network are claimed by reservations, and by nothing else.
    pub(super) fn is_reserved_in(&self, network: &NetworkName) -> bool {
        let of = self.claims.iter().filter(|((of, _), _)| of == network);
        let mut claims = of.map(|(_, record)| record.value.as_ref());
        self.is_claimed_in(network)
            && !self.with_unread_claims.contains(network)
            && claims.all(|claim| claim.is_some_and(|claim| claim.holder == Holder::Reservation))
    }

    /// How many there are.
    pub(super) fn counts(&self) -> Counts {
        let reservations = self.claims.values().filter(|claim| {
            let claim = claim.value.as_ref();
            claim.is_some_and(|claim| claim.holder == Holder::Reservation)
        });
        let reservations = reservations.count();
        let pending = self.endpoints.values().filter(|endpoint| {
            let endpoint = endpoint.value.as_ref();
            endpoint.is_some_and(is_pending)
        });
        Counts {
            networks: self.networks.len(),
            endpoints: self.endpoints.len(),
            pending: pending.count(),
            claims: self.claims.len() - reservations,
            reservations,
            vnis: self.vnis.len(),
            peers: self.peers.len(),
            released: self.released.len(),
        }
    }

    /// What holds while a network is as it was read; none if it cannot be read.
    pub(super) fn network(&self, name: &NetworkName) -> Option<(&Network, Guard)> {
        let record = self.networks.get(name)?;
        let guard = Guard::Unchanged(Key::Network(name.clone()), record.mod_revision);
        Some((record.value.as_ref()?, guard))
    }
}

/// Whether an endpoint is yet to be completed by its node's agent.
pub(super) fn is_pending(endpoint: &Endpoint) -> bool {
    let granted = |address| endpoint.addresses.contains(address);
    endpoint.addresses.is_empty() || endpoint.mac.is_none() || !endpoint.requested().iter().all(granted)
}
