//! Who has come to know of a change, and when: several notice, one waits for the last.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// When each of those who are to notice something has.
#[derive(Debug, Default)]
pub struct Tally {
    state: Mutex<State>,
    all_here: Condvar,
}

#[derive(Debug, Default)]
struct State {
    at: Vec<Option<Instant>>,
    missing: usize,
}

impl Tally {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins anew: this many are to notice.
    pub fn expect(&self, count: usize) {
        let mut state = self.state();
        state.at = vec![None; count];
        state.missing = count;
    }

    /// Somebody has noticed; only the first time counts. Whoever waits is woken for the last one alone, so that waiting
    /// costs those who still have to notice nothing.
    pub fn arrived(&self, who: usize, at: Instant) {
        let mut state = self.state();
        if let Some(place @ None) = state.at.get_mut(who) {
            *place = Some(at);
            state.missing -= 1;
            if state.missing == 0 {
                self.all_here.notify_one();
            }
        }
    }

    /// Waits for all; when the last of them noticed.
    ///
    /// # Errors
    /// When somebody has not within `patience`.
    pub fn last(&self, patience: Duration) -> Result<Instant> {
        let state = self.state();
        let waited = self
            .all_here
            .wait_timeout_while(state, patience, |state| state.missing > 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let late: Vec<_> = (0..state.at.len())
            .filter(|who| state.at[*who].is_none())
            .collect();
        ensure!(
            late.is_empty(),
            "{late:?} of {} noticed nothing within {patience:?}",
            state.at.len()
        );
        Ok(state
            .at
            .iter()
            .flatten()
            .max()
            .copied()
            .unwrap_or_else(Instant::now))
    }
}
