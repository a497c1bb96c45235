//! Which scopes are wanted, and which events may still be handed over.
//!
//! The reader may change its mind while events wait in the queue. Each time a scope becomes wanted it gets a
//! new generation; an event carries the generation it was made for, and is handed over only while that one is
//! current. So nothing of a scope arrives after it was dropped, and nothing of its former life after it was
//! wanted again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use weft_core::record::Scope;

/// Which life of a scope: grows each time any scope becomes wanted.
pub(crate) type Generation = u64;

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<Scope, Generation>,
    newest: Generation,
}

/// Shared by the handle (which sets it), the watch task (which follows it) and the reader (which filters).
#[derive(Debug)]
pub(crate) struct Interest {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Interest {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Makes exactly these the wanted scopes.
    pub(crate) fn set(&self, scopes: BTreeSet<Scope>) {
        let mut state = self.lock();
        state.live.retain(|scope, _| scopes.contains(scope));
        for scope in scopes {
            if state.live.contains_key(&scope) {
                continue;
            }
            state.newest += 1;
            let newest = state.newest;
            state.live.insert(scope, newest);
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// All that is to be watched now.
    pub(crate) fn followed(&self) -> BTreeMap<Scope, Generation> {
        self.lock().live.clone()
    }

    /// The newest generation given out: an event about all scopes is void once there is a newer one.
    pub(crate) fn newest(&self) -> Generation {
        self.lock().newest
    }

    /// Whether an event of this life of a scope may be handed over.
    pub(crate) fn admits(&self, scope: &Scope, generation: Generation) -> bool {
        self.lock().live.get(scope) == Some(&generation)
    }
}

#[cfg(test)]
mod tests {
    use weft_store_schema::NetworkName;

    use super::*;

    fn blue() -> NetworkName {
        NetworkName::new("blue").unwrap()
    }

    #[test]
    fn a_scope_dropped_and_wanted_again_is_another() {
        let interest = Interest::new();
        interest.set([Scope::Networks].into());
        let first = interest.followed()[&Scope::Networks];
        assert!(interest.admits(&Scope::Networks, first));
        interest.set([].into());
        assert!(!interest.admits(&Scope::Networks, first));
        interest.set([Scope::Networks].into());
        assert!(!interest.admits(&Scope::Networks, first));
        let second = interest.followed()[&Scope::Networks];
        assert!(interest.admits(&Scope::Networks, second) && second > first);
    }

    #[test]
    fn a_replaced_scope_ends_at_once_and_one_that_is_taken_back_is_another() {
        let (own, all) = (Scope::OwnEndpoints(blue()), Scope::Endpoints(blue()));
        let interest = Interest::new();
        interest.set([own.clone()].into());
        let generation = interest.followed()[&own];
        interest.set([all.clone()].into());
        assert!(!interest.admits(&own, generation));
        assert_eq!(interest.followed().into_keys().collect::<Vec<_>>(), [all]);
        interest.set([own.clone()].into());
        assert!(interest.followed()[&own] > generation && !interest.admits(&own, generation));
    }
}
