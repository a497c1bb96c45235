//! One host: its core between the models of the store and of the kernel, as `weftd` ties it.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::{
    chores::{self, Chore},
    claims::{Choosing, Refusal},
    dataplane::Observed,
    desired::{Assessment, Host},
    diff,
    dirty::Dirty,
    fence::fenced,
    plan::{Failures, Op},
    problem::Problem,
    record::{Change, Scope, Transaction},
    snapshot::{Snapshot, directory},
};
use weft_store_schema::{NetworkName, NodeName, PeerDocument, Prefix};

use crate::{
    kernel::Kernel,
    store::{Store, covers, revision_of},
};

/// One host.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) snapshot: Snapshot,
    pub(crate) host: Host,
    pub(crate) kernel: Kernel,
    /// What the agent believes of the kernel.
    pub(crate) observed: Observed,
    pub(crate) dirty: Dirty,
    pub(crate) assessed: BTreeMap<String, Problem>,
    pub(crate) pinned: BTreeSet<NetworkName>,
    /// Networks that the kernel refuses something of, time and again.
    pub(crate) refused: BTreeSet<NetworkName>,
    /// What is owed to the store.
    pub(crate) book: BTreeSet<Chore>,
    scopes: BTreeMap<Scope, i64>,
    /// Events up to here have been fetched from the store.
    fetched: i64,
}

impl Agent {
    pub(crate) fn new(node: NodeName, host: Host) -> Self {
        Self {
            snapshot: Snapshot::new(Prefix::default(), node),
            host,
            kernel: Kernel::default(),
            observed: Observed::default(),
            dirty: Dirty::everything(),
            assessed: BTreeMap::new(),
            pinned: BTreeSet::new(),
            refused: BTreeSet::new(),
            book: BTreeSet::new(),
            scopes: BTreeMap::new(),
            fetched: 0,
        }
    }

    /// Another process on the same host: it knows nothing, and finds in the kernel what was left.
    pub(crate) fn restart(&mut self) {
        let fresh = Self::new(self.node().clone(), self.host.clone());
        let kernel = std::mem::take(&mut self.kernel);
        *self = Self {
            observed: kernel.observe(),
            kernel,
            pinned: std::mem::take(&mut self.pinned),
            ..fresh
        };
    }

    pub(crate) fn node(&self) -> &NodeName {
        self.snapshot.node()
    }

    /// Wants what matters now, and lists what is newly wanted; again, since a listing may make more matter.
    pub(crate) fn follow(&mut self, store: &Store) {
        loop {
            let in_kernel = self.observed.networks.keys().cloned().collect();
            // What is owed keeps its network in view.
            let owed = self.book.iter().filter_map(|chore| match chore {
                Chore::ReleaseAddress(network, _) | Chore::ForgetReleased(network) => Some(network),
                Chore::CompleteEndpoint(endpoint) | Chore::DetachEndpoint(endpoint) => {
                    Some(&endpoint.network)
                }
                Chore::PublishPeer | Chore::CompleteNetwork(_) | Chore::FreeVni(_) => None,
            });
            let pinned = self.pinned.iter().chain(owed).cloned().collect();
            let wanted = self.snapshot.interest(&in_kernel, &pinned);
            if self.scopes.keys().eq(&wanted) {
                return;
            }
            let dirty = self.snapshot.retain(&wanted);
            self.note(dirty);
            self.scopes.retain(|scope, _| wanted.contains(scope));
            for scope in wanted {
                if !self.scopes.contains_key(&scope) {
                    self.list(store, &scope);
                }
            }
        }
    }

    /// Lists a scope.
    pub(crate) fn list(&mut self, store: &Store, scope: &Scope) {
        let entries = store.list(&directory(&Prefix::default(), self.snapshot.node(), scope));
        let dirty = self
            .snapshot
            .apply_listing(scope, store.cluster_id, store.revision, &entries);
        self.note(dirty);
        self.settle_suspicions(store);
        self.scopes.insert(scope.clone(), store.revision);
    }

    /// Asks the store how much was deleted with what seems to be gone.
    pub(crate) fn settle_suspicions(&mut self, store: &Store) {
        let suspicions: Vec<_> = self.snapshot.suspicions().cloned().collect();
        for suspicion in suspicions {
            let at = |revision| {
                let (network, since) = (suspicion.network(), suspicion.since);
                store.census(network, self.snapshot.node(), since, revision)
            };
            let before = (!suspicion.missed).then(|| at(suspicion.revision - 1));
            let after = at(suspicion.revision);
            let dirty = self.snapshot.settle(&suspicion, before.as_ref(), &after);
            self.note(dirty);
        }
    }

    /// Lists everything that is wanted, as after a compaction.
    pub(crate) fn relist(&mut self, store: &Store) {
        self.fetched = store.revision;
        self.follow(store);
        let scopes: Vec<Scope> = self.scopes.keys().cloned().collect();
        for scope in &scopes {
            self.list(store, scope);
        }
        self.follow(store);
    }

    /// What the store has to tell that is news here.
    pub(crate) fn fetch(&mut self, store: &Store) -> Vec<Change> {
        let changes = store.since(self.fetched).cloned().collect();
        self.fetched = store.revision;
        changes
    }

    /// Takes in changes, those of them that are watched.
    pub(crate) fn take_in(&mut self, changes: &[Change]) {
        let node = self.snapshot.node().clone();
        let watched: Vec<Change> = changes
            .iter()
            .filter(|change| {
                let key = crate::store::key_of(change);
                self.scopes
                    .iter()
                    .any(|(scope, listed)| covers(scope, &node, key) && *listed < revision_of(change))
            })
            .cloned()
            .collect();
        let dirty = self.snapshot.apply_changes(&watched);
        self.note(dirty);
    }

    /// Notes what a change of the snapshot asks for.
    pub(crate) fn note(&mut self, dirty: Dirty) {
        let all = BTreeSet::from([Scope::Networks, Scope::Peers, Scope::Vnis]);
        if self.snapshot.is_complete(&all) {
            self.book
                .extend(chores::chores(&self.snapshot, &self.peer(), &dirty));
        }
        self.dirty.merge(dirty);
    }

    /// What the host's own record should say.
    pub(crate) fn peer(&self) -> PeerDocument {
        let addresses = [self.host.v4, self.host.v6];
        PeerDocument {
            vteps: addresses.iter().flatten().map(ToString::to_string).collect(),
            mtu: Some(self.host.mtu.into()),
            ..PeerDocument::default()
        }
    }

    /// What a chore writes, from what is known now; none if nothing is owed any more, and then it is
    /// forgotten.
    pub(crate) fn transaction(&mut self, chore: &Chore) -> Result<Option<Transaction>, Refusal> {
        let transaction = chores::transaction(&self.snapshot, &self.peer(), chore, &Choosing::default())
            .map(|owed| owed.map(|owed| fenced(&self.snapshot, owed)));
        if let Ok(None) = transaction {
            self.book.remove(chore);
        }
        transaction
    }

    /// Forgets chores that are owed no more, as whoever gets to do them finds.
    pub(crate) fn tidy(&mut self) {
        for chore in self.book.clone() {
            // What is refused stays, to be tried again.
            let _ = self.transaction(&chore);
        }
    }

    /// Catches up with the store.
    pub(crate) fn sync(&mut self, store: &Store) {
        self.follow(store);
        let changes = self.fetch(store);
        self.take_in(&changes);
        self.settle_suspicions(store);
        self.follow(store);
    }

    /// One pass over what is dirty. Returns the operations done, in order.
    pub(crate) fn pass(&mut self) -> Vec<(NetworkName, Op)> {
        self.pass_with(&mut |_| false)
    }

    /// One pass in which some operations fail.
    pub(crate) fn pass_with(&mut self, fails: &mut dyn FnMut(&Op) -> bool) -> Vec<(NetworkName, Op)> {
        let dirty = std::mem::take(&mut self.dirty);
        let (plan, assessment) = diff::plan(&self.snapshot, &self.host, &self.observed, &dirty);
        self.assess(assessment);
        let mut done = Vec::new();
        for (network, ops) in &plan.networks {
            assert!(!ops.is_empty());
            let mut failures = Failures::default();
            for op in ops {
                if failures.hold_back(op) || fails(op) || self.kernel.apply(network, op).is_err() {
                    failures.note(op);
                    self.dirty.networks.insert(network.clone());
                } else {
                    self.observed.record(network, op);
                    done.push((network.clone(), op.clone()));
                }
            }
        }
        done
    }

    /// Passes until nothing is dirty, as when failures are tried again; or until nothing comes of it.
    pub(crate) fn settle(&mut self) -> Vec<(NetworkName, Op)> {
        self.dirty.networks.append(&mut self.refused);
        let mut done = Vec::new();
        for _ in 0..8 {
            let now = self.pass();
            if self.dirty.is_empty() {
                done.extend(now);
                return done;
            }
            if now.is_empty() {
                self.refused.append(&mut self.dirty.networks);
                assert!(self.dirty.is_empty());
                return done;
            }
            done.extend(now);
        }
        panic!("the passes come to no end; dirty is {:#?}", self.dirty);
    }

    fn assess(&mut self, assessment: Assessment) {
        if assessment.complete {
            self.assessed.clear();
        }
        for (key, problem) in assessment.by_key {
            match problem {
                Some(problem) => drop(self.assessed.insert(key, problem)),
                None => drop(self.assessed.remove(&key)),
            }
        }
    }

    /// After every pass: what the agent believes is true, and a pass over everything would find nothing to do
    /// and nothing else to say.
    pub(crate) fn check(&self) {
        assert_eq!(
            self.observed,
            self.kernel.observe(),
            "the agent's memory differs from the kernel"
        );
        let (mut plan, assessment) =
            diff::plan(&self.snapshot, &self.host, &self.observed, &Dirty::everything());
        plan.networks.retain(|network, _| !self.refused.contains(network));
        assert!(plan.is_empty(), "a full pass finds more to do: {plan:#?}");
        let full: BTreeMap<String, Problem> = assessment
            .by_key
            .into_iter()
            .filter_map(|(key, problem)| Some((key, problem?)))
            .collect();
        assert_eq!(self.assessed, full, "a full pass finds other problems (right)");
        if self.dirty.is_empty() {
            let owed = chores::chores(&self.snapshot, &self.peer(), &Dirty::everything());
            let missing: Vec<_> = owed.iter().filter(|chore| !self.book.contains(chore)).collect();
            assert!(missing.is_empty(), "owed, and not in the book: {missing:?}");
        }
    }
}
