//! Telling of outages once: a thousand failed attempts for one cause are one line in the log and one event.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};
use weft_core::{complaint::Complaint, record::Connection};

/// A connection that breaks sooner than this was none: it is the same outage that goes on.
const STANDS: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Outage {
    /// The cluster, while connected.
    up: Option<u64>,
    /// Since when it is connected, or not.
    since: Instant,
    /// When the outage began, and attempts to connect since.
    began: Instant,
    attempts: u32,
    complaint: Complaint,
    /// Its beginning is in the log, its end is not.
    told: bool,
}

impl Outage {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            up: None,
            since: now,
            began: now,
            attempts: 0,
            complaint: Complaint::default(),
            told: false,
        }
    }

    /// Connected; the event to tell, if that is news.
    pub(crate) fn up(&mut self, endpoint: &str, cluster_id: u64, now: Instant) -> Option<Connection> {
        if self.up == Some(cluster_id) {
            return None;
        }
        let cluster = format_args!("{cluster_id:x}");
        if self.attempts == 0 {
            info!(endpoint, %cluster, "connected to etcd");
        } else if std::mem::take(&mut self.told) {
            info!(
                endpoint,
                %cluster,
                attempts = self.attempts,
                after_ms = (now - self.began).as_millis(),
                "connected to etcd again"
            );
        }
        self.up = Some(cluster_id);
        self.since = now;
        Some(Connection::Up { cluster_id })
    }

    /// Not connected, for this cause; the event to tell, if that is news.
    pub(crate) fn down(&mut self, why: &str, now: Instant) -> Option<Connection> {
        let was_up = self.up.take().is_some();
        if was_up {
            if now > self.since + STANDS {
                self.complaint.over();
                self.attempts = 0;
                self.began = now;
            }
            self.since = now;
        }
        self.attempts = self.attempts.saturating_add(1);
        let news = self.complaint.is_news(why);
        // The last word of the log is not to be that all is well.
        let lasts = !self.told && now > self.since + STANDS;
        if news || lasts {
            self.told = true;
            warn!(why, "no connection to etcd; trying again");
        }
        (was_up || news).then(|| Connection::Down { why: why.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_per_cause() {
        let now = Instant::now();
        let mut outage = Outage::new();
        assert!(outage.down("a: refused", now).is_some());
        assert!(outage.down("b: refused", now).is_some());
        assert!(outage.down("a: refused", now).is_none());
        let up = Some(Connection::Up { cluster_id: 1 });
        assert_eq!(outage.up("a", 1, now), up);
        assert_eq!(outage.up("a", 1, now), None);
        assert!(outage.down("a: refused", now + STANDS * 2).is_some());
        assert!(outage.told, "it had stood for long");
        assert!(outage.up("a", 2, now).is_some());
    }

    #[test]
    fn a_connection_that_breaks_all_the_time_is_logged_once() {
        let mut now = Instant::now();
        let mut outage = Outage::new();
        outage.up("a", 1, now);
        for n in 0..20 {
            // The reader is told each time: it has to know how things are.
            assert!(outage.down("a: reset", now).is_some());
            assert_eq!(outage.told, n == 0);
            now += STANDS / 10;
            assert!(outage.up("a", 1, now).is_some());
            assert!(!outage.told);
        }
        outage.down("a: reset", now);
        assert!(!outage.told);
        outage.down("a: reset", now + STANDS * 2);
        assert!(outage.told, "this time it stays away");
        now += STANDS * 2;
        outage.up("a", 1, now);
        outage.down("a: reset", now + STANDS * 2);
        assert!(outage.told, "it had stood for long");
    }
}
