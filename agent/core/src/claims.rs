//! Claims of addresses as pure decisions: which to ask for, and the one transaction that takes or gives up
//! the claim together with its endpoint. Whether it happens is the store's to say.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;
use weft_store_schema::{
    AddressClaimDocument, AddressRange, EndpointDocument, EndpointRef, Family, Key, Mac, Network,
    NetworkDocument, NetworkName, NodeName, Subnet, Vni, VniClaimDocument, encode, set_fields,
};

use crate::{
    hash::stable_hash,
    members::{Member, Members},
    record::{Guard, Scope, Transaction, Write},
    snapshot::Snapshot,
};

/// Why an endpoint cannot have what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The network has no valid record.
    NoNetwork(NetworkName),
    /// The network exists already.
    NetworkExists(NetworkName),
    /// A wished VNI is another network's.
    VniTaken {
        /// The VNI.
        vni: Vni,
        /// The network that has it.
        holder: NetworkName,
    },
    /// The endpoint exists already.
    Exists(EndpointRef),
    /// There is no such endpoint.
    NoEndpoint(EndpointRef),
    /// A wished address is in none of the network's subnets.
    Outside {
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkName,
        /// Its subnets.
        subnets: Vec<IpNet>,
    },
    /// A wished address is kept for something else.
    Reserved {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// A wished address is held.
    Taken {
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkName,
        /// The endpoint that holds it; none if its claim cannot be read.
        holder: Option<EndpointRef>,
    },
    /// Nothing is free.
    Full {
        /// The network.
        network: NetworkName,
        /// The subnets of the family that was asked for, with the number of addresses in use and in all.
        subnets: Vec<(IpNet, u128, u128)>,
    },
    /// A wished MAC is another endpoint's.
    MacTaken {
        /// The MAC.
        mac: Mac,
        /// The endpoint that has it.
        holder: EndpointRef,
    },
    /// The network cannot be deleted while it has endpoints.
    InUse(NetworkName),
}

impl Refusal {
    /// The field of an endpoint's record that asks for what cannot be had, if one does. `requested` and
    /// `addresses` are the record's.
    pub fn field(&self, requested: &[IpAddr], addresses: &[IpAddr]) -> Option<String> {
        let place = |address: &IpAddr| {
            let at = |field: &str, all: &[IpAddr]| {
                all.iter()
                    .position(|a| a == address)
                    .map(|i| format!("{field}[{i}]"))
            };
            at("requested_addresses", requested).or_else(|| at("addresses", addresses))
        };
        match self {
            Self::Outside { address, .. } | Self::Reserved { address, .. } | Self::Taken { address, .. } => {
                place(address)
            }
            Self::MacTaken { .. } => Some("mac".to_owned()),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNetwork(network) => {
                write!(f, "network {network} does not exist, or its record is not valid")
            }
            Self::NetworkExists(network) => write!(f, "network {network} exists already"),
            Self::VniTaken { vni, holder } => write!(f, "VNI {vni} belongs to network {holder}"),
            Self::Exists(endpoint) => write!(f, "endpoint {endpoint} exists already"),
            Self::NoEndpoint(endpoint) => write!(f, "there is no endpoint {endpoint}"),
            Self::Outside {
                address,
                network,
                subnets,
            } => {
                let subnets: Vec<_> = subnets.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "{address} is in none of the subnets of network {network}: {}",
                    subnets.join(", ")
                )
            }
            Self::Reserved { address, subnet } => write!(
                f,
                "{address} is not for endpoints: it is the gateway, the network or broadcast address, or reserved in {subnet}"
            ),
            Self::Taken {
                address,
                holder: Some(holder),
                ..
            } => write!(f, "{address} is held by endpoint {holder}"),
            Self::Taken {
                address,
                network,
                holder: None,
            } => write!(
                f,
                "{address} is held by whoever, for its claim cannot be read: delete the record addresses/{network}/{address}"
            ),
            Self::Full { network, subnets } => {
                write!(f, "network {network}: ")?;
                for (i, (subnet, used, size)) in subnets.iter().enumerate() {
                    write!(
                        f,
                        "{}{subnet} is full ({used} of {size})",
                        if i > 0 { ", " } else { "" }
                    )?;
                }
                Ok(())
            }
            Self::MacTaken { mac, holder } => write!(f, "{mac} is the MAC of endpoint {holder}"),
            Self::InUse(network) => write!(f, "network {network} has endpoints; detach them first"),
        }
    }
}

/// The transaction that creates an endpoint with its claims: one address of each of the network's families,
/// those wished for first. `taken` are addresses that are being claimed by other transactions just now: not
/// chosen, but not refused either to who wishes for one.
///
/// # Errors
/// A [`Refusal`] when the view of the network already shows that it cannot be.
pub fn attach(
    snapshot: &Snapshot,
    name: &EndpointRef,
    document: EndpointDocument,
    taken: &BTreeSet<IpAddr>,
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
    let addresses = allocate(network, members, name, &wished, &[], taken)?;
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
    claim_all(&mut transaction, members, name, &addresses);
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
    taken: &BTreeSet<IpAddr>,
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
        members.claimed_by(&member).into_iter().collect()
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
    let addresses = allocate(network, members, name, &wished, &kept, taken)?;
    let mac = choose_mac(members, name, written.mac.or(endpoint.mac), &addresses)?;
    let mut transaction = Transaction {
        guards: vec![
            Guard::Unchanged(Key::Endpoint(name.clone()), slot.mod_revision),
            Guard::Unchanged(Key::Network(name.network.clone()), network_at),
        ],
        writes: Vec::new(),
    };
    claim_all(&mut transaction, members, name, &addresses);
    // All of it, also what the record no longer told of.
    for given_up in members.claimed_by(&member) {
        if !addresses.contains(&given_up) {
            give_up(&mut transaction, members, name, given_up);
        }
    }
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
    let slot = snapshot.endpoint(name).ok_or_else(no)?;
    let members = snapshot.members(&name.network).ok_or_else(no)?;
    let key = Key::Endpoint(name.clone());
    let mut transaction = Transaction {
        guards: vec![Guard::Unchanged(key.clone(), slot.mod_revision)],
        writes: vec![Write::Delete(key)],
    };
    for address in members.claimed_by(&(name.node.clone(), name.id.clone())) {
        give_up(&mut transaction, members, name, address);
    }
    Ok(transaction)
}

/// The transaction that gives up a claim whose endpoint does not exist, or no longer names the address.
pub fn release_orphan(snapshot: &Snapshot, network: &NetworkName, address: IpAddr) -> Option<Transaction> {
    if !snapshot.knows_claims(network) {
        return None;
    }
    let slot = snapshot.members(network)?.claim(address)?;
    let claim = slot.value.as_ref()?;
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
    let key = Key::Address(network.clone(), address);
    Some(Transaction {
        // Both guards together: not the next holder's claim, and not an endpoint that has come meanwhile.
        guards: vec![Guard::Unchanged(key.clone(), slot.mod_revision), endpoint_guard],
        writes: vec![Write::Delete(key)],
    })
}

/// The transaction that creates a network, with the claim of its VNI if it wishes for one.
///
/// # Errors
/// When the network exists, or the VNI is taken.
pub fn create_network(
    snapshot: &Snapshot,
    name: &NetworkName,
    document: &NetworkDocument,
) -> Result<Transaction, Refusal> {
    if snapshot.network(name).is_some_and(|slot| !slot.held) {
        return Err(Refusal::NetworkExists(name.clone()));
    }
    let key = Key::Network(name.clone());
    let mut transaction = Transaction {
        guards: vec![Guard::Absent(key.clone())],
        writes: vec![Write::Put(key, encode(document))],
    };
    if let Some(vni) = document.vni.and_then(Vni::new) {
        let claimed = snapshot
            .vni_claim(vni)
            .and_then(|slot| slot.value.as_ref())
            .map(|claim| &claim.network);
        if let Some(holder) = claimed
            .or(snapshot.owner_of_vni(vni))
            .filter(|holder| *holder != name)
        {
            return Err(Refusal::VniTaken {
                vni,
                holder: holder.clone(),
            });
        }
        match snapshot.vni_claim(vni) {
            Some(own) if !own.held => transaction
                .guards
                .push(Guard::Unchanged(Key::Vni(vni), own.mod_revision)),
            _ => {
                let claim = VniClaimDocument {
                    version: None,
                    network: name.to_string(),
                };
                transaction.guards.push(Guard::Absent(Key::Vni(vni)));
                transaction.writes.push(Write::Put(Key::Vni(vni), encode(&claim)));
            }
        }
    }
    Ok(transaction)
}

/// The transaction that deletes a network and its claim of a VNI; it cannot happen while endpoints exist.
///
/// # Errors
/// When there is no such network.
pub fn delete_network(snapshot: &Snapshot, name: &NetworkName) -> Result<Transaction, Refusal> {
    let slot = snapshot
        .network(name)
        .ok_or_else(|| Refusal::NoNetwork(name.clone()))?;
    if snapshot.members(name).is_some_and(|members| members.count() > 0) {
        return Err(Refusal::InUse(name.clone()));
    }
    let key = Key::Network(name.clone());
    let mut transaction = Transaction {
        guards: vec![
            Guard::Unchanged(key.clone(), slot.mod_revision),
            Guard::Empty(Scope::Endpoints(name.clone())),
        ],
        writes: vec![Write::Delete(key)],
    };
    for (vni, claim) in snapshot.vnis().filter(|(_, slot)| !slot.held) {
        if claim.value.as_ref().is_some_and(|c| c.network == *name) {
            transaction
                .guards
                .push(Guard::Unchanged(Key::Vni(*vni), claim.mod_revision));
            transaction.writes.push(Write::Delete(Key::Vni(*vni)));
        }
    }
    Ok(transaction)
}

fn network_of<'a>(snapshot: &'a Snapshot, name: &NetworkName) -> Result<(&'a Network, i64), Refusal> {
    snapshot
        .network(name)
        .filter(|slot| !slot.held)
        .and_then(|slot| Some((slot.value.as_ref()?, slot.mod_revision)))
        .ok_or_else(|| Refusal::NoNetwork(name.clone()))
}

fn claim_all(transaction: &mut Transaction, members: &Members, name: &EndpointRef, addresses: &[IpAddr]) {
    let member: Member = (name.node.clone(), name.id.clone());
    for address in addresses {
        let key = Key::Address(name.network.clone(), *address);
        match members.claim(*address) {
            Some(slot) if members.is_claimed_by(*address, &member) && !slot.held => {
                transaction.guards.push(Guard::Unchanged(key, slot.mod_revision));
            }
            _ => {
                let claim = AddressClaimDocument::of(&name.node, &name.id);
                transaction.guards.push(Guard::Absent(key.clone()));
                transaction.writes.push(Write::Put(key, encode(&claim)));
            }
        }
    }
}

fn give_up(transaction: &mut Transaction, members: &Members, name: &EndpointRef, address: IpAddr) {
    let member: Member = (name.node.clone(), name.id.clone());
    if let Some(slot) = members
        .claim(address)
        .filter(|_| members.is_claimed_by(address, &member))
    {
        let key = Key::Address(name.network.clone(), address);
        transaction
            .guards
            .push(Guard::Unchanged(key.clone(), slot.mod_revision));
        transaction.writes.push(Write::Delete(key));
    }
}

/// The addresses of an endpoint: those wished for, those it holds already in families without a wish, and
/// free ones in the families that are left. IPv4 first.
fn allocate(
    network: &Network,
    members: &Members,
    name: &EndpointRef,
    wished: &[IpAddr],
    kept: &[IpAddr],
    taken: &BTreeSet<IpAddr>,
) -> Result<Vec<IpAddr>, Refusal> {
    let member: Member = (name.node.clone(), name.id.clone());
    for address in wished {
        let subnet = network.subnet_of(*address).ok_or_else(|| Refusal::Outside {
            address: *address,
            network: name.network.clone(),
            subnets: network.subnets.iter().map(|s| s.net).collect(),
        })?;
        if !subnet.admits(*address) {
            return Err(Refusal::Reserved {
                address: *address,
                subnet: subnet.net,
            });
        }
        let claim = members
            .claim(*address)
            .filter(|_| !members.is_claimed_by(*address, &member));
        if let Some(slot) = claim {
            let holder = slot.value.as_ref().map(|claim| EndpointRef {
                network: name.network.clone(),
                node: claim.node.clone(),
                id: claim.id.clone(),
            });
            return Err(Refusal::Taken {
                address: *address,
                network: name.network.clone(),
                holder,
            });
        }
    }
    let mut addresses = Vec::new();
    for family in network.families() {
        let of_family = |all: &[IpAddr]| -> Vec<IpAddr> {
            all.iter().copied().filter(|a| Family::of(*a) == family).collect()
        };
        let mut here = of_family(wished);
        if here.is_empty() {
            here = of_family(kept);
        }
        if here.is_empty() {
            here.push(choose_address(network, members, name, family, taken)?);
        }
        addresses.extend(here);
    }
    Ok(addresses)
}

/// A free address of a family. The search starts at a place that depends on the node, so that agents that
/// choose at the same time rarely choose the same.
fn choose_address(
    network: &Network,
    members: &Members,
    name: &EndpointRef,
    family: Family,
    claiming: &BTreeSet<IpAddr>,
) -> Result<IpAddr, Refusal> {
    let mut full = Vec::new();
    for subnet in network.subnets.iter().filter(|s| s.family() == family) {
        let mut taken = kept_out(subnet);
        let size = size_of(subnet.range) - covered(&merge(taken.clone()), subnet.range);
        let in_use = members
            .claims()
            .map(|(address, _)| address)
            .chain(members.addresses())
            .chain(claiming)
            .filter(|a| subnet.range.contains(**a))
            .map(|a| (number(*a), number(*a)));
        taken.extend(in_use);
        let taken = merge(taken);
        let first = number(subnet.range.first);
        let last = number(subnet.range.last);
        let start = first + start_offset(&name.node) % size_of(subnet.range);
        let found = first_gap(&taken, start, last).or_else(|| first_gap(&taken, first, start));
        if let Some(found) = found {
            return Ok(address(found, family));
        }
        full.push((subnet.net, size, size));
    }
    Err(Refusal::Full {
        network: name.network.clone(),
        subnets: full,
    })
}

/// What of a subnet is never chosen, as inclusive ranges.
fn kept_out(subnet: &Subnet) -> Vec<(u128, u128)> {
    let mut ranges: Vec<_> = subnet
        .reserved
        .iter()
        .map(|r| (number(r.first), number(r.last)))
        .collect();
    let edges = [subnet.net.network(), subnet.net.broadcast()];
    let single = edges
        .into_iter()
        .chain(subnet.gateway)
        .filter(|a| !subnet.admits(*a));
    ranges.extend(single.map(|a| (number(a), number(a))));
    ranges
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

fn address(number: u128, family: Family) -> IpAddr {
    match family {
        // Numbers come from addresses of the family, so they fit.
        Family::V4 => IpAddr::V4((number as u32).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

/// The number of addresses in a range; one less than the truth for all of IPv6, which no subnet is.
fn size_of(range: AddressRange) -> u128 {
    (number(range.last) - number(range.first)).saturating_add(1)
}

fn start_offset(node: &NodeName) -> u128 {
    let hash = stable_hash([node.as_str()]);
    u128::from(hash ^ (hash >> 32))
}

fn merge(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn covered(merged: &[(u128, u128)], range: AddressRange) -> u128 {
    let (low, high) = (number(range.first), number(range.last));
    merged
        .iter()
        .map(|(first, last)| ((*first).max(low), (*last).min(high)))
        .filter(|(first, last)| first <= last)
        .map(|(first, last)| last - first + 1)
        .sum()
}

/// The first number from `start` to `end` that no range covers.
fn first_gap(merged: &[(u128, u128)], start: u128, end: u128) -> Option<u128> {
    let at = merged.partition_point(|(_, last)| *last < start);
    let candidate = match merged.get(at) {
        Some((first, last)) if *first <= start => last.checked_add(1)?,
        _ => start,
    };
    (candidate <= end).then_some(candidate)
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
