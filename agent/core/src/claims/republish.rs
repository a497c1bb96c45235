//! Records that the store has lost and this host still has, written again as they were. Nothing that is there is
//! overwritten: whoever has taken an address, a VNI or a name since keeps it, and is named.

use weft_store_schema::{Endpoint, EndpointRef, Key, NetworkName, NodeName, PeerKind};

use super::{choice::holder, choose_mac, claim_all, network_of, networks::claim_vni, refusal::Refusal};
use crate::{
    members::Members,
    record::{Guard, Transaction, Write},
    snapshot::Snapshot,
};

/// What of the records that the store has lost is this host's to write again, in this order: peers that no agent speaks
/// for, networks, and this node's endpoints, but not those that are being detached.
pub fn republishable(snapshot: &Snapshot) -> Vec<Key> {
    let mut keys: Vec<Key> = snapshot
        .held_keys()
        .into_iter()
        .filter(|key| match key {
            Key::Network(name) => snapshot.network(name).is_some_and(|slot| slot.raw.is_some()),
            Key::Peer(node) => {
                let slot = snapshot.peer_slot(node);
                let value = slot.and_then(|slot| slot.value.as_ref());
                value.is_some_and(|peer| peer.kind == PeerKind::External)
            }
            Key::Endpoint(endpoint) => {
                endpoint.node == *snapshot.node() && !snapshot.detaching().contains_key(endpoint)
            }
            _ => false,
        })
        .filter(|key| !snapshot.is_suspect(key))
        .collect();
    keys.sort_by_key(|key| match key {
        Key::Peer(_) => 0,
        Key::Network(_) => 1,
        _ => 2,
    });
    keys
}

/// The transaction that writes a lost record again, an endpoint with its claims, a network with that of its VNI.
///
/// # Errors
/// [`Refusal::NotLost`] if the store has the record again; otherwise what is in its place now.
pub fn republish(snapshot: &Snapshot, key: &Key) -> Result<Transaction, Refusal> {
    let written = match key {
        Key::Network(name) => network(snapshot, name)?,
        Key::Peer(node) => peer(snapshot, node),
        Key::Endpoint(name) => endpoint(snapshot, name)?,
        _ => None,
    };
    written.ok_or_else(|| Refusal::NotLost(key.clone()))
}

fn peer(snapshot: &Snapshot, node: &NodeName) -> Option<Transaction> {
    let slot = snapshot.peer_slot(node).filter(|slot| slot.held)?;
    let (key, mark) = (Key::Peer(node.clone()), Key::Removed(node.clone()));
    Some(Transaction {
        guards: vec![Guard::Absent(key.clone()), Guard::Absent(mark)],
        writes: vec![Write::Put(key, slot.raw.as_deref()?.to_vec())],
    })
}

fn network(snapshot: &Snapshot, name: &NetworkName) -> Result<Option<Transaction>, Refusal> {
    let slot = snapshot.network(name).filter(|slot| slot.held);
    let Some((slot, raw)) = slot.and_then(|slot| Some((slot, slot.raw.as_deref()?))) else {
        return Ok(None);
    };
    let key = Key::Network(name.clone());
    let mut transaction = Transaction {
        guards: vec![Guard::Absent(key.clone())],
        writes: vec![Write::Put(key, raw.to_vec())],
    };
    if let Some(vni) = slot.value.as_ref().and_then(|network| network.vni) {
        claim_vni(&mut transaction, snapshot, name, vni)?;
    }
    Ok(Some(transaction))
}

fn endpoint(snapshot: &Snapshot, name: &EndpointRef) -> Result<Option<Transaction>, Refusal> {
    let slot = snapshot.endpoint(name).filter(|slot| slot.held);
    let Some(raw) = slot.and_then(|slot| slot.raw.as_deref()) else {
        return Ok(None);
    };
    let (network, network_at) = network_of(snapshot, &name.network)?;
    let nobody = Members::default();
    let members = snapshot.members(&name.network).unwrap_or(&nobody);
    let member = (name.node.clone(), name.id.clone());
    // One that was bad when it was lost is so again, and claims what it had when it was right.
    let value = slot.and_then(|slot| slot.value.clone());
    let written = Endpoint::decode(raw).ok().or(value);
    let addresses = written.as_ref().map(|e| e.addresses.to_vec()).unwrap_or_default();
    for address in &addresses {
        if network.subnet_of(*address).is_none() {
            return Err(Refusal::Outside {
                address: *address,
                network: name.network.clone(),
                subnets: network.subnets.iter().map(|s| s.net).collect(),
            });
        }
        let claim = members.claim(*address).filter(|slot| !slot.held);
        if claim.is_some() && !members.is_claimed_by(*address, &member) {
            return Err(Refusal::Taken {
                address: *address,
                network: name.network.clone(),
                holder: holder(members, &name.network, *address),
            });
        }
    }
    if let Some(mac) = written.as_ref().and_then(|endpoint| endpoint.mac) {
        choose_mac(members, name, Some(mac), &addresses)?;
    }
    let key = Key::Endpoint(name.clone());
    let mut transaction = Transaction {
        guards: vec![
            Guard::Absent(key.clone()),
            Guard::Unchanged(Key::Network(name.network.clone()), network_at),
        ],
        writes: Vec::new(),
    };
    claim_all(&mut transaction, members, name, &addresses, &[]);
    transaction.writes.push(Write::Put(key, raw.to_vec()));
    Ok(Some(transaction))
}
