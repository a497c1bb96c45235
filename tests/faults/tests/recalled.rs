//! Records that were deleted while no agent was there to see it: what the agents had written down is held and written again.

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON, status, writes};
use weft_faults::{between, one_each};
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
