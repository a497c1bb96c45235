//! A store that has lost records: what is there before, what agents say of it, and how it is written again.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use weft_e2e::{Cluster, SOON, Station, status, writes};
use weft_lab::{Host, eventually};

use crate::CIDRS;

/// All records.
pub const ALL: &str = "/weft/v1/";
/// All endpoints.
pub const ENDPOINTS: &str = "/weft/v1/endpoints/";

/// Three hosts: blue on the first two, red on the last two. No host but the second sees endpoints of both.
///
/// # Errors
/// When they do not talk within the time.
pub fn two_networks(cluster: &Cluster) -> Result<Vec<Station>> {
    cluster.network("blue", &CIDRS)?;
    cluster.network("red", &["10.2.0.0/24"])?;
    let places = [
        ("blue", 1, "a"),
        ("blue", 2, "b"),
        ("red", 2, "c"),
        ("red", 3, "d"),
    ];
    let stations = places
        .iter()
        .map(|(network, host, id)| cluster.endpoint(network, *host, id));
    let mut stations = stations.collect::<Result<Vec<_>>>()?;
    for network in ["blue", "red"] {
        let of_network = stations.iter_mut().filter(|s| s.network == network);
        let mut of_network: Vec<Station> = of_network.map(|s| s.clone()).collect();
        cluster.up(&mut of_network)?;
        for up in of_network {
            let at = stations
                .iter_mut()
                .find(|s| s.id == up.id)
                .context("it is there")?;
            *at = up;
        }
    }
    Ok(stations)
}

/// Waits until a host says that it holds what the store has lost, for a reason with these words, and what to do.
///
/// # Errors
/// When it is not so within the time.
pub fn holds(host: &Host, words: &str) -> Result<()> {
    eventually(SOON, "the agent says what it holds", || {
        let status = status(host)?;
        let held = &status["held_deletions"];
        let reason = held["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains(words), "{status}");
        ensure!(
            held["count"].as_u64() > Some(0) && held["since"].is_string(),
            "{held}"
        );
        let told = status["problems"].to_string();
        ensure!(told.contains("weft resync --republish"), "{told}");
        Ok(())
    })
}

/// Waits until a host says that it holds nothing.
///
/// # Errors
/// When it is not so within the time.
pub fn holds_nothing(host: &Host) -> Result<()> {
    eventually(SOON, "nothing is held any more", || {
        let status = status(host)?;
        ensure!(status["held_deletions"].is_null(), "{}", status["held_deletions"]);
        ensure!(!status["problems"].to_string().contains("(store)"), "{status}");
        Ok(())
    })
}

/// How often each host has written to its kernel.
///
/// # Errors
/// When an agent does not answer.
pub fn all_writes(cluster: &Cluster) -> Result<Vec<u64>> {
    cluster.hosts().iter().map(writes).collect()
}

/// What people and agents have recorded, but for what says who is there just now.
///
/// # Errors
/// When etcd does not answer.
pub fn records(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut all = cluster.get_prefix(ALL)?;
    all.retain(|key, _| {
        let kind = key.strip_prefix(ALL).and_then(|rest| rest.split('/').next());
        matches!(
            kind,
            Some("networks" | "endpoints" | "addresses" | "vnis" | "peers")
        )
    });
    Ok(all)
}

/// Tells an agent to write again what the store has lost of it.
///
/// # Errors
/// When it cannot.
pub fn republish(host: &Host) -> Result<serde_json::Value> {
    host.weft_json(&["resync", "--republish"])
}

/// All hosts are told to write their own again, and then everything is there as before.
///
/// # Errors
/// When it is not so within the time.
pub fn writes_all_again(cluster: &Cluster, before: &BTreeMap<String, String>) -> Result<()> {
    for host in cluster.hosts() {
        republish(host)?;
    }
    for host in cluster.hosts() {
        holds_nothing(host)?;
    }
    let after = records(cluster)?;
    ensure!(after == *before, "before: {before:#?}\nafter: {after:#?}");
    Ok(())
}

/// Waits until each host has written down these endpoints as far as they are its own, which it does within a second or so.
///
/// # Errors
/// When it has not within the time.
pub fn records_are_copied(cluster: &Cluster, stations: &[Station]) -> Result<()> {
    for host in cluster.hosts() {
        eventually(SOON, "the host's own records are written down", || {
            let copies = std::fs::read_to_string(host.dir().join("state/records.json"))?;
            let own = stations.iter().filter(|s| s.host == host.number());
            for station in own {
                let whole =
                    copies.contains(&station.key()) && copies.contains(&station.addresses[0].to_string());
                ensure!(whole, "{copies}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
