//! A reader of events that keeps its own copy of the records and holds the store to its promises.

use std::collections::BTreeMap;

use tokio::time::{Instant, timeout_at};
use weft_core::record::{Change, Connection, Entry, Scope, StoreEvent};
use weft_store::Events;

use crate::PATIENCE;

/// A scope as the events tell it.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
    pub(crate) revision: i64,
    pub(crate) listings: Vec<i64>,
    pub(crate) changes: usize,
}

impl Copy {
    pub(crate) fn list(&self) -> Vec<Entry> {
        self.entries.values().cloned().collect()
    }
}

pub(crate) struct Reader {
    events: Events,
    pub(crate) scopes: BTreeMap<Scope, Copy>,
    pub(crate) progress: i64,
    pub(crate) connections: Vec<Connection>,
    pub(crate) clusters: Vec<u64>,
    /// Listings that were said not to go on from what was told before.
    pub(crate) broken: usize,
    /// How many events of each kind, for messages.
    pub(crate) events_seen: usize,
    pub(crate) changed_events: usize,
}

impl Reader {
    pub(crate) fn new(events: Events) -> Self {
        Self {
            events,
            scopes: BTreeMap::new(),
            progress: 0,
            connections: Vec::new(),
            clusters: Vec::new(),
            broken: 0,
            events_seen: 0,
            changed_events: 0,
        }
    }

    /// Forgets scopes that were dropped: an event of theirs is a fault from now on, unless it is a listing.
    pub(crate) fn forget(&mut self, scope: &Scope) {
        self.scopes.remove(scope);
    }

    /// Takes the next event; none if there is none in time.
    pub(crate) async fn step(&mut self, until: Instant) -> Option<StoreEvent> {
        let event = timeout_at(until, self.events.recv()).await.ok()??;
        self.take(&event);
        Some(event)
    }

    pub(crate) fn take_waiting(&mut self) {
        while let Some(event) = self.events.try_recv() {
            self.take(&event);
        }
    }

    fn take(&mut self, event: &StoreEvent) {
        self.events_seen += 1;
        match event {
            StoreEvent::Listed {
                scope,
                revision,
                cluster_id,
                continues,
                entries,
            } => {
                self.broken += usize::from(!continues);
                if self.clusters.last() != Some(cluster_id) {
                    self.clusters.push(*cluster_id);
                }
                let copy = self.scopes.entry(scope.clone()).or_default();
                copy.entries = entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.clone()))
                    .collect();
                copy.revision = *revision;
                copy.listings.push(*revision);
                for entry in entries {
                    assert!(
                        entry.mod_revision <= *revision,
                        "{scope:?}: {entry:?} in a listing at {revision}"
                    );
                }
            }
            StoreEvent::Changed { scope, changes } => {
                self.changed_events += 1;
                let copy = self.scopes.get_mut(scope).unwrap_or_else(|| {
                    panic!("{scope:?} changes before it is listed, or after it was dropped")
                });
                for change in changes {
                    copy.changes += 1;
                    let revision = match change {
                        Change::Put(entry) => {
                            copy.entries.insert(entry.key.clone(), entry.clone());
                            entry.mod_revision
                        }
                        Change::Deleted { key, mod_revision } => {
                            copy.entries.remove(key);
                            *mod_revision
                        }
                    };
                    assert!(
                        revision >= copy.revision,
                        "{scope:?}: a change at {revision} after {}",
                        copy.revision
                    );
                    copy.revision = revision;
                }
            }
            StoreEvent::Progress { revision } => {
                assert!(*revision >= self.progress || self.clusters.len() > 1);
                self.progress = *revision;
            }
            StoreEvent::Connection(connection) => self.connections.push(connection.clone()),
        }
    }

    /// Reads until a condition holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl FnMut(&Self) -> bool) {
        self.until_within(what, PATIENCE, condition).await;
    }

    pub(crate) async fn until_within(
        &mut self,
        what: &str,
        bound: std::time::Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) {
        let end = Instant::now() + bound;
        while !condition(self) {
            if self.step(end).await.is_none() {
                panic!("not within {bound:?}: {what}\n{}", self.summary());
            }
        }
    }

    pub(crate) async fn listed(&mut self, scopes: &[Scope]) {
        self.until("all is listed", |reader| {
            scopes.iter().all(|scope| {
                reader
                    .scopes
                    .get(scope)
                    .is_some_and(|copy| !copy.listings.is_empty())
            })
        })
        .await;
    }

    pub(crate) fn copy(&self, scope: &Scope) -> &Copy {
        &self.scopes[scope]
    }

    pub(crate) fn has(&self, scope: &Scope, key: &str) -> bool {
        self.scopes
            .get(scope)
            .is_some_and(|copy| copy.entries.contains_key(crate::etcd::full(key).as_bytes()))
    }

    fn summary(&self) -> String {
        let scopes: Vec<_> = self
            .scopes
            .iter()
            .map(|(scope, copy)| {
                format!(
                    "{scope:?}: {} keys, revision {}, listed at {:?}, {} changes",
                    copy.entries.len(),
                    copy.revision,
                    copy.listings,
                    copy.changes
                )
            })
            .collect();
        format!(
            "{}\nprogress {}, connections {:?}, {} events",
            scopes.join("\n"),
            self.progress,
            self.connections,
            self.events_seen
        )
    }
}
