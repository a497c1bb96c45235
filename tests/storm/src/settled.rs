//! What must hold once everything is healed, nothing is asked for any more, and the agents have had time to catch up:
//! the kernel is what the records say, no more and no less, on every host; everybody was told the truth; all talk.
//!
//! Inputs: the records by a read, what [`oracle`] makes of them, the kernel's own listings, what the workers were
//! answered. It must not ask an agent for anything but how it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weft_e2e::{Station, status, unanswered};
use weft_lab::{Host, Lab, eventually};

use crate::records::{Name, Peer, Records};
use crate::scene::Scene;
use crate::verdict::{Verdict, lock};
use crate::worker::{Belief, Place};
use crate::{kernel, oracle};

/// How long agents may take to find etcd again and catch up.
const CATCHING_UP: Duration = Duration::from_secs(30);
/// How long a container may take to be answered by another one.
const TALKING: Duration = Duration::from_secs(4);
/// How many differences are told.
const MOST_TOLD: usize = 20;

/// Waits until all holds, and notes what does not. Answers the records, if all holds.
///
/// # Errors
/// When the storm itself fails.
pub fn check(scene: &Scene<'_>) -> Result<Option<Records>> {
    let verdict = scene.verdict;
    let start = Instant::now();
    let mut not_yet = String::new();
    let settled = eventually(CATCHING_UP, "the kernel is what the records say", || {
        let settled = once(scene);
        if let Err(why) = &settled {
            let why = format!("{why:#}");
            if why != not_yet {
                verdict.note(&format!(
                    "not settled yet: {}",
                    why.lines().next().unwrap_or_default()
                ));
                not_yet = why;
            }
        }
        settled
    });
    let records = match settled {
        Ok(records) => records,
        Err(error) => {
            verdict.violated(format!("all is healed, but {error:#}"));
            return Ok(None);
        }
    };
    let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    verdict.note(&format!("settled after {took} ms"));
    verdict.count("settled", "times", 1);
    verdict.count("settled", "ms to settle in all", took);
    verdict.count("settled", "endpoints compared", records.endpoints.len() as u64);
    verdict.settled();
    for why in promises(scene.places, &records, verdict) {
        verdict.violated(why);
    }
    audit(scene.cluster, verdict);
    talk(scene, &records)?;
    Ok(Some(records))
}

/// One look at everything.
fn once(scene: &Scene<'_>) -> Result<Records> {
    let (lab, witness, verdict): (&Lab, _, _) = (scene.cluster, scene.witness, scene.verdict);
    let mut found = Err(anyhow::anyhow!("no member of etcd answers"));
    for member in lab.etcd_members() {
        found = witness.read_once(member.number());
        if found.is_ok() {
            break;
        }
    }
    let (revision, records) = found?;
    ensure!(verdict.violations().is_empty(), "something is wrong already");
    agrees(lab, &records)?;
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
}

/// The product's own look at all records finds nothing.
fn audit(lab: &Lab, verdict: &Verdict) {
    let host = lab.host(1);
    match host.weft_json(&["audit"]) {
        Ok(answer) if answer["clean"] == true => verdict.count("settled", "audits", 1),
        Ok(answer) => verdict.violated(format!("weft audit on {}: {answer}", host.node())),
        Err(error) => verdict.violated(format!("weft audit on {}: {error:#}", host.node())),
    }
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

fn agrees(lab: &Lab, records: &Records) -> Result<()> {
    let wrong = [records.violations(&BTreeSet::new()), records.left_over()].concat();
    ensure!(wrong.is_empty(), "{wrong:?}");
    let nodes: BTreeSet<String> = lab.hosts().iter().map(Host::node).collect();
    ensure!(
        records.presence.iter().all(|there| *there == nodes),
        "presence and status are those of {:?}",
        records.presence
    );
    let mut without = BTreeSet::new();
    for host in lab.hosts() {
        is_well(host, records, &mut without)?;
    }
    let mut differences = Vec::new();
    for host in lab.hosts() {
        let there = kernel::on_host(host)?;
        let wanted = oracle::on_host(records, &host.node(), &without);
        let found = oracle::differences(&there, &wanted).into_iter();
        differences.extend(found.map(|text| format!("{}: {text}", host.node())));
    }
    if differences.is_empty() {
        let wanted = oracle::in_containers(records, &without);
        differences = oracle::differences(&kernel::in_containers(lab)?, &wanted);
    }
    ensure!(differences.is_empty(), "{}", shortened(&differences));
    Ok(())
}

/// The first of many.
fn shortened(lines: &[String]) -> String {
    let more = lines.len().saturating_sub(MOST_TOLD);
    let mut text = lines[..lines.len() - more].join("\n    ");
    if more > 0 {
        text.push_str(&format!("\n    and {more} more"));
    }
    text
}

/// An agent is connected, holds nothing back and has no problem, and its peer record tells its host's underlay.
/// Endpoints that wait for an address in a full network are added to `without`: nothing of them is to be seen but their
/// records.
fn is_well(host: &Host, records: &Records, without: &mut BTreeSet<Name>) -> Result<()> {
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
    let underlay = host.netns().ip_json(&["link", "show", "dev", "eth0"])?;
    let wanted = Peer {
        vteps: host.addresses(),
        mtu: underlay[0]["mtu"].as_u64().context("an underlay without MTU")?,
    };
    let peer = records.peers.get(&node);
    ensure!(
        peer == Some(&wanted),
        "peers/{node} says {peer:?}, and the host has {wanted:?}"
    );
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

fn talk(scene: &Scene<'_>, records: &Records) -> Result<()> {
    let verdict = scene.verdict;
    let mut by_network: BTreeMap<&str, Vec<Station>> = BTreeMap::new();
    let containers = format!("/run/netns/{}c-", scene.cluster.lab_record().prefix());
    for (name, endpoint) in &records.endpoints {
        // Those that wait for an address have none.
        let Some(container) = endpoint.netns.strip_prefix(&containers) else {
            continue;
        };
        by_network.entry(&name.network).or_default().push(Station {
            network: name.network.clone(),
            host: name.node.trim_start_matches("host").parse()?,
            id: format!("{}/{}", name.node, name.id),
            container: scene.cluster.existing_container(container),
            addresses: endpoint.addresses.iter().copied().collect(),
        });
    }
    for (network, mut stations) in by_network {
        // From all hosts in turn; the records are in the order of hosts.
        let step = stations.len().div_ceil(scene.storm.sample).max(1);
        stations = stations.into_iter().step_by(step).collect();
        let pairs = stations.len() * stations.len().saturating_sub(1);
        verdict.count("settled", "pairs that talked", pairs as u64);
        let silent = unanswered(&stations, TALKING)?;
        if !silent.is_empty() {
            verdict.violated(format!(
                "{network}: all is settled, but these do not talk: {silent:?}"
            ));
        }
    }
    Ok(())
}
