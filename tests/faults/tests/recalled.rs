//! Records that were deleted while no agent was there to see it: what the agents had written down is held and written again.

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON, status, writes};
use weft_faults::{
    ENDPOINTS, between, holds, holds_nothing, one_each, records, records_are_copied, republish, two_networks,
};
use weft_lab::{Host, eventually};

const NETWORKS: &str = "/weft/v1/networks/";

/// Whether a host holds a network that the store has lost.
fn holds_network(host: &Host, wanted: bool) -> Result<()> {
    eventually(SOON, "the agent says what it holds", || {
        let status = status(host)?;
        let told = status["problems"].to_string();
        let held = &status["held_deletions"];
        ensure!(
            told.contains("the record was deleted while endpoints exist") == wanted,
            "{status}"
        );
        match wanted {
            true => ensure!(held["keys"] == serde_json::json!(["networks/blue"]), "{held}"),
            false => ensure!(held.is_null(), "{held}"),
        }
        Ok(())
    })
}

#[test]
fn networks_that_were_deleted_while_no_agent_ran_are_held_and_written_again() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let before = cluster.get_prefix(NETWORKS)?;
    for host in cluster.hosts() {
        eventually(SOON, "the host's own records are written down", || {
            let copies = std::fs::read_to_string(host.dir().join("state/records.json"))?;
            let network = before.values().next().map(|value| value.replace('"', "\\\""));
            ensure!(
                network.is_some_and(|network| copies.contains(&network)),
                "{copies}"
            );
            Ok(())
        })?;
    }
    let traffic = between(&stations)?;
    for host in cluster.hosts() {
        host.kill9()?;
    }
    cluster.del_prefix(NETWORKS)?;
    for host in cluster.hosts() {
        host.start_weftd()?;
    }
    for host in cluster.hosts() {
        holds_network(host, true)?;
        ensure!(writes(host)? == 0, "{} has written", host.node());
    }
    traffic.wait_more(30)?;
    for (host, outcome) in cluster.hosts().iter().zip(["written", "present"]) {
        let done = host.weft_json(&["resync", "--republish"])?;
        let told = done["records"].as_array().into_iter().flatten();
        // The second one may have heard of it by now, and has nothing to write then.
        ensure!(
            told.clone().all(|record| record["outcome"] == outcome),
            "{outcome}: {done}"
        );
        ensure!(told.count() == 1 || outcome == "present", "{done}");
    }
    for host in cluster.hosts() {
        holds_network(host, false)?;
        ensure!(writes(host)? == 0, "{} has written", host.node());
    }
    let after = cluster.get_prefix(NETWORKS)?;
    ensure!(after == before, "before: {before:?}\nafter: {after:?}");
    traffic.nothing_lost()?;
    cluster.close()
}

/// While the second host's agent is away, which has endpoints in both networks, all endpoints are deleted by mistake, and
/// the other hosts write theirs again. When it is back, it holds its own for a reason with these words.
fn a_slip_is_held_by_one_that_was_away(words: &str, meanwhile: fn(&Cluster) -> Result<()>) -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    let before = records(&cluster)?;
    records_are_copied(&cluster, &stations)?;
    let traffic = between(&stations)?;
    let away = cluster.host(2);
    away.kill9()?;
    cluster.del_prefix(ENDPOINTS)?;
    for number in [1, 3] {
        holds(cluster.host(number), "at once")?;
        republish(cluster.host(number))?;
    }
    meanwhile(&cluster)?;
    away.start_weftd()?;
    holds(away, words)?;
    ensure!(writes(away)? == 0, "{} has written", away.node());
    traffic.wait_more(30)?;
    republish(away)?;
    for host in cluster.hosts() {
        holds_nothing(host)?;
    }
    ensure!(writes(away)? == 0, "{} has written", away.node());
    let after = records(&cluster)?;
    ensure!(after == before, "before: {before:#?}\nafter: {after:#?}");
    traffic.nothing_lost()?;
    cluster.close()
}

/// Others' endpoints, which are back, are no sign that its own were meant: the history tells how they went.
#[test]
fn an_agent_that_was_away_during_a_slip_holds_what_is_its_own() -> Result<()> {
    a_slip_is_held_by_one_that_was_away("deleted 4 endpoints at once, as a mistaken", |_| Ok(()))
}

#[test]
fn also_when_the_history_of_the_slip_is_compacted_away() -> Result<()> {
    a_slip_is_held_by_one_that_was_away("only newer ones (2)", |cluster| {
        let revision = cluster.etcd(1).status()?.revision;
        cluster.etcdctl(&["compact", &revision.to_string()]).map(drop)
    })
}

#[test]
fn endpoints_that_were_deleted_one_by_one_while_their_agent_was_away_are_gone() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    records_are_copied(&cluster, &stations)?;
    let away = cluster.host(2);
    away.kill9()?;
    // Also where nothing is left at all.
    for station in &stations {
        cluster.del(&station.key())?;
    }
    away.start_weftd()?;
    for network in ["blue", "red"] {
        eventually(SOON, "the network is gone from the host", || {
            ensure!(!away.netns_of(network).exists());
            Ok(())
        })?;
    }
    ensure!(status(away)?["held_deletions"].is_null());
    cluster.close()
}
