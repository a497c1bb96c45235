//! Stopping and starting in any order, power-on of everything at once, and hosts that come back from a reboot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_e2e::{Cluster, SOON, Station, has_problem, writes};
use weft_faults::{CIDRS, between, one_each};
use weft_lab::{Lab, eventually};

/// How long eight hosts may take to come up at once on a busy machine.
const POWER_ON: Duration = Duration::from_secs(40);

/// Eight hosts at once: agents before etcd, endpoints before their network, containers last of all. Everything comes about
/// without a hand.
#[test]
fn everything_at_once_at_power_on() -> Result<()> {
    let lab = Lab::builder().hosts(8).build()?;
    lab.etcd(1).stop()?;
    for host in lab.hosts() {
        host.spawn_weftd(&[])?;
    }
    for host in lab.hosts() {
        eventually(SOON, "the agent answers and has no store", || {
            ensure!(weft_e2e::status(host)?["store"]["connected"] != true);
            Ok(())
        })?;
    }
    let cluster = Cluster::from_running(lab);
    cluster.etcd(1).start()?;
    let mut stations = Vec::new();
    for host in 1..=8 {
        for id in ["a", "b"] {
            let id = format!("{id}{host}");
            let container = cluster.existing_container(&format!("blue-{id}"));
            let record = json!({"attachment": {"netns": container.path()}}).to_string();
            cluster.put(&Cluster::endpoint_key("blue", host, &id), &record)?;
            stations.push(Station {
                network: "blue".to_owned(),
                host,
                id,
                container,
                addresses: Vec::new(),
            });
        }
    }
    cluster.network("blue", &CIDRS)?;
    for station in &stations {
        cluster.container(&format!("blue-{}", station.id))?;
    }
    let up_by = Instant::now() + POWER_ON;
    cluster.hosts().iter().try_for_each(weft_lab::Host::wait_ready)?;
    cluster.settle(&mut stations)?;
    eventually(
        up_by.saturating_duration_since(Instant::now()),
        "all pairs talk",
        || {
            let silent = weft_e2e::unanswered(&stations, Duration::from_secs(2))?;
            ensure!(silent.is_empty(), "{} pairs do not", silent.len());
            Ok(())
        },
    )?;
    cluster.host(1).weft(&["audit"])?;
    for host in cluster.hosts() {
        eventually(SOON, "nothing is wrong", || {
            let status = weft_e2e::status(host)?;
            ensure!(
                status["problems"].as_array().is_none_or(Vec::is_empty),
                "{}",
                status["problems"]
            );
            Ok(())
        })?;
    }
    cluster.close()
}

/// Agents and etcd end and begin in each order: first etcd, then the agents, and the other way round, by a signal and killed.
/// Nothing is lost, and nothing is written to the kernel.
#[test]
fn agents_and_etcd_stop_and_start_in_any_order() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = one_each(&cluster)?;
    let traffic = between(&stations)?;
    let etcd = cluster.etcd(1);
    let up = || -> Result<()> {
        for host in cluster.hosts() {
            host.wait_ready()?;
            ensure!(writes(host)? == 0, "{} wrote {}", host.node(), writes(host)?);
        }
        Ok(())
    };
    // etcd goes first and comes last.
    etcd.stop()?;
    cluster.hosts().iter().try_for_each(weft_lab::Host::stop)?;
    cluster
        .hosts()
        .iter()
        .try_for_each(|host| host.spawn_weftd(&[]))?;
    etcd.start()?;
    up()?;
    // It goes last and comes first.
    cluster.hosts().iter().try_for_each(weft_lab::Host::stop)?;
    etcd.stop()?;
    etcd.start()?;
    cluster
        .hosts()
        .iter()
        .try_for_each(|host| host.spawn_weftd(&[]))?;
    up()?;
    // All of them at once, as in a power cut that spares the kernels.
    cluster.hosts().iter().try_for_each(weft_lab::Host::kill9)?;
    etcd.kill9()?;
    cluster
        .hosts()
        .iter()
        .try_for_each(|host| host.spawn_weftd(&[]))?;
    etcd.start()?;
    up()?;
    traffic.wait_more(20)?;
    traffic.nothing_lost()?;
    cluster.close()
}

/// A host is rebooted: namespaces, devices and one container are gone, records remain, and its lease has not ended. It is
/// back at once; the container that is started again has its endpoint as before, the one that is not is told of, and
/// released if that is wanted. The others lose nothing.
#[test]
fn a_rebooted_host_takes_up_what_is_left_and_tells_of_what_is_not() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let mut stations = one_each(&cluster)?;
    stations.push(cluster.endpoint("blue", 3, "gone")?);
    cluster.up(&mut stations)?;
    let others = between(&stations[..2])?;
    let host = cluster.host(3);
    let (kept, gone) = (stations[2].clone(), stations[3].clone());

    host.kill9()?;
    host.teardown()?;
    kept.container.remove()?;
    gone.container.remove()?;
    let mut peer = cluster
        .get_json("/weft/v1/peers/host3")?
        .context("no peer record")?;
    peer["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    cluster.put("/weft/v1/peers/host3", &peer.to_string())?;
    ensure!(
        cluster.get("/weft/v1/alive/host3")?.is_some(),
        "its lease has not ended"
    );

    cluster.container("blue-c")?;
    let started = Instant::now();
    host.start_weftd_with(&["--dead-grace", "1s"])?;
    ensure!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    stations.truncate(3);
    let before = kept.addresses.clone();
    cluster.up(&mut stations)?;
    ensure!(
        stations[2].addresses == before,
        "{before:?} {:?}",
        stations[2].addresses
    );
    eventually(SOON, "it tells of the other one", || {
        has_problem(
            host,
            &gone.short_key(),
            "attachment.netns",
            "has been gone for more than",
        )
    })?;
    ensure!(
        cluster.get(&gone.key())?.is_some(),
        "that is not the agent's to decide"
    );

    host.stop()?;
    host.start_weftd_with(&["--dead-grace", "1s", "--release-dead"])?;
    eventually(SOON, "it is released, with its addresses", || {
        ensure!(cluster.get(&gone.key())?.is_none());
        for address in &gone.addresses {
            ensure!(
                cluster
                    .get(&format!("/weft/v1/addresses/blue/{address}"))?
                    .is_none()
            );
        }
        Ok(())
    })?;
    others.nothing_lost()?;
    cluster.close()
}
