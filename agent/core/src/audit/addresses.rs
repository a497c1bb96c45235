//! Endpoints, their addresses and MACs, and the claims that say whose an address is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_store_schema::{
    AddressClaim, AddressClaimDocument, Endpoint, EndpointRef, Holder, Key, Mac, NetworkName, NodeName,
    encode,
};

use super::{
    CLAIM_HELD, Finding, FindingKind,
    records::{Record, Records},
};
use crate::{
    claims::deeds,
    record::{Guard, Scope, Transaction, Write},
};

type Place = (NetworkName, IpAddr);

pub(super) fn check(records: &Records, here: &NodeName, findings: &mut Vec<Finding>) {
    let mut named: BTreeMap<Place, Vec<&EndpointRef>> = BTreeMap::new();
    let mut macs: BTreeMap<(&NetworkName, Mac), Vec<&EndpointRef>> = BTreeMap::new();
    for (name, record) in &records.endpoints {
        whereabouts(records, name, record, findings);
        let Some(endpoint) = &record.value else { continue };
        for address in &endpoint.addresses {
            named
                .entry((name.network.clone(), *address))
                .or_default()
                .push(name);
        }
        if let Some(mac) = endpoint.mac {
            macs.entry((&name.network, mac)).or_default().push(name);
        }
    }
    let nobody = Vec::new();
    let places: BTreeSet<&Place> = records.claims.keys().chain(named.keys()).collect();
    for place in places {
        let namers = named.get(place).unwrap_or(&nobody);
        check_address(records, here, place, namers, findings);
    }
    for ((_, mac), all) in macs {
        twice(records, &all, findings, |owner| {
            let message = format!("names MAC {mac}, which is endpoint {owner}'s");
            (FindingKind::MacTwice, message)
        });
    }
    released(records, findings);
}

/// What of an endpoint does not depend on its addresses' claims.
fn whereabouts(
    records: &Records,
    name: &EndpointRef,
    record: &Record<Endpoint>,
    findings: &mut Vec<Finding>,
) {
    let key = Key::Endpoint(name.clone()).to_string();
    let mut say = |kind, message: String, remedy: String| {
        findings.push(Finding {
            key: key.clone(),
            kind,
            message,
            remedy,
            mend: None,
            after: None,
        });
    };
    let network = &name.network;
    if !records.has_network(network) {
        say(
            FindingKind::EndpointWithoutNetwork,
            format!("network {network} has no record"),
            format!(
                "put the record networks/{network} back (on {}: weft resync --republish), or detach the endpoint",
                name.node
            ),
        );
    }
    if records.lacks_peer(&name.node) {
        say(
            FindingKind::EndpointWithoutPeer,
            format!("node {} has no record peers/{}", name.node, name.node),
            format!(
                "start weftd on {0}; or, if it is gone for good: weft peer remove {0}",
                name.node
            ),
        );
    }
    let (Some((network, _)), Some(endpoint)) = (records.network(network), &record.value) else {
        return;
    };
    for address in &endpoint.addresses {
        let subnet = network.subnet_of(*address);
        let message = match subnet {
            None => format!("names {address}, which is in none of the network's subnets"),
            Some(subnet) if !subnet.admits(*address) => {
                format!("names {address}, which is not for endpoints in {}", subnet.net)
            }
            Some(_) => continue,
        };
        let remedy = "change the network back, or detach the endpoint and attach it anew".to_owned();
        say(FindingKind::AddressOutside, message, remedy);
    }
}

/// Who has it, if several say so: who holds a claim of (its first address or) the address, then who was there
/// first; the same on every host.
fn twice(
    records: &Records,
    all: &[&EndpointRef],
    findings: &mut Vec<Finding>,
    what: impl Fn(&EndpointRef) -> (FindingKind, String),
) {
    if all.len() < 2 {
        return;
    }
    let rank = |name: &EndpointRef| {
        let record = records.endpoints.get(name);
        let endpoint = record.and_then(|record| record.value.as_ref());
        let holds = endpoint.is_some_and(|endpoint| {
            let mut addresses = endpoint.addresses.iter();
            addresses.any(|address| holder(records, &(name.network.clone(), *address)) == Some(name.clone()))
        });
        let created = record.map_or(i64::MAX, |record| record.create_revision);
        (!holds, created, name.clone())
    };
    let Some(owner) = all.iter().min_by_key(|name| rank(name)) else {
        return;
    };
    for name in all.iter().filter(|name| name != &owner) {
        let (kind, message) = what(owner);
        findings.push(Finding {
            key: Key::Endpoint((*name).clone()).to_string(),
            kind,
            message,
            remedy: "detach one of the two and attach it anew".to_owned(),
            mend: None,
            after: None,
        });
    }
}

/// The endpoint for which a claim of the address can be read.
fn holder(records: &Records, place: &Place) -> Option<EndpointRef> {
    let claim = records.claims.get(place)?.value.as_ref()?;
    (claim.holder == Holder::Endpoint).then(|| holder_of(place, claim))
}

fn holder_of((network, _): &Place, claim: &AddressClaim) -> EndpointRef {
    EndpointRef {
        network: network.clone(),
        node: claim.node.clone(),
        id: claim.id.clone(),
    }
}

/// One address: its claim and those that name it.
fn check_address(
    records: &Records,
    here: &NodeName,
    place: &Place,
    namers: &[&EndpointRef],
    findings: &mut Vec<Finding>,
) {
    let (network, address) = place;
    if namers.len() > 1 {
        // Ranked by this address alone: who holds it has it.
        let owner = holder(records, place).filter(|holder| namers.contains(&holder));
        match owner {
            Some(owner) => {
                for name in namers.iter().filter(|name| **name != &owner) {
                    findings.push(address_twice(name, *address, &owner));
                }
            }
            None => twice(records, namers, findings, |owner| {
                let message = format!("names {address}, as endpoint {owner} does");
                (FindingKind::AddressTwice, message)
            }),
        }
    }
    match records.claims.get(place) {
        None => {
            if let [name] = namers {
                findings.push(not_claimed(records, place, name));
            }
        }
        Some(Record {
            value: Some(claim),
            mod_revision,
            leased,
            ..
        }) => {
            let at = *mod_revision;
            match claim.holder {
                Holder::Endpoint => endpoint_claim(records, here, place, (claim, at), namers, findings),
                Holder::Reservation => reservation(records, place, (claim, at, *leased), namers, findings),
            }
        }
        // A claim that cannot be read is told of already.
        Some(_) => {}
    }
    if records.claims.contains_key(place)
        && let Some(trace) = records.released.get(place)
    {
        let key = Key::Released(network.clone(), *address);
        let claim = Key::Address(network.clone(), *address);
        let claimed_at = records.claims.get(place).map_or(0, |claim| claim.mod_revision);
        findings.push(Finding {
            key: key.to_string(),
            kind: FindingKind::ReleasedButClaimed,
            message: "says that the address was given up, and it is claimed".to_owned(),
            remedy: "delete the trace".to_owned(),
            mend: Some(Transaction {
                guards: vec![
                    Guard::Unchanged(key.clone(), trace.mod_revision),
                    Guard::Unchanged(claim, claimed_at),
                ],
                writes: vec![Write::Delete(key)],
            }),
            after: None,
        });
    }
}

fn address_twice(name: &EndpointRef, address: IpAddr, owner: &EndpointRef) -> Finding {
    Finding {
        key: Key::Endpoint(name.clone()).to_string(),
        kind: FindingKind::AddressTwice,
        message: format!("names {address}, which endpoint {owner} holds"),
        remedy: "detach it and attach it anew".to_owned(),
        mend: None,
        after: None,
    }
}

/// The one endpoint that names an address which nobody has claimed.
fn not_claimed(records: &Records, place: &Place, name: &EndpointRef) -> Finding {
    let (network, address) = place;
    let is_held = records.held().contains(&Key::Address(network.clone(), *address));
    let guards = (!is_held).then(|| entitled(records, place, name)).flatten();
    let mend = guards.map(|guards| {
        let mut mend = Transaction {
            guards,
            writes: Vec::new(),
        };
        let trace_at = records.released.get(place).map(|trace| trace.mod_revision);
        deeds::claim(&mut mend, (network, *address), trace_at, |key| {
            Write::Put(key, claim_of(name))
        });
        mend
    });
    Finding {
        key: Key::Endpoint(name.clone()).to_string(),
        kind: FindingKind::AddressNotClaimed,
        message: format!("names {address}, which is not claimed"),
        remedy: match mend {
            Some(_) => format!("claim {address} for it"),
            None if is_held => CLAIM_HELD.to_owned(),
            None => "detach it and attach it anew".to_owned(),
        },
        mend,
        after: None,
    }
}

/// What must hold so that an endpoint may claim an address which it names; none if it may not.
fn entitled(records: &Records, (network, address): &Place, name: &EndpointRef) -> Option<Vec<Guard>> {
    let endpoint = records.endpoints.get(name)?;
    let (record, unchanged) = records.network(network)?;
    let admitted = record.subnet_of(*address).is_some_and(|s| s.admits(*address));
    let own = Guard::Unchanged(Key::Endpoint(name.clone()), endpoint.mod_revision);
    admitted.then(|| vec![own, unchanged])
}

/// What gives up a claim, if the guards hold.
fn given_up(
    records: &Records,
    (network, address): &Place,
    (claim, claimed_at): (&AddressClaim, i64),
    guards: Vec<Guard>,
) -> Transaction {
    let mut mend = Transaction {
        guards,
        writes: Vec::new(),
    };
    let network_at = records.networks.get(network).map(|record| record.mod_revision);
    deeds::give_up(
        &mut mend,
        (network, *address),
        (Some(claim), claimed_at),
        network_at,
    );
    mend
}

fn claim_of(name: &EndpointRef) -> Vec<u8> {
    encode(&AddressClaimDocument::of(&name.node, &name.id))
}

/// A claim of an endpoint.
fn endpoint_claim(
    records: &Records,
    here: &NodeName,
    place: &Place,
    (claim, claimed_at): (&AddressClaim, i64),
    namers: &[&EndpointRef],
    findings: &mut Vec<Finding>,
) {
    let holder = holder_of(place, claim);
    if namers.contains(&&holder) {
        return;
    }
    let (network, address) = place;
    let of_holder = Key::Endpoint(holder.clone());
    let (kind, why, guard) = match records.endpoints.get(&holder) {
        None if records.held().contains(&of_holder) => {
            for name in namers {
                let held = format!("endpoint {holder}, whose record is held");
                findings.push(of_another(name, *address, &held));
            }
            return;
        }
        None => (
            FindingKind::ClaimWithoutEndpoint,
            format!("claimed for endpoint {holder}, which does not exist"),
            Guard::Absent(of_holder),
        ),
        Some(Record {
            value: Some(endpoint),
            mod_revision,
            ..
        }) if !endpoint.addresses.is_empty() && !endpoint.requested().contains(address) => (
            FindingKind::ClaimNotNamed,
            format!("claimed for endpoint {holder}, which does not name it"),
            Guard::Unchanged(of_holder, *mod_revision),
        ),
        // It is about to be completed, and may take up what it held; or nobody knows what it has.
        Some(_) => {
            for name in namers {
                findings.push(of_another(name, *address, &format!("endpoint {holder}")));
            }
            return;
        }
    };
    let key = Key::Address(network.clone(), *address);
    let (remedy, mend) = match namers {
        [] => {
            let mend = given_up(records, place, (claim, claimed_at), vec![guard]);
            ("give it up".to_owned(), Some(mend))
        }
        [name] => (
            format!("make it endpoint {name}'s, which names it"),
            entitled(records, place, name).map(|mut guards| {
                guards.extend([Guard::Unchanged(key.clone(), claimed_at), guard]);
                // A trace besides is a finding of its own.
                let writes = vec![Write::Put(key.clone(), claim_of(name))];
                Transaction { guards, writes }
            }),
        ),
        _ => ("detach all that name it but one".to_owned(), None),
    };
    let remedy = match (&mend, namers) {
        (None, [name]) => format!("detach endpoint {name}, which names it, and attach it anew"),
        _ => remedy,
    };
    // Its container may have the address as long as its host has not taken it off.
    let node = &holder.node;
    let is_anothers = node != here && records.has_peer(node);
    let (remedy, mend) = match mend {
        Some(_) if is_anothers => (
            format!("{node} does that when its container is rid of it; else, on {node}: weft audit --repair"),
            None,
        ),
        Some(mut mend) if node != here => {
            // Nobody is left to do it.
            mend.guards.push(deeds::nobody_left(node));
            (remedy, Some(mend))
        }
        mend => (remedy, mend),
    };
    let after = (mend.is_some() && node == here).then(|| (holder.clone(), *address));
    findings.push(Finding {
        key: key.to_string(),
        kind,
        message: why,
        remedy,
        mend,
        after,
    });
}

fn of_another(name: &EndpointRef, address: IpAddr, holder: &str) -> Finding {
    Finding {
        key: Key::Endpoint(name.clone()).to_string(),
        kind: FindingKind::AddressOfAnother,
        message: format!("names {address}, which is claimed for {holder}"),
        remedy: "detach it and attach it anew".to_owned(),
        mend: None,
        after: None,
    }
}

/// A claim of somebody who is about to make an endpoint.
fn reservation(
    records: &Records,
    place: &Place,
    (claim, claimed_at, leased): (&AddressClaim, i64, bool),
    namers: &[&EndpointRef],
    findings: &mut Vec<Finding>,
) {
    let (network, address) = place;
    let key = Key::Address(network.clone(), *address);
    let of = format!("reservation {}/{}", claim.node, claim.id);
    let nothing_else = namers.is_empty();
    for name in namers {
        findings.push(of_another(name, *address, &of));
    }
    if !leased {
        findings.push(Finding {
            key: key.to_string(),
            kind: FindingKind::ReservationWithoutLease,
            message: format!("held by {of} under no lease, and so for ever"),
            remedy: "give it up".to_owned(),
            mend: Some(given_up(records, place, (claim, claimed_at), Vec::new())),
            after: None,
        });
    } else if nothing_else && let Some((record, _)) = records.network(network) {
        let admitted = record.subnet_of(*address).is_some_and(|s| s.admits(*address));
        if !admitted {
            findings.push(Finding {
                key: key.to_string(),
                kind: FindingKind::ClaimOutside,
                message: format!("held by {of}, and not for endpoints in network {network}"),
                remedy: "wait until its lease ends".to_owned(),
                mend: None,
                after: None,
            });
        }
    }
}

/// Traces of addresses of networks that are gone, one finding a network.
fn released(records: &Records, findings: &mut Vec<Finding>) {
    let mut traces: BTreeMap<&NetworkName, usize> = BTreeMap::new();
    for (network, _) in records.released.keys() {
        // With endpoints, the network is missing, and not its traces too many.
        if !records.has_network(network) && !records.with_endpoints.contains(network) {
            *traces.entry(network).or_default() += 1;
        }
    }
    for (network, count) in traces {
        let noun = if count == 1 { "trace" } else { "traces" };
        findings.push(Finding {
            key: format!("released/{network}/"),
            kind: FindingKind::ReleasedWithoutNetwork,
            message: format!("{count} {noun} of addresses, and network {network} does not exist"),
            remedy: "delete them".to_owned(),
            mend: Some(Transaction {
                guards: vec![
                    Guard::Absent(Key::Network(network.clone())),
                    Guard::Empty(Scope::Endpoints(network.clone())),
                ],
                writes: vec![Write::DeleteAll(Scope::Released(network.clone()))],
            }),
            after: None,
        });
    }
}
