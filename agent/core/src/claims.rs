//! Claims of addresses as pure decisions: which to ask for, and the one transaction that takes or gives up
//! the claim together with its endpoint. Whether it happens is the store's to say.

mod choice;
mod networks;
mod refusal;
mod republish;
mod reservations;

use std::net::IpAddr;

use weft_store_schema::{
    AddressClaimDocument, EndpointDocument, EndpointId, EndpointRef, Family, Holder, Key, Mac, Network,
    NetworkName, ReleasedDocument, encode, set_fields,
};

use self::choice::{Asking, allocate};
pub use self::{
    choice::{Choosing, fullness},
    networks::{NetworkChange, create_network, delete_network, update_network},
    refusal::{Fullness, Refusal, TakenBy},
    republish::{republish, republishable},
    reservations::{reserve, unreserve},
};
use crate::{
    hash::stable_hash,
    members::{Member, Members},
    record::{Guard, Transaction, Write},
    snapshot::Snapshot,
};

/// The transaction that creates an endpoint with its claims: one address of each of the network's families,
/// those wished for first, then those of the reservation, which is over with that.
///
/// # Errors
/// A [`Refusal`] when the view of the network already shows that it cannot be.
pub fn attach(
    snapshot: &Snapshot,
    name: &EndpointRef,
    document: EndpointDocument,
    reservation: Option<&EndpointId>,
    choosing: &Choosing,
) -> Result<Transaction, Refusal> {
    let (network, network_at) = network_of(snapshot, &name.network)?;
    if snapshot.endpoint(name).is_some_and(|slot| !slot.held) {
        return Err(Refusal::Exists(name.clone()));
    }
    let nobody = Members::default();
    let members = snapshot.members(&name.network).unwrap_or(&nobody);
    let wished: Vec<IpAddr> = document
        .requested_addresses
        .iter()
        .filter_map(|a| a.parse().ok())
        .collect();
    let reservation: Option<Member> = reservation.map(|id| (name.node.clone(), id.clone()));
    let reserved = match &reservation {
        None => Vec::new(),
        Some(reservation) => {
            // It may be of an earlier network of the name; the rest of it ends with its lease.
            let mut reserved: Vec<IpAddr> = members.reserved_by(reservation).into_iter().collect();
            reserved.retain(|a| network.subnet_of(*a).is_some_and(|subnet| subnet.admits(*a)));
            if reserved.is_empty() {
                return Err(Refusal::NoReservation(name.network.clone(), reservation.clone()));
            }
            reserved
        }
    };
    let asking = Asking {
        network: &name.network,
        wished: &wished,
        kept: &reserved,
        holds: &|address| reserved.contains(&address),
        families: &Family::ALL,
    };
    let addresses = allocate(snapshot, network, &asking, choosing)?;
    let mac = choose_mac(
        members,
        name,
        document.mac.as_deref().and_then(|m| m.parse().ok()),
        &addresses,
    )?;
    let mut transaction = Transaction {
        guards: vec![
            Guard::Absent(Key::Endpoint(name.clone())),
            Guard::Unchanged(Key::Network(name.network.clone()), network_at),
        ],
        writes: Vec::new(),
    };
    claim_all(&mut transaction, members, name, &addresses, &reserved);
    for unwanted in reserved.iter().filter(|a| !addresses.contains(a)) {
        give_up(&mut transaction, snapshot, &name.network, *unwanted);
    }
    let document = EndpointDocument {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        mac: Some(mac.to_string()),
        ..document
    };
    transaction
        .writes
        .push(Write::Put(Key::Endpoint(name.clone()), encode(&document)));
    Ok(transaction)
}

/// The transaction that completes the record of an endpoint of this node; none if nothing is missing, or
/// nothing can be done before other records are right.
///
/// # Errors
/// A [`Refusal`] when what the record asks for cannot be had.
pub fn complete(
    snapshot: &Snapshot,
    name: &EndpointRef,
    choosing: &Choosing,
) -> Result<Option<Transaction>, Refusal> {
    let Some(slot) = snapshot.endpoint(name) else {
        return Ok(None);
    };
    let (Some(endpoint), Some(raw)) = (&slot.value, &slot.raw) else {
        return Ok(None);
    };
    let Some(members) = snapshot.members(&name.network) else {
        return Ok(None);
    };
    if slot.bad || slot.held {
        return Ok(None);
    }
    let member: Member = (name.node.clone(), name.id.clone());
    // The bytes tell what is written; the value may remember more than a rewritten record says.
    let written = weft_store_schema::Endpoint::decode(raw).unwrap_or_else(|_| endpoint.clone());
    // A claim that the store has lost is claimed anew.
    let has_claim =
        |a: &IpAddr| members.is_claimed_by(*a, &member) && members.claim(*a).is_some_and(|slot| !slot.held);
    let claimed = !written.addresses.is_empty() && written.addresses.iter().all(has_claim);
    let granted = written.requested.iter().all(|a| written.addresses.contains(a));
    if claimed && granted && written.mac.is_some() {
        return Ok(None);
    }
    let (network, network_at) = network_of(snapshot, &name.network)?;
    let mut wished: Vec<IpAddr> = written.requested.to_vec();
    // Written anew without addresses, after a deletion or with another wish: what it holds is in its claims.
    let mut kept: Vec<IpAddr> = if endpoint.addresses.is_empty() {
        let left = members.claimed_by(&member).into_iter();
        left.filter(|a| network.subnet_of(*a).is_some_and(|subnet| subnet.admits(*a)))
            .collect()
    } else {
        endpoint.addresses.to_vec()
    };
    kept.retain(|a| !wished.contains(a));
    // What somebody wrote as held, and is not, is a wish.
    wished.extend(
        kept.iter()
            .copied()
            .filter(|a| !members.is_claimed_by(*a, &member) && written.requested.is_empty()),
    );
    kept.retain(|a| members.is_claimed_by(*a, &member));
    let asking = Asking {
        network: &name.network,
        wished: &wished,
        kept: &kept,
        holds: &|address| members.is_claimed_by(address, &member),
        families: &Family::ALL,
    };
    let addresses = allocate(snapshot, network, &asking, choosing)?;
    let mac = choose_mac(members, name, written.mac.or(endpoint.mac), &addresses)?;
    let mut transaction = Transaction {
        guards: vec![
            Guard::Unchanged(Key::Endpoint(name.clone()), slot.mod_revision),
            Guard::Unchanged(Key::Network(name.network.clone()), network_at),
        ],
        writes: Vec::new(),
    };
    // What it held besides stays claimed, also what the record no longer told of: it may still be on the
    // interface. A chore gives it up once it is not.
    claim_all(&mut transaction, members, name, &addresses, &[]);
    let left = written.addresses.iter().filter(|a| !addresses.contains(a));
    not_held(&mut transaction, members, name, left);
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let Ok(record) = set_fields(
        raw,
        [("addresses", texts.into()), ("mac", mac.to_string().into())],
    ) else {
        return Ok(None);
    };
    transaction
        .writes
        .push(Write::Put(Key::Endpoint(name.clone()), record));
    Ok(Some(transaction))
}

/// The transaction that deletes an endpoint and gives up its claims.
///
/// # Errors
/// When there is no such endpoint.
pub fn detach(snapshot: &Snapshot, name: &EndpointRef) -> Result<Transaction, Refusal> {
    let no = || Refusal::NoEndpoint(name.clone());
    // One that is held is not in the store any more.
    let slot = snapshot.endpoint(name).filter(|slot| !slot.held).ok_or_else(no)?;
    let members = snapshot.members(&name.network).ok_or_else(no)?;
    let key = Key::Endpoint(name.clone());
    let mut transaction = Transaction {
        guards: vec![Guard::Unchanged(key.clone(), slot.mod_revision)],
        writes: vec![Write::Delete(key)],
    };
    for address in members.claimed_by(&(name.node.clone(), name.id.clone())) {
        give_up(&mut transaction, snapshot, &name.network, address);
    }
    let named = slot.value.iter().flat_map(|endpoint| &endpoint.addresses);
    not_held(&mut transaction, members, name, named);
    Ok(transaction)
}

/// The transaction that gives up a claim whose endpoint does not exist, or no longer names the address.
pub fn release_orphan(snapshot: &Snapshot, network: &NetworkName, address: IpAddr) -> Option<Transaction> {
    if !snapshot.knows_claims(network) {
        return None;
    }
    let slot = snapshot.members(network)?.claim(address)?;
    // What nobody takes over of a reservation ends with its lease.
    let claim = slot.value.as_ref().filter(|c| c.holder == Holder::Endpoint)?;
    if slot.held {
        return None;
    }
    let holder = EndpointRef {
        network: network.clone(),
        node: claim.node.clone(),
        id: claim.id.clone(),
    };
    let endpoint_key = Key::Endpoint(holder.clone());
    let endpoint_guard = match snapshot.endpoint(&holder) {
        None => Guard::Absent(endpoint_key),
        Some(there) if there.bad || there.held => return None,
        Some(there) => {
            let endpoint = there.value.as_ref()?;
            let named = endpoint.addresses.contains(&address) || endpoint.requested.contains(&address);
            // One without addresses is about to be completed, and may take up what it held.
            if named || endpoint.addresses.is_empty() {
                return None;
            }
            Guard::Unchanged(endpoint_key, there.mod_revision)
        }
    };
    // Both guards together: not the next holder's claim, and not an endpoint that has come meanwhile.
    let mut transaction = Transaction {
        guards: vec![endpoint_guard],
        writes: Vec::new(),
    };
    give_up(&mut transaction, snapshot, network, address);
    Some(transaction)
}

fn network_of<'a>(snapshot: &'a Snapshot, name: &NetworkName) -> Result<(&'a Network, i64), Refusal> {
    snapshot
        .network(name)
        .filter(|slot| !slot.held)
        .and_then(|slot| Some((slot.value.as_ref()?, slot.mod_revision)))
        .ok_or_else(|| Refusal::NoNetwork(name.clone()))
}

/// Claims addresses for an endpoint, those of a reservation in its place.
fn claim_all(
    transaction: &mut Transaction,
    members: &Members,
    name: &EndpointRef,
    addresses: &[IpAddr],
    reserved: &[IpAddr],
) {
    let member: Member = (name.node.clone(), name.id.clone());
    let claim = || encode(&AddressClaimDocument::of(&name.node, &name.id));
    for address in addresses {
        let key = Key::Address(name.network.clone(), *address);
        let slot = members.claim(*address).filter(|slot| !slot.held);
        match slot {
            Some(slot) if members.is_claimed_by(*address, &member) => {
                transaction.guards.push(Guard::Unchanged(key, slot.mod_revision));
            }
            Some(slot) if reserved.contains(address) => {
                transaction
                    .guards
                    .push(Guard::Unchanged(key.clone(), slot.mod_revision));
                transaction.writes.push(Write::Put(key, claim()));
            }
            _ => claim_anew(transaction, members, (&name.network, *address), |key| {
                Write::Put(key, claim())
            }),
        }
    }
}

/// Claims an address that nobody holds, as it was given up last, if ever. Its trace goes. One that has not come into
/// view makes the address another choice than it seems; and one that came since shows that this very claim was
/// made and given up already, if its answer was lost.
fn claim_anew(
    transaction: &mut Transaction,
    members: &Members,
    (network, address): (&NetworkName, IpAddr),
    put: impl FnOnce(Key) -> Write,
) {
    let trace = Key::Released(network.clone(), address);
    match members.released_at(address) {
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

/// Gives up a claim as it was last written, so that whoever may hold the address next is not harmed, and leaves a
/// trace.
fn give_up(transaction: &mut Transaction, snapshot: &Snapshot, network: &NetworkName, address: IpAddr) {
    let claim = snapshot.members(network).and_then(|m| m.claim(address));
    let Some(slot) = claim.filter(|slot| !slot.held) else {
        return;
    };
    let key = Key::Address(network.clone(), address);
    transaction
        .guards
        .push(Guard::Unchanged(key.clone(), slot.mod_revision));
    transaction.writes.push(Write::Delete(key));
    // Of a network that is gone, nothing will be chosen; and its deletion has taken the traces away that were there.
    if let Some(there) = snapshot.network(network).filter(|slot| !slot.held) {
        let last = slot
            .value
            .as_ref()
            .filter(|claim| claim.holder == Holder::Endpoint);
        let trace = last.map_or_else(ReleasedDocument::default, |c| {
            ReleasedDocument::of(&c.node, &c.id)
        });
        let key = Key::Released(network.clone(), address);
        transaction.writes.push(Write::Put(key, encode(&trace)));
        let exists = Guard::Unchanged(Key::Network(network.clone()), there.mod_revision);
        if !transaction.guards.contains(&exists) {
            transaction.guards.push(exists);
        }
    }
}

/// Rests on it that addresses that an endpoint names, lets go of and does not seem to hold are not claimed for it: the
/// watch may have told of the record, and not of the claims yet, which would stay behind.
fn not_held<'a>(
    transaction: &mut Transaction,
    members: &Members,
    name: &EndpointRef,
    addresses: impl Iterator<Item = &'a IpAddr>,
) {
    let member: Member = (name.node.clone(), name.id.clone());
    for address in addresses {
        let key = Key::Address(name.network.clone(), *address);
        match members.claim(*address).filter(|slot| !slot.held) {
            None => transaction.guards.push(Guard::Absent(key)),
            Some(_) if members.is_claimed_by(*address, &member) => {}
            Some(slot) => transaction.guards.push(Guard::Unchanged(key, slot.mod_revision)),
        }
    }
}

fn choose_mac(
    members: &Members,
    name: &EndpointRef,
    wished: Option<Mac>,
    addresses: &[IpAddr],
) -> Result<Mac, Refusal> {
    let rival = |mac| {
        members
            .with_mac(mac)
            .find(|(node, id)| (node, id) != (&name.node, &name.id))
    };
    if let Some(mac) = wished {
        return match rival(mac) {
            Some((node, id)) => Err(Refusal::MacTaken {
                mac,
                holder: EndpointRef {
                    network: name.network.clone(),
                    node: node.clone(),
                    id: id.clone(),
                },
            }),
            None => Ok(mac),
        };
    }
    let usual = addresses.first().map(|a| Mac::from_address(*a));
    // Two IPv6 addresses may end in the same 32 bits: then the identity gives the MAC.
    let mut others = (0_u64..).filter_map(|salt| {
        let hash = stable_hash([name.to_string().as_str(), &salt.to_string()]);
        let [.., a, b, c, d] = (hash >> 16).to_be_bytes();
        Mac::new([0x02, 0x42, a, b, c, d])
    });
    usual
        .filter(|mac| rival(*mac).is_none())
        .or_else(|| others.find(|mac| rival(*mac).is_none()))
        .ok_or_else(|| Refusal::NoEndpoint(name.clone()))
}
