//! Whole listings of a scope, and what is kept although a listing lacks it.
//!
//! Absence means deletion only in a history that goes on from what is known. After a listing of another
//! cluster, or of an earlier revision, what is missing is held: it stays in effect, and is reported, until the
//! store has it again or an operator confirms that it may go.

use std::collections::{BTreeSet, HashSet};

use weft_store_schema::{EndpointId, EndpointRef, Key, NetworkName, NodeName};

use crate::{
    dirty::Dirty,
    members::{Members, Slot},
    record::{Entry, Scope},
    snapshot::{Snapshot, directory},
};

/// Whether forwarding, or who may have what, depends on a record: then it is not let go of because a store in
/// trouble lacks it.
fn informs_of_state(key: &Key) -> bool {
    matches!(
        key,
        Key::Network(_) | Key::Peer(_) | Key::Vni(_) | Key::Endpoint(_) | Key::Address(..)
    )
}

impl Snapshot {
    /// Takes in a complete listing of a scope.
    ///
    /// What the listing lacks is deleted, if the listing goes on from what was known of this scope. If it does
    /// not (another cluster, or a revision that went back), the missing objects are held: the store is in
    /// trouble, and that never removes forwarding.
    pub fn apply_listing(
        &mut self,
        scope: &Scope,
        cluster_id: u64,
        revision: i64,
        entries: &[Entry],
    ) -> Dirty {
        let trouble = self.trouble(scope, cluster_id, revision);
        self.take_listing(scope, (cluster_id, revision), entries, trouble)
    }

    /// Takes in a complete listing of a scope from a store whose history is known not to be the one that was known, be
    /// its revision as it may. What it lacks is held.
    pub fn apply_other_history(
        &mut self,
        scope: &Scope,
        cluster_id: u64,
        revision: i64,
        entries: &[Entry],
    ) -> Dirty {
        let known = [Some(scope.clone()), scope.counterpart()];
        let is_known = known.iter().flatten().any(|s| self.positions.contains_key(s));
        let trouble = self.trouble(scope, cluster_id, revision).or_else(|| {
            is_known.then(|| {
                format!(
                    "the store went back, as if restored from a backup, and is at revision {revision} now"
                )
            })
        });
        self.take_listing(scope, (cluster_id, revision), entries, trouble)
    }

    fn take_listing(
        &mut self,
        scope: &Scope,
        (cluster_id, revision): (u64, i64),
        entries: &[Entry],
        trouble: Option<String>,
    ) -> Dirty {
        let mut dirty = Dirty::default();
        let missing = self.keys_of(scope, entries);
        if trouble.is_some() {
            // What was deleted, and what was suspected, was so in another history.
            self.undone.clear();
            self.suspicions.clear();
            self.seen_to = 0;
        } else {
            dirty.merge(self.suspect_missing(scope, &missing, revision));
        }
        if self.listed.insert(scope.clone()) {
            match scope {
                // Nothing is owed before all of these are known.
                Scope::Networks | Scope::Peers | Scope::Removed | Scope::Vnis => dirty.everything = true,
                Scope::OwnEndpoints(network)
                | Scope::Endpoints(network)
                | Scope::Addresses(network)
                | Scope::Released(network) => drop(dirty.networks.insert(network.clone())),
                Scope::Barriers(_) | Scope::Passed | Scope::PassedTo(_) => {}
            }
        }
        for entry in entries {
            // It may have been read before a transaction of ours deleted the key.
            if !self.is_undone(entry) {
                self.put(entry, trouble.is_some(), &mut dirty);
            }
        }
        for (key, known_at, held) in missing {
            if trouble.is_some() && informs_of_state(&key) {
                dirty.merge(self.hold(&key));
            } else if trouble.is_some() {
                dirty.merge(self.forget(&key));
            } else if !held && known_at <= revision {
                // One that is known from a later revision, by a transaction of our own, is yet to be listed.
                dirty.merge(self.delete(&key, revision));
            }
        }
        self.drop_strays(scope, entries);
        self.store = Some(match self.store {
            Some((known_cluster, known)) if trouble.is_none() && known_cluster == cluster_id => {
                (cluster_id, known.max(revision))
            }
            _ => (cluster_id, revision),
        });
        self.positions.insert(scope.clone(), (cluster_id, revision));
        let mut undone = std::mem::take(&mut self.undone);
        undone.retain(|key, at| *at > revision || !self.scopes_of(key).any(|s| s == *scope));
        self.undone = undone;
        if let Some(superseded) = scope.counterpart() {
            self.positions.remove(&superseded);
        }
        if trouble.is_some() {
            self.held_because = trouble;
        }
        dirty.merge(self.end_trouble());
        dirty
    }

    /// Why a listing does not go on from what is known, if it does not.
    ///
    /// Each scope is compared with itself: they are listed one by one, and one that was listed a moment ago is
    /// older than an event of another that came meanwhile. And each has to meet the trouble by itself: that
    /// one of them has been listed from a new history does not make the rest of it known.
    fn trouble(&self, scope: &Scope, cluster_id: u64, revision: i64) -> Option<String> {
        let counterpart = scope.counterpart();
        let known = [Some(scope), counterpart.as_ref()];
        let known = known.into_iter().flatten().filter_map(|s| self.positions.get(s));
        let (known_cluster, known) = known.max_by_key(|(_, revision)| *revision)?;
        if *known_cluster != cluster_id {
            Some(format!(
                "the store answers as another cluster ({cluster_id:x}, before {known_cluster:x}, revision {known})"
            ))
        } else if revision < *known {
            Some(format!(
                "the store went back from revision {known} to {revision}, as if restored from a backup"
            ))
        } else {
            None
        }
    }

    /// The trouble is over once every scope is known from the store as it is now, and nothing is missing.
    pub(crate) fn end_trouble(&mut self) -> Dirty {
        let mut dirty = Dirty::default();
        let Some((cluster_id, revision)) = self.store.filter(|_| self.held_because.is_some()) else {
            return dirty;
        };
        let mut positions = self.positions.values();
        let is_known = positions.all(|(cluster, at)| *cluster == cluster_id && *at <= revision);
        if self.distrusted || !is_known || !self.suspicions.is_empty() {
            return dirty;
        }
        let held = self.held_keys();
        if held.iter().all(|key| self.is_dispensable(key)) {
            self.held_because = None;
            for key in &held {
                dirty.merge(self.forget(key));
            }
        }
        dirty
    }

    /// Whether nothing is missing without a record: a claim is made anew for the records that are there.
    fn is_dispensable(&self, key: &Key) -> bool {
        match key {
            // Its endpoint keeps its addresses in mind until they are claimed.
            Key::Address(..) => true,
            // It is wanted no more.
            Key::Endpoint(endpoint) => self.awaits_detach(endpoint),
            Key::Vni(vni) => {
                let claim = self.vnis.get(vni).and_then(|slot| slot.value.as_ref());
                let network = claim.and_then(|claim| self.networks.get(&claim.network));
                network.is_none_or(|slot| !slot.held && slot.value.as_ref().is_some_and(|n| n.vni.is_some()))
            }
            _ => false,
        }
    }

    /// The scopes that hold a key.
    pub(crate) fn scopes_of(&self, key: &[u8]) -> impl Iterator<Item = Scope> + use<> {
        let scopes = match self.prefix.parse(key) {
            Ok(Key::Network(_)) => [Some(Scope::Networks), None],
            Ok(Key::Peer(_)) => [Some(Scope::Peers), None],
            Ok(Key::Vni(_)) => [Some(Scope::Vnis), None],
            Ok(Key::Address(network, _)) => [Some(Scope::Addresses(network)), None],
            Ok(Key::Released(network, _)) => [Some(Scope::Released(network)), None],
            Ok(Key::Removed(_)) => [Some(Scope::Removed), None],
            Ok(Key::Barrier(network, _)) => [Some(Scope::Barriers(network)), None],
            Ok(Key::Passed(..)) => [Some(Scope::Passed), None],
            Ok(Key::Endpoint(endpoint)) => {
                let own = endpoint.node == self.node;
                let own = own.then(|| Scope::OwnEndpoints(endpoint.network.clone()));
                [Some(Scope::Endpoints(endpoint.network)), own]
            }
            Ok(Key::Alive(_) | Key::Status(_)) | Err(_) => [None, None],
        };
        scopes.into_iter().flatten()
    }

    /// Whether a transaction of ours has deleted the key since it was so.
    pub(crate) fn is_undone(&self, entry: &Entry) -> bool {
        self.undone
            .get(&entry.key)
            .is_some_and(|at| *at > entry.mod_revision)
    }

    /// Notes that the watch of the scopes that hold a key has come to this revision.
    pub(crate) fn followed(&mut self, key: &[u8], revision: i64) {
        for scope in self.scopes_of(key) {
            if let Some((_, at)) = self.positions.get_mut(&scope) {
                *at = revision.max(*at);
            }
        }
    }

    /// The revision up to which the watch has surely told of a key; 0 if it is not watched.
    pub(crate) fn watched_to(&self, key: &[u8]) -> i64 {
        let positions = self.scopes_of(key).filter_map(|scope| self.positions.get(&scope));
        positions.map(|(_, at)| *at).max().unwrap_or_default()
    }

    /// Forgets problems of keys that are no keys and are gone.
    fn drop_strays(&mut self, scope: &Scope, entries: &[Entry]) {
        if self.problems.is_empty() {
            return;
        }
        let directory = self.shown_directory(scope);
        let present: HashSet<String> = entries.iter().map(|entry| self.shown(&entry.key)).collect();
        self.retain_strays(|key| !key.starts_with(&directory) || present.contains(key));
    }

    /// Forgets problems of keys that are no keys and lie in none of the scopes.
    pub(crate) fn drop_strays_outside(&mut self, scopes: &BTreeSet<Scope>) {
        let directories: Vec<String> = scopes.iter().map(|scope| self.shown_directory(scope)).collect();
        self.retain_strays(|key| directories.iter().any(|directory| key.starts_with(directory)));
    }

    fn shown_directory(&self, scope: &Scope) -> String {
        self.shown(directory(&self.prefix, &self.node, scope).as_bytes())
    }

    fn retain_strays(&mut self, keep: impl Fn(&str) -> bool) {
        let prefix = self.prefix.clone();
        // What is a key has its problem taken away with its record.
        let is_key = |key: &str| prefix.parse(format!("{prefix}{key}").as_bytes()).is_ok();
        self.problems.retain(|key, _| keep(key) || is_key(key));
    }

    /// The objects that are kept although the store no longer has them.
    pub fn held_keys(&self) -> Vec<Key> {
        let mut held: Vec<Key> = Vec::new();
        held.extend(
            self.networks
                .iter()
                .filter(|(_, s)| s.held)
                .map(|(n, _)| Key::Network(n.clone())),
        );
        held.extend(
            self.peers
                .iter()
                .filter(|(_, s)| s.held)
                .map(|(n, _)| Key::Peer(n.clone())),
        );
        held.extend(
            self.vnis
                .iter()
                .filter(|(_, s)| s.held)
                .map(|(vni, _)| Key::Vni(*vni)),
        );
        for (network, members) in &self.members {
            held.extend(members.endpoints().filter(|(.., s)| s.held).map(|(node, id, _)| {
                Key::Endpoint(EndpointRef {
                    network: network.clone(),
                    node: node.clone(),
                    id: id.clone(),
                })
            }));
            held.extend(
                members
                    .claims()
                    .filter(|(_, s)| s.held)
                    .map(|(a, _)| Key::Address(network.clone(), a)),
            );
        }
        held.sort_unstable();
        held
    }

    /// Lets go of everything that is held, on an operator's word.
    pub fn release_held(&mut self) -> Dirty {
        self.held_because = None;
        self.distrusted = false;
        self.suspicions.clear();
        for key in self.held_keys() {
            // What one thing is let go for may have been the next one.
            self.forget(&key);
        }
        Dirty::everything()
    }

    /// Keeps an object that the store no longer has.
    pub(crate) fn hold(&mut self, key: &Key) -> Dirty {
        let mut dirty = Dirty::default();
        // What was wrong with the record is nobody's problem any more: the problem is that it is gone.
        self.problems.remove(&key.to_string());
        match key {
            Key::Network(name) => {
                if let Some(slot) = self.networks.get_mut(name) {
                    slot.hold();
                }
                dirty.networks.insert(name.clone());
            }
            Key::Peer(node) => {
                if let Some(slot) = self.peers.get_mut(node) {
                    slot.hold();
                }
                self.touch_peer(node, &mut dirty);
            }
            Key::Vni(vni) => {
                if let Some(slot) = self.vnis.get_mut(vni) {
                    slot.hold();
                }
                // Its network is to claim it anew.
                dirty
                    .networks
                    .extend(self.vni_users.get(vni).into_iter().flatten().cloned());
            }
            Key::Endpoint(endpoint) => {
                let member = (endpoint.node.clone(), endpoint.id.clone());
                if let Some(slot) = self
                    .members
                    .get_mut(&endpoint.network)
                    .and_then(|m| m.endpoint_mut(&member))
                {
                    slot.hold();
                }
                dirty.endpoints.insert(endpoint.clone());
            }
            Key::Address(network, address) => {
                if let Some(members) = self.members.get_mut(network)
                    && let Some(mut slot) = members.remove_claim(*address)
                {
                    slot.hold();
                    members.put_claim(*address, slot);
                }
                self.touch_address(network, *address, &mut dirty);
            }
            _ => {}
        }
        dirty
    }

    /// Keys of a scope that are known here and not among the entries, with the revision they are known from,
    /// and whether they are held already.
    fn keys_of(&self, scope: &Scope, entries: &[Entry]) -> Vec<(Key, i64, bool)> {
        let mut known: Vec<(Key, i64, bool)> = Vec::new();
        let endpoint = |network: &NetworkName, node: &NodeName, id: &EndpointId| {
            Key::Endpoint(EndpointRef {
                network: network.clone(),
                node: node.clone(),
                id: id.clone(),
            })
        };
        match scope {
            Scope::Networks => {
                known.extend(
                    self.networks
                        .iter()
                        .map(|(n, s)| (Key::Network(n.clone()), s.mod_revision, s.held)),
                );
            }
            Scope::Peers => known.extend(
                self.peers
                    .iter()
                    .map(|(n, s)| (Key::Peer(n.clone()), s.mod_revision, s.held)),
            ),
            Scope::Vnis => known.extend(
                self.vnis
                    .iter()
                    .map(|(v, s)| (Key::Vni(*v), s.mod_revision, s.held)),
            ),
            Scope::OwnEndpoints(network) => {
                known.extend(
                    self.own_endpoints(network)
                        .map(|(id, s)| (endpoint(network, &self.node, id), s.mod_revision, s.held)),
                );
            }
            Scope::Endpoints(network) => {
                let members = self.members.get(network).into_iter().flat_map(Members::endpoints);
                known.extend(
                    members.map(|(node, id, s)| (endpoint(network, node, id), s.mod_revision, s.held)),
                );
            }
            Scope::Removed => known.extend(
                self.removed
                    .iter()
                    .map(|(n, s)| (Key::Removed(n.clone()), s.mod_revision, s.held)),
            ),
            Scope::Released(network) => {
                let released = self.members.get(network).into_iter().flat_map(Members::released);
                known.extend(released.map(|(at, a)| (Key::Released(network.clone(), a), at, false)));
            }
            Scope::Barriers(network) => known.extend(
                self.barriers
                    .iter()
                    .filter(|((of, _), _)| of == network)
                    .map(|((of, b), s)| (Key::Barrier(of.clone(), b.clone()), s.mod_revision, s.held)),
            ),
            // The directory is within the one of all answers, which knows of them.
            Scope::PassedTo(_) => {}
            Scope::Passed => known.extend(
                self.passed
                    .iter()
                    .map(|((b, n), s)| (Key::Passed(b.clone(), n.clone()), s.mod_revision, s.held)),
            ),
            Scope::Addresses(network) => {
                let claims = self.members.get(network).into_iter().flat_map(Members::claims);
                known.extend(claims.map(|(a, s)| (Key::Address(network.clone(), a), s.mod_revision, s.held)));
            }
        }
        if known.is_empty() {
            return known;
        }
        let present: HashSet<&[u8]> = entries.iter().map(|e| e.key.as_slice()).collect();
        known.retain(|(key, ..)| !present.contains(self.prefix.key(key).as_bytes()));
        known
    }
}

impl<T> Slot<T> {
    fn hold(&mut self) {
        self.held = true;
        self.bad = false;
    }
}
