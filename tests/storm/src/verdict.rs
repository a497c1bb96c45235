//! What was counted and what went wrong, gathered from all threads of a storm.

use std::collections::{BTreeMap, BTreeSet};
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
    history: Mutex<Vec<String>>,
    disturbed: Mutex<BTreeSet<usize>>,
    over: AtomicBool,
}

impl Default for Verdict {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            violations: Mutex::default(),
            counts: Mutex::default(),
            history: Mutex::default(),
            disturbed: Mutex::default(),
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

    /// A moment on the same clock, in seconds.
    #[must_use]
    pub fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.begun).as_secs_f64()
    }

    /// Notes that something that must hold does not. The storm ends soon after the first.
    pub fn violated(&self, why: impl Into<String>) {
        let why = format!("after {:.2} s: {}", self.elapsed().as_secs_f64(), why.into());
        self.note(&format!(
            "DOES NOT HOLD: {}",
            why.lines().next().unwrap_or_default()
        ));
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

    /// Takes down what was done when, for the report of a failure.
    pub fn note(&self, what: &str) {
        let at = self.elapsed().as_secs_f64();
        lock(&self.history).push(format!("{at:8.2} s  {what}"));
    }

    /// What was done when, in order.
    #[must_use]
    pub fn history(&self) -> Vec<String> {
        lock(&self.history).clone()
    }

    /// What was done when since the round before the last began.
    #[must_use]
    pub fn last_round(&self) -> Vec<String> {
        let history = lock(&self.history);
        let rounds = history.iter().enumerate().rev();
        let mut begins = rounds.filter(|(_, line)| line.contains("s  round "));
        let from = begins.nth(1).map_or(0, |(number, _)| number);
        history[from..].to_vec()
    }

    /// From now on somebody is at weft's objects on a host: what is attached there need not be there at any moment, until
    /// all has settled.
    pub fn disturb(&self, host: usize) {
        lock(&self.disturbed).insert(host);
    }

    /// Whether somebody is at weft's objects on a host.
    #[must_use]
    pub fn is_disturbed(&self, host: usize) -> bool {
        lock(&self.disturbed).contains(&host)
    }

    /// All has settled: nobody is at weft's objects any more.
    pub fn settled(&self) {
        lock(&self.disturbed).clear();
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

    /// Keeps the largest of several figures, in a group.
    pub fn at_most(&self, group: &'static str, what: &str, figure: u64) {
        let mut counts = lock(&self.counts);
        let most = counts
            .entry(group)
            .or_default()
            .entry(what.to_owned())
            .or_default();
        *most = figure.max(*most);
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
