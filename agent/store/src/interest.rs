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
    /// Dropped after it was handed over, but watched on until the scope that takes its place has been listed.
    lingering: BTreeMap<Scope, Generation>,
    /// Those of the live ones that have been handed over once.
    listed: BTreeSet<Scope>,
    newest: Generation,
}

/// Shared by the handle (which sets it), the watch task (which follows it) and the reader (which filters).
#[derive(Debug)]
pub(crate) struct Interest {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

/// The scope that stands in for another, if it is wanted.
fn counterpart(scope: &Scope) -> Option<Scope> {
    match scope {
        Scope::OwnEndpoints(network) => Some(Scope::Endpoints(network.clone())),
        Scope::Endpoints(network) => Some(Scope::OwnEndpoints(network.clone())),
        _ => None,
    }
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
        let dropped: Vec<_> = state
            .live
            .keys()
            .filter(|scope| !scopes.contains(scope))
            .cloned()
            .collect();
        for scope in dropped {
            let Some(generation) = state.live.remove(&scope) else {
                continue;
            };
            // What was never handed over leaves no gap when it ends.
            let handed_over = state.listed.remove(&scope);
            if handed_over
                && counterpart(&scope)
                    .is_some_and(|other| scopes.contains(&other) && !state.listed.contains(&other))
            {
                state.lingering.insert(scope, generation);
            }
        }
        for scope in scopes {
            if state.live.contains_key(&scope) {
                continue;
            }
            // Also one that still lingers: who dropped it has forgotten what was in it.
            state.lingering.remove(&scope);
            state.newest += 1;
            let newest = state.newest;
            state.live.insert(scope, newest);
        }
        let State { live, lingering, .. } = &mut *state;
        lingering.retain(|scope, _| counterpart(scope).is_some_and(|other| live.contains_key(&other)));
        drop(state);
        self.changed.send_replace(());
    }

    /// All that is to be watched now, the lingering ones too.
    pub(crate) fn followed(&self) -> BTreeMap<Scope, Generation> {
        let state = self.lock();
        let mut all = state.lingering.clone();
        all.extend(
            state
                .live
                .iter()
                .map(|(scope, generation)| (scope.clone(), *generation)),
        );
        all
    }

    /// The newest generation given out: an event about all scopes is void once there is a newer one.
    pub(crate) fn newest(&self) -> Generation {
        self.lock().newest
    }

    /// Whether an event of this life of a scope may be handed over.
    pub(crate) fn admits(&self, scope: &Scope, generation: Generation) -> bool {
        let state = self.lock();
        [&state.live, &state.lingering]
            .iter()
            .any(|map| map.get(scope) == Some(&generation))
    }

    /// A listing of this scope is being handed over: what it stands in for ends with it.
    pub(crate) fn listed(&self, scope: &Scope) {
        let mut state = self.lock();
        if !state.live.contains_key(scope) {
            return;
        }
        state.listed.insert(scope.clone());
        let ended = counterpart(scope).is_some_and(|other| state.lingering.remove(&other).is_some());
        drop(state);
        if ended {
            self.changed.send_replace(());
        }
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
    fn the_replaced_scope_lives_until_the_new_one_is_listed() {
        let (own, all) = (Scope::OwnEndpoints(blue()), Scope::Endpoints(blue()));
        let interest = Interest::new();
        interest.set([own.clone()].into());
        let generation = interest.followed()[&own];
        interest.listed(&own);
        interest.set([all.clone()].into());
        assert!(interest.admits(&own, generation));
        assert_eq!(interest.followed().len(), 2);
        interest.listed(&all);
        assert!(!interest.admits(&own, generation));
        assert_eq!(interest.followed().len(), 1);
    }

    /// It was otherwise once, and the reader waited in vain for a listing of what it had dropped for a moment.
    #[test]
    fn a_replacement_taken_back_is_listed_anew() {
        let (own, all) = (Scope::OwnEndpoints(blue()), Scope::Endpoints(blue()));
        let interest = Interest::new();
        interest.set([own.clone()].into());
        let generation = interest.followed()[&own];
        interest.listed(&own);
        interest.set([all.clone()].into());
        interest.set([own.clone()].into());
        assert_eq!(
            interest.followed().into_keys().collect::<Vec<_>>(),
            std::slice::from_ref(&own)
        );
        assert!(interest.followed()[&own] > generation);
        assert!(!interest.admits(&own, generation));
    }

    #[test]
    fn what_was_listed_before_is_no_replacement_to_wait_for() {
        let (own, all) = (Scope::OwnEndpoints(blue()), Scope::Endpoints(blue()));
        let interest = Interest::new();
        interest.set([own.clone(), all.clone()].into());
        interest.listed(&all);
        interest.set([all.clone()].into());
        assert_eq!(interest.followed().into_keys().collect::<Vec<_>>(), [all]);
    }

    #[test]
    fn both_dropped_ends_both() {
        let (own, all) = (Scope::OwnEndpoints(blue()), Scope::Endpoints(blue()));
        let interest = Interest::new();
        interest.set([own.clone()].into());
        interest.listed(&own);
        interest.set([all].into());
        interest.set([].into());
        assert!(interest.followed().is_empty());
    }
}
