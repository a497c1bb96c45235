//! What it takes to claim an address and to give it up, whoever found out that it is to be done: from a view, or in an
//! audit of all records. Each adds to a transaction what it writes, and what that rests on.

use std::net::IpAddr;

use weft_store_schema::{AddressClaim, Holder, Key, NetworkName, NodeName, ReleasedDocument, encode};

use crate::record::{Guard, Transaction, Write};

/// Claims an address that nobody holds, as it was given up last, if ever (`trace_at`). Its trace goes. One that has not
/// been seen makes the address another choice than it seems; and one that came since shows that this very claim was made
/// and given up already, if its answer was lost.
pub(crate) fn claim(
    transaction: &mut Transaction,
    (network, address): (&NetworkName, IpAddr),
    trace_at: Option<i64>,
    put: impl FnOnce(Key) -> Write,
) {
    let trace = Key::Released(network.clone(), address);
    match trace_at {
        Some(at) => {
            transaction.guards.push(Guard::Unchanged(trace.clone(), at));
            transaction.writes.push(Write::Delete(trace));
        }
        None => transaction.guards.push(Guard::Absent(trace)),
    }
    let key = Key::Address(network.clone(), address);
    transaction.guards.push(Guard::Absent(key.clone()));
    transaction.writes.push(put(key));
}

/// Gives up a claim as it was last written, at `claimed_at`, so that whoever may hold the address next is not harmed, and
/// leaves a trace. Of a network that is gone (`network_at` is none) nothing will be chosen; and its deletion has taken the
/// traces away that were there.
pub(crate) fn give_up(
    transaction: &mut Transaction,
    (network, address): (&NetworkName, IpAddr),
    (claim, claimed_at): (Option<&AddressClaim>, i64),
    network_at: Option<i64>,
) {
    let key = Key::Address(network.clone(), address);
    transaction.guards.push(Guard::Unchanged(key.clone(), claimed_at));
    transaction.writes.push(Write::Delete(key));
    if let Some(at) = network_at {
        let last = claim.filter(|claim| claim.holder == Holder::Endpoint);
        let trace = last.map_or_else(ReleasedDocument::default, |c| {
            ReleasedDocument::of(&c.node, &c.id)
        });
        let key = Key::Released(network.clone(), address);
        transaction.writes.push(Write::Put(key, encode(&trace)));
        let exists = Guard::Unchanged(Key::Network(network.clone()), at);
        if !transaction.guards.contains(&exists) {
            transaction.guards.push(exists);
        }
    }
}

/// What lets anybody give up what a node holds: it has no record, and so no agent that goes on and may have the address
/// on an interface.
pub(crate) fn nobody_left(node: &NodeName) -> Guard {
    Guard::Absent(Key::Peer(node.clone()))
}
