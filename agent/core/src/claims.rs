//! Claims of addresses as pure decisions: which to ask for, and the one transaction that takes or gives up
//! the claim together with its endpoint. Whether it happens is the store's to say.

mod choice;
pub(crate) mod deeds;
mod networks;
mod refusal;
mod republish;
mod reservations;

use std::net::IpAddr;

use weft_store_schema::{
    AddressClaimDocument, EndpointDocument, EndpointId, EndpointRef, Family, Holder, Key, Mac, Network,
    NetworkName, NodeName, encode, set_fields,
};

use self::choice::{Asking, allocate};
pub(crate) use self::networks::is_carried;
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
    let granted = written.requested().iter().all(|a| written.addresses.contains(a));
    if claimed && granted && written.mac.is_some() {
        return Ok(None);
    }
    let (network, network_at) = network_of(snapshot, &name.network)?;
    let mut wished: Vec<IpAddr> = written.requested().to_vec();
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
            .filter(|a| !members.is_claimed_by(*a, &member) && written.requested().is_empty()),
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
    let fields = [("addresses", texts.into()), ("mac", mac.to_string().into())];
    let record = set_fields(raw, fields).map_err(Refusal::NoRoom)?;
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

/// The transaction that deletes an endpoint of any node. If the node has a peer record, its agent gives up the claims once
/// its container is rid of the addresses; if it has none, nobody is left to do that, and they go with the record.
///
/// # Errors
/// When there is no such endpoint.
pub fn delete_endpoint(snapshot: &Snapshot, name: &EndpointRef) -> Result<Transaction, Refusal> {
    let mut transaction = detach(snapshot, name)?;
    match left_to(snapshot, &name.node) {
        LeftTo::Anybody(guard) => transaction.guards.push(guard),
        LeftTo::Its => {
            let key = Key::Endpoint(name.clone());
            let of_record = |guard: &Guard| matches!(guard, Guard::Unchanged(of, _) if *of == key);
            transaction.guards.retain(of_record);
            transaction.writes.retain(|write| write.key() == Some(&key));
        }
    }
    Ok(transaction)
}

/// Whose a node's claims are to give up.
enum LeftTo {
    /// The node's own agent's, which alone sees what is on its interfaces; also when it is down.
    Its,
    /// Anybody's, while this holds.
    Anybody(Guard),
}

fn left_to(snapshot: &Snapshot, node: &NodeName) -> LeftTo {
    let has_record = snapshot.peer_slot(node).is_some_and(|slot| !slot.held);
    if node == snapshot.node() || has_record {
        LeftTo::Its
    } else {
        LeftTo::Anybody(deeds::nobody_left(node))
    }
}

/// The transaction that gives up a claim whose endpoint does not exist, or no longer names the address; none also if that
/// is for another node to do.
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
    let left = match left_to(snapshot, &claim.node) {
        LeftTo::Its if claim.node != *snapshot.node() => return None,
        LeftTo::Its => None,
        LeftTo::Anybody(guard) => Some(guard),
    };
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
            let named = endpoint.addresses.contains(&address) || endpoint.requested().contains(&address);
            // One without addresses is about to be completed, and may take up what it held.
            if named || endpoint.addresses.is_empty() {
                return None;
            }
            Guard::Unchanged(endpoint_key, there.mod_revision)
        }
    };
    // All guards together: not the next holder's claim, not an endpoint that has come meanwhile, and not on the interface
    // of a node that has come back.
    let mut transaction = Transaction {
        guards: [endpoint_guard].into_iter().chain(left).collect(),
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

/// Claims an address that nobody holds.
fn claim_anew(
    transaction: &mut Transaction,
    members: &Members,
    (network, address): (&NetworkName, IpAddr),
    put: impl FnOnce(Key) -> Write,
) {
    let trace_at = members.released_at(address);
    deeds::claim(transaction, (network, address), trace_at, put);
}

/// Gives up a claim that is there, as it was last written.
fn give_up(transaction: &mut Transaction, snapshot: &Snapshot, network: &NetworkName, address: IpAddr) {
    let claim = snapshot.members(network).and_then(|m| m.claim(address));
    let Some(slot) = claim.filter(|slot| !slot.held) else {
        return;
    };
    let there = snapshot.network(network).filter(|slot| !slot.held);
    let claim = (slot.value.as_ref(), slot.mod_revision);
    deeds::give_up(
        transaction,
        (network, address),
        claim,
        there.map(|there| there.mod_revision),
    );
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
