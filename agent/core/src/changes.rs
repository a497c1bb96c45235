//! How records change the snapshot, and what each change makes dirty.
//!
//! Applying the same records in any order, once or many times, gives the same snapshot, but for one thing: an endpoint that
//! is written again without what its agent had filled in keeps its addresses and MAC until they are filled in again. A record that
//! cannot be decoded becomes a [`Problem`] and leaves the object as it last was. Whole listings are taken in
//! in `listing.rs`.

use std::collections::BTreeSet;

use weft_store_schema::{
    AddressClaim, BarrierDocument, Endpoint, EndpointRef, Key, Network, NetworkName, NodeName,
    PassedDocument, Peer, RecordError, ReleasedDocument, RemovedDocument, Vni, VniClaim, decode,
};

use crate::{
    dirty::Dirty,
    members::Slot,
    problem::Problem,
    record::{Change, Entry},
    snapshot::Snapshot,
};

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
                self.saw(entry.mod_revision);
                self.put(entry, false)
            }
            Change::Deleted { key, mod_revision } => {
                self.saw(*mod_revision);
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

    pub(crate) fn put(&mut self, entry: &Entry, force: bool) -> Dirty {
        let key = match self.prefix.parse(&entry.key) {
            Ok(key) => key,
            Err(error) => {
                let shown = self.shown(&entry.key);
                let message =
                    format!("{error}; the record has no effect: delete it, or write it under a right key");
                self.problems.insert(shown.clone(), Problem::new(shown, message));
                return Dirty::default();
            }
        };
        let mut dirty = Dirty::default();
        match &key {
            Key::Network(name) => self.put_network(&key, name, entry, force, &mut dirty),
            Key::Peer(node) => self.put_peer(&key, node, entry, force, &mut dirty),
            Key::Vni(vni) => {
                let mut slot = self.vnis.remove(vni).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, VniClaim::decode) {
                    self.judge(&key, decoded);
                    dirty
                        .networks
                        .extend(self.vni_users.get(vni).into_iter().flatten().cloned());
                    dirty
                        .networks
                        .extend(slot.value.as_ref().map(|claim| claim.network.clone()));
                }
                self.vnis.insert(*vni, slot);
            }
            Key::Endpoint(endpoint) => self.put_endpoint(&key, endpoint, entry, force, &mut dirty),
            Key::Address(network, address) => {
                let doubt = self.doubts_claim(network, *address);
                let members = self.members.entry(network.clone()).or_default();
                let mut slot = members.remove_claim(*address).unwrap_or_default();
                let decoded = slot.accept(entry, force, false, AddressClaim::decode);
                members.put_claim(*address, slot);
                if let Some(decoded) = decoded {
                    self.judge(&key, decoded);
                    self.touch_address(network, *address, &mut dirty);
                    self.end_doubt(doubt, network, &mut dirty);
                }
            }
            Key::Released(network, address) => {
                let members = self.members.entry(network.clone()).or_default();
                if force
                    || members
                        .released_at(*address)
                        .is_none_or(|at| at < entry.mod_revision)
                {
                    members.put_released(*address, entry.mod_revision);
                    self.judge(&key, ReleasedDocument::decode(&entry.value).map(drop));
                }
            }
            Key::Removed(node) => {
                let mut slot = self.removed.remove(node).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, RemovedDocument::decode) {
                    self.judge(&key, decoded);
                    dirty.peers.insert(node.clone());
                }
                self.removed.insert(node.clone(), slot);
            }
            Key::Barrier(network, barrier) => {
                let at = (network.clone(), barrier.clone());
                let mut slot = self.barriers.remove(&at).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, BarrierDocument::decode) {
                    self.judge(&key, decoded);
                }
                self.barriers.insert(at, slot);
            }
            Key::Passed(barrier, node) => {
                let at = (barrier.clone(), node.clone());
                let mut slot = self.passed.remove(&at).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, decode::<PassedDocument>) {
                    self.judge(&key, decoded);
                }
                self.passed.insert(at, slot);
            }
            Key::Alive(_) | Key::Status(_) => {}
        }
        dirty
    }

    fn put_network(&mut self, key: &Key, name: &NetworkName, entry: &Entry, force: bool, dirty: &mut Dirty) {
        let mut slot = self.networks.remove(name).unwrap_or_default();
        let before = slot.value.as_ref().and_then(|n| n.vni);
        if let Some(decoded) = slot.accept(entry, force, true, Network::decode) {
            self.judge(key, decoded);
            let after = slot.value.as_ref().and_then(|n| n.vni);
            self.use_vni(name, before, after, dirty);
            dirty.networks.insert(name.clone());
        }
        self.networks.insert(name.clone(), slot);
    }

    /// Keeps the index of VNIs; another user of either VNI may have won or lost by the change.
    fn use_vni(&mut self, name: &NetworkName, before: Option<Vni>, after: Option<Vni>, dirty: &mut Dirty) {
        if let Some(vni) = before
            && let Some(users) = self.vni_users.get_mut(&vni)
        {
            users.remove(name);
            dirty.networks.extend(users.iter().cloned());
            if users.is_empty() {
                self.vni_users.remove(&vni);
            }
        }
        if let Some(vni) = after {
            let users = self.vni_users.entry(vni).or_default();
            dirty.networks.extend(users.iter().cloned());
            users.insert(name.clone());
        }
    }

    fn put_peer(&mut self, key: &Key, node: &NodeName, entry: &Entry, force: bool, dirty: &mut Dirty) {
        let limits = self.underlay_limits();
        let mut slot = self.peers.remove(node).unwrap_or_default();
        let (before, created) = (slot.value.clone(), slot.create_revision);
        let decoded = slot.accept(entry, force, true, Peer::decode);
        let after = slot.value.clone();
        let is_another = created != slot.create_revision;
        self.peers.insert(node.clone(), slot);
        if let Some(decoded) = decoded {
            self.judge(key, decoded);
            dirty.peers.insert(node.clone());
            if before != after {
                self.touch_peer(node, dirty);
            }
            if before != after || is_another {
                self.use_vteps(node, before.as_ref(), after.as_ref(), dirty);
            }
            self.touch_links_if(limits != self.underlay_limits(), dirty);
        }
    }

    /// Keeps the index of VTEP addresses; another user of one of them may have won or lost it by the change.
    fn use_vteps(&mut self, node: &NodeName, before: Option<&Peer>, after: Option<&Peer>, dirty: &mut Dirty) {
        let mut concerned = BTreeSet::new();
        for vtep in before.into_iter().flat_map(Peer::vteps) {
            if let Some(users) = self.vtep_users.get_mut(&vtep) {
                users.remove(node);
                concerned.extend(users.iter().cloned());
                if users.is_empty() {
                    self.vtep_users.remove(&vtep);
                }
            }
        }
        for vtep in after.into_iter().flat_map(Peer::vteps) {
            let users = self.vtep_users.entry(vtep).or_default();
            concerned.extend(users.iter().cloned());
            users.insert(node.clone());
        }
        if !concerned.is_empty() {
            concerned.insert(node.clone());
        }
        for node in &concerned {
            self.touch_peer(node, dirty);
        }
    }

    fn put_endpoint(
        &mut self,
        key: &Key,
        endpoint: &EndpointRef,
        entry: &Entry,
        force: bool,
        dirty: &mut Dirty,
    ) {
        let own = endpoint.node == self.node;
        let member = (endpoint.node.clone(), endpoint.id.clone());
        let doubt = self.doubts(&endpoint.network, &member);
        let members = self.members.entry(endpoint.network.clone()).or_default();
        let before = members.endpoint(&member).cloned();
        let mut slot = before.clone().unwrap_or_default();
        let Some(decoded) = slot.accept(entry, force, own, Endpoint::decode) else {
            return;
        };
        // A record written again without what its agent had filled in is about to be filled in again: until
        // then the endpoint is what it was.
        if let (Ok(()), Some(before), Some(new)) = (&decoded, &before, &mut slot.value)
            && (before.held || before.create_revision == slot.create_revision)
            && let Some(old) = &before.value
        {
            if new.addresses.is_empty() && new.requested.iter().all(|a| old.addresses.contains(a)) {
                new.addresses.clone_from(&old.addresses);
            }
            if new.addresses == old.addresses {
                new.mac = new.mac.or(old.mac);
            }
        }
        self.judge(key, decoded);
        let was_part = self.takes_part(&endpoint.network);
        self.forget_attachment(endpoint, before.as_ref(), dirty);
        if own && let Some(value) = &slot.value {
            let users = self.attachments.entry(value.attachment.clone()).or_default();
            dirty.endpoints.extend(users.iter().cloned());
            users.insert(endpoint.clone());
        }
        self.touch_endpoint(endpoint, before.as_ref(), dirty);
        if before.as_ref().is_none_or(|before| before.value != slot.value) {
            self.touch_claims(endpoint, dirty);
        }
        let members = self.members.entry(endpoint.network.clone()).or_default();
        members.put_endpoint(member, slot.clone());
        self.touch_endpoint(endpoint, Some(&slot), dirty);
        if own && !was_part {
            dirty.networks.insert(endpoint.network.clone());
        }
        self.end_doubt(doubt, &endpoint.network, dirty);
    }

    fn forget_attachment(
        &mut self,
        endpoint: &EndpointRef,
        slot: Option<&Slot<Endpoint>>,
        dirty: &mut Dirty,
    ) {
        if let Some(value) = slot.and_then(|slot| slot.value.as_ref())
            && let Some(users) = self.attachments.get_mut(&value.attachment)
        {
            users.remove(endpoint);
            dirty.endpoints.extend(users.iter().cloned());
            if users.is_empty() {
                self.attachments.remove(&value.attachment);
            }
        }
    }

    /// Notes or clears that a record cannot be understood.
    fn judge(&mut self, key: &Key, decoded: Result<(), RecordError>) {
        let shown = key.to_string();
        match decoded {
            Ok(()) => drop(self.problems.remove(&shown)),
            Err(error) => {
                let problem = Problem {
                    key: shown.clone(),
                    field: error.field_path().map(str::to_owned),
                    message: format!(
                        "{}; what runs stays as it was until the record is right",
                        error.why()
                    ),
                };
                self.problems.insert(shown, problem);
            }
        }
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
        match key {
            Key::Network(name) => {
                self.takes_part(name) && self.networks.get(name).is_some_and(|s| s.value.is_some())
            }
            Key::Peer(node) => {
                let mut members = self.members.values();
                members.any(|m| m.endpoints_on(node).next().is_some()) && self.peer(node).is_some()
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
                self.use_vteps(node, slot.and_then(|s| s.value).as_ref(), None, &mut dirty);
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

impl<T> Slot<T> {
    /// Takes in a stored entry: nothing if it is no news, else whether it could be understood.
    fn accept(
        &mut self,
        entry: &Entry,
        force: bool,
        keep_raw: bool,
        decode: impl FnOnce(&[u8]) -> Result<T, RecordError>,
    ) -> Option<Result<(), RecordError>> {
        if !force && !self.held && entry.mod_revision <= self.mod_revision {
            return None;
        }
        self.held = false;
        self.create_revision = entry.create_revision;
        self.mod_revision = entry.mod_revision;
        self.raw = keep_raw.then(|| entry.value.as_slice().into());
        Some(match decode(&entry.value) {
            Ok(value) => {
                self.value = Some(value);
                self.bad = false;
                Ok(())
            }
            Err(error) => {
                self.bad = true;
                Err(error)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Scope;

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
