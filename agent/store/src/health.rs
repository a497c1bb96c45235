//! What is known of the connection, for status and metrics. Counting only: nothing is decided by it, except
//! that the highest revision seen bounds what a transaction of ours can have done.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use etcd_client::ResponseHeader;

/// State and counters of the store's client at one moment.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether the watch stands and all that was wanted at the last contact has been listed.
    pub connected: bool,
    /// Since when it is so.
    pub since: Instant,
    /// The configured endpoints.
    pub endpoints: Vec<String>,
    /// The endpoint the watch runs on, or was last tried on.
    pub endpoint: String,
    /// Identity of the cluster that answered last.
    pub cluster_id: Option<u64>,
    /// etcd's version where the watch runs, once known.
    pub server_version: Option<String>,
    /// Highest revision of the store seen in any answer.
    pub revision: i64,
    /// All wanted scopes have been handed over up to this revision.
    pub progress: i64,
    /// When the watch, or what it was opened by, last heard of etcd; the start before it ever did.
    pub heard: Instant,
    /// The last failure, for people. Kept after recovery.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<SystemTime>,
    /// The presence lease, while it is held.
    pub lease: Option<i64>,
    /// Watch streams opened so far.
    pub streams: u64,
    /// Times the connection was lost.
    pub disconnects: u64,
    /// Times a stream went on where the last one ended, without a listing.
    pub resumes: u64,
    /// Listings so far, of one or more scopes each.
    pub lists: u64,
    /// Scopes listed again because of compaction, cancellation or another history.
    pub relists: u64,
    /// Watches replaced because they gave no sign of life.
    pub silences: u64,
    /// Presence leases granted so far.
    pub leases: u64,
    /// Requests that were sent again, to another endpoint or the same.
    pub retries: u64,
}

impl Health {
    /// Before anything was heard.
    pub fn unknown(endpoints: Vec<String>) -> Self {
        Self {
            connected: false,
            since: Instant::now(),
            endpoint: endpoints.first().cloned().unwrap_or_default(),
            endpoints,
            cluster_id: None,
            server_version: None,
            revision: 0,
            progress: 0,
            heard: Instant::now(),
            last_error: None,
            last_error_at: None,
            lease: None,
            streams: 0,
            disconnects: 0,
            resumes: 0,
            lists: 0,
            relists: 0,
            silences: 0,
            leases: 0,
            retries: 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct HealthCell(Mutex<Health>);

impl HealthCell {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self(Mutex::new(Health::unknown(endpoints)))
    }

    /// Never held across an await; a panic elsewhere does not make counters unreadable.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a failure.
    pub(crate) fn failed(&self, why: String) {
        let mut health = self.lock();
        health.last_error = Some(why);
        health.last_error_at = Some(SystemTime::now());
    }

    /// Takes note of an answer's header.
    pub(crate) fn seen(&self, header: Option<&ResponseHeader>) {
        if let Some(header) = header {
            let mut health = self.lock();
            if health.cluster_id.replace(header.cluster_id()) == Some(header.cluster_id()) {
                health.revision = health.revision.max(header.revision());
            } else {
                // Another cluster counts from its own beginning.
                health.revision = header.revision();
            }
        }
    }
}
