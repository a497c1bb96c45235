//! What the answer to a transaction of ours tells of the records, as changes that [`Snapshot::learn`] takes: the
//! next choice then does not wait for the watch. Pure; sending it is the store's.

use weft_store_schema::Key;

use crate::{
    record::{Change, Entry, Guard, Transaction, Write},
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
