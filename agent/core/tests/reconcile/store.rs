//! etcd as far as weft uses it: keys with revisions, a history, conditional transactions.

use std::collections::BTreeMap;

use weft_core::{
    record::{Change, Committed, Entry, Guard, Scope, Transaction, Write},
    snapshot::directory,
};
use weft_store_schema::{Key, NodeName, Prefix};

/// A store and all that ever happened in it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) cluster_id: u64,
    pub(crate) revision: i64,
    keys: BTreeMap<Vec<u8>, Entry>,
    history: Vec<Change>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            cluster_id: 0xc1,
            revision: 1,
            keys: BTreeMap::new(),
            history: Vec::new(),
        }
    }
}

impl Store {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A full key below the default prefix.
    pub(crate) fn key(rest: &str) -> Vec<u8> {
        format!("/weft/v1/{rest}").into_bytes()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key)
    }

    pub(crate) fn read(&self, key: &Key) -> Option<&Entry> {
        self.get(Prefix::default().key(key).as_bytes())
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.keys.values()
    }

    /// As `etcdctl put`.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.revision += 1;
        self.write(key, Some(value));
    }

    /// As `etcdctl del`.
    pub(crate) fn delete(&mut self, key: &[u8]) {
        if self.keys.contains_key(key) {
            self.revision += 1;
            self.write(key, None);
        }
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        let change = match value {
            Some(value) => {
                let created = self.keys.get(key).map_or(self.revision, |e| e.create_revision);
                let entry = Entry {
                    key: key.to_vec(),
                    value: value.to_vec(),
                    create_revision: created,
                    mod_revision: self.revision,
                };
                self.keys.insert(key.to_vec(), entry.clone());
                Change::Put(entry)
            }
            None => {
                if self.keys.remove(key).is_none() {
                    return;
                }
                Change::Deleted {
                    key: key.to_vec(),
                    mod_revision: self.revision,
                }
            }
        };
        self.history.push(change);
    }

    /// What happened after a revision.
    pub(crate) fn since(&self, revision: i64) -> impl Iterator<Item = &Change> {
        let from = self.history.partition_point(|c| revision_of(c) <= revision);
        self.history[from..].iter()
    }

    /// Everything below a directory.
    pub(crate) fn list(&self, directory: &str) -> Vec<Entry> {
        self.keys
            .values()
            .filter(|e| e.key.starts_with(directory.as_bytes()))
            .cloned()
            .collect()
    }

    /// Carries out a transaction, if its guards hold.
    pub(crate) fn commit(&mut self, transaction: &Transaction, node: &NodeName) -> Committed {
        let prefix = Prefix::default();
        let mut named = std::collections::BTreeSet::new();
        for key in transaction.writes.iter().filter_map(Write::key) {
            // etcd refuses a transaction that writes a key twice.
            assert!(
                named.insert(key.clone()),
                "{key} is written twice: {transaction:#?}"
            );
        }
        let holds = transaction.guards.iter().all(|guard| match guard {
            Guard::Absent(key) => self.read(key).is_none(),
            Guard::Unchanged(key, revision) => self.read(key).is_some_and(|e| e.mod_revision == *revision),
            Guard::Empty(scope) => self.list(&directory(&prefix, node, scope)).is_empty(),
            Guard::Settled(scope, revision) => {
                let there = self.list(&directory(&prefix, node, scope));
                there.iter().all(|e| e.mod_revision <= *revision)
            }
        });
        if !holds {
            let now = transaction.guards.iter().map(|guard| match guard {
                Guard::Absent(key) | Guard::Unchanged(key, _) => self.read(key).cloned(),
                Guard::Empty(scope) => self.list(&directory(&prefix, node, scope)).into_iter().next(),
                Guard::Settled(scope, _) => {
                    let there = self.list(&directory(&prefix, node, scope));
                    there.into_iter().max_by_key(|e| e.mod_revision)
                }
            });
            return Committed::No {
                revision: self.revision,
                now: now.collect(),
            };
        }
        self.revision += 1;
        for write in &transaction.writes {
            match write {
                Write::Put(key, value) | Write::PutLeased(key, value, _) => {
                    self.write(prefix.key(key).as_bytes(), Some(value));
                }
                Write::Delete(key) => self.write(prefix.key(key).as_bytes(), None),
                Write::DeleteAll(scope) => {
                    for entry in self.list(&directory(&prefix, node, scope)) {
                        self.write(&entry.key, None);
                    }
                }
            }
        }
        Committed::Yes {
            revision: self.revision,
        }
    }
}

pub(crate) fn revision_of(change: &Change) -> i64 {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Deleted { mod_revision, .. } => *mod_revision,
    }
}

pub(crate) fn key_of(change: &Change) -> &[u8] {
    match change {
        Change::Put(entry) => &entry.key,
        Change::Deleted { key, .. } => key,
    }
}

/// Whether a key lies in a scope.
pub(crate) fn covers(scope: &Scope, node: &NodeName, key: &[u8]) -> bool {
    key.starts_with(directory(&Prefix::default(), node, scope).as_bytes())
}
