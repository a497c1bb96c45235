//! What the store says, and what our own transactions told: taken into the snapshot, and what is to be done because of it.

use std::time::Duration;

use tokio::time::Instant;
use weft_core::{
    dirty::Dirty,
    record::{Change, Connection, StoreEvent},
};
use weft_proto::v1::{self, EventKind};

use super::Reconciler;
use crate::{cooldown::Cooldowns, problems::Source};

/// Taking in this much at once leaves so much memory behind that giving it back is worth the time.
const MUCH: usize = 500;
/// When that is done: what one piece of news leads to as a rule comes to rest before.
const REST: Duration = Duration::from_millis(500);

/// So many records are taken in before others have their turn: some ten milliseconds' worth.
pub(super) const TURN: usize = 4096;

impl Reconciler {
    /// What came together is taken in together: the pass that follows costs the same. But not without end: a burst of
    /// any length comes in turns, and between them the kernel, callers and the clock have theirs. What waits meanwhile
    /// waits in etcd.
    pub(super) fn on_store_events(
        &mut self,
        first: (StoreEvent, Instant),
        mut next: impl FnMut() -> Option<(StoreEvent, Instant)>,
    ) {
        let mut taken = 0;
        let mut event = Some(first);
        while let Some((now, arrived)) = event {
            taken += records_in(&now);
            self.on_store_event(now, arrived);
            event = if taken < TURN { next() } else { None };
        }
        self.after_records();
    }

    pub(super) fn on_store_event(&mut self, event: StoreEvent, arrived: Instant) {
        let mut claims = Vec::new();
        let dirty = match event {
            StoreEvent::Listed {
                scope,
                revision,
                cluster_id,
                continues,
                entries,
            } => {
                if !self.scopes.contains(&scope) {
                    return;
                }
                self.took_much(entries.len());
                let before = self.snapshot.position();
                let went_back = |now: (u64, i64)| before.is_some_and(|b| b.0 != now.0 || b.1 > now.1);
                let dirty = if continues {
                    self.snapshot
                        .apply_listing(&scope, cluster_id, revision, &entries)
                } else {
                    self.snapshot
                        .apply_other_history(&scope, cluster_id, revision, &entries)
                };
                if !continues || self.snapshot.position().is_some_and(went_back) {
                    self.reached.begin_anew();
                    // What was known when says nothing of the revisions of another history.
                    self.cooldowns = Cooldowns::default();
                }
                self.bump();
                dirty
            }
            StoreEvent::Changed { scope, changes } => {
                if !self.scopes.contains(&scope) {
                    return;
                }
                self.took_much(changes.len());
                claims = self.claims_among(&changes);
                let dirty = self.snapshot.apply_changes(&changes);
                self.announce(&changes);
                dirty
            }
            StoreEvent::Progress { revision } => {
                self.snapshot.saw(revision);
                self.reached.is_informed_to(revision);
                return;
            }
            StoreEvent::Connection(connection) => {
                let (kind, message) = match &connection {
                    Connection::Up { cluster_id } => (
                        EventKind::StoreConnected,
                        format!("connected to etcd cluster {cluster_id:x}"),
                    ),
                    Connection::Down { why } => (EventKind::StoreLost, why.clone()),
                };
                self.events.publish(v1::Event {
                    kind: kind.into(),
                    message,
                    ..v1::Event::default()
                });
                if matches!(connection, Connection::Up { .. }) {
                    self.book.reconnected(Instant::now());
                    self.refused.reconnected();
                }
                self.connection = Some(connection);
                self.bump();
                return;
            }
        };
        self.note_arrival(&dirty, arrived);
        self.take_in(dirty);
        self.await_claims(claims);
    }

    /// Notes that so many things were taken in at once.
    pub(super) fn took_much(&mut self, count: usize) {
        if count >= MUCH {
            self.give_back_at = Some(Instant::now() + REST);
        }
    }

    /// Measures how long it takes until the kernel has what an event asks for.
    pub(super) fn note_arrival(&mut self, dirty: &Dirty, arrived: Instant) {
        // What is found at the start is as old as it is.
        if self.ready.is_none() && !dirty.is_empty() {
            self.arrivals.take_in(arrived);
        }
    }

    /// What is to be done after any change of the snapshot.
    pub(super) fn after_records(&mut self) {
        self.problems
            .replace(Source::Record, self.snapshot.problems().values());
        self.cooldowns
            .note(&self.cooldowns_in_use, self.snapshot.revision(), Instant::now());
        self.settle_identity();
        self.tell_removal();
        self.look_after_trust();
        self.end_detachments();
        self.sweep_after_reboot();
        self.run_chores();
        if self.interest_is_stale {
            self.update_interest();
        }
        self.has_read |= !self.interest_is_stale && self.is_informed();
        self.bump();
    }

    /// Applies changes that did not come by the watch: our own transactions, and what they were refused for.
    pub(crate) fn learn(&mut self, changes: &[Change]) {
        let dirty = self.snapshot.learn(changes);
        self.note_arrival(&dirty, Instant::now());
        self.take_in(dirty);
        self.after_records();
    }

    /// Notes what a change of the snapshot made dirty, and what it makes owed.
    pub(super) fn take_in(&mut self, dirty: Dirty) {
        self.heed_removal();
        self.copies_are_old(&dirty);
        self.add_chores(&dirty);
        let networks = dirty.everything || !dirty.networks.is_empty();
        if networks {
            let networks = self.snapshot.networks();
            let in_use = networks.filter_map(|(_, slot)| Some(slot.value.as_ref()?.cooldown));
            self.cooldowns_in_use = in_use.collect();
        }
        self.interest_is_stale |= networks || dirty.endpoints.iter().any(|e| e.node == self.node.name);
        for endpoint in &dirty.endpoints {
            let network = self.observed.networks.get(&endpoint.network);
            if endpoint.node == self.node.name && network.is_some_and(|n| n.unseen.contains(&endpoint.id)) {
                // Its record may say only now where its container is.
                self.look.endpoints.insert(endpoint.clone());
            }
        }
        self.dirty.merge(dirty);
    }
}

/// How many records an event is about; what is about none counts, too.
fn records_in(event: &StoreEvent) -> usize {
    let records = match event {
        StoreEvent::Listed { entries, .. } => entries.len(),
        StoreEvent::Changed { changes, .. } => changes.len(),
        StoreEvent::Progress { .. } | StoreEvent::Connection(_) => 0,
    };
    records.max(1)
}
