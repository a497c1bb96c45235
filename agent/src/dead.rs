//! Endpoints of this host whose container's namespace is gone: since when, and when that is long enough to say so. Time
//! is an argument; whether a namespace is there is looked up by the caller.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use weft_store_schema::EndpointRef;

/// Fewer looks are none: one may have come in the moment in which a container is restarted.
const LEAST_LOOKS: u32 = 2;
/// Between two looks.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(15);

/// What was seen missing.
#[derive(Debug)]
struct Missing {
    since: Instant,
    looks: u32,
}

/// Keeps count of namespaces that are gone.
#[derive(Debug)]
pub(crate) struct DeadBook {
    grace: Duration,
    next_look: Instant,
    missing: BTreeMap<EndpointRef, Missing>,
}

impl DeadBook {
    /// Nothing is known: whatever is gone has been so since the first look at the earliest.
    pub(crate) fn new(grace: Duration, now: Instant) -> Self {
        Self {
            grace,
            next_look: now,
            missing: BTreeMap::new(),
        }
    }

    /// How long a namespace has to be gone.
    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    /// When to look again.
    pub(crate) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// A look begins: the next one is some time after it, or sooner if something comes or goes meanwhile.
    pub(crate) fn looks(&mut self, now: Instant) {
        self.next_look = now + (self.grace / 4).clamp(SHORTEST, LONGEST);
    }

    /// Something came or went: what is missing may be back.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if !self.missing.is_empty() {
            self.next_look = self.next_look.min(now);
        }
    }

    /// Notes what was found to be gone just now, out of everything. Returns the endpoints for which that has been so
    /// for long enough, in as many looks.
    pub(crate) fn looked(
        &mut self,
        gone: impl IntoIterator<Item = EndpointRef>,
        now: Instant,
    ) -> Vec<EndpointRef> {
        let mut before = std::mem::take(&mut self.missing);
        for endpoint in gone {
            let mut missing = before
                .remove(&endpoint)
                .unwrap_or(Missing { since: now, looks: 0 });
            missing.looks += 1;
            self.missing.insert(endpoint, missing);
        }
        let long_enough = |missing: &Missing| {
            missing.looks >= LEAST_LOOKS && now.saturating_duration_since(missing.since) >= self.grace
        };
        let dead = self.missing.iter().filter(|(_, missing)| long_enough(missing));
        dead.map(|(endpoint, _)| endpoint.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(id: &str) -> EndpointRef {
        EndpointRef {
            network: "blue".parse().unwrap(),
            node: "host1".parse().unwrap(),
            id: id.parse().unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dead_is_who_is_gone_twice_and_long_enough() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut book = DeadBook::new(Duration::from_secs(60), start);
        assert_eq!(book.next_look(), start);
        book.looks(start);
        book.hurry(start);
        assert_eq!(book.next_look(), at(15), "nothing is missing");
        assert!(book.looked([endpoint("a"), endpoint("b")], at(0)).is_empty());
        assert_eq!(book.next_look(), at(15));
        book.hurry(at(1));
        assert!(book.looked([endpoint("a"), endpoint("b")], at(1)).is_empty());
        assert_eq!(book.next_look(), at(1), "what came during a look has another one");
        // One is back in time, and its count starts anew.
        assert!(book.looked([endpoint("a")], at(30)).is_empty());
        assert_eq!(
            book.looked([endpoint("a"), endpoint("b")], at(60)),
            [endpoint("a")]
        );
        assert_eq!(book.looked([endpoint("b")], at(119)), []);
        assert_eq!(book.looked([endpoint("b")], at(120)), [endpoint("b")]);
        assert_eq!(book.looked([], at(121)), []);
        assert!(book.looked([endpoint("b")], at(500)).is_empty(), "seen once");
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_after_a_long_sleep_is_not_enough() {
        let start = Instant::now();
        let mut book = DeadBook::new(Duration::from_secs(1), start);
        let late = start + Duration::from_secs(1000);
        assert!(book.looked([endpoint("a")], late).is_empty());
        assert!(book.looked([endpoint("a")], late).is_empty());
        assert_eq!(
            book.looked([endpoint("a")], late + Duration::from_secs(1)).len(),
            1
        );
    }
}
