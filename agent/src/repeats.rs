//! Things that happen again and again, told as one line for each cause: the first few at once, the rest as a number when
//! a while has passed. Time is an argument.
//!
//! For what is over each time that it happens. What fails until it works is a `weft_core::complaint::Complaint`.
//!
//! In: that something happened, by a key that stands for its cause. Out: whether to tell it now; later, how often it
//! happened without being told. It must not know what is told, nor how.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// After this long a cause may be told anew.
const WHILE: Duration = Duration::from_secs(60);
/// Causes remembered at a time; of more, each is told once, as it would be if it were the only one.
const MOST: usize = 10_000;

/// What has been told lately.
#[derive(Debug)]
pub(crate) struct Repeats<K> {
    at_once: u32,
    lately: BTreeMap<K, Lately>,
}

#[derive(Debug)]
struct Lately {
    since: Instant,
    told: u32,
    untold: u64,
}

impl<K: Ord + Clone> Repeats<K> {
    /// Of each cause, so many are told within a while.
    pub(crate) fn telling(at_once: u32) -> Self {
        Self {
            at_once,
            lately: BTreeMap::new(),
        }
    }

    /// It happened; whether it is to be told now.
    pub(crate) fn happens(&mut self, cause: &K, now: Instant) -> bool {
        if let Some(lately) = self.lately.get_mut(cause) {
            if lately.told < self.at_once {
                lately.told += 1;
                return true;
            }
            lately.untold += 1;
            return false;
        }
        if self.lately.len() < MOST {
            let first = Lately {
                since: now,
                told: 1,
                untold: 0,
            };
            self.lately.insert(cause.clone(), first);
        }
        true
    }

    /// The causes whose while is over, with how often each happened untold; forgotten thereby.
    pub(crate) fn over(&mut self, now: Instant) -> Vec<(K, u64)> {
        let mut over = Vec::new();
        self.lately.retain(|cause, lately| {
            let goes_on = lately.since + WHILE > now;
            if !goes_on && lately.untold > 0 {
                over.push((cause.clone(), lately.untold));
            }
            goes_on
        });
        over
    }

    /// When something untold is due to be told.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let untold = self.lately.values().filter(|lately| lately.untold > 0);
        untold.map(|lately| lately.since + WHILE).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_told_at_once_and_the_rest_as_a_number() {
        let begin = Instant::now();
        let mut repeats = Repeats::telling(5);
        let told = (0..100).filter(|_| repeats.happens(&"fdb", begin)).count();
        assert_eq!(told, 5);
        assert!(repeats.happens(&"veth", begin));
        assert_eq!(repeats.next_due(), Some(begin + WHILE));
        assert_eq!(repeats.over(begin + WHILE / 2), []);
        assert_eq!(repeats.over(begin + WHILE), [("fdb", 95)]);
        // From then on it is news again.
        assert_eq!(repeats.next_due(), None);
        assert!(repeats.happens(&"fdb", begin + WHILE));
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_kept_from_being_told() {
        let now = Instant::now();
        let mut repeats = Repeats::telling(5);
        for cause in 0..3 * MOST {
            assert!(repeats.happens(&cause, now));
        }
        assert_eq!(repeats.lately.len(), MOST);
        assert!(repeats.over(now + WHILE).is_empty() && repeats.lately.is_empty());
    }
}
