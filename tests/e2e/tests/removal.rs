//! A node that is gone for good is removed, and what happens if it comes back after all; networks that are deleted
//! with their endpoints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use weft_e2e::{Cluster, SOON, Station};
use weft_lab::{Host, PingStream, eventually};

/// Five addresses, all of them endpoints'.
const SMALL: &str = "10.1.0.0/29";

fn full(cluster: &Cluster) -> Result<Vec<Station>> {
    cluster.network("blue", &[SMALL])?;
    let mut stations = Vec::new();
    for (host, id) in [(1, "a"), (2, "b"), (3, "w"), (3, "x"), (3, "y")] {
        stations.push(cluster.endpoint("blue", host, id)?);
    }
    cluster.up(&mut stations)?;
    Ok(stations)
}

fn addresses(stations: &[Station]) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = stations.iter().flat_map(|s| s.addresses.clone()).collect();
    all.sort_unstable();
    all
}

fn wait_sent(streams: &[PingStream], more: u64) -> Result<()> {
    let goals: Vec<u64> = streams.iter().map(|s| s.so_far().sent + more).collect();
    eventually(SOON, "more requests", || {
        ensure!(
            streams
                .iter()
                .zip(&goals)
                .all(|(s, goal)| s.so_far().sent >= *goal)
        );
        Ok(())
    })
}

fn clean(host: &Host) -> Result<()> {
    eventually(SOON, "the audit is clean", || {
        let output = host.weft_output(&["audit"])?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{said}");
        Ok(())
    })
}

/// The claims of a network: which endpoint holds which address.
fn claims(cluster: &Cluster, network: &str) -> Result<BTreeMap<IpAddr, String>> {
    let directory = format!("/weft/v1/addresses/{network}/");
    let claims = cluster.get_prefix(&directory)?.into_iter();
    claims
        .map(|(key, value)| {
            let value: Value = serde_json::from_str(&value)?;
            let holder = value["endpoint"].as_str().context("a holder")?.to_owned();
            Ok((key.trim_start_matches(&directory).parse()?, holder))
        })
        .collect()
}

fn incarnation(cluster: &Cluster, host: usize) -> Result<String> {
    let peer = cluster
        .get_json(&format!("/weft/v1/peers/host{host}"))?
        .context("a peer")?;
    Ok(peer["incarnation"].as_str().context("an incarnation")?.to_owned())
}

#[test]
fn a_removed_node_that_comes_back_knows_that_it_holds_nothing() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = full(&cluster)?;
    let (others, lost) = stations.split_at(2);
    let life = incarnation(&cluster, 3)?;
    let stream = others[0].container.ping_stream(others[1].addresses[0], 100)?;
    let host = cluster.host(1);
    let output = host.weft_output(&["peer", "remove", "host3", "--yes"])?;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("alive"),
        "{output:?}"
    );
    let output = host.weft_output(&["peer", "remove", "host1", "--yes", "--force"])?;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let output = host.weft_output(&["peer", "remove", "host9", "--yes"])?;
    assert_eq!(output.status.code(), Some(3), "{output:?}");

    cluster.host(3).kill9()?;
    // As when its lease has run out.
    cluster.del("/weft/v1/alive/host3")?;
    let told = host.weft(&["peer", "remove", "host3", "--yes"])?;
    for station in lost {
        let line = format!("released blue/host3/{} {}\n", station.id, station.addresses[0]);
        assert!(told.contains(&line), "{told}");
    }
    assert!(
        told.ends_with("host3 is removed; 3 endpoints released\n"),
        "{told}"
    );
    assert_eq!(cluster.get("/weft/v1/peers/host3")?, None);
    assert_eq!(claims(&cluster, "blue")?.len(), 2);
    assert!(cluster.get_prefix("/weft/v1/endpoints/blue/host3/")?.is_empty());
    // Again: nothing is left to do.
    let told = host.weft(&["peer", "remove", "host3", "--yes"])?;
    assert!(
        told.ends_with("host3 is removed; 0 endpoints released\n"),
        "{told}"
    );
    clean(host)?;

    // Others have these addresses now: there are no others.
    let mut heirs = Vec::new();
    for (n, id) in ["h1", "h2", "h3"].into_iter().enumerate() {
        heirs.push(cluster.endpoint("blue", 1 + n % 2, id)?);
    }
    let mut now: Vec<Station> = others.iter().chain(&heirs).cloned().collect();
    cluster.up(&mut now)?;
    assert_eq!(addresses(&now[2..]), addresses(lost));
    let held = claims(&cluster, "blue")?;
    let mut streams = vec![stream];
    for heir in &now[2..] {
        streams.push(others[1].container.ping_stream(heir.addresses[0], 100)?);
    }
    wait_sent(&streams, 20)?;

    // Its kernel still has all of it, and so has its memory.
    assert!(cluster.host(3).netns_of("blue").exists());
    cluster.host(3).start_weftd()?;
    eventually(SOON, "it says what it lost", || {
        weft_e2e::has_problem(
            cluster.host(3),
            "removed/host3",
            "",
            "removed from the cluster by host1",
        )?;
        for station in lost {
            let named = format!("blue/{} ({})", station.id, station.addresses[0]);
            weft_e2e::has_problem(cluster.host(3), "removed/host3", "", &named)?;
        }
        Ok(())
    })?;
    eventually(SOON, "it has taken down what it lost", || {
        ensure!(!cluster.host(3).netns_of("blue").exists());
        for station in lost {
            let found = station.container.addresses()?;
            ensure!(
                !found.contains(&station.addresses[0]),
                "{}: {found:?}",
                station.id
            );
        }
        Ok(())
    })?;
    wait_sent(&streams, 50)?;
    for stream in streams {
        let sum = stream.stop();
        assert_eq!(sum.lost(), 0, "{sum:?}");
    }
    assert_eq!(claims(&cluster, "blue")?, held);
    assert_ne!(incarnation(&cluster, 3)?, life);
    assert_eq!(cluster.get("/weft/v1/removed/host3")?, None);
    clean(host)?;

    // It still says so after a restart, and is of use again.
    cluster.host(3).restart()?;
    weft_e2e::has_problem(cluster.host(3), "removed/host3", "", "blue/w")?;
    host.weft(&["endpoint", "detach", "blue", "h1"])?;
    let path = lost[0].container.path();
    let made = cluster
        .host(3)
        .weft_json(&["endpoint", "attach", "blue", &path, "--id", "w"])?;
    assert_eq!(made["state"], "ready", "{made}");
    let told = cluster.host(3).weft(&["resync", "--accept"])?;
    assert!(told.contains("removed from the cluster"), "{told}");
    weft_e2e::no_problem(cluster.host(3), "removed/host3")?;
    clean(host)?;
    cluster.close()
}

#[test]
fn a_paused_node_that_was_removed_writes_nothing_of_its_old_life() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = full(&cluster)?;
    let (others, lost) = stations.split_at(2);
    let host = cluster.host(1);
    cluster.host(3).signal(Signal::SIGSTOP)?;
    // An attach that the agent has yet to read, and one by a record that it has yet to complete.
    let late = cluster.container("late")?;
    let half_made = cluster.endpoint("blue", 3, "half")?;
    let path = late.path();
    let attach = [
        "endpoint",
        "attach",
        "blue",
        &path,
        "--id",
        "late",
        "--timeout",
        "20s",
    ];
    std::thread::scope(|scope| {
        let attaching = scope.spawn(|| cluster.host(3).weft_output(&attach));
        let told = host.weft(&["peer", "remove", "host3", "--yes", "--force"])?;
        assert!(
            told.ends_with("host3 is removed; 4 endpoints released\n"),
            "{told}"
        );
        let mut heirs = Vec::new();
        for (n, id) in ["h1", "h2", "h3"].into_iter().enumerate() {
            heirs.push(cluster.endpoint("blue", 1 + n % 2, id)?);
        }
        let mut now: Vec<Station> = others.iter().chain(&heirs).cloned().collect();
        cluster.up(&mut now)?;
        assert_eq!(addresses(&now[2..]), addresses(lost));
        let held = claims(&cluster, "blue")?;
        let mut streams = Vec::new();
        for heir in &now[1..] {
            streams.push(others[0].container.ping_stream(heir.addresses[0], 100)?);
        }
        wait_sent(&streams, 20)?;

        cluster.host(3).signal(Signal::SIGCONT)?;
        eventually(SOON, "it says what it lost", || {
            weft_e2e::has_problem(cluster.host(3), "removed/host3", "", "blue/w (10.1.0.")?;
            weft_e2e::has_problem(cluster.host(3), "removed/host3", "", "blue/half")
        })?;
        let attached = attaching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        // All addresses are others': whichever life it was tried in, there was none to have.
        assert!(!attached.status.success(), "{attached:?}");
        eventually(SOON, "it has taken down what it lost", || {
            ensure!(!cluster.host(3).netns_of("blue").exists());
            Ok(())
        })?;
        wait_sent(&streams, 50)?;
        for stream in streams {
            let sum = stream.stop();
            assert_eq!(sum.lost(), 0, "{sum:?}");
        }
        assert_eq!(claims(&cluster, "blue")?, held);
        assert!(cluster.get_prefix("/weft/v1/endpoints/blue/host3/")?.is_empty());
        for container in lost
            .iter()
            .map(|s| &s.container)
            .chain([&late, &half_made.container])
        {
            let found = container.addresses()?;
            ensure!(found.iter().all(|a| !held.contains_key(a)), "{found:?}");
        }
        clean(host)
    })?;
    cluster.close()
}

#[test]
fn a_node_without_a_record_is_removed_too() -> Result<()> {
    let cluster = Cluster::of(1)?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    cluster.put(
        &Cluster::endpoint_key("blue", 9, "x"),
        r#"{"attachment":{"netns":"/run/netns/x"},"addresses":["10.1.0.4"],"mac":"02:42:0a:01:00:04"}"#,
    )?;
    cluster.put("/weft/v1/addresses/blue/10.1.0.4", r#"{"endpoint":"host9/x"}"#)?;
    cluster.put("/weft/v1/addresses/blue/10.1.0.5", r#"{"endpoint":"host9/y"}"#)?;
    let told = cluster.host(1).weft_json(&["peer", "remove", "host9", "--yes"])?;
    assert_eq!(told["released"][0]["id"], "x", "{told}");
    assert!(claims(&cluster, "blue")?.is_empty());
    clean(cluster.host(1))?;
    cluster.close()
}

#[test]
fn a_network_is_deleted_with_its_endpoints_by_force() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    let mut stations = Vec::new();
    for n in 0..6 {
        stations.push(cluster.endpoint("blue", 1 + n % 2, &format!("e{n}"))?);
    }
    cluster.up(&mut stations)?;
    cluster.put("/weft/v1/released/blue/10.1.0.200", r#"{"endpoint":"host1/was"}"#)?;
    let host = cluster.host(1);
    let output = host.weft_output(&["network", "delete", "blue"])?;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    // Others attach all the while; each of them is there before the network goes, or not at all.
    let made = std::thread::scope(|scope| {
        let attaching = scope.spawn(|| -> Result<Vec<(i32, String)>> {
            let mut done = Vec::new();
            for n in 0.. {
                let container = cluster.container(&format!("late{n}"))?;
                let path = container.path();
                let output =
                    cluster
                        .host(2)
                        .weft_output(&["endpoint", "attach", "blue", &path, "--timeout", "5s"])?;
                let code = output.status.code().unwrap_or(-1);
                done.push((code, String::from_utf8_lossy(&output.stderr).into_owned()));
                if cluster.get(&Cluster::network_key("blue"))?.is_none() || n > 100 {
                    break;
                }
            }
            Ok(done)
        });
        let told = host.weft_json(&["network", "delete", "blue", "--force"])?;
        assert_eq!(told["deleted"], "blue", "{told}");
        let detached = told["detached"].as_array().map_or(0, Vec::len);
        ensure!(detached >= 6, "{told}");
        attaching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    assert!(made.iter().all(|(code, _)| [0, 3, 4].contains(code)), "{made:?}");
    assert_eq!(cluster.get(&Cluster::network_key("blue"))?, None);
    let left = cluster.get_prefix("/weft/v1/endpoints/blue/")?;
    assert!(left.is_empty(), "{left:?}");
    // The claims that the hosts are giving up just now are no findings.
    host.weft(&["audit"])?;
    eventually(SOON, "both hosts are rid of it", || {
        for directory in ["addresses", "released", "barriers"] {
            let left = cluster.get_prefix(&format!("/weft/v1/{directory}/blue/"))?;
            ensure!(left.is_empty(), "{left:?}");
        }
        for host in cluster.hosts() {
            ensure!(!host.netns_of("blue").exists(), "{}", host.node());
        }
        Ok(())
    })?;
    clean(host)?;
    cluster.close()
}
