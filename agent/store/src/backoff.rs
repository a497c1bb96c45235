//! Pauses between attempts: doubling, bounded, and spread by chance so that a thousand agents do not come
//! back in the same instant.

use std::time::Duration;

#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
        }
    }

    /// The pause before the next attempt: half of it is fixed, the other half up to chance.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.next = (self.next * 2).min(self.most);
        pause
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A duration give or take a tenth.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(1000));
        for bound in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.pause();
            assert!(pause >= ms(bound / 2) && pause <= ms(bound), "{pause:?} {bound}");
        }
        backoff.reset();
        assert!(backoff.pause() <= ms(100));
    }
}
