//! How records change the snapshot, and what each change makes dirty.
//!
//! Applying the same changes once or many times, those of different keys in any order, gives the same snapshot. What was is
//! remembered only where it is still used: a record that cannot be understood keeps the last value that could; an endpoint that
//! is written again without what its agent had filled in keeps its addresses and MAC until they are filled in again; what the store
//! seems to have lost is held. What a record says is taken in in `puts.rs`, whole listings in `listing.rs`.

use weft_store_schema::{EndpointRef, Key};

use crate::{dirty::Dirty, record::Change, snapshot::Snapshot};

impl Snapshot {
    /// Takes in changes that a watch delivered.
    pub fn apply_changes(&mut self, changes: &[Change]) -> Dirty {
        for change in changes {
            let (key, revision) = (change.key(), change.revision());
            self.followed(key, revision);
            if self.undone.get(key).is_some_and(|at| *at <= revision) {
                self.undone.remove(key);
            }
        }
        let mut dirty = Dirty::default();
        for of_revision in changes.chunk_by(|a, b| a.revision() == b.revision()) {
            dirty.merge(self.suspect_slips(of_revision));
            for change in of_revision {
                // A transaction of ours has deleted the key since; the watch is about to tell.
                let is_old = matches!(change, Change::Put(entry) if self.is_undone(entry));
                if !is_old {
                    dirty.merge(self.take_in(change));
                }
            }
        }
        dirty.merge(self.end_trouble());
        dirty
    }

    /// Takes in changes that are known otherwise: from transactions of our own, and from what these were
    /// refused for. They may be ahead of the watch, or behind it: then the watch has told what became of them.
    pub fn learn(&mut self, changes: &[Change]) -> Dirty {
        let mut dirty = Dirty::default();
        for change in changes {
            let (key, revision) = (change.key(), change.revision());
            if self.watched_to(key) >= revision {
                continue;
            }
            if let Change::Deleted { .. } = change {
                self.undone.insert(key.to_vec(), revision);
            }
            dirty.merge(self.take_in(change));
        }
        dirty.merge(self.end_trouble());
        dirty
    }

    fn take_in(&mut self, change: &Change) -> Dirty {
        match change {
            Change::Put(entry) => {
                self.heard_of(entry.mod_revision);
                let mut dirty = Dirty::default();
                self.put(entry, false, &mut dirty);
                dirty
            }
            Change::Deleted { key, mod_revision } => {
                self.heard_of(*mod_revision);
                match self.prefix.parse(key) {
                    Ok(key) => self.delete(&key, *mod_revision),
                    Err(_) => {
                        self.problems.remove(&self.shown(key));
                        Dirty::default()
                    }
                }
            }
        }
    }

    /// Notes that an endpoint of this node is detached here. It counts as absent on this host from now on;
    /// the record and its claims go when the store can be reached.
    /// `life` is the revision at which the record was created, 0 if that is not known: then the store is asked, and any
    /// record that is seen until it has answered is meant.
    pub fn detach(&mut self, endpoint: &EndpointRef, life: i64) -> Dirty {
        self.detaching.insert(endpoint.clone(), life);
        self.touched(endpoint)
    }

    /// Notes that the store had no record of an endpoint at a revision, as a chore's transaction has told: who asked
    /// whether there is one that is to be detached knows now.
    pub fn saw_gone(&mut self, endpoint: &EndpointRef, revision: i64) -> Dirty {
        match self.detaching.get_mut(endpoint).filter(|life| **life == 0) {
            Some(life) => *life = revision,
            None => return Dirty::default(),
        }
        // What has come since is not meant any more.
        self.touched(endpoint)
    }

    /// Takes a detachment back, or forgets it once the store agrees.
    pub fn end_detach(&mut self, endpoint: &EndpointRef) -> Dirty {
        self.detaching.remove(endpoint);
        self.touched(endpoint)
    }

    fn touched(&self, endpoint: &EndpointRef) -> Dirty {
        let mut dirty = Dirty::default();
        self.touch_endpoint(endpoint, self.endpoint(endpoint), &mut dirty);
        dirty
    }

    /// Notes that everything up to this revision has been seen.
    pub fn saw(&mut self, revision: i64) {
        self.seen_to = revision.max(self.seen_to);
        self.heard_of(revision);
    }

    fn heard_of(&mut self, revision: i64) {
        if let Some((_, known)) = &mut self.store {
            *known = revision.max(*known);
        }
    }

    pub(crate) fn shown(&self, key: &[u8]) -> String {
        let text = String::from_utf8_lossy(key.strip_prefix(self.prefix.as_str().as_bytes()).unwrap_or(key));
        text.chars()
            .take(200)
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect()
    }

    /// The revision that a record is known from.
    pub(crate) fn known_from(&self, key: &Key) -> Option<i64> {
        match key {
            Key::Network(name) => self.networks.get(name).map(|s| s.mod_revision),
            Key::Peer(node) => self.peers.get(node).map(|s| s.mod_revision),
            Key::Vni(vni) => self.vnis.get(vni).map(|s| s.mod_revision),
            Key::Endpoint(endpoint) => self.endpoint(endpoint).map(|s| s.mod_revision),
            Key::Address(network, address) => self
                .members
                .get(network)
                .and_then(|m| m.claim(*address))
                .map(|s| s.mod_revision),
            Key::Released(network, address) => {
                self.members.get(network).and_then(|m| m.released_at(*address))
            }
            Key::Removed(node) => self.removed.get(node).map(|s| s.mod_revision),
            Key::Barrier(network, barrier) => self
                .barriers
                .get(&(network.clone(), barrier.clone()))
                .map(|s| s.mod_revision),
            Key::Passed(barrier, node) => self
                .passed
                .get(&(barrier.clone(), node.clone()))
                .map(|s| s.mod_revision),
            Key::Alive(_) | Key::Status(_) => None,
        }
    }

    /// Whether a record is kept that the store does not have.
    pub(crate) fn is_held(&self, key: &Key) -> bool {
        match key {
            Key::Network(name) => self.networks.get(name).is_some_and(|s| s.held),
            Key::Peer(node) => self.peers.get(node).is_some_and(|s| s.held),
            Key::Vni(vni) => self.vnis.get(vni).is_some_and(|s| s.held),
            Key::Endpoint(endpoint) => self.endpoint(endpoint).is_some_and(|s| s.held),
            Key::Address(network, address) => {
                let members = self.members.get(network);
                members.and_then(|m| m.claim(*address)).is_some_and(|s| s.held)
            }
            _ => false,
        }
    }

    pub(crate) fn delete(&mut self, key: &Key, mod_revision: i64) -> Dirty {
        match self.known_from(key) {
            // Written again since: the deletion is old news.
            Some(known) if known > mod_revision => Dirty::default(),
            // The store does not have it anyway: what is held goes by another word.
            Some(_) if self.is_held(key) => Dirty::default(),
            Some(_) if self.is_in_use(key) => self.hold(key),
            Some(_) => self.forget(key),
            None => {
                self.problems.remove(&key.to_string());
                Dirty::default()
            }
        }
    }

    /// Whether endpoints depend on a network's or peer's record: then its deletion alone does not take
    /// traffic away from them. One that was never valid carries nothing.
    pub(crate) fn is_in_use(&self, key: &Key) -> bool {
        let carries = match key {
            Key::Network(name) => self.networks.get(name).is_some_and(|s| s.value.is_some()),
            Key::Peer(node) => self.peer(node).is_some(),
            _ => false,
        };
        carries && self.is_named(key)
    }

    /// Whether there are endpoints in a network, on this node, or on a peer.
    pub(crate) fn is_named(&self, key: &Key) -> bool {
        match key {
            Key::Network(name) => self.takes_part(name),
            Key::Peer(node) => {
                let mut members = self.members.values();
                members.any(|m| m.endpoints_on(node).next().is_some())
            }
            _ => false,
        }
    }

    /// Lets go of a record that was held only for its endpoints, once these are gone.
    fn forget_if_unused(&mut self, key: &Key, dirty: &mut Dirty) {
        let waits = self.held_because.is_some() || self.is_suspect(key);
        if self.is_held(key) && !waits && !self.is_in_use(key) {
            dirty.merge(self.forget(key));
        }
    }

    /// Removes an object.
    pub(crate) fn forget(&mut self, key: &Key) -> Dirty {
        let mut dirty = Dirty::default();
        self.problems.remove(&key.to_string());
        match key {
            Key::Network(name) => {
                if let Some(slot) = self.networks.remove(name) {
                    self.use_vni(name, slot.value.and_then(|n| n.vni), None, &mut dirty);
                }
                dirty.networks.insert(name.clone());
            }
            Key::Peer(node) => {
                let limits = self.underlay_limits();
                let slot = self.peers.remove(node);
                self.touch_peer(node, &mut dirty);
                self.use_underlay(node, slot.and_then(|s| s.value).as_ref(), None, &mut dirty);
                self.touch_links_if(limits != self.underlay_limits(), &mut dirty);
            }
            Key::Vni(vni) => {
                let slot = self.vnis.remove(vni);
                dirty
                    .networks
                    .extend(self.vni_users.get(vni).into_iter().flatten().cloned());
                dirty
                    .networks
                    .extend(slot.and_then(|s| s.value).map(|claim| claim.network));
            }
            Key::Endpoint(endpoint) => self.forget_endpoint(endpoint, &mut dirty),
            Key::Address(network, address) => {
                let doubt = self.doubts_claim(network, *address);
                self.members.get_mut(network).map(|m| m.remove_claim(*address));
                self.touch_address(network, *address, &mut dirty);
                self.end_doubt(doubt, network, &mut dirty);
            }
            Key::Released(network, address) => {
                if let Some(members) = self.members.get_mut(network) {
                    members.remove_released(*address);
                }
            }
            Key::Removed(node) => {
                self.removed.remove(node);
                dirty.peers.insert(node.clone());
            }
            Key::Barrier(network, barrier) => {
                self.barriers.remove(&(network.clone(), barrier.clone()));
            }
            Key::Passed(barrier, node) => {
                self.passed.remove(&(barrier.clone(), node.clone()));
            }
            Key::Alive(_) | Key::Status(_) => {}
        }
        dirty
    }

    fn forget_endpoint(&mut self, endpoint: &EndpointRef, dirty: &mut Dirty) {
        let member = (endpoint.node.clone(), endpoint.id.clone());
        let doubt = self.doubts(&endpoint.network, &member);
        let slot = self
            .members
            .get_mut(&endpoint.network)
            .and_then(|m| m.remove_endpoint(&member));
        self.touch_endpoint(endpoint, slot.as_ref(), dirty);
        self.touch_claims(endpoint, dirty);
        self.end_doubt(doubt, &endpoint.network, dirty);
        if endpoint.node == self.node {
            self.forget_attachment(endpoint, slot.as_ref(), dirty);
            if !self.takes_part(&endpoint.network) {
                dirty.networks.insert(endpoint.network.clone());
            }
        }
        self.forget_if_unused(&Key::Network(endpoint.network.clone()), dirty);
        self.forget_if_unused(&Key::Peer(endpoint.node.clone()), dirty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Entry, Scope};

    const KEY: &[u8] = b"/weft/v1/networks/blue";

    fn put(mod_revision: i64) -> Change {
        Change::Put(Entry {
            key: KEY.to_vec(),
            value: br#"{"subnets":[{"cidr":"10.1.0.0/16"}]}"#.to_vec(),
            create_revision: mod_revision,
            mod_revision,
        })
    }

    fn deleted(mod_revision: i64) -> Change {
        Change::Deleted {
            key: KEY.to_vec(),
            mod_revision,
        }
    }

    fn listed() -> Snapshot {
        let mut snapshot = Snapshot::new(weft_store_schema::Prefix::default(), "host1".parse().unwrap());
        snapshot.apply_listing(&Scope::Networks, 1, 500, &[]);
        snapshot
    }

    #[test]
    fn an_answer_that_comes_after_the_watch_brings_nothing_back() {
        let mut snapshot = listed();
        snapshot.apply_changes(&[put(501), deleted(502)]);
        snapshot.learn(&[put(501)]);
        assert_eq!(snapshot.networks().count(), 0);
    }

    #[test]
    fn the_watch_that_comes_after_an_answer_brings_nothing_back() {
        let mut snapshot = listed();
        snapshot.learn(&[deleted(502)]);
        snapshot.apply_changes(&[put(501)]);
        assert_eq!(snapshot.networks().count(), 0);
        snapshot.apply_changes(&[deleted(502), put(503)]);
        assert_eq!(snapshot.networks().count(), 1);
    }

    #[test]
    fn an_answer_that_is_ahead_of_the_watch_counts_at_once() {
        let mut snapshot = listed();
        snapshot.learn(&[put(501)]);
        assert_eq!(snapshot.networks().count(), 1);
        // A listing read before it is no news of it.
        snapshot.apply_listing(&Scope::Networks, 1, 500, &[]);
        assert_eq!(snapshot.networks().count(), 1);
        assert_eq!(snapshot.held_because(), None);
    }
}
