//! One followed scope: what has been handed over of it, and what is needed next. Pure bookkeeping; the watch
//! task feeds it with what etcd says.

use std::collections::BTreeMap;

use tokio::time::Instant;
use weft_core::record::{Change, Entry};

use crate::interest::Generation;

/// Whether and why a scope is to be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// Not needed.
    Done,
    /// Needed, for this reason.
    Due(Reason),
    /// On its way.
    Running(Reason),
}

impl Listing {
    /// When it may be asked for, if it is to be: `any` is the earliest for all, `again` for what replaces a watch that
    /// etcd ended.
    pub(crate) fn due_at(self, any: Instant, again: Instant) -> Option<Instant> {
        match self {
            Self::Due(reason) if reason.follows_a_failed_watch() => Some(any.max(again)),
            Self::Due(_) => Some(any),
            Self::Done | Self::Running(_) => None,
        }
    }
}

/// Why a scope is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// For the first time.
    New,
    /// The revisions since the last one handed over are compacted away.
    Compacted,
    /// etcd ended the watch for another reason.
    Cancelled,
    /// The store is another, or has gone back in time.
    History,
    /// By the clock or on request, although nothing is known to be missing.
    Refresh,
}

impl Reason {
    /// Whether etcd ended a watch, and might do so again right after the listing.
    pub(crate) fn follows_a_failed_watch(self) -> bool {
        matches!(self, Self::Compacted | Self::Cancelled)
    }

    /// Whether the watch goes on as it is beside the listing.
    fn keeps_watch(self) -> bool {
        self == Self::Refresh
    }
}

#[derive(Debug)]
pub(crate) struct Follow {
    pub(crate) generation: Generation,
    /// Handed over up to this revision; 0 before the first listing.
    pub(crate) seen: i64,
    pub(crate) listing: Listing,
    /// The watch on the present stream, if there is one.
    pub(crate) watch: Option<i64>,
    /// Whether etcd has confirmed that watch.
    pub(crate) confirmed: bool,
    /// The latest change of each key since the running listing was asked for.
    since: Option<BTreeMap<Vec<u8>, Change>>,
    /// What had been handed over when the running listing was asked for.
    seen_when_asked: i64,
    /// Whether it has ever been watched.
    was_watched: bool,
}

impl Follow {
    pub(crate) fn new(generation: Generation) -> Self {
        Self {
            generation,
            seen: 0,
            listing: Listing::Due(Reason::New),
            watch: None,
            confirmed: false,
            since: None,
            seen_when_asked: 0,
            was_watched: false,
        }
    }

    /// What had been handed over when the running listing was asked for: it cannot be older.
    pub(crate) fn seen_when_asked(&self) -> i64 {
        self.seen_when_asked
    }

    /// Whether it has ever been watched.
    pub(crate) fn was_watched(&self) -> bool {
        self.was_watched
    }

    /// A watch on the present stream has been asked for.
    pub(crate) fn watched(&mut self, id: i64) {
        self.watch = Some(id);
        self.confirmed = false;
        self.was_watched = true;
    }

    /// Everything up to this revision has been handed over.
    pub(crate) fn up_to(&mut self, revision: i64) {
        self.seen = self.seen.max(revision);
    }

    /// Whether a watch may go on after the last revision handed over.
    pub(crate) fn resumable(&self) -> bool {
        match self.listing {
            Listing::Done => true,
            Listing::Due(reason) | Listing::Running(reason) => reason.keeps_watch() && self.seen > 0,
        }
    }

    /// Whether all changes reach us as they happen.
    pub(crate) fn is_current(&self) -> bool {
        self.resumable() && self.watch.is_some() && self.confirmed
    }

    /// A listing has become necessary.
    pub(crate) fn list(&mut self, reason: Reason) {
        match self.listing {
            // What a running one will say is as good as what a new one would, unless the watch is lost.
            Listing::Running(_) | Listing::Due(_) if reason.keeps_watch() => {}
            // The reason that is already known to demand more stays.
            Listing::Due(known) if !known.keeps_watch() && reason != Reason::History => {}
            _ => {
                self.listing = Listing::Due(reason);
                self.since = None;
            }
        }
    }

    /// The listing that was due has been asked for.
    pub(crate) fn asked(&mut self) {
        if let Listing::Due(reason) = self.listing {
            self.listing = Listing::Running(reason);
            self.since = Some(BTreeMap::new());
            self.seen_when_asked = self.seen;
        }
    }

    /// The listing that was running has failed.
    pub(crate) fn failed(&mut self) {
        if let Listing::Running(reason) = self.listing {
            self.listing = Listing::Due(reason);
            self.since = None;
        }
    }

    /// The stream is gone, and the watch with it.
    pub(crate) fn unwatched(&mut self) {
        self.watch = None;
        self.confirmed = false;
    }

    /// Changes arrived; returns those not handed over yet.
    pub(crate) fn changed(&mut self, mut changes: Vec<Change>) -> Vec<Change> {
        // A member that lags, or a watch that was resumed, may repeat what is known.
        changes.retain(|change| change.revision() > self.seen);
        for change in &changes {
            let (key, revision) = (change.key(), change.revision());
            self.seen = self.seen.max(revision);
            if let Some(since) = &mut self.since {
                since.insert(key.to_vec(), change.clone());
            }
        }
        changes
    }

    /// The listing arrived. The watch may have run ahead of it: then its changes are laid over it, so that
    /// what is handed over never goes back in time. Returns the entries and their revision.
    pub(crate) fn listed(&mut self, entries: Vec<Entry>, revision: i64) -> (Vec<Entry>, i64) {
        let Listing::Running(reason) = std::mem::replace(&mut self.listing, Listing::Done) else {
            self.listing = Listing::Done;
            self.seen = revision;
            return (entries, revision);
        };
        let later: Vec<_> = self
            .since
            .take()
            .unwrap_or_default()
            .into_iter()
            .filter(|(_, change)| change.revision() > revision)
            .collect();
        if !reason.keeps_watch() || later.is_empty() {
            self.seen = if reason.keeps_watch() {
                self.seen.max(revision)
            } else {
                revision
            };
            return (entries, revision);
        }
        let mut by_key: BTreeMap<_, _> = entries
            .into_iter()
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        for (key, change) in later {
            match change {
                Change::Put(entry) => by_key.insert(key, entry),
                Change::Deleted { .. } => by_key.remove(&key),
            };
        }
        self.seen = self.seen.max(revision);
        (by_key.into_values().collect(), self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, revision: i64) -> Change {
        Change::Put(entry(key, revision))
    }

    fn entry(key: &str, revision: i64) -> Entry {
        Entry {
            key: key.into(),
            value: revision.to_string().into(),
            create_revision: 1,
            mod_revision: revision,
        }
    }

    fn deleted(key: &str, mod_revision: i64) -> Change {
        Change::Deleted {
            key: key.into(),
            mod_revision,
        }
    }

    fn listed_at(revision: i64) -> Follow {
        let mut follow = Follow::new(1);
        follow.asked();
        follow.listed(vec![], revision);
        follow
    }

    #[test]
    fn the_first_listing_makes_it_resumable() {
        let mut follow = Follow::new(1);
        assert!(!follow.resumable());
        follow.asked();
        assert!(!follow.resumable());
        follow.failed();
        assert_eq!(follow.listing, Listing::Due(Reason::New));
        follow.asked();
        assert_eq!(follow.listed(vec![entry("a", 3)], 5), (vec![entry("a", 3)], 5));
        assert!(follow.resumable());
        assert_eq!(follow.seen, 5);
    }

    #[test]
    fn known_changes_are_not_handed_over_again() {
        let mut follow = listed_at(5);
        assert_eq!(
            follow
                .changed(vec![put("a", 4), put("a", 5), put("b", 6), put("c", 6)])
                .len(),
            2
        );
        assert_eq!(follow.seen, 6);
        assert_eq!(follow.changed(vec![put("b", 6)]), []);
    }

    #[test]
    fn a_refresh_never_goes_back_in_time() {
        let mut follow = listed_at(5);
        follow.list(Reason::Refresh);
        assert!(follow.resumable());
        follow.asked();
        follow.changed(vec![put("a", 6)]);
        follow.changed(vec![put("b", 7), deleted("c", 8), put("d", 9)]);
        // The listing was made at 7 and arrives after the change at 9.
        let (entries, revision) = follow.listed(vec![entry("a", 6), entry("b", 7), entry("c", 2)], 7);
        assert_eq!(revision, 9);
        assert_eq!(entries, [entry("a", 6), entry("b", 7), entry("d", 9)]);
        assert_eq!(follow.seen, 9);
    }

    #[test]
    fn a_refresh_ahead_of_the_watch_skips_what_it_contains() {
        let mut follow = listed_at(5);
        follow.list(Reason::Refresh);
        follow.asked();
        follow.changed(vec![put("a", 6)]);
        assert_eq!(follow.listed(vec![entry("a", 8)], 8), (vec![entry("a", 8)], 8));
        assert_eq!(follow.changed(vec![put("a", 7), put("a", 8)]), []);
    }

    #[test]
    fn after_another_history_the_revision_goes_back() {
        let mut follow = listed_at(50);
        follow.list(Reason::History);
        assert!(!follow.resumable());
        follow.asked();
        assert_eq!(follow.listed(vec![], 7).1, 7);
        assert_eq!(follow.seen, 7);
    }

    #[test]
    fn what_replaces_a_watch_waits_for_both_pauses() {
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(10);
        assert_eq!(Listing::Due(Reason::New).due_at(now, later), Some(now));
        for reason in [Reason::Compacted, Reason::Cancelled] {
            // Looking at the first alone kept the watch task awake until the second.
            assert_eq!(Listing::Due(reason).due_at(now, later), Some(later));
            assert_eq!(Listing::Due(reason).due_at(later, now), Some(later));
        }
        assert_eq!(Listing::Running(Reason::New).due_at(now, later), None);
        assert_eq!(Listing::Done.due_at(now, later), None);
    }

    #[test]
    fn a_lost_watch_outranks_a_refresh() {
        let mut follow = listed_at(5);
        follow.list(Reason::Refresh);
        follow.asked();
        follow.list(Reason::Compacted);
        assert_eq!(follow.listing, Listing::Due(Reason::Compacted));
        follow.list(Reason::Refresh);
        assert_eq!(follow.listing, Listing::Due(Reason::Compacted));
        follow.list(Reason::History);
        assert_eq!(follow.listing, Listing::Due(Reason::History));
    }
}
