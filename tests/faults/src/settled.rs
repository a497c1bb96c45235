//! Whether a host forwards just as the records say, by the kernel's own listings and a read of the store.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::{Cluster, SOON, neighbours, remote_fdb, status};
use weft_lab::{Host, eventually};

/// Checks that a host's forwarding entries and neighbours in a network are those of the records, no more and no less.
///
/// # Errors
/// When they are not, or somebody does not answer.
pub fn forwards_as_recorded(cluster: &Cluster, host: &Host, network: &str) -> Result<()> {
    let mut forwards = BTreeSet::new();
    let mut answers = BTreeSet::new();
    let directory = format!("/weft/v1/endpoints/{network}/");
    for (key, text) in cluster.get_prefix(&directory)? {
        let record: Value = serde_json::from_str(&text).with_context(|| key.clone())?;
        let mac = record["mac"]
            .as_str()
            .with_context(|| format!("{key} has no MAC"))?;
        let node = key.split('/').rev().nth(1).unwrap_or_default();
        if node == host.node() {
            continue;
        }
        forwards.insert((mac.to_owned(), vtep_of(cluster, node)?));
        for address in record["addresses"].as_array().into_iter().flatten() {
            answers.insert((address.as_str().unwrap_or_default().to_owned(), mac.to_owned()));
        }
    }
    let netns = host.netns_of(network);
    let node = host.node();
    same(&format!("FDB of {node}"), &remote_fdb(&netns)?, &forwards)?;
    same(&format!("neighbours of {node}"), &neighbours(&netns)?, &answers)
}

fn same(what: &str, found: &BTreeSet<(String, String)>, wanted: &BTreeSet<(String, String)>) -> Result<()> {
    let some =
        |set: &mut dyn Iterator<Item = &(String, String)>| format!("{:?}", set.take(5).collect::<Vec<_>>());
    ensure!(
        found == wanted,
        "{what}: missing {}, too many {}",
        some(&mut wanted.difference(found)),
        some(&mut found.difference(wanted))
    );
    Ok(())
}

fn vtep_of(cluster: &Cluster, node: &str) -> Result<String> {
    let peer = cluster.get_json(&format!("/weft/v1/peers/{node}"))?;
    let peer = peer.with_context(|| format!("no peer {node}"))?;
    let vtep = peer["vteps"][0].as_str();
    Ok(vtep.with_context(|| format!("{node} has no VTEP"))?.to_owned())
}

/// Waits until hosts forward as recorded; how long that took.
///
/// # Errors
/// When they do not within the time.
pub fn caught_up<'a>(
    cluster: &Cluster,
    hosts: impl IntoIterator<Item = &'a Host>,
    network: &str,
) -> Result<Duration> {
    let start = Instant::now();
    for host in hosts {
        eventually(SOON * 3, &format!("{} has caught up", host.node()), || {
            forwards_as_recorded(cluster, host, network)
        })?;
    }
    Ok(start.elapsed())
}

/// Waits until an agent says that it has, or has not, a connection to the store.
///
/// # Errors
/// When it does not within the time.
pub fn connected(host: &Host, wanted: bool) -> Result<()> {
    eventually(
        SOON * 3,
        &format!("{}: connected is {wanted}", host.node()),
        || {
            let store = &status(host)?["store"];
            ensure!(store["connected"] == wanted, "{store}");
            Ok(())
        },
    )
}

/// Lines that an agent has logged so far.
#[must_use]
pub fn log_lines(host: &Host) -> usize {
    host.log().lines().count()
}
