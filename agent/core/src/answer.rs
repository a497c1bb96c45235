//! What the answer to a transaction of ours tells: of the records, as changes that [`Snapshot::learn`] takes, so that
//! the next choice does not wait for the watch; and whether it happened, where the first answer was lost. Pure; sending
//! it is the store's.

use std::collections::BTreeSet;

use weft_store_schema::Key;

use crate::{
    record::{Change, Entry, Guard, Scope, Transaction, Write},
    snapshot::Snapshot,
};

/// What a transaction of ours that happened at `revision` changed, as if the watch had told it.
pub fn own_changes(snapshot: &Snapshot, transaction: &Transaction, revision: i64) -> Vec<Change> {
    let prefix = snapshot.prefix();
    transaction
        .writes
        .iter()
        .filter_map(|write| match write {
            Write::Put(key, value) | Write::PutLeased(key, value, _) => {
                let is_new = transaction
                    .guards
                    .iter()
                    .any(|guard| matches!(guard, Guard::Absent(k) if k == key));
                let created = match key {
                    Key::Endpoint(endpoint) if !is_new => {
                        snapshot.endpoint(endpoint).map(|s| s.create_revision)
                    }
                    Key::Network(network) if !is_new => snapshot.network(network).map(|s| s.create_revision),
                    Key::Peer(node) if !is_new => snapshot.peer_slot(node).map(|s| s.create_revision),
                    _ => None,
                };
                Some(Change::Put(Entry {
                    key: prefix.key(key).into_bytes(),
                    value: value.clone(),
                    create_revision: created.unwrap_or(revision),
                    mod_revision: revision,
                }))
            }
            Write::Delete(key) => Some(Change::Deleted {
                key: prefix.key(key).into_bytes(),
                mod_revision: revision,
            }),
            // What lay there, the watch tells.
            Write::DeleteAll(_) => None,
        })
        .collect()
}

/// What a refused transaction told of the keys it was guarded by. Only what exists counts: that a key is
/// missing is for the watch to say.
pub fn news(transaction: &Transaction, present: Vec<Option<Entry>>) -> Vec<Change> {
    transaction
        .guards
        .iter()
        .zip(present)
        .filter(|(guard, _)| !matches!(guard, Guard::Empty(_) | Guard::Settled(..)))
        .filter_map(|(_, entry)| entry.map(Change::Put))
        .collect()
}

/// What is read when a guard fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// A key.
    Key(&'a Key),
    /// The first key of a directory.
    FirstOf(&'a Scope),
    /// The key of a directory that was written last.
    NewestOf(&'a Scope),
}

impl<'a> Place<'a> {
    /// What is read when this guard fails.
    pub fn of(guard: &'a Guard) -> Self {
        match guard {
            Guard::Absent(key) | Guard::Unchanged(key, _) => Place::Key(key),
            Guard::Empty(scope) => Place::FirstOf(scope),
            Guard::Settled(scope, _) => Place::NewestOf(scope),
        }
    }
}

/// Whether the transaction's success makes one of its guards fail: then it cannot happen twice in a row.
pub fn guards_itself(transaction: &Transaction) -> bool {
    transaction.guards.iter().any(|guard| {
        transaction.writes.iter().any(|write| match (guard, write) {
            (Guard::Absent(a), Write::Put(b, _) | Write::PutLeased(b, ..))
            | (Guard::Unchanged(a, _), Write::Put(b, _) | Write::PutLeased(b, ..) | Write::Delete(b)) => {
                a == b
            }
            _ => false,
        })
    })
}

/// What is read when a guard fails: the guarded places in their order, then what else would be written.
pub fn places(transaction: &Transaction) -> Vec<Place<'_>> {
    let mut places: Vec<_> = transaction.guards.iter().map(Place::of).collect();
    for key in transaction.writes.iter().filter_map(Write::key) {
        if !places.contains(&Place::Key(key)) {
            places.push(Place::Key(key));
        }
    }
    places
}

/// What became of an earlier sending of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighed {
    /// It happened, at this revision or before it.
    Happened(i64),
    /// It did not.
    DidNot,
    /// What others did since leaves it open.
    Undecided,
}

/// Whether an earlier sending of a transaction happened, judged from a later refusal. `now` is the state of
/// its [`places`] at `revision`; `before` is a revision older than the first sending.
pub fn weigh(transaction: &Transaction, now: &[Option<Entry>], before: i64, revision: i64) -> Weighed {
    let places = places(transaction);
    let at = |place: Place<'_>| {
        places
            .iter()
            .position(|other| *other == place)
            .and_then(|i| now.get(i)?.as_ref())
    };
    let state = |key| at(Place::Key(key));

    // Untouched since before the first sending, although it would have been written: it did not happen.
    let untouched = transaction
        .writes
        .iter()
        .filter_map(Write::key)
        .any(|key| state(key).is_some_and(|entry| entry.mod_revision <= before));
    // A guard that was broken all the while: it cannot have happened.
    let broken = transaction.guards.iter().any(|guard| match guard {
        Guard::Absent(key) => state(key).is_some_and(|entry| entry.create_revision <= before),
        Guard::Unchanged(key, expected) => {
            state(key).is_some_and(|entry| entry.mod_revision <= before && entry.mod_revision != *expected)
        }
        Guard::Empty(scope) => at(Place::FirstOf(scope)).is_some_and(|entry| entry.create_revision <= before),
        Guard::Settled(scope, expected) => at(Place::NewestOf(scope))
            .is_some_and(|entry| entry.mod_revision <= before && entry.mod_revision > *expected),
    });
    if untouched || broken {
        return Weighed::DidNot;
    }

    // All is as we would have left it, written at one revision: it happened (or somebody did the very same).
    let mut revisions = BTreeSet::new();
    let as_asked = transaction.writes.iter().all(|write| match write {
        Write::Put(key, value) | Write::PutLeased(key, value, _) => state(key).is_some_and(|entry| {
            revisions.insert(entry.mod_revision);
            entry.value == *value
        }),
        Write::Delete(key) => state(key).is_none(),
        // Nobody's own: whatever lies there, it decides nothing.
        Write::DeleteAll(_) => true,
    });
    match (as_asked, revisions.len()) {
        // Only deletions, and all is gone: whoever did it, it is as asked.
        (true, 0) => Weighed::Happened(revision),
        (true, 1) => Weighed::Happened(revisions.first().copied().unwrap_or(revision)),
        _ => Weighed::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use weft_store_schema::NetworkName;

    use super::*;

    fn network(name: &str) -> Key {
        Key::Network(NetworkName::new(name).unwrap())
    }

    fn entry(value: &str, create_revision: i64, mod_revision: i64) -> Option<Entry> {
        Some(Entry {
            key: vec![],
            value: value.into(),
            create_revision,
            mod_revision,
        })
    }

    fn create_two() -> Transaction {
        Transaction {
            guards: vec![Guard::Absent(network("a")), Guard::Absent(network("b"))],
            writes: vec![
                Write::Put(network("a"), b"1".to_vec()),
                Write::Put(network("b"), b"2".to_vec()),
            ],
        }
    }

    #[test]
    fn a_lost_creation_is_recognised() {
        let weighed = weigh(&create_two(), &[entry("1", 12, 12), entry("2", 12, 12)], 10, 15);
        assert_eq!(weighed, Weighed::Happened(12));
    }

    #[test]
    fn a_key_that_was_there_before_refutes_it() {
        let weighed = weigh(&create_two(), &[entry("1", 5, 5), None], 10, 15);
        assert_eq!(weighed, Weighed::DidNot);
        // Even with our very value: it is from another time.
        let weighed = weigh(&create_two(), &[entry("1", 5, 5), entry("2", 5, 5)], 10, 15);
        assert_eq!(weighed, Weighed::DidNot);
    }

    #[test]
    fn what_others_did_meanwhile_leaves_it_open() {
        for now in [
            [entry("other", 12, 12), None],
            [entry("1", 12, 12), entry("2", 13, 13)],
            [entry("1", 12, 12), entry("changed", 12, 14)],
            [None, None],
        ] {
            assert_eq!(weigh(&create_two(), &now, 10, 15), Weighed::Undecided, "{now:?}");
        }
    }

    #[test]
    fn a_lost_release() {
        let release = Transaction {
            guards: vec![
                Guard::Unchanged(network("a"), 7),
                Guard::Unchanged(network("b"), 8),
            ],
            writes: vec![Write::Delete(network("a")), Write::Delete(network("b"))],
        };
        assert_eq!(weigh(&release, &[None, None], 10, 15), Weighed::Happened(15));
        // Still there, and another guard is what failed.
        assert_eq!(
            weigh(&release, &[entry("x", 7, 7), None], 10, 15),
            Weighed::DidNot
        );
        // Deleted, and the address claimed by another since.
        assert_eq!(
            weigh(&release, &[None, entry("y", 12, 12)], 10, 15),
            Weighed::Undecided
        );
    }

    #[test]
    fn only_what_guards_itself_is_sent_again() {
        assert!(guards_itself(&create_two()));
        let put_elsewhere = Transaction {
            guards: vec![Guard::Unchanged(network("a"), 7)],
            writes: vec![Write::Put(network("b"), vec![])],
        };
        assert!(!guards_itself(&put_elsewhere));
    }

    #[test]
    fn an_empty_directory_that_never_was() {
        let transaction = Transaction {
            guards: vec![Guard::Empty(Scope::Peers), Guard::Unchanged(network("a"), 7)],
            writes: vec![Write::Delete(network("a"))],
        };
        assert_eq!(
            weigh(&transaction, &[entry("p", 5, 5), None], 10, 15),
            Weighed::DidNot
        );
        assert_eq!(
            weigh(&transaction, &[entry("p", 12, 12), entry("x", 7, 7)], 10, 15),
            Weighed::DidNot
        );
        assert_eq!(
            weigh(&transaction, &[entry("p", 12, 12), None], 10, 15),
            Weighed::Happened(15)
        );
    }
}
