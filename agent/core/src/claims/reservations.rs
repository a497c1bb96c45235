//! Addresses held for somebody who asks first and attaches later: claims under a lease, which an endpoint's claim takes
//! the place of, and which end by themselves if nobody comes.

use std::{collections::BTreeSet, net::IpAddr};

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

/// The transaction that reserves addresses for this node: those wished for, and one of each of the families. A
/// reservation that there is and that is what is asked for is put under the new lease: its time begins anew.
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
    let claim = encode(&AddressClaimDocument::reserved(&reservation.0, id));
    let mut transaction = Transaction {
        guards: vec![Guard::Unchanged(Key::Network(name.clone()), network_at)],
        writes: Vec::new(),
    };
    let there = members.reserved_by(&reservation);
    if !there.is_empty() {
        if !is_asked_for(&there, wished, families) {
            return Err(Refusal::ReservationExists(name.clone(), reservation));
        }
        for address in there {
            let key = Key::Address(name.clone(), address);
            let at = members.claim(address).map_or(0, |slot| slot.mod_revision);
            transaction.guards.push(Guard::Unchanged(key.clone(), at));
            transaction
                .writes
                .push(Write::PutLeased(key, claim.clone(), lease));
        }
        return Ok(transaction);
    }
    let asking = Asking {
        network: name,
        wished,
        kept: &[],
        holds: &|_| false,
        families,
    };
    for address in allocate(snapshot, network, &asking, choosing)? {
        claim_anew(&mut transaction, members, (name, address), |key| {
            Write::PutLeased(key, claim.clone(), lease)
        });
    }
    Ok(transaction)
}

/// Whether what a reservation has is what somebody asks for: in each of the families the addresses wished for, or any
/// one where none is.
fn is_asked_for(there: &BTreeSet<IpAddr>, wished: &[IpAddr], families: &[Family]) -> bool {
    let of = |family| move |address: &&IpAddr| Family::of(**address) == family;
    Family::ALL.into_iter().all(|family| {
        let has: BTreeSet<&IpAddr> = there.iter().filter(of(family)).collect();
        let wants: BTreeSet<&IpAddr> = wished.iter().filter(of(family)).collect();
        match (families.contains(&family), wants.is_empty()) {
            (false, _) => has.is_empty(),
            (true, true) => has.len() == 1,
            (true, false) => has == wants,
        }
    })
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
