//! Telling of outages once: a thousand failed attempts for one cause are one line in the log and one event.

use std::collections::BTreeSet;

use tokio::time::Instant;
use tracing::{info, warn};
use weft_core::record::Connection;

/// Causes remembered in one outage; more are counted, not told.
const MOST_CAUSES: usize = 16;

#[derive(Debug)]
pub(crate) struct Outage {
    /// The cluster, while connected.
    up: Option<u64>,
    since: Instant,
    attempts: u32,
    causes: BTreeSet<String>,
}

impl Outage {
    pub(crate) fn new() -> Self {
        Self {
            up: None,
            since: Instant::now(),
            attempts: 0,
            causes: BTreeSet::new(),
        }
    }

    /// Connected; the event to tell, if that is news.
    pub(crate) fn up(&mut self, endpoint: &str, cluster_id: u64) -> Option<Connection> {
        if self.up == Some(cluster_id) {
            return None;
        }
        if self.attempts == 0 {
            info!(endpoint, cluster = %format_args!("{cluster_id:x}"), "connected to etcd");
        } else {
            info!(
                endpoint,
                cluster = %format_args!("{cluster_id:x}"),
                attempts = self.attempts,
                after_ms = self.since.elapsed().as_millis(),
                "connected to etcd again"
            );
        }
        self.up = Some(cluster_id);
        self.attempts = 0;
        self.causes.clear();
        Some(Connection::Up { cluster_id })
    }

    /// Not connected, for this cause; the event to tell, if that is news.
    pub(crate) fn down(&mut self, why: &str) -> Option<Connection> {
        if self.up.take().is_some() {
            self.since = Instant::now();
        }
        self.attempts = self.attempts.saturating_add(1);
        if self.causes.len() >= MOST_CAUSES || !self.causes.insert(why.to_owned()) {
            return None;
        }
        warn!(why, "no connection to etcd; trying again");
        Some(Connection::Down { why: why.to_owned() })
    }
}

/// One line per cause for things that fail again and again beside a working connection.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<String>);

impl Complaint {
    /// Whether this cause is another than the last.
    pub(crate) fn is_news(&mut self, why: &str) -> bool {
        if self.0.as_deref() == Some(why) {
            return false;
        }
        self.0 = Some(why.to_owned());
        true
    }

    /// It works again; whether there was anything to complain of.
    pub(crate) fn over(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_per_cause() {
        let mut outage = Outage::new();
        assert!(outage.down("a: refused").is_some());
        assert!(outage.down("b: refused").is_some());
        assert!(outage.down("a: refused").is_none());
        assert_eq!(outage.up("a", 1), Some(Connection::Up { cluster_id: 1 }));
        assert_eq!(outage.up("a", 1), None);
        assert!(outage.down("a: refused").is_some());
        assert!(outage.up("a", 2).is_some());
    }
}
