//! How long a measurement goes on, and what it gives.

use std::time::{Duration, Instant};

/// When each of those who work at a time stops.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// No new request after this long.
    pub time: Duration,
    /// Nor after this many by one client.
    pub each: u64,
}

impl Pace {
    /// Whether another request is sent by a client that has done so many, since everybody began.
    #[must_use]
    pub fn goes_on(self, started: Instant, done: u64) -> bool {
        done < self.each && started.elapsed() < self.time
    }
}

/// What was done.
#[derive(Debug, Clone, Copy)]
pub struct Paced {
    /// Requests that succeeded.
    pub done: u64,
    /// Requests sent.
    pub attempts: u64,
    /// From the first request to the last answer.
    pub took: Duration,
}

impl Paced {
    /// Successes per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.took.as_secs_f64()
    }
}
