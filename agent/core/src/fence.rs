//! What keeps a host that was removed from the cluster from writing: each of its transactions about endpoints and
//! addresses rests on its own peer record, which the removal deletes.
//!
//! A host that was paused, cut off or thought dead knows nothing of its removal, and its view is what it was. What
//! it writes then fails, as a whole and for good: the record that its view has does not come back, since one that is
//! put anew has another revision.

use weft_store_schema::Key;

use crate::{
    record::{Guard, Transaction, Write},
    snapshot::Snapshot,
};

/// The transaction, resting on this node's peer record if it is about endpoints or addresses. Where the view has no
/// such record (none is written yet), on there being none, and no mark that there was one.
pub fn fenced(snapshot: &Snapshot, mut transaction: Transaction) -> Transaction {
    let own = Key::Peer(snapshot.node().clone());
    let is_about_addresses = |write: &Write| {
        matches!(
            write.key(),
            Some(Key::Endpoint(_) | Key::Address(..) | Key::Released(..))
        )
    };
    let guards_it =
        |guard: &Guard| matches!(guard, Guard::Absent(key) | Guard::Unchanged(key, _) if *key == own);
    if transaction.writes.iter().any(is_about_addresses) && !transaction.guards.iter().any(guards_it) {
        let slot = snapshot.peer_slot(snapshot.node()).filter(|slot| !slot.held);
        match slot {
            Some(slot) => transaction.guards.push(Guard::Unchanged(own, slot.mod_revision)),
            None => {
                let mark = Key::Removed(snapshot.node().clone());
                transaction
                    .guards
                    .extend([Guard::Absent(own), Guard::Absent(mark)]);
            }
        }
    }
    transaction
}
