//! Addresses held for somebody who asks first and attaches later: claims under a lease, which an endpoint's claim takes
//! the place of, and which end by themselves if nobody comes.

use std::net::IpAddr;

use weft_store_schema::{AddressClaimDocument, EndpointId, Family, Key, NetworkName, encode};

use super::{
    choice::{Asking, Choosing, allocate},
    claim_anew, give_up, network_of,
    refusal::Refusal,
};
use crate::{
    members::{Member, Members},
    record::{Guard, Transaction, Write},
    snapshot::Snapshot,
};

/// The transaction that reserves addresses for this node: those wished for, and one of each of the families.
///
/// # Errors
/// A [`Refusal`] when the view of the network already shows that it cannot be.
pub fn reserve(
    snapshot: &Snapshot,
    name: &NetworkName,
    id: &EndpointId,
    wished: &[IpAddr],
    families: &[Family],
    lease: i64,
    choosing: &Choosing,
) -> Result<Transaction, Refusal> {
    let (network, network_at) = network_of(snapshot, name)?;
    if let Some(missing) = families.iter().find(|f| !network.families().any(|n| n == **f)) {
        return Err(Refusal::NoSuchFamily(name.clone(), *missing));
    }
    let nobody = Members::default();
    let members = snapshot.members(name).unwrap_or(&nobody);
    let reservation: Member = (snapshot.node().clone(), id.clone());
    if !members.reserved_by(&reservation).is_empty() {
        return Err(Refusal::ReservationExists(name.clone(), reservation));
    }
    let asking = Asking {
        network: name,
        wished,
        kept: &[],
        holds: &|_| false,
        families,
    };
    let mut transaction = Transaction {
        guards: vec![Guard::Unchanged(Key::Network(name.clone()), network_at)],
        writes: Vec::new(),
    };
    for address in allocate(snapshot, network, &asking, choosing)? {
        let key = Key::Address(name.clone(), address);
        let claim = encode(&AddressClaimDocument::reserved(&reservation.0, id));
        claim_anew(&mut transaction, key, |key| Write::PutLeased(key, claim, lease));
    }
    Ok(transaction)
}

/// The transaction that gives a reservation's addresses up.
///
/// # Errors
/// When there is no such reservation of this node.
pub fn unreserve(snapshot: &Snapshot, name: &NetworkName, id: &EndpointId) -> Result<Transaction, Refusal> {
    let reservation: Member = (snapshot.node().clone(), id.clone());
    let no = || Refusal::NoReservation(name.clone(), reservation.clone());
    let members = snapshot.members(name).ok_or_else(no)?;
    let addresses = members.reserved_by(&reservation);
    if addresses.is_empty() {
        return Err(no());
    }
    let mut transaction = Transaction::default();
    for address in addresses {
        give_up(&mut transaction, snapshot, name, address);
    }
    Ok(transaction)
}
