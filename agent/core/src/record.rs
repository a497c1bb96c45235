//! Records as they arrive from the store and as they are written to it, as values. The store's client
//! carries them out; nothing here knows etcd's API.

use weft_store_schema::{BarrierRef, Key, NetworkName};

/// One key's state at a revision, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The full key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision at which the key was created.
    pub create_revision: i64,
    /// The revision at which it was last written.
    pub mod_revision: i64,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(Entry),
    /// The key was deleted at this revision.
    Deleted {
        /// The full key.
        key: Vec<u8>,
        /// The revision of the deletion.
        mod_revision: i64,
    },
}

impl Change {
    /// The full key.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Deleted { mod_revision, .. } => *mod_revision,
        }
    }
}

/// A part of the key space that is watched as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All networks.
    Networks,
    /// All peers.
    Peers,
    /// The marks of removed nodes.
    Removed,
    /// All claims of VNIs.
    Vnis,
    /// A network's endpoints on this node only.
    OwnEndpoints(NetworkName),
    /// A network's endpoints everywhere; takes the place of [`Scope::OwnEndpoints`].
    Endpoints(NetworkName),
    /// A network's address claims.
    Addresses(NetworkName),
    /// The traces of addresses that were given up in a network.
    Released(NetworkName),
    /// Questions to all who take part in a network.
    Barriers(NetworkName),
    /// Answers to this node's questions.
    Passed,
    /// Answers to one question: to be deleted with it, and not watched.
    PassedTo(BarrierRef),
}

impl Scope {
    /// The scope that knows of the same keys, and stands in for this one or has told of them before.
    pub fn counterpart(&self) -> Option<Self> {
        match self {
            Self::OwnEndpoints(network) => Some(Self::Endpoints(network.clone())),
            Self::Endpoints(network) => Some(Self::OwnEndpoints(network.clone())),
            _ => None,
        }
    }
}

/// What the store tells the reconcile loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// The complete contents of a scope at a revision: after the first contact, for a newly wanted scope,
    /// and after a watch was lost.
    Listed {
        /// What was listed.
        scope: Scope,
        /// The revision of the listing.
        revision: i64,
        /// Identity of the etcd cluster that answered.
        cluster_id: u64,
        /// Whether it goes on from what was told before. Cluster and revision need not show that it does not: a store
        /// restored from a backup may have got further meanwhile than it was when it was seen last.
        continues: bool,
        /// Every key of the scope.
        entries: Vec<Entry>,
    },
    /// Changes within a scope, in the order of their revisions.
    Changed {
        /// Where.
        scope: Scope,
        /// What.
        changes: Vec<Change>,
    },
    /// Every watched scope is current up to this revision.
    Progress {
        /// The revision.
        revision: i64,
    },
    /// The connection came or went.
    Connection(Connection),
}

/// State of the connection to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Answering.
    Up {
        /// Identity of the cluster.
        cluster_id: u64,
    },
    /// Not answering, and why; it is being retried.
    Down {
        /// The cause, for people.
        why: String,
    },
}

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(Key),
    /// The key exists and was last written at this revision.
    Unchanged(Key, i64),
    /// No key lies in the scope's directory (a compare over the range: `create_revision = 0`).
    Empty(Scope),
    /// No key in the scope's directory was written after this revision (a compare over the range).
    Settled(Scope, i64),
}

/// What a transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Writes a key, under no lease: what it was put under before no longer ends it.
    Put(Key, Vec<u8>),
    /// Writes a key under a lease: it is gone when the lease is.
    PutLeased(Key, Vec<u8>, i64),
    /// Deletes a key; nothing happens if it is gone already.
    Delete(Key),
    /// Deletes whatever lies in a scope's directory. For what is nobody's own only.
    DeleteAll(Scope),
}

impl Write {
    /// The key that is written, if it is one.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Put(key, _) | Self::PutLeased(key, ..) | Self::Delete(key) => Some(key),
            Self::DeleteAll(_) => None,
        }
    }
}

/// A conditional write: all of it happens, or nothing. There is no unconditional one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// All must hold. At least one.
    pub guards: Vec<Guard>,
    /// What happens then, each key at most once. Where a guard does not hold, what is guarded and what would be written is
    /// read instead: that is 128 places at most.
    pub writes: Vec<Write>,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// It happened, at this revision.
    Yes {
        /// The store's revision after it.
        revision: i64,
    },
    /// A guard did not hold; what the guarded keys hold now, in the guards' order.
    No {
        /// The store's revision at the time.
        revision: i64,
        /// The guarded keys' state; none where the key does not exist.
        now: Vec<Option<Entry>>,
    },
}
