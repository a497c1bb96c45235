//! Slips: one command deletes much of what is in use. Agents hold what they forward by until it comes back, whoever writes
//! it, or until somebody confirms; what else there is goes on.
//!
//! Two networks are made for each slip, with an endpoint on each of two hosts: so that there is always more than one
//! network to lose, and some that may be lost for good.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weft_e2e::{Cluster, Station, status};
use weft_lab::{Host, Lab};
use weft_storm::fault::Course;
use weft_storm::scene::Scene;
use weft_storm::verdict::Verdict;

use crate::choice::{Ending, Part, Slip};
use crate::faults::{persist, promised};

/// The networks that are made for a slip.
pub(crate) const NETWORKS: [&str; 2] = ["slip1", "slip2"];
const CIDRS: [&str; 2] = ["10.22.0.0/24", "10.23.0.0/24"];
/// The kinds of records that have to be there again as they were.
const KEPT: [&str; 4] = ["addresses", "endpoints", "networks", "vnis"];
/// How many records are put in one transaction.
const AT_ONCE: usize = 100;

/// Records by key.
type Records = BTreeMap<String, String>;

/// Happens and is made up for.
pub(crate) fn strike(scene: &Scene<'_>, slip: &Slip, course: &Course<'_>) -> Result<()> {
    let (cluster, verdict) = (scene.cluster, scene.verdict);
    let stations = make(cluster, slip.hosts, verdict)?;
    let prefix = slip.part.prefix();
    let wide = slip.part != Part::Own;
    let mut before = persist(&"the records are read", || records(cluster))?;
    // Of all others, workers are at it.
    before.retain(|key, _| wide || NETWORKS.iter().any(|network| key.contains(network)));
    if wide {
        scene.witness.ledger().begin_mending();
    }
    persist(&format!("{prefix} is deleted"), || cluster.del_prefix(prefix))?;
    verdict.note(&format!("deleted: {prefix}"));
    let hosts: Vec<&Host> = match slip.part {
        Part::Own => slip.hosts.iter().map(|host| cluster.host(*host)).collect(),
        _ => cluster.hosts().iter().collect(),
    };
    // Each agent puts its own record of a peer again, so that this is over by itself.
    if slip.part != Part::Peers {
        for host in &hosts {
            let what = format!("{} says that it holds what {prefix} was", host.node());
            promised(verdict, &what, || says_that_it_holds(host));
        }
    }
    course.rest_for(course.from.elapsed() + course.lasts / 2);
    for station in &stations {
        let has = station.container.addresses()?;
        if !verdict.is_over() && !same(&has, &station.addresses) {
            verdict.violated(format!(
                "{prefix} was deleted by a slip, and {} has {has:?} instead of {:?}",
                station.id, station.addresses
            ));
        }
    }
    verdict.note(&format!("held: {prefix}"));
    match slip.ending {
        Ending::Back => put_back(cluster, &before)?,
        Ending::Republish => republish(&hosts, verdict)?,
        Ending::Accept => accept(&hosts)?,
    }
    if slip.ending == Ending::Accept {
        gone(cluster, &stations, verdict);
    } else {
        promised(verdict, "all that was deleted is there again", || {
            is_back(cluster, &before)
        });
        for host in &hosts {
            promised(verdict, &format!("{} holds nothing", host.node()), || {
                let held = status(host)?["held_deletions"].clone();
                ensure!(held.is_null(), "{held}");
                Ok(())
            });
        }
    }
    if wide {
        let revision = persist(&"the store says where it is", || {
            let leader = cluster.etcd_leader()?;
            Ok(leader.status()?.revision)
        })?;
        scene.witness.ledger().end_mending(revision);
    }
    remove(cluster, &stations, verdict)
}

/// The networks and endpoints of this slip, when all have their addresses.
fn make(cluster: &Cluster, hosts: [usize; 2], verdict: &Verdict) -> Result<Vec<Station>> {
    for (network, cidr) in NETWORKS.into_iter().zip(CIDRS) {
        let record = json!({"subnets": [{"cidr": cidr}]}).to_string();
        // They stay: of a network that is deleted by hand the traces of its addresses are left.
        persist(&format!("{network} is made"), || {
            cluster.create(&Cluster::network_key(network), &record)
        })?;
    }
    let mut stations = Vec::new();
    for network in NETWORKS {
        for host in hosts {
            let id = format!("h{host}");
            let container = cluster.container(&format!("{network}-{id}"))?;
            stations.push(persist(&format!("{network}/{id} is written"), || {
                cluster.endpoint_in(network, host, &id, container.clone())
            })?);
        }
    }
    for station in &mut stations {
        let what = format!("{}/{} has an address", station.network, station.id);
        let addresses = promised(verdict, &what, || {
            let addresses = station.container.addresses()?;
            ensure!(!addresses.is_empty(), "it has none");
            Ok(addresses)
        });
        station.addresses = addresses.unwrap_or_default();
    }
    for station in &stations {
        // Within a second or so: before, an agent that is killed forgets what only it may write again.
        let host = cluster.host(station.host);
        let what = format!("{} has a copy of {}", host.node(), station.key());
        promised(verdict, &what, || {
            let copies = std::fs::read_to_string(host.dir().join("state/records.json"))?;
            let address = station.addresses.iter().all(|a| copies.contains(&a.to_string()));
            ensure!(address && copies.contains(&station.key()), "it has {copies}");
            Ok(())
        });
    }
    Ok(stations)
}

fn same(one: &[IpAddr], other: &[IpAddr]) -> bool {
    let set = |addresses: &[IpAddr]| -> BTreeSet<IpAddr> { addresses.iter().copied().collect() };
    set(one) == set(other)
}

/// All records but those that say who is there just now.
fn records(lab: &Lab) -> Result<Records> {
    let mut all = lab.get_prefix(Part::All.prefix())?;
    all.retain(|key, _| kind(key).is_some_and(|kind| kind == "peers" || KEPT.contains(&kind)));
    Ok(all)
}

fn kind(key: &str) -> Option<&str> {
    key.strip_prefix(Part::All.prefix())?.split('/').next()
}

/// That something is lost, and what to do. An agent that was away when the records of networks went, and found its own
/// endpoints without them, says it network by network.
fn says_that_it_holds(host: &Host) -> Result<()> {
    let status = status(host)?;
    let told = status["problems"].to_string();
    let holds = status["held_deletions"]["count"].as_u64() > Some(0);
    // One that was just being started holds what its endpoints depend on, or has nothing written down and says what is missing.
    let as_slip = told.contains("weft resync --republish");
    let in_use = told.contains("the record was deleted while endpoints");
    ensure!(
        holds && (as_slip || in_use) || told.contains("there is no such network, but"),
        "{status}"
    );
    Ok(())
}

/// As somebody does who has all in a file: whatever is not there, in the order of keys.
fn put_back(lab: &Lab, before: &Records) -> Result<()> {
    let now = persist(&"the records are read", || records(lab))?;
    let lost: Vec<_> = before.iter().filter(|(key, _)| !now.contains_key(*key)).collect();
    for some in lost.chunks(AT_ONCE) {
        let some: Vec<_> = some
            .iter()
            .map(|(key, value)| ((*key).clone(), (*value).clone()))
            .collect();
        persist(&"what was deleted is put back", || lab.put_all(&some))?;
    }
    Ok(())
}

/// On each host, and again where something is left: of others who had not written theirs.
fn republish(hosts: &[&Host], verdict: &Verdict) -> Result<()> {
    for host in hosts {
        persist(&format!("{} has written again what it has", host.node()), || {
            let output = host.weft_output(&["-o", "json", "resync", "--republish"])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            match output.status.code() {
                Some(0) => {}
                Some(4) => verdict.violated(format!("nothing is in the way on {}: {said}", host.node())),
                _ => bail!("{said}{}", String::from_utf8_lossy(&output.stderr)),
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn accept(hosts: &[&Host]) -> Result<()> {
    for host in hosts {
        persist(&format!("{} lets go", host.node()), || {
            host.weft(&["resync", "--accept"])
        })?;
    }
    Ok(())
}

/// Nothing is left of endpoints, in containers and in the store.
fn gone(lab: &Lab, stations: &[Station], verdict: &Verdict) {
    for station in stations {
        let what = format!("nothing is left of {}/{}", station.network, station.id);
        promised(verdict, &what, || {
            let has = station.container.addresses()?;
            ensure!(has.is_empty(), "its container has {has:?}");
            for address in &station.addresses {
                let claim = format!("/weft/v1/addresses/{}/{address}", station.network);
                ensure!(lab.get(&claim)?.is_none(), "{claim} is there");
            }
            Ok(())
        });
    }
}

fn is_back(lab: &Lab, before: &Records) -> Result<()> {
    let now = records(lab)?;
    for (key, value) in before {
        let again = now.get(key).with_context(|| format!("{key} is not there"))?;
        let (was, is): (Value, Value) = (serde_json::from_str(value)?, serde_json::from_str(again)?);
        // What a peer says may have changed.
        ensure!(
            was == is || kind(key) == Some("peers"),
            "{key} was {was} and is {is}"
        );
    }
    Ok(())
}

/// One by one, which is meant.
fn remove(cluster: &Cluster, stations: &[Station], verdict: &Verdict) -> Result<()> {
    for station in stations {
        persist(&format!("{} is deleted", station.id), || {
            cluster.del(&station.key())
        })?;
    }
    gone(cluster, stations, verdict);
    stations.iter().try_for_each(|station| station.container.remove())
}
