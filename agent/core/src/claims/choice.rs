//! Which addresses an endpoint gets: those wished for, those it holds, and free ones for the families that are
//! left.
//!
//! Of the free ones, those that were never used come first, at a place that depends on the node's place among the
//! peers, so that agents that choose at the same time choose apart however full the network is. Then the one that was
//! given up longest ago, once it has cooled down.

use std::{collections::BTreeSet, net::IpAddr};

use weft_store_schema::{EndpointRef, Family, Network, NetworkName, NodeName, Subnet};

use super::refusal::{Fullness, Refusal, TakenBy};
use crate::{
    address_set::{AddressSet, Span, address, number},
    hash::stable_hash,
    members::Members,
    snapshot::Snapshot,
};

/// After a lost race, the choice is among this many of the addresses that were given up longest ago: all agents see the
/// same oldest one.
const CROWD: usize = 32;

/// What an agent knows beyond the records when it chooses addresses.
#[derive(Debug, Clone)]
pub struct Choosing {
    /// Addresses that are being claimed by other transactions just now: not chosen, but not refused either to who
    /// wishes for one.
    pub claiming: BTreeSet<IpAddr>,
    /// What was given up at this revision or before has cooled down.
    pub cooled_to: i64,
    /// How often another agent was faster already.
    pub lost: u32,
}

impl Default for Choosing {
    fn default() -> Self {
        Self {
            claiming: BTreeSet::new(),
            cooled_to: i64::MAX,
            lost: 0,
        }
    }
}

/// Who asks for addresses, and what it may keep.
pub(super) struct Asking<'a> {
    /// The network.
    pub(super) network: &'a NetworkName,
    /// Addresses asked for.
    pub(super) wished: &'a [IpAddr],
    /// Addresses held already, kept in families without a wish.
    pub(super) kept: &'a [IpAddr],
    /// Whether the asker holds an address, whatever claim says so.
    pub(super) holds: &'a dyn Fn(IpAddr) -> bool,
    /// The families to get an address of; those that the network does not have are left out.
    pub(super) families: &'a [Family],
}

/// What holds an address, as far as its claim can be read.
pub(super) fn holder(members: &Members, network: &NetworkName, address: IpAddr) -> Option<TakenBy> {
    let claim = members.claim(address)?.value?;
    Some(match claim.holder {
        weft_store_schema::Holder::Endpoint => TakenBy::Endpoint(EndpointRef {
            network: network.clone(),
            node: claim.node.clone(),
            id: claim.id.clone(),
        }),
        weft_store_schema::Holder::Reservation => {
            TakenBy::Reservation((claim.node.clone(), claim.id.clone()))
        }
    })
}

/// The addresses of an endpoint or reservation: those wished for, those it holds already in families without a wish,
/// and free ones in the families that are left. IPv4 first.
pub(super) fn allocate(
    snapshot: &Snapshot,
    network: &Network,
    asking: &Asking<'_>,
    choosing: &Choosing,
) -> Result<Vec<IpAddr>, Refusal> {
    let nobody = Members::default();
    let members = snapshot.members(asking.network).unwrap_or(&nobody);
    for address in asking.wished {
        let subnet = network.subnet_of(*address).ok_or_else(|| Refusal::Outside {
            address: *address,
            network: asking.network.clone(),
            subnets: network.subnets.iter().map(|s| s.net).collect(),
        })?;
        if !subnet.admits(*address) {
            return Err(Refusal::Reserved {
                address: *address,
                subnet: subnet.net,
            });
        }
        if members.claim(*address).is_some() && !(asking.holds)(*address) {
            return Err(Refusal::Taken {
                address: *address,
                network: asking.network.clone(),
                holder: holder(members, asking.network, *address),
            });
        }
    }
    let mut addresses = Vec::new();
    for family in network.families().filter(|f| asking.families.contains(f)) {
        let of_family = |all: &[IpAddr]| -> Vec<IpAddr> {
            all.iter().copied().filter(|a| Family::of(*a) == family).collect()
        };
        let mut here = of_family(asking.wished);
        if here.is_empty() {
            here = of_family(asking.kept);
        }
        if here.is_empty() {
            let place = place_of(snapshot);
            here.push(choose(
                network,
                asking.network,
                members,
                family,
                &place,
                choosing,
            )?);
        }
        addresses.extend(here);
    }
    Ok(addresses)
}

/// Where a node stands among all: its name, how many are before it, how many there are.
struct Place<'a> {
    node: &'a NodeName,
    before: u128,
    of: u128,
}

fn place_of(snapshot: &Snapshot) -> Place<'_> {
    let node = snapshot.node();
    let (mut before, mut of) = (0, 0);
    for (other, _) in snapshot.peers().filter(|(other, _)| *other != node) {
        before += u128::from(other < node);
        of += 1;
    }
    Place {
        node,
        before,
        of: of + 1,
    }
}

fn choose(
    network: &Network,
    name: &NetworkName,
    members: &Members,
    family: Family,
    place: &Place<'_>,
    choosing: &Choosing,
) -> Result<IpAddr, Refusal> {
    let subnets: Vec<&Subnet> = network.subnets.iter().filter(|s| s.family() == family).collect();
    let never_used = subnets
        .iter()
        .find_map(|subnet| unspent(subnet, members.spent(), place, choosing));
    if let Some(address) = never_used.or_else(|| released(&subnets, members, place, choosing)) {
        return Ok(address);
    }
    Err(Refusal::Full {
        network: name.clone(),
        subnets: subnets
            .iter()
            .map(|subnet| fullness_of(subnet, members))
            .collect(),
        cooldown: network.cooldown,
    })
}

/// How full a network's subnets are.
pub fn fullness(network: &Network, members: &Members) -> Vec<Fullness> {
    let all = network.subnets.iter();
    all.map(|subnet| fullness_of(subnet, members)).collect()
}

fn fullness_of(subnet: &Subnet, members: &Members) -> Fullness {
    let spans = open(subnet);
    let count = |set: &AddressSet| -> u128 { spans.iter().map(|s| set.count(*s)).sum() };
    let used = count(members.used());
    Fullness {
        net: subnet.net,
        used,
        released: count(members.spent()) - used,
        size: spans.iter().map(|s| s.len()).sum(),
    }
}

/// What may be chosen of a subnet, whoever has it: its range without its edges, gateway and reserved addresses.
fn open(subnet: &Subnet) -> Vec<Span> {
    let mut kept_out: Vec<Span> = subnet
        .reserved
        .iter()
        .map(|r| Span {
            first: number(r.first),
            last: number(r.last),
        })
        .collect();
    let edges = [subnet.net.network(), subnet.net.broadcast()];
    let single = edges
        .into_iter()
        .chain(subnet.gateway)
        .filter(|a| !subnet.admits(*a));
    kept_out.extend(single.map(|a| Span {
        first: number(a),
        last: number(a),
    }));
    let range = Span {
        first: number(subnet.range.first),
        last: number(subnet.range.last),
    };
    range.without(kept_out)
}

/// An address of a subnet of which there is no trace that it was ever used.
fn unspent(subnet: &Subnet, spent: &AddressSet, place: &Place<'_>, choosing: &Choosing) -> Option<IpAddr> {
    let spans: Vec<(Span, u128)> = open(subnet)
        .into_iter()
        .map(|span| (span, span.len() - spent.count(span)))
        .collect();
    let free: u128 = spans.iter().map(|(_, free)| free).sum();
    if free == 0 {
        return None;
    }
    let start = if choosing.lost == 0 {
        // Divided first where the product would not fit, which are subnets that nobody fills.
        match free.checked_mul(place.before) {
            Some(product) => product / place.of,
            None => free / place.of * place.before,
        }
    } else {
        u128::from(stable_hash([place.node.as_str(), &choosing.lost.to_string()])) % free
    };
    let nth = |mut n: u128| {
        spans.iter().find_map(|(span, free)| {
            if n < *free {
                spent.nth_free(*span, n)
            } else {
                n -= free;
                None
            }
        })
    };
    // Of so many, one at least is not being claimed.
    let tries = free.min(choosing.claiming.len() as u128 + 1);
    (0..tries)
        .filter_map(|i| nth((start + i) % free))
        .map(|n| address(n, subnet.family()))
        .find(|a| !choosing.claiming.contains(a))
}

/// The address that was given up longest ago, if it has cooled down.
fn released(
    subnets: &[&Subnet],
    members: &Members,
    place: &Place<'_>,
    choosing: &Choosing,
) -> Option<IpAddr> {
    let is_open = |address: &IpAddr| {
        let mut subnets = subnets.iter();
        subnets.any(|s| s.range.contains(*address) && s.admits(*address))
    };
    let mut free = members
        .released()
        .take_while(|(at, _)| *at <= choosing.cooled_to)
        .map(|(_, address)| address)
        .filter(|a| is_open(a) && !members.used().contains(*a) && !choosing.claiming.contains(a));
    if choosing.lost == 0 {
        return free.next();
    }
    let crowd: Vec<IpAddr> = free.take(CROWD).collect();
    let hash = stable_hash([place.node.as_str(), &choosing.lost.to_string()]);
    crowd.get(hash as usize % crowd.len().max(1)).copied()
}
