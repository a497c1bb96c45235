//! The client of etcd: watches the records, writes them under guards, keeps this node's presence.
//!
//! In: a [`Config`], the scopes that are wanted, transactions. Out: [`Events`] (what the records are and how
//! they change, in order and without gaps), what became of each transaction, and [`Health`].
//!
//! It knows keys and revisions, but neither reads what records say nor judges it: a value is bytes here.
//! Nothing that happens to etcd is fatal: it is reported, and tried again until the agent stops.

mod backoff;
mod config;
mod error;
mod follow;
mod health;
mod interest;
mod lease;
mod members;
mod outage;
mod outbox;
mod presence;
mod progress;
mod read;
mod stream;
mod transaction;
mod watch;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_core::{
    record::{Committed, Scope, Transaction},
    suspicion::Census,
};
use weft_store_schema::{Key, NetworkName, NodeName, Prefix};

pub use config::{Config, Limits, Secret, Timing, Tls, User};
pub use error::{Cause, StoreError};
pub use health::Health;
pub use outbox::Events;
pub use read::{Ending, Fetched, Listing};

use interest::Interest;
use members::Members;
use presence::Presence;
use watch::Signals;

/// A handle to the store; clones share everything.
#[derive(Clone)]
pub struct Store {
    members: Arc<Members>,
    interest: Arc<Interest>,
    signals: Arc<Signals>,
    presence: Presence,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("config", self.members.config())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Starts the tasks that talk to etcd. They end when `stop` is cancelled; see [`Store::closed`].
    ///
    /// # Errors
    /// Only for a configuration that can never work: no endpoint, a malformed URL, TLS files that cannot be
    /// read or used. etcd being down is no error: it is told as an event, and waited out.
    pub async fn open(config: Config, stop: CancellationToken) -> Result<(Self, Events), StoreError> {
        let (sender, receiver) = mpsc::channel(config.limits.queue.max(1));
        let members = Arc::new(Members::new(config, stop).await?);
        let interest = Arc::new(Interest::new());
        let signals = Arc::new(Signals::default());
        let tasks = TaskTracker::new();
        tasks.spawn(watch::run(
            Arc::clone(&members),
            Arc::clone(&interest),
            Arc::clone(&signals),
            sender,
        ));
        let (presence, keeper) = presence::new(Arc::clone(&members));
        tasks.spawn(keeper);
        tasks.close();
        let events = Events::new(receiver, Arc::clone(&interest));
        Ok((
            Self {
                members,
                interest,
                signals,
                presence,
                tasks,
            },
            events,
        ))
    }

    /// Waits until all tasks have ended after the stop was asked for. The presence lease is given back within
    /// half a second, if etcd answers.
    pub async fn closed(&self) {
        self.tasks.wait().await;
    }

    /// The prefix of all keys.
    pub fn prefix(&self) -> &Prefix {
        &self.members.config().prefix
    }

    /// This node.
    pub fn node(&self) -> &NodeName {
        &self.members.config().node
    }

    /// Sets which scopes are watched. New ones are listed and watched from there on, missing ones end.
    /// Also where a network's `OwnEndpoints` and `Endpoints` replace each other: what happens before the new one is
    /// listed is in the listing.
    pub fn want(&self, scopes: BTreeSet<Scope>) {
        self.interest.set(scopes);
    }

    /// Has everything listed again, as if something might have been missed.
    pub fn relist(&self) {
        self.signals.relist();
    }

    /// Carries out a transaction: all of it, or nothing. Its own changes appear among the events, at the
    /// revision returned.
    ///
    /// A transaction that guards something it writes (`Absent` with a put of that key, or
    /// `Unchanged` with a put or its deletion) is sent again when an answer is lost, to any endpoint, and still takes
    /// effect once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] and the refusals: it surely did not happen. [`StoreError::Unknown`]: it may
    /// have happened, or may still; look at the records before going on. [`StoreError::Transaction`]: it has
    /// no guard, or is larger than etcd takes.
    pub async fn commit(
        &self,
        transaction: &Transaction,
        deadline: Duration,
    ) -> Result<Committed, StoreError> {
        let committed = transaction::commit(&self.members, transaction, deadline).await;
        if let Ok(Committed::Yes { revision }) = committed {
            self.signals.committed(revision);
        }
        committed
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// When no endpoint answers in time, or etcd refuses.
    pub async fn get(&self, key: &Key, deadline: Duration) -> Result<Fetched, StoreError> {
        read::get(&self.members, key, deadline).await
    }

    /// Reads everything below a directory (a key prefix that ends with a slash, see [`Prefix`]) at one
    /// revision, linearizably, in pages. However long the whole may take, each page has to come within five seconds.
    ///
    /// # Errors
    /// When no endpoint answers in time, or etcd refuses.
    pub async fn list(&self, directory: &str, deadline: Duration) -> Result<Listing, StoreError> {
        self.list_telling(directory, deadline, &|_| {}).await
    }

    /// As [`Self::list`]; `progress` is called after each page with the number of keys read so far, from the
    /// beginning again where the listing has to begin again.
    ///
    /// # Errors
    /// When no endpoint answers in time, or etcd refuses.
    pub async fn list_telling(
        &self,
        directory: &str,
        deadline: Duration,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Listing, StoreError> {
        read::list(&self.members, directory, deadline, progress).await
    }

    /// Counts the records of some kinds at a revision (the newest, if it is 0), linearizably: all of them, and the endpoints
    /// of one network. Survivors are endpoints that were created at `since` or before, whatever has become of them.
    /// None if the revision is compacted away.
    ///
    /// # Errors
    /// When no endpoint answers in time, or etcd refuses.
    pub async fn census(
        &self,
        network: Option<&NetworkName>,
        since: i64,
        revision: i64,
        deadline: Duration,
    ) -> Result<Option<Census>, StoreError> {
        read::census(&self.members, network, since, revision, deadline).await
    }

    /// Finds out what has become of a key that was there at revision `since` and is not at `until`, linearizably, in a number
    /// of reads that grows with the logarithm of the revisions in between; `deadline` is for each of them.
    ///
    /// # Errors
    /// When no endpoint answers in time, or etcd refuses.
    pub async fn end_of_life(
        &self,
        key: &Key,
        since: i64,
        until: i64,
        deadline: Duration,
    ) -> Result<Ending, StoreError> {
        read::end_of_life(&self.members, key, since, until, deadline).await
    }

    /// Grants a lease: what is put under it is gone when it ends, at the earliest after `ttl` (whole seconds, at least
    /// one; etcd makes very short ones longer) or when it is revoked. It is not renewed.
    ///
    /// # Errors
    /// When no endpoint answers in time, or etcd refuses. A lease that was granted although the answer was lost has
    /// nothing under it, and expires.
    pub async fn grant(&self, ttl: Duration, deadline: Duration) -> Result<i64, StoreError> {
        lease::grant(&self.members, ttl, deadline).await
    }

    /// Ends a lease, and with it whatever lies under it. Done already is fine.
    ///
    /// # Errors
    /// When no endpoint answers in time, or etcd refuses. Then it ends by itself.
    pub async fn revoke(&self, id: i64, deadline: Duration) -> Result<(), StoreError> {
        lease::revoke(&self.members, id, deadline).await
    }

    /// Sets this node's presence, kept under `alive/<node>` by a lease from now on: put again whenever the
    /// lease or the key is lost.
    pub fn presence(&self, alive: Vec<u8>) {
        self.presence.alive(alive);
    }

    /// Takes this node's presence and status back, until there is another presence.
    pub fn withdraw(&self) {
        self.presence.withdraw();
    }

    /// Sets this node's status, kept under `status/<node>` by the same lease. Written at most once a second, more seldom where more
    /// than a hundred `hosts` do so; the latest wins, and only once there is a presence.
    pub fn report(&self, status: Vec<u8>, hosts: usize) {
        self.presence.status(status, hosts);
    }

    /// The lease of this node's presence, while it is held: what is put under it is gone when the agent is. It may
    /// end at any time, and another take its place.
    pub fn lease(&self) -> Option<i64> {
        self.members.health.lock().lease
    }

    /// Asks to be told as soon as it is certain that everything up to a revision has been handed over:
    /// [`Progress`](weft_core::record::StoreEvent::Progress) comes then, at this revision or a later one. Once
    /// for all who ask until then; it comes by itself sooner or later.
    pub fn expect(&self, revision: i64) {
        self.signals.expected(revision);
    }

    /// How the connection does.
    pub fn health(&self) -> Health {
        self.members.health.lock().clone()
    }
}
