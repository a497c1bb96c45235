//! What must hold once everything is healed, nothing is asked for any more, and the agents have had time to catch up:
//! the kernel is what the records say, no more and no less, on every host; everybody was told the truth; all talk.
//!
//! Inputs: the records by a read, the kernel's own listings, what the workers were answered. It must not ask an agent
//! for anything but how it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weft_e2e::{Fdb, Station, fdb, neighbours, status, unanswered};
use weft_lab::{Host, Lab, Namespace, eventually};

use crate::containers;
use crate::records::{Endpoint, Name, Records};
use crate::verdict::{Verdict, lock};
use crate::witness::Witness;
use crate::worker::{Belief, Place};

/// How long agents may take to find etcd again and catch up.
const CATCHING_UP: Duration = Duration::from_secs(30);
/// How long a container may take to be answered by another one.
const TALKING: Duration = Duration::from_secs(4);
/// How many containers of each network are pinged by each other.
const SAMPLE: usize = 8;

/// Waits until all holds, and notes what does not.
///
/// # Errors
/// When the storm itself fails.
pub fn check(lab: &Lab, places: &[Place], witness: &Witness<'_>, verdict: &Verdict) -> Result<()> {
    let start = Instant::now();
    let settled = eventually(CATCHING_UP, "the kernel is what the records say", || {
        let mut found = Err(anyhow::anyhow!("no member of etcd answers"));
        for member in lab.etcd_members() {
            found = witness.read_once(member.number());
            if found.is_ok() {
                break;
            }
        }
        let (revision, records) = found?;
        ensure!(verdict.violations().is_empty(), "something is wrong already");
        agrees(lab, places, &records)?;
        // Nothing has changed while it was looked at, and the watch told what the read did.
        let ledger = lock(&witness.ledger);
        ensure!(
            ledger.revision() == revision,
            "the store is at another revision than {revision}"
        );
        if *ledger.records() != records {
            bail!(
                "the watch and the read differ:\n{:#?}\n{records:#?}",
                ledger.records()
            );
        }
        Ok(records)
    });
    let records = match settled {
        Ok(records) => records,
        Err(error) => {
            verdict.violated(format!("all is healed, but {error:#}"));
            return Ok(());
        }
    };
    let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    verdict.count("settled", "times", 1);
    verdict.count("settled", "ms to settle in all", took);
    verdict.count("settled", "endpoints compared", records.endpoints.len() as u64);
    for why in promises(places, &records, verdict) {
        verdict.violated(why);
    }
    talk(places, &records, verdict)
}

/// Restarts an agent while nothing changes: it adopts all that is there and writes nothing.
///
/// # Errors
/// When the agent does not start.
pub fn restart(host: &Host, verdict: &Verdict) -> Result<()> {
    host.kill9()?;
    host.start_weftd()?;
    let status = status(host)?;
    verdict.count("settled", "restarts at rest", 1);
    if status["netlink_writes"]["total"] != 0 {
        verdict.violated(format!(
            "{} was restarted while nothing changed, and wrote {}",
            host.node(),
            status["netlink_writes"]
        ));
    }
    Ok(())
}

// The seam for `weft audit -o json`: called here for one host, its findings would be one more thing that must be empty,
// beside `Records::violations`, which asks the same of the store from outside.
fn agrees(lab: &Lab, places: &[Place], records: &Records) -> Result<()> {
    let wrong = records.violations();
    ensure!(wrong.is_empty(), "{wrong:?}");
    let mut without = BTreeSet::new();
    for host in lab.hosts() {
        let status = status(host)?;
        let node = host.node();
        ensure!(
            status["store"]["connected"] == true,
            "{node} has no store: {}",
            status["store"]
        );
        ensure!(
            status["held_deletions"].is_null(),
            "{node}: {}",
            status["held_deletions"]
        );
        for problem in status["problems"].as_array().into_iter().flatten() {
            let name = no_room(problem, records);
            without.insert(name.with_context(|| format!("{node}: {problem}"))?);
        }
    }
    // Those are not carried: nothing of them is to be seen but their records.
    let mut carried = records.clone();
    carried.endpoints.retain(|name, _| !without.contains(name));
    let records = &carried;
    let mut by_container: BTreeMap<&str, &Endpoint> = BTreeMap::new();
    for (name, endpoint) in &records.endpoints {
        let other = by_container.insert(&endpoint.netns, endpoint);
        ensure!(
            other.is_none(),
            "{name} is not the only one in {}",
            endpoint.netns
        );
    }
    for place in places {
        let path = place.container.path();
        let there = containers::look(&place.container)?;
        let there = there.map(|interface| (interface.addresses, interface.mac));
        let wanted = by_container
            .get(path.as_str())
            .map(|endpoint| (endpoint.addresses.clone(), endpoint.mac.clone()));
        ensure!(
            there == wanted,
            "{path} has {there:?}, its record says {wanted:?}"
        );
    }
    for host in lab.hosts() {
        for network in records.networks.keys() {
            forwards(host, network, records).with_context(|| format!("{network} on {}", host.node()))?;
        }
    }
    Ok(())
}

/// The endpoint whose problem it is that its network has no address left, where that is so: its record, written by hand,
/// waits for one. Nothing else may be a problem when all is settled.
fn no_room(problem: &Value, records: &Records) -> Option<Name> {
    let mut parts = problem["key"]
        .as_str()?
        .strip_prefix("endpoints/")?
        .splitn(3, '/');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let name = Name {
        network: next(),
        node: next(),
        id: next(),
    };
    let (_, counts) = problem["message"].as_str()?.rsplit_once(" is full (")?;
    let (used, size) = counts.trim_end_matches(')').split_once(" of ")?;
    let size: usize = size.parse().ok()?;
    let claims = |v4: bool| {
        let of = |(network, address): &&(String, IpAddr)| *network == name.network && address.is_ipv4() == v4;
        records.claims.keys().filter(of).count()
    };
    let is_full = used == size.to_string() && (claims(true) == size || claims(false) == size);
    let has_none = records.endpoints.get(&name)?.addresses.is_empty();
    (is_full && has_none).then_some(name)
}

/// Bridge, tunnel and neighbours of a network on a host.
fn forwards(host: &Host, network: &str, records: &Records) -> Result<()> {
    let members: Vec<(&Name, &Endpoint)> = records
        .endpoints
        .iter()
        .filter(|(name, _)| name.network == network)
        .collect();
    let node = host.node();
    let (local, remote): (Vec<_>, Vec<_>) = members.into_iter().partition(|(name, _)| name.node == node);
    let netns = host.netns_of(network);
    if local.is_empty() {
        ensure!(
            !netns.path().exists(),
            "it has no endpoint here and is still there"
        );
        return Ok(());
    }
    let ports = ports(&netns)?;
    ensure!(
        ports.len() == local.len(),
        "{} ports for {} endpoints",
        ports.len(),
        local.len()
    );
    let (mut wanted_fdb, mut wanted_neighbours) = (BTreeSet::new(), BTreeSet::new());
    let mut entry = |mac: &str, dev: &str, dst: Option<&String>| {
        wanted_fdb.insert(Fdb {
            mac: mac.to_owned(),
            dev: dev.to_owned(),
            dst: dst.cloned(),
            master: dst.is_none(),
        });
    };
    for (name, endpoint) in local {
        let port = ports.get(name).with_context(|| format!("no port for {name}"))?;
        entry(&endpoint.mac, port, None);
    }
    for (name, endpoint) in remote {
        let vtep = records
            .peers
            .get(&name.node)
            .with_context(|| format!("no peer {}", name.node))?;
        entry(&endpoint.mac, "vx4", Some(vtep));
        entry(&endpoint.mac, "vx4", None);
        for address in &endpoint.addresses {
            wanted_neighbours.insert((address.to_string(), endpoint.mac.clone()));
        }
    }
    same("forwarding entries", &fdb(&netns)?, &wanted_fdb)?;
    same("neighbours", &neighbours(&netns)?, &wanted_neighbours)
}

fn same<T: Ord + std::fmt::Debug>(what: &str, there: &BTreeSet<T>, wanted: &BTreeSet<T>) -> Result<()> {
    let too_much: Vec<_> = there.difference(wanted).collect();
    let missing: Vec<_> = wanted.difference(there).collect();
    ensure!(
        too_much.is_empty() && missing.is_empty(),
        "{what}: too much {too_much:?}, missing {missing:?}"
    );
    Ok(())
}

/// The endpoints' ports of a bridge, by what their aliases say.
fn ports(netns: &Namespace) -> Result<BTreeMap<Name, String>> {
    let links = netns.ip_json(&["link", "show", "type", "veth"])?;
    let mut ports = BTreeMap::new();
    for link in links.as_array().into_iter().flatten() {
        let alias = link["ifalias"].as_str().unwrap_or_default();
        let mut parts = alias.split(' ').nth(1).unwrap_or_default().splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default().to_owned();
        let name = Name {
            network: next(),
            node: next(),
            id: next(),
        };
        let port = link["ifname"].as_str().unwrap_or_default().to_owned();
        ensure!(
            ports.insert(name, port).is_none(),
            "two ports with the alias {alias:?}"
        );
    }
    Ok(ports)
}

/// What workers were told and is not so: an endpoint that was attached and not detached is there as it was answered;
/// one that was detached is not.
fn promises(places: &[Place], records: &Records, verdict: &Verdict) -> Vec<String> {
    let mut wrong = Vec::new();
    for place in places {
        let node = format!("host{}", place.host);
        let there: Vec<_> = place
            .ids
            .iter()
            .filter_map(|id| {
                let name = Name {
                    network: place.network.clone(),
                    node: node.clone(),
                    id: id.clone(),
                };
                Some((id, records.endpoints.get(&name)?))
            })
            .collect();
        let belief = lock(&place.belief).clone();
        let good = match (&belief, there.as_slice()) {
            (Belief::Attached { id, addresses, .. }, [(there, endpoint)]) => {
                id == *there && *addresses == endpoint.addresses
            }
            (Belief::Free { .. }, []) | (Belief::Unclear, [] | [_]) => true,
            (Belief::Free { doubtful: true }, [_]) => {
                verdict.count("settled", "given up on, carried out later", 1);
                true
            }
            _ => false,
        };
        place.settle(!there.is_empty());
        if !good {
            let calls = lock(&place.calls).clone();
            let calls = &calls[calls.len().saturating_sub(8)..];
            wrong.push(format!(
                "{} on {node}: by the answers {belief:?}, by the records {there:?}; the last calls:\n      {}",
                place.container.path(),
                calls.join("\n      ")
            ));
        }
    }
    wrong
}

fn talk(places: &[Place], records: &Records, verdict: &Verdict) -> Result<()> {
    let mut by_network: BTreeMap<&str, Vec<Station>> = BTreeMap::new();
    let by_path: BTreeMap<String, &Place> = places
        .iter()
        .map(|place| (place.container.path(), place))
        .collect();
    for (name, endpoint) in &records.endpoints {
        let Some(place) = by_path.get(&endpoint.netns) else {
            continue;
        };
        by_network.entry(&name.network).or_default().push(Station {
            network: name.network.clone(),
            host: place.host,
            id: name.id.clone(),
            container: place.container.clone(),
            addresses: endpoint.addresses.iter().copied().collect(),
        });
    }
    for (network, mut stations) in by_network {
        // From all hosts in turn; the records are in the order of hosts.
        let step = stations.len().div_ceil(SAMPLE).max(1);
        stations = stations.into_iter().step_by(step).collect();
        let pairs = stations.len() * stations.len().saturating_sub(1);
        verdict.count("settled", "pairs that talked", pairs as u64);
        let mut silent = unanswered(&stations, TALKING)?;
        if !silent.is_empty() {
            let stale = forget_stale(&stations, records)?;
            if stale > 0 {
                verdict.count("settled", "stale neighbour entries of containers", stale);
                silent = unanswered(&stations, TALKING)?;
            }
        }
        if !silent.is_empty() {
            verdict.violated(format!(
                "{network}: all is settled, but these do not talk: {silent:?}"
            ));
        }
    }
    Ok(())
}

/// Has containers forget neighbours whose address was given to an endpoint with another MAC since they last talked, and
/// answers how many there were.
///
/// Such an entry is the container's own, made when it talked to the holder of before. weft answers questions for a
/// neighbour but does not announce one, so the container finds out by itself: after 15 to 45 s in which it takes the
/// entry for confirmed, and 8 s of probing. Until weft announces neighbours this is counted, not forbidden.
fn forget_stale(stations: &[Station], records: &Records) -> Result<u64> {
    let mut stale = 0;
    for station in stations {
        let macs: BTreeMap<String, &str> = records
            .endpoints
            .iter()
            .filter(|(name, _)| name.network == station.network)
            .flat_map(|(_, e)| e.addresses.iter().map(|a| (a.to_string(), e.mac.as_str())))
            .collect();
        let entries = station
            .container
            .netns()
            .ip_json(&["neigh", "show", "dev", "eth0"])?;
        for entry in entries.as_array().into_iter().flatten() {
            let (Some(address), Some(mac)) = (entry["dst"].as_str(), entry["lladdr"].as_str()) else {
                continue;
            };
            if macs.get(address).is_some_and(|wanted| *wanted != mac) {
                stale += 1;
                station
                    .container
                    .exec(&["ip", "neigh", "del", address, "dev", "eth0"])?;
            }
        }
    }
    Ok(stale)
}
