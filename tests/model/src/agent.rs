//! One agent as far as records go: the view and what keeps it, what is owed, what lies on the disk. Every decision is the
//! product's own (`weft-core`); what is here ties it as `weftd` does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_core::{
    chores::{self, Chore},
    claims::Choosing,
    dirty::Dirty,
    record::{Change, Entry, Scope, Transaction, Write},
    snapshot::{Snapshot, directory},
};
use weft_store_schema::{EndpointRef, Key, NetworkName, NodeName, PeerDocument, Prefix};

use crate::{
    doing::Doing,
    etcd::{Etcd, key_of, revision_of},
};

/// How far the watch of a scope has come.
#[derive(Debug, Clone)]
pub(crate) enum Feed {
    /// To be listed; if it was watched before, up to that revision.
    Wanted(i64),
    /// Listed, and the listing is on its way.
    Listing {
        /// What is known until it comes.
        before: i64,
        revision: i64,
        entries: Vec<Entry>,
    },
    /// Watched, up to this revision.
    Following(i64),
}

impl Feed {
    /// Up to which revision everything has been told.
    pub(crate) fn told(&self) -> i64 {
        match self {
            Self::Wanted(at) | Self::Following(at) | Self::Listing { before: at, .. } => *at,
        }
    }
}

/// Something owed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Task {
    pub(crate) running: bool,
    pub(crate) lost: u32,
    /// It became owed anew while it was under way.
    pub(crate) anew: bool,
}

/// One agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) snapshot: Snapshot,
    pub(crate) peer: PeerDocument,
    pub(crate) feeds: BTreeMap<Scope, Feed>,
    pub(crate) owed: BTreeMap<Chore, Task>,
    pub(crate) under_way: Vec<Doing>,
    /// The newest revision heard of in any answer.
    pub(crate) heard: i64,
    /// The revision of the mark of a removal that this agent has taken notice of.
    heeded: i64,
    /// How many lives the node has had, on the disk.
    lives: u32,
    /// All that matters was known once, since this agent started.
    pub(crate) adopted: bool,
    /// Networks that stay in view, as those that the kernel has something of.
    kept: BTreeSet<NetworkName>,
    pinned: BTreeMap<NetworkName, usize>,
    claiming: BTreeMap<NetworkName, BTreeMap<IpAddr, usize>>,
    /// What was known when.
    noted: Vec<(u64, i64)>,
    /// Detached endpoints, on the disk.
    remembered: BTreeMap<EndpointRef, i64>,
}

impl Agent {
    pub(crate) fn new(node: NodeName, peer: PeerDocument, kept: BTreeSet<NetworkName>) -> Self {
        let mut agent = Self {
            snapshot: Snapshot::new(Prefix::default(), node),
            peer,
            feeds: BTreeMap::new(),
            owed: BTreeMap::new(),
            under_way: Vec::new(),
            heard: 0,
            heeded: 0,
            lives: 1,
            adopted: false,
            kept,
            pinned: BTreeMap::new(),
            claiming: BTreeMap::new(),
            noted: Vec::new(),
            remembered: BTreeMap::new(),
        };
        agent.update_interest();
        agent
    }

    /// Another process, which finds what lies on the disk.
    pub(crate) fn restart(&mut self) {
        let fresh = Self::new(self.snapshot.node().clone(), self.peer.clone(), self.kept.clone());
        let (remembered, lives) = (std::mem::take(&mut self.remembered), self.lives);
        *self = Self { lives, ..fresh };
        for (endpoint, life) in &remembered {
            self.snapshot.detach(endpoint, *life);
        }
        self.remembered = remembered;
        self.update_interest();
    }

    pub(crate) fn node(&self) -> &NodeName {
        self.snapshot.node()
    }

    pub(crate) fn hear(&mut self, revision: i64) {
        self.heard = self.heard.max(revision);
    }

    // ---- the view ------------------------------------------------------------------------------------

    pub(crate) fn update_interest(&mut self) {
        let owed = self.owed.keys().filter_map(|chore| match chore {
            Chore::ReleaseAddress(network, _) | Chore::ForgetReleased(network) => Some(network),
            Chore::CompleteEndpoint(endpoint) | Chore::DetachEndpoint(endpoint) => Some(&endpoint.network),
            Chore::PublishPeer | Chore::CompleteNetwork(_) | Chore::FreeVni(_) => None,
        });
        let detaching = self.snapshot.detaching().keys().map(|endpoint| &endpoint.network);
        let pinned = self.pinned.keys().chain(owed).chain(detaching).cloned().collect();
        let scopes = self.snapshot.interest(&self.kept, &pinned);
        if self.feeds.keys().eq(&scopes) {
            return;
        }
        self.snapshot.retain(&scopes);
        self.feeds.retain(|scope, _| scopes.contains(scope));
        for scope in scopes {
            self.feeds.entry(scope).or_insert(Feed::Wanted(0));
        }
    }

    pub(crate) fn pin(&mut self, network: &NetworkName) {
        *self.pinned.entry(network.clone()).or_default() += 1;
        self.update_interest();
    }

    pub(crate) fn unpin(&mut self, network: &NetworkName) {
        if let Some(count) = self.pinned.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                self.pinned.remove(network);
            }
        }
        self.update_interest();
    }

    /// Whether all about the networks that matter here is known.
    pub(crate) fn is_informed(&self) -> bool {
        self.feeds.values().all(|feed| feed.told() > 0)
    }

    /// A scope's next news, of at most so many revisions.
    pub(crate) fn news(&mut self, etcd: &Etcd, scope: &Scope, most: usize, clock: u64) {
        if self.hear_of(etcd, scope, most) {
            self.after_records(clock);
        }
    }

    /// Takes in a scope's next news. Whether there was any.
    fn hear_of(&mut self, etcd: &Etcd, scope: &Scope, most: usize) -> bool {
        let Some(feed) = self.feeds.get_mut(scope) else {
            return false;
        };
        if matches!(feed, Feed::Following(at) if *at == etcd.revision) {
            return false;
        }
        let directory = directory(self.snapshot.prefix(), self.snapshot.node(), scope);
        let dirty = match feed {
            Feed::Wanted(before) => {
                *feed = Feed::Listing {
                    before: *before,
                    revision: etcd.revision,
                    entries: etcd.list(&directory),
                };
                return true;
            }
            Feed::Listing {
                revision, entries, ..
            } => {
                let (revision, entries) = (*revision, std::mem::take(entries));
                *feed = Feed::Following(revision);
                self.hear(revision);
                self.snapshot
                    .apply_listing(scope, etcd.cluster_id, revision, &entries)
            }
            Feed::Following(at) => {
                let mut changes: Vec<Change> = Vec::new();
                let (mut revisions, mut last) = (0, *at);
                for change in etcd.since(*at) {
                    if !key_of(change).starts_with(directory.as_bytes()) {
                        continue;
                    }
                    // What happened at one revision comes at once.
                    if revision_of(change) != last || revisions == 0 {
                        if revisions == most {
                            break;
                        }
                        revisions += 1;
                        last = revision_of(change);
                    }
                    changes.push(change.clone());
                }
                if changes.is_empty() {
                    *at = etcd.revision;
                    return false;
                }
                *at = last;
                self.snapshot.apply_changes(&changes)
            }
        };
        self.take_in(&dirty);
        self.settle_suspicions(etcd);
        true
    }

    /// All news there is, of all scopes. Whether there was any.
    pub(crate) fn all_news(&mut self, etcd: &Etcd, clock: u64) -> bool {
        let mut any = false;
        // The store tells now and then how far it is, also when nothing has happened.
        self.after_records(clock);
        loop {
            let scopes: Vec<Scope> = self.feeds.keys().cloned().collect();
            let mut more = false;
            for scope in &scopes {
                more |= self.hear_of(etcd, scope, usize::MAX);
            }
            if !more {
                return any;
            }
            self.after_records(clock);
            any = true;
        }
    }

    /// The watch of a scope is lost.
    pub(crate) fn lose_watch(&mut self, scope: &Scope) {
        if let Some(feed) = self.feeds.get_mut(scope) {
            *feed = Feed::Wanted(feed.told());
        }
    }

    pub(crate) fn learn(&mut self, changes: &[Change], clock: u64) {
        let dirty = self.snapshot.learn(changes);
        self.take_in(&dirty);
        self.after_records(clock);
    }

    /// Asks the store how much was deleted with what seems to be gone.
    fn settle_suspicions(&mut self, etcd: &Etcd) {
        let suspicions: Vec<_> = self.snapshot.suspicions().cloned().collect();
        for suspicion in suspicions {
            let at = |revision| {
                let (network, since) = (suspicion.network(), suspicion.since);
                etcd.census(network, self.snapshot.node(), since, revision)
            };
            let before = (!suspicion.missed).then(|| at(suspicion.revision - 1));
            let after = at(suspicion.revision);
            let dirty = self.snapshot.settle(&suspicion, before.as_ref(), &after);
            self.take_in(&dirty);
        }
    }

    /// An operator confirms deletions that the agent takes for a slip (`weft resync --accept`): nobody puts anything back here.
    /// Whether there were any.
    pub(crate) fn confirm_deletions(&mut self) -> bool {
        let holds = self.snapshot.held_because().is_some();
        if holds {
            let dirty = self.snapshot.release_held();
            self.take_in(&dirty);
        }
        holds
    }

    pub(crate) fn take_in(&mut self, dirty: &Dirty) {
        self.heed_removal();
        let needed = BTreeSet::from([Scope::Networks, Scope::Peers, Scope::Removed, Scope::Vnis]);
        if self.snapshot.is_complete(&needed) {
            for chore in chores::chores(&self.snapshot, &self.peer, dirty) {
                let task = self.owed.entry(chore).or_default();
                task.anew = task.running;
            }
        }
    }

    fn after_records(&mut self, clock: u64) {
        self.noted.push((clock, self.snapshot.revision()));
        self.end_detachments();
        self.update_interest();
        self.adopted |= self.is_informed();
    }

    // ---- this node's life ----------------------------------------------------------------------------

    /// Which life of the node this is.
    pub(crate) fn life(&self) -> String {
        self.peer.incarnation.clone().unwrap_or_default()
    }

    /// Takes notice of the mark of a removal that ended this life.
    fn heed_removal(&mut self) {
        let own = self.snapshot.node();
        let Some(slot) = self.snapshot.removed(own) else {
            return;
        };
        let at = slot.mod_revision;
        if self.heeded == at {
            return;
        }
        let mark = slot.value.clone().unwrap_or_default();
        let is_gone = self.snapshot.is_complete(&BTreeSet::from([Scope::Peers]))
            && self.snapshot.peer_slot(own).is_none_or(|slot| slot.held);
        if mark.incarnation != self.peer.incarnation && !is_gone {
            return;
        }
        self.heeded = at;
        self.lives += 1;
        self.peer.incarnation = Some(format!("life{}", self.lives));
    }

    /// Whether it is known that this node's life goes on.
    pub(crate) fn may_write(&self) -> bool {
        let needed = BTreeSet::from([Scope::Peers, Scope::Removed]);
        self.snapshot.is_complete(&needed)
    }

    // ---- what is owed and under way ------------------------------------------------------------------

    /// What matters beyond the records where an address is chosen.
    pub(crate) fn choosing(&self, network: &NetworkName, lost: u32, clock: u64) -> Choosing {
        let slot = self.snapshot.network(network);
        let cooldown = slot.and_then(|s| Some(s.value.as_ref()?.cooldown));
        let cooldown = cooldown.unwrap_or_default().as_secs();
        let cooled_to = if cooldown == 0 {
            i64::MAX
        } else {
            let past = self.noted.iter().rev().find(|(at, _)| at + cooldown <= clock);
            past.map_or(0, |(_, revision)| *revision)
        };
        let claiming = self.claiming.get(network).into_iter().flat_map(BTreeMap::keys);
        Choosing {
            claiming: claiming.copied().collect(),
            cooled_to,
            lost,
        }
    }

    pub(crate) fn begin_claims(&mut self, transaction: &Transaction) {
        for (network, address) in claims(transaction) {
            let addresses = self.claiming.entry(network.clone()).or_default();
            *addresses.entry(address).or_default() += 1;
        }
    }

    pub(crate) fn end_claims(&mut self, transaction: &Transaction) {
        for (network, address) in claims(transaction) {
            let addresses = self.claiming.entry(network.clone()).or_default();
            if let Some(count) = addresses.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    addresses.remove(&address);
                }
            }
        }
        self.claiming.retain(|_, addresses| !addresses.is_empty());
    }

    pub(crate) fn is_claiming(&self) -> bool {
        !self.claiming.is_empty()
    }

    // ---- detachments ---------------------------------------------------------------------------------

    /// Takes an endpoint off the host; which life of it that is.
    pub(crate) fn detach(&mut self, endpoint: &EndpointRef) -> i64 {
        let life = self
            .snapshot
            .endpoint(endpoint)
            .map_or(0, |slot| slot.create_revision);
        self.detach_life(endpoint, life);
        life
    }

    /// The same for one whose record is not in view.
    pub(crate) fn detach_life(&mut self, endpoint: &EndpointRef, life: i64) {
        let dirty = self.snapshot.detach(endpoint, life);
        self.take_in(&dirty);
    }

    /// Writes down that an endpoint is detached.
    pub(crate) fn remember_detach(&mut self, endpoint: &EndpointRef) {
        if let Some(life) = self.snapshot.detaching().get(endpoint) {
            self.remembered.insert(endpoint.clone(), *life);
        }
    }

    /// What lies on the disk is lost.
    pub(crate) fn forget_detaches(&mut self) {
        self.remembered.clear();
    }

    fn end_detachments(&mut self) {
        let snapshot = &self.snapshot;
        let ended: Vec<EndpointRef> = snapshot
            .detaching()
            .keys()
            .filter(|e| snapshot.has_left(e))
            .cloned()
            .collect();
        for endpoint in ended {
            self.snapshot.end_detach(&endpoint);
            self.remembered.remove(&endpoint);
        }
    }
}

fn claims(transaction: &Transaction) -> impl Iterator<Item = (&NetworkName, IpAddr)> {
    transaction.writes.iter().filter_map(|write| match write {
        Write::Put(Key::Address(network, address), _)
        | Write::PutLeased(Key::Address(network, address), ..) => Some((network, *address)),
        _ => None,
    })
}
