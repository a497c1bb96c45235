//! What a host remembers by itself of the records that it needs back if the store loses them, and when a store that was
//! not believed is.
//!
//! An agent that starts beside a store that has lost records knows nothing of them but what the one before it wrote down:
//! this node's endpoints, the networks, and the peers that no agent speaks for.

use std::collections::BTreeSet;

use weft_store_schema::{Key, NetworkName, PeerKind};

use crate::{
    dataplane::Observed, desired::Host, diff, dirty::Dirty, members::Slot, record::Entry, snapshot::Snapshot,
};

impl Snapshot {
    /// What is worth being written down; also what is held.
    pub fn memorable(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut keep = |key: Key, at: (i64, i64), raw: Option<&[u8]>| {
            let Some(raw) = raw else { return };
            entries.push(Entry {
                key: self.prefix.key(&key).into_bytes(),
                value: raw.to_vec(),
                create_revision: at.0,
                mod_revision: at.1,
            });
        };
        for (name, slot) in self.networks() {
            keep(Key::Network(name.clone()), written(slot), slot.raw.as_deref());
        }
        for (node, slot) in self.peers() {
            let external = slot
                .value
                .as_ref()
                .is_some_and(|peer| peer.kind == PeerKind::External);
            if external {
                keep(Key::Peer(node.clone()), written(slot), slot.raw.as_deref());
            }
        }
        for (network, _) in self.all_members() {
            for (id, slot) in self.own_endpoints(network) {
                let name = weft_store_schema::EndpointRef {
                    network: network.clone(),
                    node: self.node.clone(),
                    id: id.clone(),
                };
                keep(Key::Endpoint(name), written(slot), slot.raw.as_deref());
            }
        }
        entries
    }

    /// Holds what was written down and the store does not have.
    pub fn recall(&mut self, entries: &[Entry]) -> Dirty {
        let mut dirty = Dirty::default();
        for entry in entries {
            let Ok(key) = self.prefix.parse(&entry.key) else {
                continue;
            };
            let own = match &key {
                Key::Endpoint(endpoint) => endpoint.node == self.node,
                Key::Network(_) | Key::Peer(_) => true,
                _ => false,
            };
            if own && self.known_from(&key).is_none() {
                self.put(entry, true, &mut dirty);
                dirty.merge(self.hold(&key));
            }
        }
        dirty
    }

    /// Holds what was written down, the store does not have, and endpoints that it has depend on: as whoever sees such a record
    /// deleted does, so that it makes no difference whether an agent was there when that happened.
    pub fn recall_in_use(&mut self, entries: &[Entry]) -> Dirty {
        let mut dirty = Dirty::default();
        for entry in entries {
            let Ok(key @ (Key::Network(_) | Key::Peer(_))) = self.prefix.parse(&entry.key) else {
                continue;
            };
            if self.known_from(&key).is_none() && self.is_named(&key) {
                self.put(entry, true, &mut dirty);
                dirty.merge(match self.is_in_use(&key) {
                    true => self.hold(&key),
                    false => self.forget(&key),
                });
            }
        }
        dirty
    }

    /// The networks of which copies were written down that concern this node, to be looked into before it is judged
    /// whether they are gone.
    pub fn recalled_networks(&self, entries: &[Entry]) -> BTreeSet<NetworkName> {
        let keys = entries
            .iter()
            .filter_map(|entry| self.prefix.parse(&entry.key).ok());
        keys.filter_map(|key| match key {
            Key::Endpoint(endpoint) if endpoint.node == self.node => Some(endpoint.network),
            _ => None,
        })
        .collect()
    }

    /// This node's endpoints that were written down, the store does not have, and nobody has detached here, with the last
    /// revision at which they are known to have been there.
    pub fn recalled_missing(&self, entries: &[Entry]) -> Vec<(Key, i64)> {
        let keys = entries
            .iter()
            .filter_map(|entry| Some((self.prefix.parse(&entry.key).ok()?, entry.mod_revision)));
        keys.filter(|(key, _)| {
            let wanted = matches!(key, Key::Endpoint(endpoint)
                if endpoint.node == self.node && !self.detaching.contains_key(endpoint));
            wanted && self.known_from(key).is_none()
        })
        .collect()
    }

    /// Believes the store again, if nothing is missing of what this host carries: all that is in its kernel is explained
    /// by records that the store has. Whether it is believed.
    pub fn end_distrust(&mut self, host: &Host, observed: &Observed) -> bool {
        if !self.distrusted || !self.suspicions.is_empty() || !self.held_keys().is_empty() {
            return !self.distrusted;
        }
        self.distrusted = false;
        let (plan, _) = diff::plan(self, host, observed, &Dirty::everything());
        if plan.is_empty() {
            self.held_because = None;
        } else {
            self.distrusted = true;
        }
        plan.is_empty()
    }
}

fn written<T>(slot: &Slot<T>) -> (i64, i64) {
    (slot.create_revision, slot.mod_revision)
}
