//! What the loop owes the store: which scopes it wants, which record writes are to be made, what detached
//! endpoints still have there.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::Instant;
use weft_core::{
    answer,
    chores::{self, Chore},
    claims::Choosing,
    dirty::Dirty,
    fence::fenced,
    ownership::port_name,
    problem::Problem,
    record::{Committed, Connection, Guard, Scope, Transaction},
};
use weft_store::StoreError;
use weft_store_schema::{EndpointRef, Key, NetworkName, PeerDocument};

use crate::{
    detachments::Remembered,
    problems::Source,
    reconcile::{Reconciler, chain},
};

/// How long one transaction of ours may take before it is tried anew.
const COMMIT_DEADLINE: Duration = Duration::from_secs(3);

/// What became of a chore's transaction.
pub(super) struct ChoreDone {
    chore: Chore,
    transaction: Transaction,
    result: Result<Committed, StoreError>,
}

#[cfg(test)]
impl ChoreDone {
    /// What became of a chore, whatever its transaction was.
    pub(super) fn of(chore: Chore, result: Result<Committed, StoreError>) -> Self {
        Self::with(chore, Transaction::default(), result)
    }

    /// What became of a chore's transaction.
    pub(super) fn with(
        chore: Chore,
        transaction: Transaction,
        result: Result<Committed, StoreError>,
    ) -> Self {
        Self {
            chore,
            transaction,
            result,
        }
    }
}

impl Reconciler {
    pub(super) fn update_interest(&mut self) {
        self.interest_is_stale = false;
        let in_kernel = self.observed.networks.keys().chain(self.unseen_networks());
        let in_kernel = in_kernel.cloned().collect();
        let detaching = self.snapshot.detaching().keys().map(|endpoint| &endpoint.network);
        let pinned = self
            .pinned
            .keys()
            .chain(self.book.networks())
            .chain(detaching)
            .cloned()
            .collect();
        let scopes = self.snapshot.interest(&in_kernel, &pinned);
        if scopes != self.scopes {
            if self
                .scopes
                .difference(&scopes)
                .any(|scope| matches!(scope, Scope::Endpoints(_)))
            {
                // What was said of the endpoints that are out of view now has to be unsaid.
                self.dirty.everything = true;
            }
            self.interest_is_stale = !self.snapshot.retain(&scopes).is_empty();
            self.store.want(scopes.clone());
            self.scopes = scopes;
        }
    }

    /// Wants everything about a network, endpoint of ours there or not, until unpinned as often.
    pub(crate) fn pin(&mut self, network: &NetworkName) {
        *self.pinned.entry(network.clone()).or_default() += 1;
        self.update_interest();
    }

    /// Takes one [`Self::pin`] back.
    pub(crate) fn unpin(&mut self, network: &NetworkName) {
        if let Some(count) = self.pinned.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                self.pinned.remove(network);
            }
        }
        self.update_interest();
    }

    /// After a reboot, looks once into every network: what this node holds for endpoints that were deleted meanwhile is
    /// nobody else's to give up, and without a namespace in the kernel nothing else would lead there.
    pub(super) fn sweep_after_reboot(&mut self) {
        // Looked at each time: this agent's own record is written anew as soon as it is seen.
        let peer = self.snapshot.peer(&self.node.name);
        self.rebooted |=
            peer.is_some_and(|p| p.boot_id.as_deref().is_some_and(|id| *id != *self.node.boot_id));
        match self.swept.take() {
            None if !self
                .snapshot
                .is_complete(&BTreeSet::from([Scope::Networks, Scope::Peers])) => {}
            None => {
                let networks = self.snapshot.networks().filter(|_| self.rebooted);
                let networks: BTreeSet<NetworkName> = networks.map(|(name, _)| name.clone()).collect();
                if self.rebooted {
                    tracing::info!(
                        "this host was rebooted; looking into every network for what it holds no longer"
                    );
                }
                for network in &networks {
                    *self.pinned.entry(network.clone()).or_default() += 1;
                }
                self.interest_is_stale = true;
                self.swept = Some(networks);
            }
            // Without an underlay, nothing that is found there would be noted as owed.
            Some(networks) if networks.is_empty() || !self.is_informed() || self.underlay.is_none() => {
                self.swept = Some(networks);
            }
            Some(networks) => {
                self.swept = Some(BTreeSet::new());
                for network in &networks {
                    self.unpin(network);
                }
            }
        }
    }

    /// Whether all about the networks that matter here is known.
    pub(crate) fn is_informed(&self) -> bool {
        self.snapshot.is_complete(&self.scopes)
    }

    /// Whether all about the networks that matter here was known at some time since the agent started. From then on the
    /// records are as last known, whatever becomes of the store.
    pub(crate) fn has_read_records(&self) -> bool {
        self.has_read
    }

    /// Whether the kernel's state has been taken over, so that plans are made.
    pub(crate) fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Whether the first pass is done.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.is_none()
    }

    /// Whether the store answers.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self.connection, Some(Connection::Up { .. }))
    }

    /// The connection's state, once there was one.
    pub(crate) fn connection(&self) -> Option<&Connection> {
        self.connection.as_ref()
    }

    /// What the node's record should say, once that is known, and this life of the node is on the disk.
    pub(super) fn peer_document(&self) -> Option<PeerDocument> {
        let underlay = self.underlay.as_ref().filter(|_| self.new_life.is_none())?;
        Some(self.node.peer_document(underlay, self.history.incarnation()))
    }

    pub(super) fn add_chores(&mut self, dirty: &Dirty) {
        let Some(peer) = self.peer_document() else { return };
        if !self.scopes.is_empty()
            && !self.snapshot.is_complete(&BTreeSet::from([
                Scope::Networks,
                Scope::Peers,
                Scope::Removed,
                Scope::Vnis,
            ]))
        {
            return;
        }
        let now = Instant::now();
        for chore in chores::chores(&self.snapshot, &peer, dirty) {
            self.interest_is_stale = true;
            let rank = chores::rank(&self.snapshot, &chore);
            self.book.add(chore, rank, now);
        }
    }

    pub(super) fn run_chores(&mut self) {
        let Some(peer) = self.peer_document() else { return };
        // Whether this node's life goes on has to be known before any more is written in it.
        let lives = BTreeSet::from([Scope::Peers, Scope::Removed]);
        if !self.is_connected() || !self.snapshot.is_complete(&lives) || !self.may_speak() {
            return;
        }
        let now = Instant::now();
        for chore in self.book.due(now) {
            if self.is_on_the_host(&chore) {
                self.book.withhold(&chore);
                self.not_refused(&chore);
                continue;
            }
            let choosing = match &chore {
                Chore::CompleteEndpoint(endpoint) => self.choosing(&endpoint.network, self.book.lost(&chore)),
                Chore::ForgetReleased(network) => self.choosing(network, 0),
                _ => Choosing::default(),
            };
            let transaction = chores::transaction(&self.snapshot, &peer, &chore, &choosing)
                .map(|owed| owed.map(|owed| fenced(&self.snapshot, owed)));
            let completed = match &chore {
                Chore::CompleteEndpoint(endpoint) => {
                    let value = self.snapshot.endpoint(endpoint).and_then(|s| s.value.as_ref());
                    Some((Key::Endpoint(endpoint.clone()), value))
                }
                Chore::CompleteNetwork(network) => Some((Key::Network(network.clone()), None)),
                _ => None,
            };
            if let Some((key, value)) = completed {
                let key = key.to_string();
                let problem = transaction.as_ref().err().map(|refusal| Problem {
                    key: key.clone(),
                    field: value.and_then(|e| refusal.field(e.requested(), &e.addresses)),
                    message: refusal.to_string(),
                });
                self.problems.set(Source::Claim, &key, problem);
            }
            match transaction {
                Ok(None) => {
                    self.book.done(&chore);
                    self.taken.remove(&chore);
                    self.interest_is_stale = true;
                    self.look_after_release(&chore);
                    self.not_refused(&chore);
                }
                Err(_) => {
                    self.book.failed(&chore, now);
                    self.not_refused(&chore);
                }
                Ok(Some(transaction)) => {
                    self.book.started(&chore);
                    self.book.begin_claims(&transaction);
                    let (store, done) = (self.store.clone(), self.chores_done.clone());
                    tokio::spawn(async move {
                        let result = store.commit(&transaction, COMMIT_DEADLINE).await;
                        // The loop may have ended meanwhile.
                        let _ = done.send(ChoreDone {
                            chore,
                            transaction,
                            result,
                        });
                    });
                }
            }
        }
    }

    /// Whether this node still has to give up addresses in a network of which no endpoint of its own tells any more.
    /// Until it has, its namespace stays, empty: nothing else would lead an agent that starts anew to them.
    pub(super) fn owes_addresses(&self, network: &NetworkName) -> bool {
        let Some(members) = self.snapshot.members(network) else {
            return false;
        };
        let is_own = |address| {
            let claim = members.claim(address).and_then(|slot| slot.value);
            claim.is_some_and(|claim| claim.node == self.node.name)
        };
        self.book.releases(network).any(is_own)
    }

    fn look_after_release(&mut self, chore: &Chore) {
        if let Chore::ReleaseAddress(network, _) = chore
            && !self.snapshot.takes_part(network)
        {
            self.dirty.networks.insert(network.clone());
        }
    }

    /// What matters beyond the records where an address of a network is chosen. `lost` is how often another agent
    /// was faster.
    pub(crate) fn choosing(&self, network: &NetworkName, lost: u32) -> Choosing {
        let slot = self.snapshot.network(network);
        let cooldown = slot.and_then(|s| Some(s.value.as_ref()?.cooldown));
        Choosing {
            claiming: self.book.claiming(network),
            cooled_to: self
                .cooldowns
                .cooled_to(cooldown.unwrap_or_default(), Instant::now()),
            lost,
        }
    }

    /// Whether what a chore gives up may still be on this host's interfaces, so that it must not be given up yet:
    /// another host may have the address a moment later, and this agent may be stopped or killed at any moment.
    fn is_on_the_host(&self, chore: &Chore) -> bool {
        let (holder, address) = match chore {
            Chore::DetachEndpoint(endpoint) => (endpoint.clone(), None),
            Chore::ReleaseAddress(network, address) => {
                let claim = self
                    .snapshot
                    .members(network)
                    .and_then(|members| members.claim(*address)?.value)
                    .filter(|claim| claim.node == self.node.name);
                let Some(claim) = claim else { return false };
                (self.own_endpoint(network, &claim.id), Some(*address))
            }
            _ => return false,
        };
        self.may_have(&holder, address)
    }

    /// Whether this host may still have an endpoint's address, or any of the endpoint, on its interfaces.
    pub(crate) fn may_have(&self, holder: &EndpointRef, address: Option<IpAddr>) -> bool {
        // What is being done now, was found at the start and not looked at yet, or could not be looked at, is not in
        // what is observed.
        if !self.is_adopted() || self.is_applying() || !self.has_seen(&holder.network) {
            return true;
        }
        let Some(network) = self.observed.networks.get(&holder.network) else {
            return false;
        };
        let interface = network.interfaces.get(&holder.id);
        match (address, interface) {
            (Some(address), Some(interface)) => interface.addresses.iter().any(|net| net.addr() == address),
            _ => network.ports.contains_key(&port_name(holder)),
        }
    }

    /// Looks again at what waited for the kernel.
    pub(super) fn run_withheld_chores(&mut self) {
        if self.book.release_withheld() {
            self.run_chores();
        }
    }

    pub(super) fn on_chore_done(&mut self, done: ChoreDone) {
        let ChoreDone {
            chore,
            transaction,
            result,
        } = done;
        self.book.end_claims(&transaction);
        self.interest_is_stale = true;
        let now = Instant::now();
        match result {
            Ok(Committed::Yes { revision }) => {
                self.not_refused(&chore);
                if let Chore::DetachEndpoint(endpoint) = &chore {
                    let dirty = self.snapshot.saw_gone(endpoint, revision);
                    self.take_in(dirty);
                }
                self.book.succeeded(&chore, now);
                self.claimed_again(&chore, &transaction);
                self.learn(&answer::own_changes(&self.snapshot, &transaction, revision));
                self.look_after_release(&chore);
            }
            Ok(Committed::No { now: present, .. }) => {
                self.not_refused(&chore);
                let mut guarded = transaction.guards.iter().zip(&present);
                if guarded.any(|(guard, there)| matches!(guard, Guard::Empty(_)) && there.is_some()) {
                    self.book.hindered(&chore, now);
                } else {
                    self.book.retry(&chore, now);
                }
                self.learn(&answer::news(&transaction, present));
            }
            Err(error) => {
                tracing::debug!(?chore, error = %chain(&error), "not written, tried again");
                self.book.failed(&chore, now);
                self.not_written(&chore, &error);
            }
        }
        self.run_chores();
    }

    /// Takes an endpoint of this host off it, whether or not the store can be told now. Until
    /// [`Self::remember_detach`], only for as long as this agent lives.
    pub(crate) fn detach(&mut self, endpoint: &EndpointRef) {
        let life = self
            .snapshot
            .endpoint(endpoint)
            .map_or(0, |slot| slot.create_revision);
        self.detach_life(endpoint, life);
    }

    /// The same for one whose record is not in view, and was created at this revision.
    pub(crate) fn detach_life(&mut self, endpoint: &EndpointRef, life: i64) {
        let dirty = self.snapshot.detach(endpoint, life);
        self.take_in(dirty);
        self.run_chores();
    }

    /// Has it written down that an endpoint is detached, so that it stays so if the agent ends before the store has
    /// been told. Whoever is told of it is told when it is on the disk.
    pub(crate) fn remember_detach(&mut self, endpoint: &EndpointRef) -> Remembered {
        match self.snapshot.detaching().get(endpoint) {
            Some(life) => self.detachments.insert(endpoint, *life),
            // The store has been told meanwhile.
            None => self.detachments.nothing(),
        }
    }

    /// Forgets detachments that the store has caught up with.
    pub(super) fn end_detachments(&mut self) {
        let ended: Vec<EndpointRef> = self
            .snapshot
            .detaching()
            .keys()
            .filter(|e| self.snapshot.has_left(e))
            .cloned()
            .collect();
        for endpoint in ended {
            let dirty = self.snapshot.end_detach(&endpoint);
            self.interest_is_stale = true;
            self.dirty.merge(dirty);
            self.detachments.remove(&endpoint);
        }
    }
}
