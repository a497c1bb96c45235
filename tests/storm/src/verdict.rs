//! What was counted and what went wrong, gathered from all threads of a storm.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A lock that a thread that panicked does not take from the others.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared by all threads.
#[derive(Debug)]
pub struct Verdict {
    begun: Instant,
    violations: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<&'static str, BTreeMap<String, u64>>>,
    over: AtomicBool,
}

impl Default for Verdict {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            violations: Mutex::default(),
            counts: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }
}

impl Verdict {
    /// Since the storm began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Notes that something that must hold does not. The storm ends soon after the first.
    pub fn violated(&self, why: impl Into<String>) {
        let why = format!("after {:.2} s: {}", self.elapsed().as_secs_f64(), why.into());
        let mut violations = lock(&self.violations);
        // One damage is seen by every look until the end.
        if violations.len() < 50 {
            violations.push(why);
        }
        self.over.store(true, Ordering::Relaxed);
    }

    /// What did not hold, in the order in which it was found.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// Ends the storm early, for example because somebody pressed Ctrl-C.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether the storm ends early.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Counts something, in a group.
    pub fn count(&self, group: &'static str, what: &str, more: u64) {
        let mut counts = lock(&self.counts);
        *counts
            .entry(group)
            .or_default()
            .entry(what.to_owned())
            .or_default() += more;
    }

    /// How often something was counted.
    #[must_use]
    pub fn counted(&self, group: &str, what: &str) -> u64 {
        let counts = lock(&self.counts);
        counts
            .get(group)
            .and_then(|group| group.get(what))
            .copied()
            .unwrap_or_default()
    }

    /// Everything that was counted, a line a group.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for (group, counts) in lock(&self.counts).iter() {
            let counts: Vec<_> = counts
                .iter()
                .map(|(what, count)| format!("{what} {count}"))
                .collect();
            // Writing to a String does not fail.
            let _ = writeln!(text, "  {group}: {}", counts.join(", "));
        }
        text
    }
}
