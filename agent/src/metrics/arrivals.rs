//! How long it takes from a store event's arrival until the kernel has what it asked for. Time is an argument.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Events whose time is taken at once. What comes beyond them while no plan is made is not measured.
const MOST: usize = 4096;

/// Events that have been taken in and are in no plan that has been applied yet.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    waiting: VecDeque<(u64, Instant)>,
    taken_in: u64,
}

impl Arrivals {
    /// Notes an event that came then and made something dirty.
    pub(crate) fn take_in(&mut self, arrived: Instant) {
        self.taken_in += 1;
        if self.waiting.len() < MOST {
            self.waiting.push_back((self.taken_in, arrived));
        }
    }

    /// What a plan made now, for all that is dirty, covers.
    pub(crate) fn mark(&self) -> u64 {
        self.taken_in
    }

    /// That plan has been applied: how old each event that it covers has become.
    pub(crate) fn settle(&mut self, mark: u64, now: Instant) -> impl Iterator<Item = Duration> {
        let covered = self.waiting.partition_point(|(number, _)| *number <= mark);
        let settled = self.waiting.drain(..covered);
        settled.map(move |(_, arrived)| now.saturating_duration_since(arrived))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_measured_once_when_a_plan_that_has_it_is_applied() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut arrivals = Arrivals::default();
        arrivals.take_in(at(0));
        arrivals.take_in(at(5));
        let plan = arrivals.mark();
        // Comes while the plan is being applied.
        arrivals.take_in(at(7));
        let ms = |settled: &mut dyn Iterator<Item = Duration>| -> Vec<u128> {
            settled.map(|time| time.as_millis()).collect()
        };
        assert_eq!(ms(&mut arrivals.settle(plan, at(10))), [10, 5]);
        assert_eq!(ms(&mut arrivals.settle(plan, at(11))), []);
        let plan = arrivals.mark();
        assert_eq!(ms(&mut arrivals.settle(plan, at(12))), [5]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut arrivals = Arrivals::default();
        for _ in 0..3 * MOST {
            arrivals.take_in(Instant::now());
        }
        let plan = arrivals.mark();
        assert_eq!(arrivals.settle(plan, Instant::now()).count(), MOST);
        arrivals.take_in(Instant::now());
        let plan = arrivals.mark();
        assert_eq!(arrivals.settle(plan, Instant::now()).count(), 1);
    }
}
