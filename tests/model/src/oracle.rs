//! What an agent may decide, from what it sees: addresses counted one by one, the view held against etcd's history.

use std::{collections::BTreeSet, net::IpAddr};

use weft_core::{
    claims::{Choosing, Refusal},
    members::Members,
    record::{Guard, Scope, Transaction, Write},
    snapshot::{Snapshot, directory},
};
use weft_store_schema::{Holder, Key, NetworkName};

use crate::{
    agent::{Agent, Feed},
    reference::{Reference, Verdict, must},
};

/// After a lost race, one of so many of the oldest is chosen.
const CROWD: usize = 32;

/// The view of a network is not older than what the watch has told, and nothing in it was never there.
pub(crate) fn check_view(agent: &Agent, network: &NetworkName, reference: &Reference) -> Verdict {
    let snapshot = &agent.snapshot;
    let scopes = [
        Scope::Networks,
        Scope::Endpoints(network.clone()),
        Scope::Addresses(network.clone()),
        Scope::Released(network.clone()),
    ];
    for scope in &scopes {
        let Some(told) = agent.feeds.get(scope).map(Feed::told).filter(|told| *told > 0) else {
            continue;
        };
        let directory = directory(snapshot.prefix(), snapshot.node(), scope);
        for turns in reference.below(&directory) {
            let (key, seen) = (&turns.key, seen(snapshot, &turns.key));
            must!(
                turns.were(seen, told),
                "{} sees {key} as of revision {seen:?}, and was told of {scope:?} up to {told}",
                agent.node()
            );
        }
    }
    Ok(())
}

/// The revision at which a key was last written, as far as is seen; none if it does not seem to be there.
fn seen(snapshot: &Snapshot, key: &Key) -> Option<i64> {
    match key {
        Key::Network(name) => {
            let slot = snapshot.network(name).filter(|slot| !slot.held)?;
            Some(slot.mod_revision)
        }
        Key::Endpoint(name) => {
            let slot = snapshot.endpoint(name).filter(|slot| !slot.held)?;
            Some(slot.mod_revision)
        }
        Key::Address(network, address) => {
            let slot = snapshot.members(network)?.claim(*address);
            Some(slot.filter(|slot| !slot.held)?.mod_revision)
        }
        Key::Released(network, address) => snapshot.members(network)?.released_at(*address),
        _ => None,
    }
}

/// What is claimed anew for nobody's wish was free, and the right one: of those never used, or the one that was given
/// up longest ago.
pub(crate) fn check_choice(
    agent: &Agent,
    transaction: &Transaction,
    wished: &[IpAddr],
    choosing: &Choosing,
    reference: &Reference,
    clock: u64,
) -> Verdict {
    for write in &transaction.writes {
        let (Write::Put(Key::Address(network, address), _)
        | Write::PutLeased(Key::Address(network, address), ..)) = write
        else {
            continue;
        };
        let key = Key::Address(network.clone(), *address);
        if wished.contains(address) || !transaction.guards.contains(&Guard::Absent(key)) {
            continue;
        }
        let nobody = Members::default();
        let members = agent.snapshot.members(network).unwrap_or(&nobody);
        let Some(view) = View::of(agent, network, members, choosing) else {
            return Err(format!("{address} was chosen in {network}, which is not seen"));
        };
        let of_family = |a: &&IpAddr| a.is_ipv4() == address.is_ipv4();
        let never: Vec<_> = view.never_used.iter().filter(of_family).collect();
        let old: Vec<_> = view.given_up.iter().map(|(_, a)| a).filter(of_family).collect();
        let right = if !never.is_empty() {
            never.contains(&address)
        } else if choosing.lost == 0 {
            old.first() == Some(&address)
        } else {
            old.iter().take(CROWD).any(|a| *a == address)
        };
        must!(
            right,
            "{} chose {address}; never used are {never:?}, given up {old:?}",
            agent.node()
        );
        // The trace may have gone since, with a reservation that nobody took over.
        let cooldown = view.cooldown;
        let given_up = reference.given_up.get(&(network.clone(), *address));
        let traced = members.released_at(*address).is_some();
        if let Some(at) = given_up.filter(|_| traced) {
            must!(
                at + cooldown <= clock,
                "{} chose {address}, which was given up {} s ago and cools down for {cooldown} s",
                agent.node(),
                clock - at
            );
        }
    }
    Ok(())
}

/// What can be chosen, as far as is seen.
struct View {
    never_used: BTreeSet<IpAddr>,
    /// The oldest first; those that have cooled down.
    given_up: Vec<(i64, IpAddr)>,
    cooldown: u64,
}

impl View {
    fn of(agent: &Agent, network: &NetworkName, members: &Members, choosing: &Choosing) -> Option<Self> {
        let record = agent.snapshot.network(network)?.value.as_ref()?;
        let mut view = Self {
            never_used: BTreeSet::new(),
            given_up: Vec::new(),
            cooldown: record.cooldown.as_secs(),
        };
        // The first subnet that has a never used one; the others are not looked into.
        for family in [true, false] {
            let mut found = false;
            for subnet in record.subnets.iter().filter(|s| s.net.addr().is_ipv4() == family) {
                let mut never = BTreeSet::new();
                for address in subnet
                    .net
                    .hosts()
                    .filter(|a| subnet.admits(*a) && subnet.range.contains(*a))
                {
                    let held =
                        members.claim(address).is_some() || members.with_address(address).next().is_some();
                    if held || choosing.claiming.contains(&address) {
                        continue;
                    }
                    match members.released_at(address) {
                        None => drop(never.insert(address)),
                        Some(at) if at <= choosing.cooled_to => view.given_up.push((at, address)),
                        Some(_) => {}
                    }
                }
                if !found {
                    found = !never.is_empty();
                    view.never_used.extend(never);
                }
            }
        }
        view.given_up.sort_unstable();
        Some(view)
    }
}

/// What is refused because of the network's records is so, as far as is seen.
pub(crate) fn check_refusal(agent: &Agent, refusal: &Refusal, choosing: &Choosing) -> Verdict {
    let nobody = Members::default();
    match refusal {
        Refusal::Full { network, subnets, .. } => {
            let members = agent.snapshot.members(network).unwrap_or(&nobody);
            let is_ipv4 = subnets.first().is_some_and(|s| s.net.addr().is_ipv4());
            if let Some(view) = View::of(agent, network, members, choosing) {
                let free = |a: &&IpAddr| a.is_ipv4() == is_ipv4;
                let never: Vec<_> = view.never_used.iter().filter(free).collect();
                let old: Vec<_> = view.given_up.iter().map(|(_, a)| a).filter(free).collect();
                must!(
                    never.is_empty() && old.is_empty(),
                    "{} says {refusal}, and {never:?} and {old:?} are free",
                    agent.node()
                );
            }
        }
        Refusal::Taken { address, network, .. } => {
            let members = agent.snapshot.members(network).unwrap_or(&nobody);
            must!(members.claim(*address).is_some(), "{refusal}, which is not so");
        }
        Refusal::NoReservation(network, reservation) => {
            let members = agent.snapshot.members(network).unwrap_or(&nobody);
            let record = agent
                .snapshot
                .network(network)
                .and_then(|slot| slot.value.as_ref());
            let there = members.claims().any(|(address, slot)| {
                let subnet = record.and_then(|record| record.subnet_of(address));
                // One of an earlier network of the name is none.
                subnet.is_some_and(|subnet| subnet.admits(address))
                    && slot.value.as_ref().is_some_and(|claim| {
                        claim.holder == Holder::Reservation
                            && (&claim.node, &claim.id) == (&reservation.0, &reservation.1)
                    })
            });
            must!(!there, "{refusal}, which is not so");
        }
        _ => {}
    }
    Ok(())
}
