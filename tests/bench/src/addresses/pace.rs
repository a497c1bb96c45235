//! How long a measurement goes on, and what it gives.

use std::time::{Duration, Instant};

/// When each of those who work at a time stops.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// No new request after this long.
    pub(crate) time: Duration,
    /// Nor after this many by one client.
    pub(crate) each: u64,
}

impl Pace {
    pub(crate) fn goes_on(self, started: Instant, done: u64) -> bool {
        done < self.each && started.elapsed() < self.time
    }
}

/// What was done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paced {
    /// Requests that succeeded.
    pub(crate) done: u64,
    /// Requests sent.
    pub(crate) attempts: u64,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl Paced {
    /// Successes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.took.as_secs_f64()
    }
}
