//! Record writes that an agent owes the cluster: completing what operators leave out, and clearing away
//! what deletions leave behind. Each is a conditional transaction, so any number of agents may try.

use std::net::IpAddr;

use weft_store_schema::{
    EndpointId, EndpointRef, Key, NetworkName, NodeName, PeerDocument, Value, Vni, VniClaimDocument, encode,
    set_fields,
};

use crate::{
    claims::{self, Choosing, Refusal, is_carried},
    dirty::Dirty,
    hash::stable_hash,
    record::{Guard, Scope, Transaction, Write},
    snapshot::Snapshot,
};

/// Something to be written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chore {
    /// This node's own peer record differs from what it should say.
    PublishPeer,
    /// A network has no VNI, or no claim for the VNI that it has.
    CompleteNetwork(NetworkName),
    /// A VNI is claimed for a network that does not exist.
    FreeVni(Vni),
    /// An endpoint of this node lacks addresses, their claims or a MAC.
    CompleteEndpoint(EndpointRef),
    /// An endpoint that is detached on this host still has its record, or may have.
    DetachEndpoint(EndpointRef),
    /// An address is claimed for an endpoint that does not exist.
    ReleaseAddress(NetworkName, IpAddr),
    /// There are more traces of released addresses in a network than are worth keeping.
    ForgetReleased(NetworkName),
}

impl Chore {
    /// The record that it is about, or the one that names all it is about.
    pub fn key(&self, node: &NodeName) -> Key {
        match self {
            Self::PublishPeer => Key::Peer(node.clone()),
            Self::CompleteNetwork(network) | Self::ForgetReleased(network) => Key::Network(network.clone()),
            Self::FreeVni(vni) => Key::Vni(*vni),
            Self::CompleteEndpoint(endpoint) | Self::DetachEndpoint(endpoint) => {
                Key::Endpoint(endpoint.clone())
            }
            Self::ReleaseAddress(network, address) => Key::Address(network.clone(), *address),
        }
    }
}

/// More traces of released addresses than this are not kept in a network once they have cooled down: in a subnet of IPv6,
/// they would never end. What bounds the rest is how much can be given up within a cool-down.
pub const MOST_RELEASED: usize = 4096;
/// So many more may gather before they are cleared away.
const RELEASED_SLACK: usize = 256;
/// So many are cleared away in one transaction.
const FORGOTTEN_AT_ONCE: usize = 60;

/// What is owed after a change of these objects, as far as [`transaction`] can tell before the rest that it depends on is
/// known. Costs what the change concerns.
pub fn chores(snapshot: &Snapshot, peer: &PeerDocument, dirty: &Dirty) -> Vec<Chore> {
    let mut chores = Vec::new();
    if publish_peer(snapshot, peer).is_some() {
        chores.push(Chore::PublishPeer);
    }
    chores.extend(snapshot.detaching().keys().cloned().map(Chore::DetachEndpoint));
    let node = snapshot.node();
    let own = |network: &NetworkName| -> Vec<Chore> {
        let complete = |id: &EndpointId| {
            Chore::CompleteEndpoint(EndpointRef {
                network: network.clone(),
                node: node.clone(),
                id: id.clone(),
            })
        };
        snapshot
            .own_endpoints(network)
            .map(|(id, _)| complete(id))
            .collect()
    };
    let released = |network: &NetworkName| -> Vec<Chore> {
        let members = snapshot.members(network);
        let claims = members.map(|members| members.claimed_on(|node| !is_known_other(snapshot, node)));
        let release = |address| Chore::ReleaseAddress(network.clone(), address);
        claims.into_iter().flatten().map(release).collect()
    };
    let claimed_vnis = |network: &NetworkName| -> Vec<Chore> {
        let claims = snapshot.vnis();
        let of = claims.filter(|(_, s)| s.value.as_ref().is_some_and(|c| c.network == *network));
        of.map(|(vni, _)| Chore::FreeVni(*vni)).collect()
    };
    if dirty.everything {
        for (network, _) in snapshot.networks() {
            chores.push(Chore::CompleteNetwork(network.clone()));
        }
        chores.extend(snapshot.vnis().map(|(vni, _)| Chore::FreeVni(*vni)));
        for (network, _) in snapshot.all_members() {
            chores.extend(own(network));
            chores.extend(released(network));
            chores.push(Chore::ForgetReleased(network.clone()));
        }
    } else {
        for network in &dirty.networks {
            chores.push(Chore::CompleteNetwork(network.clone()));
            chores.extend(claimed_vnis(network));
            chores.extend(own(network));
            chores.extend(released(network));
        }
        for network in dirty.addresses.keys().filter(|n| snapshot.network(n).is_none()) {
            // The last host may be rid of it.
            chores.extend(claimed_vnis(network));
        }
        for endpoint in &dirty.endpoints {
            if endpoint.node == *node {
                chores.push(Chore::CompleteEndpoint(endpoint.clone()));
            }
            let member = (endpoint.node.clone(), endpoint.id.clone());
            let claimed = snapshot.members(&endpoint.network).map(|m| m.claimed_by(&member));
            let release = |address| Chore::ReleaseAddress(endpoint.network.clone(), address);
            chores.extend(claimed.into_iter().flatten().map(release));
        }
        let touched = dirty.touched_networks().into_iter();
        chores.extend(touched.cloned().map(Chore::ForgetReleased));
        for (network, members) in snapshot.all_members().filter(|_| !dirty.peers.is_empty()) {
            // Those of nodes whose records have come or gone.
            let left = members.claimed_on(|node| dirty.peers.contains(node)).into_iter();
            chores.extend(left.map(|address| Chore::ReleaseAddress(network.clone(), address)));
        }
        for (network, addresses) in &dirty.addresses {
            chores.extend(
                addresses
                    .iter()
                    .map(|a| Chore::ReleaseAddress(network.clone(), *a)),
            );
        }
    }
    chores.retain(|chore| is_owed(snapshot, peer, chore));
    chores.sort_unstable();
    chores.dedup();
    chores
}

fn is_owed(snapshot: &Snapshot, peer: &PeerDocument, chore: &Chore) -> bool {
    !matches!(transaction(snapshot, peer, chore, &Choosing::default()), Ok(None))
}

/// The transaction of a chore, from what is known now; none if nothing is owed any more. `choosing` is what
/// else matters where addresses are chosen.
///
/// # Errors
/// Why an endpoint's or a network's record cannot be completed.
pub fn transaction(
    snapshot: &Snapshot,
    peer: &PeerDocument,
    chore: &Chore,
    choosing: &Choosing,
) -> Result<Option<Transaction>, Refusal> {
    match chore {
        Chore::PublishPeer => Ok(publish_peer(snapshot, peer)),
        Chore::CompleteNetwork(network) => complete_network(snapshot, network),
        Chore::FreeVni(vni) => Ok(free_vni(snapshot, *vni)),
        Chore::CompleteEndpoint(endpoint) if snapshot.awaits_detach(endpoint) => Ok(None),
        // A claim that has not been listed yet is not one that is missing: the endpoint would be given another address.
        // The listing that is still to come makes all of the network's endpoints looked at again.
        Chore::CompleteEndpoint(endpoint) if !snapshot.knows_claims(&endpoint.network) => Ok(None),
        Chore::CompleteEndpoint(endpoint) => claims::complete(snapshot, endpoint, choosing),
        Chore::DetachEndpoint(endpoint) if !snapshot.awaits_detach(endpoint) => {
            Ok(is_gone(snapshot, endpoint))
        }
        // Without the claims in view they would stay behind.
        Chore::DetachEndpoint(endpoint) if !snapshot.knows_claims(&endpoint.network) => Ok(None),
        Chore::DetachEndpoint(endpoint) => Ok(claims::detach(snapshot, endpoint).ok()),
        Chore::ReleaseAddress(network, address) if is_anothers(snapshot, network, *address) => Ok(None),
        Chore::ReleaseAddress(network, address) => Ok(claims::release_orphan(snapshot, network, *address)),
        Chore::ForgetReleased(network) => Ok(forget_released(snapshot, network, choosing.cooled_to)),
    }
}

/// What asks whether there is no record of an endpoint that is detached here: it may have come and not be in view.
fn is_gone(snapshot: &Snapshot, endpoint: &EndpointRef) -> Option<Transaction> {
    let is_known = snapshot.detaching().get(endpoint).is_none_or(|life| *life > 0);
    (!is_known).then(|| Transaction {
        guards: vec![Guard::Absent(Key::Endpoint(endpoint.clone()))],
        writes: Vec::new(),
    })
}

/// Whether a claim is another node's to give up: its agent may be down, and the address still be on an interface there.
/// Only what is left of a node that has no record any more is anybody's; not yet if its record's loss may be a slip.
fn is_anothers(snapshot: &Snapshot, network: &NetworkName, address: IpAddr) -> bool {
    let claim = snapshot
        .members(network)
        .and_then(|members| members.claim(address)?.value);
    claim.is_some_and(|claim| is_known_other(snapshot, &claim.node))
}

fn is_known_other(snapshot: &Snapshot, node: &NodeName) -> bool {
    node != snapshot.node() && snapshot.peer_slot(node).is_some()
}

/// How many other agents are before this one in doing a chore that is nobody's own. All agents see the same
/// order, so that as a rule one acts and the rest find it done.
pub fn rank(snapshot: &Snapshot, chore: &Chore) -> usize {
    let mut behind = 0;
    let subject = match chore {
        Chore::CompleteNetwork(network) if snapshot.takes_part(network) => return 0,
        Chore::CompleteNetwork(network) => network.to_string(),
        // Who saw the last claim go knows first.
        Chore::FreeVni(vni) if is_of_known(snapshot, *vni) => return 0,
        Chore::FreeVni(vni) => vni.to_string(),
        Chore::ForgetReleased(network) => format!("released/{network}"),
        Chore::PublishPeer | Chore::CompleteEndpoint(_) | Chore::DetachEndpoint(_) => return 0,
        // As a rule the node that held it is there to do it.
        Chore::ReleaseAddress(network, address) => {
            let claim = snapshot.members(network).and_then(|m| m.claim(*address)?.value);
            if claim.is_none_or(|claim| claim.node == *snapshot.node()) {
                return 0;
            }
            behind = 1;
            format!("{network}/{address}")
        }
    };
    let weight = |node: &NodeName| {
        let hash = stable_hash([subject.as_str(), node.as_str()]);
        (hash, node.clone())
    };
    let mine = weight(snapshot.node());
    behind + snapshot.peers().filter(|(node, _)| weight(node) < mine).count()
}

/// Whether the VNI is claimed for a network whose claims are all in view.
fn is_of_known(snapshot: &Snapshot, vni: Vni) -> bool {
    let claim = snapshot.vni_claim(vni).and_then(|slot| slot.value.as_ref());
    claim.is_some_and(|claim| snapshot.knows_claims(&claim.network))
}

fn publish_peer(snapshot: &Snapshot, wanted: &PeerDocument) -> Option<Transaction> {
    let key = Key::Peer(snapshot.node().clone());
    // Whoever lets it be published has taken notice of the removal: what is published is another life.
    let mark = snapshot.removed(snapshot.node());
    let clear = |mut transaction: Transaction| {
        let key = Key::Removed(snapshot.node().clone());
        match mark {
            Some(slot) => {
                let guard = Guard::Unchanged(key.clone(), slot.mod_revision);
                transaction.guards.push(guard);
                transaction.writes.push(Write::Delete(key));
            }
            // A life that has ended, and does not know it yet, does not come back.
            None => transaction.guards.push(Guard::Absent(key)),
        }
        transaction
    };
    let Some(slot) = snapshot.peer_slot(snapshot.node()).filter(|slot| !slot.held) else {
        return Some(clear(Transaction {
            guards: vec![Guard::Absent(key.clone())],
            writes: vec![Write::Put(key, encode(wanted))],
        }));
    };
    let is_right =
        mark.is_none() && !slot.bad && wanted.clone().validate().ok().as_ref() == slot.value.as_ref();
    if is_right {
        return None;
    }
    let fields = [
        ("vteps", serde_value(&wanted.vteps)),
        ("mtu", wanted.mtu.into()),
        ("boot_id", wanted.boot_id.clone().into()),
        ("agent_version", wanted.agent_version.clone().into()),
        ("kind", wanted.kind.as_str().into()),
    ];
    let incarnation = wanted.incarnation.clone();
    let fields = fields
        .into_iter()
        .chain(incarnation.map(|life| ("incarnation", life.into())));
    // What cannot be read cannot be kept: a node's own record is the node's to write.
    let record = slot
        .raw
        .as_deref()
        .and_then(|raw| set_fields(raw, fields).ok())
        .filter(|record| weft_store_schema::Peer::decode(record).is_ok());
    Some(clear(Transaction {
        guards: vec![Guard::Unchanged(key.clone(), slot.mod_revision)],
        writes: vec![Write::Put(key, record.unwrap_or_else(|| encode(wanted)))],
    }))
}

fn serde_value(texts: &[String]) -> Value {
    texts.to_vec().into()
}

/// VNIs below this are left to operators and to other programs' defaults (flannel uses 1, Docker counts up
/// from 256).
const FIRST_CHOSEN_VNI: u32 = 4096;

fn complete_network(snapshot: &Snapshot, name: &NetworkName) -> Result<Option<Transaction>, Refusal> {
    let slot = snapshot.network(name).filter(|slot| !slot.bad && !slot.held);
    let Some((slot, network)) = slot.and_then(|slot| Some((slot, slot.value.as_ref()?))) else {
        return Ok(None);
    };
    let network_key = Key::Network(name.clone());
    let unchanged = Guard::Unchanged(network_key.clone(), slot.mod_revision);
    let claim = || encode(&VniClaimDocument::of(name));
    if let Some(vni) = network.vni {
        // A VNI that another network holds is a problem that only an operator can solve; and one that the
        // store has lost is still the other's.
        let wanting = match snapshot.vni_claim(vni) {
            None => true,
            Some(slot) => slot.held && slot.value.as_ref().is_none_or(|claim| claim.network == *name),
        };
        return Ok(wanting.then(|| Transaction {
            guards: vec![unchanged, Guard::Absent(Key::Vni(vni))],
            writes: vec![Write::Put(Key::Vni(vni), claim())],
        }));
    }
    let held = snapshot
        .vnis()
        .find(|(_, s)| s.value.as_ref().is_some_and(|c| c.network == *name));
    let (vni, guard, write) = match held {
        Some((vni, s)) if !s.held => (*vni, Guard::Unchanged(Key::Vni(*vni), s.mod_revision), None),
        lost => {
            let free = || free_vni_for(snapshot, name);
            let Some(vni) = lost.map(|(vni, _)| *vni).or_else(free) else {
                return Ok(None);
            };
            (
                vni,
                Guard::Absent(Key::Vni(vni)),
                Some(Write::Put(Key::Vni(vni), claim())),
            )
        }
    };
    let raw = slot.raw.as_deref().unwrap_or_default();
    let record = set_fields(raw, [("vni", vni.get().into())]).map_err(Refusal::NoRoom)?;
    let writes = write
        .into_iter()
        .chain([Write::Put(network_key, record)])
        .collect();
    Ok(Some(Transaction {
        guards: vec![unchanged, guard],
        writes,
    }))
}

/// A VNI that no network has, sought from a place that depends on the network's name, so that networks made
/// at the same time rarely meet.
fn free_vni_for(snapshot: &Snapshot, name: &NetworkName) -> Option<Vni> {
    let count = Vni::MAX - FIRST_CHOSEN_VNI + 1;
    let start = (stable_hash([name.as_str()]) >> 32) as u32 % count;
    (0..count)
        .filter_map(|i| Vni::new(u64::from(FIRST_CHOSEN_VNI + (start + i) % count)))
        .find(|vni| snapshot.vni_claim(*vni).is_none() && snapshot.owner_of_vni(*vni).is_none())
}

fn free_vni(snapshot: &Snapshot, vni: Vni) -> Option<Transaction> {
    let slot = snapshot.vni_claim(vni).filter(|slot| !slot.held)?;
    let claim = slot.value.as_ref()?;
    let key = Key::Vni(vni);
    let mut guards = vec![Guard::Unchanged(key.clone(), slot.mod_revision)];
    match snapshot.network(&claim.network) {
        None if is_carried(snapshot, &claim.network) => return None,
        None => {
            guards.push(Guard::Absent(Key::Network(claim.network.clone())));
            // Deleted by hand, it is carried on by the hosts of its endpoints, which this host need not know; and by those
            // that have not heard of it yet, whose claims are there until their interfaces are rid of the addresses.
            guards.push(Guard::Empty(Scope::Endpoints(claim.network.clone())));
            guards.push(Guard::Empty(Scope::Addresses(claim.network.clone())));
        }
        // The network was given another VNI.
        Some(s) if !s.bad && !s.held => {
            s.value.as_ref()?.vni.filter(|other| *other != vni)?;
            guards.push(Guard::Unchanged(
                Key::Network(claim.network.clone()),
                s.mod_revision,
            ));
        }
        Some(_) => return None,
    }
    Some(Transaction {
        guards,
        writes: vec![Write::Delete(key)],
    })
}

/// Without its trace an address seems never to have been used, and is chosen first: what has not cooled down keeps it.
fn forget_released(snapshot: &Snapshot, network: &NetworkName, cooled_to: i64) -> Option<Transaction> {
    let members = snapshot.members(network)?;
    if members.released().len() <= MOST_RELEASED + RELEASED_SLACK {
        return None;
    }
    let oldest = members
        .released()
        .take(FORGOTTEN_AT_ONCE)
        .take_while(|(at, _)| *at <= cooled_to)
        .map(|(at, address)| (at, Key::Released(network.clone(), address)));
    let (guards, writes): (Vec<_>, Vec<_>) = oldest
        .map(|(at, key)| (Guard::Unchanged(key.clone(), at), Write::Delete(key)))
        .unzip();
    (!writes.is_empty()).then_some(Transaction { guards, writes })
}
