//! Deletions in a history that goes on: which of them take effect as they come, and which wait until it is known how
//! much was deleted with them.
//!
//! A slip (`etcdctl del --prefix` with a short prefix) is one revision that takes endpoints of several networks, or several
//! networks' or peers' records; no deliberate act does that. An agent watches only the networks that it has part in, each
//! by itself, so the store is asked how much there was before that revision and after it: a [`Census`]. Until that is
//! known, and from then on if it was a slip, what was deleted is held. Pure; asking is the agent's.

use std::collections::BTreeSet;

use weft_store_schema::{EndpointRef, Key, NetworkName};

use crate::{
    dirty::Dirty,
    members::Members,
    record::{Change, Scope},
    snapshot::Snapshot,
};

/// Records that the store has no more, of which it is not known yet whether that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspicion {
    /// The revision that deleted them; of those that were missed, that of the listing that lacks them.
    pub revision: i64,
    /// Whether they were found missing, and the revision that deleted them is not known.
    pub missed: bool,
    /// Of those that were missed: the revision at which they were known to be there for the last time.
    pub since: i64,
    /// Which.
    pub keys: BTreeSet<Key>,
}

impl Suspicion {
    /// The network that all of its endpoints are of, if it is one.
    pub fn network(&self) -> Option<&NetworkName> {
        let networks = networks_of(&self.keys);
        networks.first().copied().filter(|_| networks.len() == 1)
    }

    /// Why nobody can have meant it, if so, by what there was before its revision and at it; `before` is none if nobody can tell
    /// any more. `known` is how many networks this host knows of.
    pub fn verdict(&self, before: Option<&Census>, after: &Census, known: usize) -> Option<String> {
        match before {
            Some(before) => before.slip(after, self.revision),
            None if self.is_evident() => Some(format!(
                "revision {} deleted records of several networks or peers at once",
                self.revision
            )),
            None => after.emptied(known),
        }
    }

    /// Whether it shows without a census that nobody meant it.
    fn is_evident(&self) -> bool {
        let records = self.keys.iter().filter(|key| !matches!(key, Key::Endpoint(_)));
        !self.missed && (networks_of(&self.keys).len() > 1 || records.count() > 1)
    }
}

/// How many records there are at a revision, of the kinds that forwarding depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Endpoints, of all networks.
    pub endpoints: u64,
    /// Endpoints of the network in question, if it is one.
    pub of_network: u64,
    /// Whether any of the endpoints, of whatever network, was there already when those in question were seen last.
    pub survivors: bool,
    /// Networks.
    pub networks: u64,
    /// Peers.
    pub peers: u64,
    /// Whether this node has a peer record.
    pub own_peer: bool,
    /// Whether there is a mark that this node was removed.
    pub removed: bool,
}

impl Census {
    /// Why what a revision deleted is nothing that anybody means, if it is not. `self` is what there was before that
    /// revision, `after` at it.
    pub fn slip(&self, after: &Self, revision: i64) -> Option<String> {
        let endpoints = self.endpoints.saturating_sub(after.endpoints);
        let elsewhere = endpoints.saturating_sub(self.of_network.saturating_sub(after.of_network));
        let networks = self.networks.saturating_sub(after.networks);
        let peers = self.peers.saturating_sub(after.peers);
        let with_peers = peers > 1 || peers == 1 && endpoints + networks > 0;
        if elsewhere == 0 && networks <= 1 && !with_peers {
            return None;
        }
        let counts = [(endpoints, "endpoint"), (networks, "network"), (peers, "peer")];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let told: Vec<String> = counts
            .map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }))
            .collect();
        Some(format!(
            "revision {revision} deleted {} at once, as a mistaken 'etcdctl del --prefix' does",
            told.join(" and ")
        ))
    }

    /// Why a store at this revision is not believed when it lacks endpoints that nobody has seen go. `known` is how many
    /// networks this host knows of.
    pub fn emptied(&self, known: usize) -> Option<String> {
        if self.survivors {
            None
        } else if !self.own_peer && !self.removed {
            Some("the store has lost this node's own record, and nobody has removed the node".to_owned())
        } else if known <= 1 {
            None
        } else if self.endpoints == 0 {
            Some(format!(
                "the store has no endpoint left in any network, and this host knows {known} networks"
            ))
        } else {
            // One that was attached since tells nothing of those that were there.
            Some(format!(
                "the store has no endpoint left that was there before, in any of {known} networks, only newer ones ({})",
                self.endpoints
            ))
        }
    }
}

impl Snapshot {
    /// Deletions that wait for a census: before their revision and at it, or only at it if they were missed.
    pub fn suspicions(&self) -> impl Iterator<Item = &Suspicion> {
        self.suspicions.values()
    }

    /// Whether it is not known of endpoints of a network whether they are gone.
    pub fn suspects(&self, network: &NetworkName) -> bool {
        let mut all = self.suspicions.values();
        all.any(|suspicion| networks_of(&suspicion.keys).contains(network))
    }

    /// Whether a record is held only until it is known whether its deletion is meant.
    pub fn is_suspect(&self, key: &Key) -> bool {
        self.suspicions
            .values()
            .any(|suspicion| suspicion.keys.contains(key))
    }

    /// Ends a suspicion. `before` is none if nobody can tell any more how it was before.
    pub fn settle(&mut self, suspicion: &Suspicion, before: Option<&Census>, after: &Census) -> Dirty {
        if self.suspicions.get(&suspicion.revision) != Some(suspicion) {
            // More of it has come since, the store turned out to be another one, or somebody confirmed the deletions.
            return Dirty::default();
        }
        self.suspicions.remove(&suspicion.revision);
        let because = suspicion.verdict(before, after, self.networks.len());
        let mut dirty = Dirty::default();
        if let Some(because) = because {
            self.held_because.get_or_insert(because);
            dirty.merge(self.end_trouble());
            return dirty;
        }
        let (endpoints, others): (Vec<&Key>, Vec<&Key>) = suspicion
            .keys
            .iter()
            .partition(|key| matches!(key, Key::Endpoint(_)));
        // The endpoints first: what they depended on is then in nobody's use.
        for key in endpoints.into_iter().chain(others) {
            // One that was put again is another matter.
            if self.known_from(key).is_some_and(|at| at <= suspicion.revision)
                && self.is_held(key)
                && !self.is_in_use(key)
            {
                dirty.merge(self.forget(key));
            }
        }
        dirty
    }

    /// What of a revision's changes may be a slip, and is held until that is known: deletions of more than one endpoint of
    /// a network that this node has part in, or of the last one there; of several networks, of several peers.
    pub(crate) fn suspect_slips(&mut self, changes: &[Change]) -> Dirty {
        let deleted: BTreeSet<Key> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Deleted { key, mod_revision } => {
                    let key = self.prefix.parse(key).ok()?;
                    self.is_live(&key, *mod_revision).then_some(key)
                }
                Change::Put(_) => None,
            })
            .collect();
        let mut keys = BTreeSet::new();
        let of_kind =
            |kind: fn(&Key) -> bool| -> Vec<&Key> { deleted.iter().filter(|key| kind(key)).collect() };
        for several in [
            of_kind(|key| matches!(key, Key::Network(_))),
            of_kind(|key| matches!(key, Key::Peer(_))),
        ] {
            if several.len() > 1 {
                keys.extend(several.into_iter().cloned());
            }
        }
        for network in networks_of(&deleted) {
            let of_network: BTreeSet<&EndpointRef> = endpoints_of(&deleted, network).collect();
            if of_network.len() > 1 && self.takes_part(network) || self.empties(network, &of_network) {
                keys.extend(of_network.into_iter().cloned().map(Key::Endpoint));
            }
        }
        self.suspect(changes.first().map_or(0, Change::revision), None, keys)
    }

    /// Holds what a listing lacks of the endpoints of a network that this node has part in, until it is known whether that is
    /// a slip's doing: how much was deleted with it, and by how many revisions, nobody can say any more. What else the
    /// listing has is no answer. One endpoint that was attached afterwards would make an emptied network a believed one,
    /// and all others may have been written again since.
    pub(crate) fn suspect_missing(
        &mut self,
        scope: &Scope,
        missing: &[(Key, i64, bool)],
        revision: i64,
    ) -> Dirty {
        let Scope::Endpoints(network) = scope else {
            return Dirty::default();
        };
        if !self.takes_part(network) {
            return Dirty::default();
        }
        let missing = missing.iter().map(|(key, ..)| key);
        let missing = missing
            .filter(|key| self.is_live(key, revision))
            .cloned()
            .collect();
        let since = self.seen_of(scope).max(self.seen_to);
        self.suspect(revision, Some(since), missing)
    }

    /// `since` is when those that were missed were seen last.
    fn suspect(&mut self, revision: i64, since: Option<i64>, keys: BTreeSet<Key>) -> Dirty {
        let mut dirty = Dirty::default();
        if keys.is_empty() {
            return dirty;
        }
        for key in &keys {
            dirty.merge(self.hold(key));
        }
        let suspicion = self.suspicions.entry(revision).or_insert(Suspicion {
            revision,
            missed: since.is_some(),
            since: 0,
            keys: BTreeSet::new(),
        });
        suspicion.missed &= since.is_some();
        suspicion.since = suspicion.since.max(since.unwrap_or_default());
        suspicion.keys.extend(keys);
        dirty
    }

    /// Whether a record was there until a deletion at this revision, and is not being detached here anyway.
    fn is_live(&self, key: &Key, revision: i64) -> bool {
        let detached = matches!(key, Key::Endpoint(endpoint) if self.awaits_detach(endpoint));
        self.known_from(key).is_some_and(|at| at <= revision) && !self.is_held(key) && !detached
    }

    /// Whether without these endpoints a network that this node has part in has none, but for those that are held already.
    fn empties(&self, network: &NetworkName, gone: &BTreeSet<&EndpointRef>) -> bool {
        let mut all = self.members.get(network).into_iter().flat_map(Members::endpoints);
        !gone.is_empty()
            && self.takes_part(network)
            && all.all(|(node, id, slot)| {
                let left = EndpointRef {
                    network: network.clone(),
                    node: node.clone(),
                    id: id.clone(),
                };
                slot.held || gone.contains(&left)
            })
    }
}

fn networks_of(keys: &BTreeSet<Key>) -> BTreeSet<&NetworkName> {
    let endpoints = keys.iter().filter_map(|key| match key {
        Key::Endpoint(endpoint) => Some(&endpoint.network),
        _ => None,
    });
    endpoints.collect()
}

fn endpoints_of<'a>(
    keys: &'a BTreeSet<Key>,
    network: &'a NetworkName,
) -> impl Iterator<Item = &'a EndpointRef> {
    keys.iter().filter_map(move |key| match key {
        Key::Endpoint(endpoint) if endpoint.network == *network => Some(endpoint),
        _ => None,
    })
}
