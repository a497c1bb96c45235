//! Which releases have cooled down: revisions against this host's own monotonic clock, so that nobody's idea of the
//! time of day matters. What was released before this agent looked counts from when it looked.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// A cool-down is kept to this fraction of itself, never too short.
const PRECISION: u32 = 16;

#[derive(Debug)]
struct Sample {
    started: Instant,
    at: Instant,
    revision: i64,
}

/// What was known when, as far back as the cool-downs reach.
#[derive(Debug, Default)]
pub(crate) struct Cooldowns {
    samples: BTreeMap<Duration, VecDeque<Sample>>,
}

impl Cooldowns {
    /// Notes that everything up to this revision is known now. `cooldowns` are those in use.
    pub(crate) fn note(&mut self, cooldowns: &BTreeSet<Duration>, revision: i64, now: Instant) {
        self.samples.retain(|cooldown, _| cooldowns.contains(cooldown));
        for cooldown in cooldowns.iter().filter(|c| !c.is_zero()) {
            let samples = self.samples.entry(*cooldown).or_default();
            match samples.back_mut() {
                Some(last) if last.revision == revision => {}
                Some(last) if now < last.started + *cooldown / PRECISION => {
                    last.at = now;
                    last.revision = revision;
                }
                _ => samples.push_back(Sample {
                    started: now,
                    at: now,
                    revision,
                }),
            }
            while samples.get(1).is_some_and(|second| second.at + *cooldown <= now) {
                samples.pop_front();
            }
        }
    }

    /// What was released at this revision or before has cooled down.
    pub(crate) fn cooled_to(&self, cooldown: Duration, now: Instant) -> i64 {
        if cooldown.is_zero() {
            return i64::MAX;
        }
        let samples = self.samples.get(&cooldown).into_iter().flatten();
        samples
            .take_while(|sample| sample.at + cooldown <= now)
            .last()
            .map_or(0, |sample| sample.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_cools_down_too_early_nor_much_too_late() {
        let (start, cooldown) = (Instant::now(), Duration::from_secs(16));
        let mut cooldowns = Cooldowns::default();
        // A change every 10 ms: the one with revision n comes n × 10 ms after the start.
        for n in 0..10_000_u32 {
            let now = start + Duration::from_millis(10) * n;
            cooldowns.note(&[cooldown].into(), i64::from(n), now);
            let cooled = cooldowns.cooled_to(cooldown, now);
            let exact = i64::from(n) - 1600;
            assert!(cooled <= exact.max(0), "{n}: {cooled}");
            assert!(cooled >= exact - 101, "{n}: {cooled}");
            assert!(cooldowns.samples[&cooldown].len() <= PRECISION as usize + 2);
        }
        // And the last one, although nothing follows.
        let later = start + Duration::from_secs(100) + cooldown;
        assert_eq!(cooldowns.cooled_to(cooldown, later), 9_999);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_cooldown_all_has_cooled_down() {
        let cooldowns = Cooldowns::default();
        assert_eq!(cooldowns.cooled_to(Duration::ZERO, Instant::now()), i64::MAX);
        assert_eq!(cooldowns.cooled_to(Duration::from_secs(1), Instant::now()), 0);
    }
}
