//! A store that has lost records: what runs stays, until they come back or somebody confirms. What is meant goes at once.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use weft_e2e::{Cluster, SOON, Station, status, writes};
use weft_faults::{
    ALL, CIDRS, ENDPOINTS, all_writes, between, holds, holds_nothing, one_each, records, records_are_copied,
    republish, two_networks, writes_all_again,
};
use weft_lab::{Cut, Host, Lab, eventually};

/// An audit with `--repair` says that deletions are held, and does nothing about what they leave behind.
fn audit_leaves_it(cluster: &Cluster, host: &Host) -> Result<()> {
    let before = cluster.get_prefix("/weft/v1/addresses/")?;
    let output = host.weft_output(&["-o", "json", "audit", "--repair"])?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let findings = told["findings"].as_array().context("findings")?;
    ensure!(output.status.code() == Some(1), "{told}");
    let held = findings.iter().filter(|finding| finding["kind"] == "held");
    let [held] = held.collect::<Vec<_>>()[..] else {
        anyhow::bail!("one finding says what is held: {told}");
    };
    let remedy = held["remedy"].as_str().unwrap_or_default();
    ensure!(remedy.contains("weft resync --republish"), "{told}");
    // A host does not know what others hold of networks that it does not follow: nor does it mend there.
    let mended = |finding: &&serde_json::Value| finding["mended"] == true || finding["mendable"] == true;
    ensure!(!findings.iter().any(|finding| mended(&finding)), "{told}");
    ensure!(cluster.get_prefix("/weft/v1/addresses/")? == before, "{told}");
    Ok(())
}

#[test]
fn what_a_slip_deletes_is_held_until_it_comes_back() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    for prefix in [ENDPOINTS, ALL] {
        let before = records(&cluster)?;
        let written = all_writes(&cluster)?;
        let traffic = between(&stations)?;
        cluster.del_prefix(prefix)?;
        for host in cluster.hosts() {
            holds(host, "at once, as a mistaken 'etcdctl del --prefix' does")?;
        }
        for host in cluster.hosts() {
            audit_leaves_it(&cluster, host)?;
        }
        traffic.wait_more(50)?;
        // As somebody has them in a file: whatever is not there.
        let left = cluster.get_prefix(ALL)?;
        let lost = before.iter().filter(|(key, _)| !left.contains_key(*key));
        let lost: Vec<_> = lost.map(|(key, value)| (key.clone(), value.clone())).collect();
        cluster.put_all(&lost)?;
        for host in cluster.hosts() {
            holds_nothing(host)?;
        }
        traffic.wait_more(30)?;
        traffic.nothing_lost()?;
        ensure!(all_writes(&cluster)? == written, "the kernel was written");
        let causes = |host: &Host| host.log().matches("what it no longer has is kept here").count();
        let told: Vec<usize> = cluster.hosts().iter().map(causes).collect();
        let lines = if prefix == ENDPOINTS { 2 } else { 4 };
        ensure!(
            told.iter().all(|n| *n == lines),
            "a line when it begins, one when it ends: {told:?}"
        );
    }
    cluster.close()
}

#[test]
fn what_is_meant_goes_at_once() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    let (blue, red): (Vec<_>, Vec<_>) = stations.into_iter().partition(|s| s.network == "blue");
    let traffic = between(&red)?;
    let network = Cluster::network_key("blue");
    let endpoints = format!("{ENDPOINTS}blue/");
    for order in [
        "endpoints first",
        "the network first",
        "in one transaction",
        "one endpoint by one",
    ] {
        let begun = Instant::now();
        match order {
            "endpoints first" => {
                cluster.del_prefix(&endpoints)?;
            }
            "the network first" => {
                cluster.del(&network)?;
                cluster.del_prefix(&endpoints)?;
            }
            "in one transaction" => {
                let mut keys: Vec<String> = blue.iter().map(Station::key).collect();
                keys.push(network.clone());
                cluster.del_all(&keys)?;
            }
            _ => {
                for station in &blue {
                    cluster.del(&station.key())?;
                }
            }
        }
        let told = begun.elapsed();
        for host in &cluster.hosts()[..2] {
            eventually(SOON, "the network is gone", || {
                ensure!(!host.netns_of("blue").exists(), "{order}");
                Ok(())
            })?;
        }
        println!(
            "{order}: gone {:?} after etcd was told ({told:?})",
            begun.elapsed() - told
        );
        cluster.del(&network)?;
        eventually(SOON, "nothing of it is left", || {
            let all = records(&cluster)?;
            let left: Vec<_> = all.keys().filter(|key| key.contains("/blue")).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        cluster.network("blue", &CIDRS)?;
        let again = blue
            .iter()
            .map(|s| cluster.endpoint_in("blue", s.host, &s.id, s.container.clone()));
        let mut again = again.collect::<Result<Vec<_>>>()?;
        cluster.up(&mut again)?;
    }
    traffic.nothing_lost()?;
    for host in cluster.hosts() {
        ensure!(!host.log().contains("is kept here"), "{}", host.node());
    }
    cluster.close()
}

#[test]
fn an_agent_that_ends_while_it_holds_goes_on_holding_and_writes_it_again() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    let before = records(&cluster)?;
    let traffic = between(&stations)?;
    records_are_copied(&cluster, &stations)?;
    // One agent holds already, one is away meanwhile.
    cluster.host(3).kill9()?;
    cluster.del_prefix(ALL)?;
    holds(cluster.host(1), "at once")?;
    holds(cluster.host(2), "at once")?;
    cluster.host(1).kill9()?;
    cluster.host(1).start_weftd()?;
    cluster.host(3).start_weftd()?;
    holds(cluster.host(1), "at once")?;
    holds(cluster.host(3), "at once")?;
    for number in [1, 3] {
        ensure!(writes(cluster.host(number))? == 0, "host{number} has written");
    }
    traffic.wait_more(30)?;

    let first = republish(cluster.host(2))?;
    ensure!(first["nodes"] == serde_json::json!(["host1", "host3"]), "{first}");
    for number in [1, 3] {
        republish(cluster.host(number))?;
    }
    for host in cluster.hosts() {
        holds_nothing(host)?;
    }
    traffic.nothing_lost()?;
    for number in [1, 3] {
        ensure!(writes(cluster.host(number))? == 0, "host{number} has written");
    }
    let after = records(&cluster)?;
    ensure!(
        after.keys().eq(before.keys()) && after == before,
        "before: {before:#?}\nafter: {after:#?}"
    );
    cluster.close()
}

#[test]
fn a_confirmed_slip_takes_effect() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    records_are_copied(&cluster, &stations)?;
    cluster.del_prefix(ENDPOINTS)?;
    for host in cluster.hosts() {
        holds(host, "at once")?;
        host.weft(&["resync", "--accept"])?;
        // Whoever was answered is not asked again, although the copies of what is gone may still be there.
        host.kill9()?;
        host.start_weftd()?;
        eventually(SOON, "the networks are gone", || {
            ensure!(["blue", "red"].iter().all(|n| !host.netns_of(n).exists()));
            Ok(())
        })?;
        holds_nothing(host)?;
    }
    eventually(SOON, "no claim is left", || {
        let claims = cluster.get_prefix("/weft/v1/addresses/")?;
        ensure!(claims.is_empty(), "{claims:?}");
        Ok(())
    })?;
    cluster.close()
}

#[test]
fn a_store_restored_from_an_older_snapshot_gets_the_rest_written_again() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &CIDRS)?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 2, "b")?,
    ];
    cluster.up(&mut stations)?;
    let etcd = cluster.etcd(1);
    let snapshot = etcd.save_snapshot("before")?;

    // Since then: endpoints, and a network, of which the snapshot knows nothing.
    cluster.network("green", &["10.3.0.0/24"])?;
    let mut later = vec![
        cluster.endpoint("green", 1, "e")?,
        cluster.endpoint("green", 2, "f")?,
    ];
    cluster.up(&mut later)?;
    stations.push(cluster.endpoint("blue", 1, "c")?);
    cluster.up(&mut stations)?;
    stations.append(&mut later);
    let before = records(&cluster)?;

    let traffic = between(&stations)?;
    etcd.stop()?;
    etcd.restore_snapshot(&snapshot, None)?;
    etcd.start()?;
    for host in cluster.hosts() {
        holds(host, "as if restored from a backup")?;
    }
    traffic.wait_more(30)?;
    writes_all_again(&cluster, &before)?;
    traffic.nothing_lost()?;
    cluster.close()
}

/// Cluster and revision look as if history had gone on; only the raft term tells.
#[test]
fn a_restored_store_that_got_further_before_it_was_seen_is_not_believed() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let etcd = cluster.etcd(1);
    // Each start is an election: a restored store begins with its first term.
    for _ in 0..3 {
        etcd.stop()?;
        etcd.start()?;
    }
    let snapshot = etcd.save_snapshot("before")?;
    let stations = one_each(&cluster)?;
    let before = records(&cluster)?;
    let traffic = between(&stations)?;
    for host in cluster.hosts() {
        host.netns().cut_off(&etcd.addresses())?;
    }
    etcd.stop()?;
    etcd.restore_snapshot(&snapshot, None)?;
    etcd.start()?;
    let elsewhere = (0..100).map(|n| (format!("/elsewhere/{n}"), "x".to_owned()));
    cluster.put_all(&elsewhere.collect::<Vec<_>>())?;
    for host in cluster.hosts() {
        host.netns().reconnect()?;
    }
    for host in cluster.hosts() {
        holds(host, "as if restored from a backup, and is at revision")?;
    }
    writes_all_again(&cluster, &before)?;
    traffic.nothing_lost()?;
    cluster.close()
}

#[test]
fn an_empty_store_in_the_place_of_the_known_one_is_filled_again() -> Result<()> {
    let lab = Lab::builder().hosts(2).build()?;
    let empty = lab.etcd(1).save_snapshot("empty")?;
    lab.start_all()?;
    let cluster = Cluster::from_running(lab);
    let stations = one_each(&cluster)?;
    let before = records(&cluster)?;
    let traffic = between(&stations)?;
    let etcd = cluster.etcd(1);
    etcd.stop()?;
    etcd.restore_snapshot(&empty, Some("another"))?;
    etcd.start()?;
    for host in cluster.hosts() {
        holds(host, "answers as another cluster")?;
    }
    traffic.wait_more(30)?;
    writes_all_again(&cluster, &before)?;
    traffic.nothing_lost()?;
    cluster.close()
}

#[test]
fn what_is_in_the_way_of_writing_again_is_named_and_kept() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    let red: Vec<Station> = stations.iter().filter(|s| s.network == "red").cloned().collect();
    let traffic = between(&red)?;
    cluster.del_prefix(ALL)?;
    for host in cluster.hosts() {
        holds(host, "at once")?;
    }
    // Somebody is faster with the network, and gives an address of host1's endpoint to another.
    cluster.network("blue", &CIDRS)?;
    let taken = stations[0].address(true);
    cluster.put(
        &format!("/weft/v1/addresses/blue/{taken}"),
        r#"{"endpoint":"host9/x"}"#,
    )?;
    cluster.put(
        &Cluster::endpoint_key("blue", 9, "x"),
        &format!(r#"{{"attachment":{{"netns":"/run/netns/x"}},"addresses":["{taken}"]}}"#),
    )?;
    eventually(SOON, "host1 has heard of it", || {
        let told = cluster.host(1).weft(&["address", "list", "blue"])?;
        ensure!(told.contains("host9/x"), "{told}");
        Ok(())
    })?;
    for number in [2, 3] {
        republish(cluster.host(number))?;
    }
    let output = cluster
        .host(1)
        .weft_output(&["-o", "json", "resync", "--republish"])?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    let done: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let conflict = done["records"].as_array().into_iter().flatten();
    let conflict: Vec<_> = conflict.filter(|r| r["outcome"] == "conflict").collect();
    ensure!(conflict.len() == 1, "{done}");
    ensure!(conflict[0]["key"] == stations[0].short_key().as_str(), "{done}");
    let why = conflict[0]["message"].to_string();
    ensure!(
        why.contains(&taken.to_string()) && why.contains("host9/x"),
        "{why}"
    );

    // The operator gives way: another endpoint in its place.
    let host = cluster.host(1);
    host.weft(&["endpoint", "detach", "blue", "a", "--timeout", "2s"])?;
    host.weft(&[
        "endpoint",
        "attach",
        "blue",
        &stations[0].container.path(),
        "--id",
        "a",
    ])?;
    for host in cluster.hosts() {
        holds_nothing(host)?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}

/// Cuts the agents off, deletes a prefix, and compacts the history before they are back.
fn delete_unseen(cluster: &Cluster, prefix: &str) -> Result<()> {
    unseen(cluster, || cluster.del_prefix(prefix).map(drop))
}

/// Cuts the agents off, does something, and compacts the history before they are back.
fn unseen(cluster: &Cluster, deed: impl FnOnce() -> Result<()>) -> Result<()> {
    let etcd = cluster.etcd(1).addresses();
    let is_connected = |host: &Host, wanted: bool| {
        eventually(SOON, "the agent has noticed", || {
            ensure!(status(host)?["store"]["connected"] == wanted);
            Ok(())
        })
    };
    // What is as old as the cut is told from what is newer by the revisions that the agents know before it. Of those at which
    // nothing changed that they watch, they hear every ten seconds; so something that all of them watch changes.
    let red = Cluster::network_key("red");
    cluster.put(&red, &cluster.get(&red)?.context("a record")?)?;
    let known = cluster.get_kv(&red)?.context("a record")?.mod_revision;
    for host in cluster.hosts() {
        eventually(SOON, "the agent knows it", || {
            let status = status(host)?;
            ensure!(status["applied_revision"].as_i64() >= Some(known), "{status}");
            Ok(())
        })?;
    }
    for host in cluster.hosts() {
        host.netns().cut(&etcd, Cut::Refused)?;
    }
    for host in cluster.hosts() {
        is_connected(host, false)?;
    }
    deed()?;
    let revision = cluster.etcd(1).status()?.revision;
    cluster.etcdctl(&["compact", &revision.to_string()])?;
    for host in cluster.hosts() {
        host.netns().reconnect()?;
        is_connected(host, true)?;
    }
    Ok(())
}

#[test]
fn a_network_that_was_deleted_unseen_is_believed_to_be_gone() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    let red: Vec<Station> = stations.iter().filter(|s| s.network == "red").cloned().collect();
    let traffic = between(&red)?;
    delete_unseen(&cluster, &format!("{ENDPOINTS}blue/"))?;
    for host in &cluster.hosts()[..2] {
        eventually(SOON, "the network is gone", || {
            ensure!(!host.netns_of("blue").exists());
            Ok(())
        })?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}

#[test]
fn a_store_that_was_emptied_unseen_is_not_believed() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    let written = all_writes(&cluster)?;
    let traffic = between(&stations)?;
    delete_unseen(&cluster, ENDPOINTS)?;
    for host in cluster.hosts() {
        holds(host, "no endpoint left in any network")?;
    }
    traffic.wait_more(20)?;
    traffic.nothing_lost()?;
    ensure!(all_writes(&cluster)? == written, "the kernel was written");
    cluster.close()
}

/// Also where most of the listings are not empty: what is in them is newer.
#[test]
fn one_attached_since_makes_no_emptied_store_believed() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = two_networks(&cluster)?;
    let traffic = between(&stations)?;
    let mut since = Vec::new();
    unseen(&cluster, || {
        cluster.del_prefix(ENDPOINTS)?;
        since.push(cluster.endpoint("blue", 2, "new")?);
        since.push(cluster.endpoint("red", 3, "new")?);
        Ok(())
    })?;
    for host in cluster.hosts() {
        holds(host, "only newer ones (2)")?;
    }
    // They are used all the same.
    for station in &mut since {
        cluster.up(std::slice::from_mut(station))?;
    }
    traffic.wait_more(20)?;
    for host in cluster.hosts() {
        republish(host)?;
    }
    for host in cluster.hosts() {
        holds_nothing(host)?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}
