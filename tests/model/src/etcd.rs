//! etcd as far as weft uses it: keys with revisions, a history, conditional transactions, leases. No clock: whoever has
//! one lets a lease end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_core::{
    answer::{Place, places},
    record::{Change, Committed, Entry, Guard, Scope, Transaction, Write},
    snapshot::directory,
    suspicion::Census,
};
use weft_store_schema::{Key, Kind, NetworkName, NodeName, Prefix};

/// etcd's own bound (`--max-txn-ops`).
const MOST_OPERATIONS: usize = 128;

/// A store and all that ever happened in it.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// Identity of the cluster.
    pub cluster_id: u64,
    /// The newest revision.
    pub revision: i64,
    prefix: Prefix,
    keys: BTreeMap<Vec<u8>, Entry>,
    history: Vec<Change>,
    /// The keys under each lease that has not ended.
    leases: BTreeMap<i64, BTreeSet<Vec<u8>>>,
    leased: HashMap<Vec<u8>, i64>,
    granted: i64,
}

/// What the store says to a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it happened.
    pub happened: bool,
    /// The store's revision after it.
    pub revision: i64,
    /// Where it did not: the state of all its [`places`].
    pub now: Vec<Option<Entry>>,
}

impl Answer {
    /// The answer as the store's client hands it on.
    pub fn committed(self, transaction: &Transaction) -> Committed {
        let (revision, mut now) = (self.revision, self.now);
        if self.happened {
            return Committed::Yes { revision };
        }
        now.truncate(transaction.guards.len());
        Committed::No { revision, now }
    }
}

/// A key was to be put under a lease that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchLease;

impl Default for Etcd {
    fn default() -> Self {
        Self {
            cluster_id: 0xc1,
            revision: 1,
            prefix: Prefix::default(),
            keys: BTreeMap::new(),
            history: Vec::new(),
            leases: BTreeMap::new(),
            leased: HashMap::new(),
            granted: 0,
        }
    }
}

impl Etcd {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A full key below the default prefix.
    pub fn key(rest: &str) -> Vec<u8> {
        format!("/weft/v1/{rest}").into_bytes()
    }

    /// The state of a full key.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// The state of a key.
    pub fn read(&self, key: &Key) -> Option<&Entry> {
        self.get(self.prefix.key(key).as_bytes())
    }

    /// Everything.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.keys.values()
    }

    /// The lease under which a full key lies.
    pub fn lease_of(&self, key: &[u8]) -> Option<i64> {
        self.leased.get(key).copied()
    }

    /// As `etcdctl put`.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.revision += 1;
        self.write(key, Some(value), None);
    }

    /// As `etcdctl del`.
    pub fn delete(&mut self, key: &[u8]) {
        if self.keys.contains_key(key) {
            self.revision += 1;
            self.write(key, None, None);
        }
    }

    /// As `etcdctl del --prefix`: everything below goes at one revision.
    pub fn delete_below(&mut self, directory: &str) {
        let gone = self.list(directory);
        self.revision += i64::from(!gone.is_empty());
        for entry in gone {
            self.write(&entry.key, None, None);
        }
    }

    /// Grants a lease.
    pub fn grant(&mut self) -> i64 {
        self.granted += 1;
        self.leases.insert(self.granted, BTreeSet::new());
        self.granted
    }

    /// A lease ends, by its time or because it is revoked: the keys under it go at one revision.
    pub fn end_lease(&mut self, lease: i64) {
        let keys = self.leases.remove(&lease).unwrap_or_default();
        self.revision += i64::from(!keys.is_empty());
        for key in keys {
            self.write(&key, None, None);
        }
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>, lease: Option<i64>) {
        let before = match lease {
            Some(lease) => self.leased.insert(key.to_vec(), lease),
            None => self.leased.remove(key),
        };
        if let Some(keys) = before.and_then(|before| self.leases.get_mut(&before)) {
            keys.remove(key);
        }
        if let Some(lease) = lease {
            self.leases.entry(lease).or_default().insert(key.to_vec());
        }
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
    pub fn since(&self, revision: i64) -> impl Iterator<Item = &Change> {
        let from = self.history.partition_point(|c| revision_of(c) <= revision);
        self.history[from..].iter()
    }

    /// The state of a full key at a revision.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<&Entry> {
        let until = self.history.partition_point(|c| revision_of(c) <= revision);
        let last = self.history[..until].iter().rev().find(|c| key_of(c) == key)?;
        match last {
            Change::Put(entry) => Some(entry),
            Change::Deleted { .. } => None,
        }
    }

    /// How many records of some kinds there were at a revision, whether a node's own were there, and whether any endpoint
    /// was that is from `since` or before.
    pub fn census(
        &self,
        network: Option<&NetworkName>,
        node: &NodeName,
        since: i64,
        revision: i64,
    ) -> Census {
        let until = self.history.partition_point(|c| revision_of(c) <= revision);
        let mut there: BTreeMap<&[u8], i64> = BTreeMap::new();
        for change in &self.history[..until] {
            match change {
                Change::Put(entry) => there.insert(&entry.key, entry.create_revision),
                Change::Deleted { key, .. } => there.remove(&key[..]),
            };
        }
        let in_directory = |directory: String| {
            let all = there.iter();
            all.filter(move |(key, _)| key.starts_with(directory.as_bytes()))
        };
        let below = |directory: String| in_directory(directory).count() as u64;
        let is_there = |key: &Key| there.contains_key(self.prefix.key(key).as_bytes());
        Census {
            endpoints: below(self.prefix.all(Kind::Endpoints)),
            of_network: network.map_or(0, |network| below(self.prefix.endpoints_of(network))),
            survivors: in_directory(self.prefix.all(Kind::Endpoints)).any(|(_, created)| *created <= since),
            networks: below(self.prefix.all(Kind::Networks)),
            peers: below(self.prefix.all(Kind::Peers)),
            own_peer: is_there(&Key::Peer(node.clone())),
            removed: is_there(&Key::Removed(node.clone())),
        }
    }

    /// Everything below a directory.
    pub fn list(&self, directory: &str) -> Vec<Entry> {
        self.below(directory).cloned().collect()
    }

    fn below<'a>(&'a self, directory: &'a str) -> impl Iterator<Item = &'a Entry> {
        let directory = directory.as_bytes();
        self.keys
            .range(directory.to_vec()..)
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.key.starts_with(directory))
    }

    /// Carries out a transaction, if its guards hold; a lease that it names is taken to be there.
    pub fn commit(&mut self, transaction: &Transaction, node: &NodeName) -> Committed {
        let answer = self.carry_out(transaction, node);
        answer.committed(transaction)
    }

    /// Carries out a transaction, if its guards hold.
    ///
    /// # Errors
    /// When it names a lease that has ended; nothing happens then.
    pub fn execute(&mut self, transaction: &Transaction, node: &NodeName) -> Result<Answer, NoSuchLease> {
        let mut leases = transaction.writes.iter().filter_map(|write| match write {
            Write::PutLeased(_, _, lease) => Some(lease),
            _ => None,
        });
        if self.holds(transaction, node) && leases.any(|lease| !self.leases.contains_key(lease)) {
            return Err(NoSuchLease);
        }
        Ok(self.carry_out(transaction, node))
    }

    fn holds(&self, transaction: &Transaction, node: &NodeName) -> bool {
        transaction.guards.iter().all(|guard| match guard {
            Guard::Absent(key) => self.read(key).is_none(),
            Guard::Unchanged(key, revision) => self.read(key).is_some_and(|e| e.mod_revision == *revision),
            Guard::Empty(scope) => {
                let directory = directory(&self.prefix, node, scope);
                self.below(&directory).next().is_none()
            }
            Guard::Settled(scope, revision) => {
                let directory = directory(&self.prefix, node, scope);
                self.below(&directory).all(|e| e.mod_revision <= *revision)
            }
        })
    }

    /// The state of all [`places`] of a transaction.
    pub fn state_of(&self, transaction: &Transaction, node: &NodeName) -> Vec<Option<Entry>> {
        let places = places(transaction);
        assert!(places.len() <= MOST_OPERATIONS, "too large: {transaction:#?}");
        let state = |place| match place {
            Place::Key(key) => self.read(key).cloned(),
            Place::FirstOf(scope) => {
                let directory = directory(&self.prefix, node, scope);
                self.below(&directory).next().cloned()
            }
            Place::NewestOf(scope) => {
                let directory = directory(&self.prefix, node, scope);
                self.below(&directory).max_by_key(|e| e.mod_revision).cloned()
            }
        };
        places.into_iter().map(state).collect()
    }

    fn carry_out(&mut self, transaction: &Transaction, node: &NodeName) -> Answer {
        let mut named = BTreeSet::new();
        for key in transaction.writes.iter().filter_map(Write::key) {
            // etcd refuses a transaction that writes a key twice.
            assert!(named.insert(key), "{key} is written twice: {transaction:#?}");
        }
        if !self.holds(transaction, node) {
            return Answer {
                happened: false,
                revision: self.revision,
                now: self.state_of(transaction, node),
            };
        }
        self.revision += 1;
        let prefix = self.prefix.clone();
        for write in &transaction.writes {
            match write {
                Write::Put(key, value) => self.write(prefix.key(key).as_bytes(), Some(value), None),
                Write::PutLeased(key, value, lease) => {
                    self.write(prefix.key(key).as_bytes(), Some(value), Some(*lease));
                }
                Write::Delete(key) => self.write(prefix.key(key).as_bytes(), None, None),
                Write::DeleteAll(scope) => {
                    for entry in self.list(&directory(&prefix, node, scope)) {
                        self.write(&entry.key, None, None);
                    }
                }
            }
        }
        Answer {
            happened: true,
            revision: self.revision,
            now: Vec::new(),
        }
    }
}

/// The revision of a change.
pub fn revision_of(change: &Change) -> i64 {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Deleted { mod_revision, .. } => *mod_revision,
    }
}

/// The full key that a change is about.
pub fn key_of(change: &Change) -> &[u8] {
    match change {
        Change::Put(entry) => &entry.key,
        Change::Deleted { key, .. } => key,
    }
}

/// Whether a full key lies in a scope.
pub fn covers(scope: &Scope, node: &NodeName, key: &[u8]) -> bool {
    key.starts_with(directory(&Prefix::default(), node, scope).as_bytes())
}
