//! Endpoints that move, and addresses that others have now.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_e2e::{Cluster, Fdb, SOON, Station, fdb};
use weft_faults::{between, one_each};
use weft_lab::{PingStream, eventually};

/// The addresses that go from hand to hand.
const SHARED: [&str; 2] = ["10.1.0.99", "fd00:1::99"];

/// Puts an endpoint with the shared addresses and a MAC of its own, and waits until every host can reach it.
fn holder(cluster: &Cluster, host: usize, id: &str, mac: u8) -> Result<Station> {
    let container = cluster.container(&format!("blue-{id}"))?;
    let record = json!({
        "attachment": {"netns": container.path()},
        "requested_addresses": SHARED,
        "mac": format!("02:00:00:00:00:{mac:02x}"),
    });
    cluster.put(&Cluster::endpoint_key("blue", host, id), &record.to_string())?;
    let mut stations = [Station {
        network: "blue".to_owned(),
        host,
        id: id.to_owned(),
        container,
        addresses: Vec::new(),
    }];
    cluster.settle(&mut stations)?;
    cluster.host(host).weft(&["wait", "blue"])?;
    let [station] = stations;
    let held: Vec<String> = station.addresses.iter().map(ToString::to_string).collect();
    ensure!(held == SHARED, "{station:?}");
    Ok(station)
}

/// Deletes an endpoint's record, and waits until nobody holds its addresses any more.
fn release(cluster: &Cluster, station: &Station) -> Result<()> {
    cluster.del(&station.key())?;
    eventually(SOON, "its addresses are given up", || {
        ensure!(cluster.get_prefix("/weft/v1/addresses/blue/")?.len() == 6);
        Ok(())
    })
}

/// Every one of them has an answer to its first echo request to the shared addresses.
fn reach_at_once(stations: &[Station], when: &str) -> Result<()> {
    for station in stations {
        for address in SHARED {
            let reached = station
                .container
                .ping_within(address.parse()?, Duration::from_millis(900));
            let entries = station.container.exec(&["ip", "neigh", "show", "to", address])?;
            ensure!(
                reached,
                "{when}: {} does not reach {address}; it knows {entries:?}",
                station.id
            );
        }
    }
    Ok(())
}

/// An address that another endpoint has now is reached at once by whoever talked to the last one: on the host of the last
/// one, on the host of the new one, and elsewhere; whether the new one is on the same host or on another.
#[test]
fn an_address_of_another_endpoint_now_is_reached_at_once() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = one_each(&cluster)?;
    let mut last: Option<Station> = None;
    for (mac, host) in [1, 2, 2, 3, 1].into_iter().enumerate() {
        if let Some(last) = &last {
            release(&cluster, last)?;
        }
        let new = holder(&cluster, host, &format!("x{mac}"), u8::try_from(mac)?)?;
        reach_at_once(&stations, &format!("holder {mac} on host{host}"))?;
        last = Some(new);
    }
    cluster.close()
}

/// The same where an agent has seen neither the end of the last holder nor the beginning of the new one: it was killed, or
/// cut off while etcd forgot what happened.
#[test]
fn an_address_reused_across_a_watch_gap_leaves_nothing_stale() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = one_each(&cluster)?;
    let first = holder(&cluster, 1, "first", 1)?;
    reach_at_once(&stations, "first holder")?;

    let (killed, cut_off) = (cluster.host(2), cluster.host(3));
    killed.kill9()?;
    let etcd: Vec<_> = cluster
        .etcd_members()
        .iter()
        .flat_map(weft_lab::EtcdMember::addresses)
        .collect();
    cut_off.netns().cut_off(&etcd)?;
    release(&cluster, &first)?;
    let container = cluster.container("blue-second")?;
    let record = json!({
        "attachment": {"netns": container.path()},
        "requested_addresses": SHARED,
        "mac": "02:00:00:00:00:02",
    });
    cluster.put(&Cluster::endpoint_key("blue", 1, "second"), &record.to_string())?;
    eventually(SOON, "the second holder has them", || {
        ensure!(container.addresses()?.len() == 2);
        Ok(())
    })?;
    let revision = cluster.get_kv(&Cluster::endpoint_key("blue", 1, "second"))?;
    let revision = revision.map(|kv| kv.mod_revision.to_string()).unwrap_or_default();
    cluster.etcdctl(&["compact", &revision])?;
    cut_off.netns().reconnect()?;
    killed.start_weftd()?;
    cluster.host(1).weft(&["wait", "blue"])?;
    reach_at_once(&stations, "second holder")?;
    for host in cluster.hosts() {
        let there = fdb(&host.netns_of("blue"))?;
        ensure!(
            !there.iter().any(|row| row.mac == "02:00:00:00:00:01"),
            "{}: {there:?}",
            host.node()
        );
    }
    cluster.close()
}

/// Where one host sends frames for the moving endpoint: what its tables say, with the time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    at: Instant,
    host: usize,
    place: Option<String>,
}

/// Samples where each host sends frames for a MAC, until told to stop. `begun` is set when it knows that of all.
fn watch_places(cluster: &Cluster, mac: &str, begun: &AtomicBool, stop: &AtomicBool) -> Result<Vec<Sample>> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut last: Vec<Option<Option<String>>> = vec![None; cluster.hosts().len()];
    while !stop.load(Ordering::Acquire) {
        for (host, last) in cluster.hosts().iter().zip(&mut last) {
            let rows = fdb(&host.netns_of("blue"))?;
            let at = Instant::now();
            let of_bridge = |row: &&Fdb| row.mac == mac && row.master;
            let place = rows.iter().find(of_bridge).map(|row| {
                let vtep = rows.iter().find(|r| r.mac == mac && r.dst.is_some());
                match (row.dev.as_str(), vtep.and_then(|r| r.dst.as_deref())) {
                    ("vx4", Some("10.99.0.1")) => "host1".to_owned(),
                    ("vx4", Some("10.99.0.2")) => "host2".to_owned(),
                    (dev, _) if dev.starts_with("ve") => host.node(),
                    (dev, vtep) => format!("{dev} {vtep:?}"),
                }
            });
            if last.as_ref() != Some(&place) {
                *last = Some(place.clone());
                samples.push(Sample {
                    at,
                    host: host.number(),
                    place,
                });
            }
        }
        begun.store(true, Ordering::Release);
    }
    Ok(samples)
}

/// An endpoint moves: its record on one host is deleted and one on another is written in the same transaction, with its
/// addresses, MAC, name and claims. Every host forwards to the old place, then to the new one, and to no third; all
/// change within the delay of the watch; the others lose nothing.
#[test]
fn an_endpoint_that_moves_is_followed_in_one_step() -> Result<()> {
    let cluster = Cluster::of(4)?;
    let mut stations = one_each(&cluster)?;
    // `a` on host1 moves to host2; all others talk to it all the time, and with each other.
    let a = stations.remove(0);
    stations.push(cluster.endpoint("blue", 1, "stays")?);
    cluster.up(&mut stations)?;
    let others = between(&stations)?;
    let mac = cluster.record(&a)?["mac"].as_str().unwrap_or_default().to_owned();
    let to_a: Vec<PingStream> = stations
        .iter()
        .flat_map(|from| {
            a.addresses
                .iter()
                .map(|address| from.container.ping_stream(*address, 100))
        })
        .collect::<Result<_>>()?;
    eventually(SOON, "all talk to it", || {
        ensure!(to_a.iter().all(|stream| stream.so_far().received > 10));
        Ok(())
    })?;

    let target = cluster.container("blue-a2")?;
    let record = json!({
        "name": "web",
        "attachment": {"netns": target.path()},
        "addresses": a.addresses,
        "mac": mac,
    });
    let claims = a.addresses.iter().map(|address| {
        let claim = json!({"endpoint": "host2/a"}).to_string();
        (format!("/weft/v1/addresses/blue/{address}"), claim)
    });
    let mut written: Vec<_> = claims.collect();
    written.push((Cluster::endpoint_key("blue", 2, "a"), record.to_string()));

    let (begun, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (moved_at, samples) = std::thread::scope(|scope| -> Result<_> {
        let watching = scope.spawn(|| watch_places(&cluster, &mac, &begun, &stop));
        let changed = || -> Result<Instant> {
            eventually(SOON, "all hosts are watched", || {
                ensure!(begun.load(Ordering::Acquire));
                Ok(())
            })?;
            cluster.transact(&[a.key()], &written)?;
            let moved_at = Instant::now();
            eventually(SOON, "it is there", || {
                ensure!(target.addresses()?.len() == 2);
                Ok(())
            })?;
            cluster.host(2).weft(&["wait", "blue"])?;
            Ok(moved_at)
        };
        let moved_at = changed();
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Release);
        let samples = watching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((moved_at?, samples?))
    })?;

    let mut last_change = moved_at;
    for host in 1..=4 {
        let path: Vec<_> = samples.iter().filter(|s| s.host == host).collect();
        let places: Vec<_> = path.iter().filter_map(|s| s.place.as_deref()).collect();
        ensure!(places == ["host1", "host2"], "host{host}: {path:?}");
        last_change = last_change.max(path.last().map_or(last_change, |s| s.at));
    }
    let window = last_change.saturating_duration_since(moved_at);
    // What a sample of all hosts takes on a busy machine is in it, too.
    ensure!(window < Duration::from_secs(1), "{window:?}: {samples:?}");
    let lost: Vec<u64> = to_a.into_iter().map(|stream| stream.stop().lost()).collect();
    println!("all follow within {window:?}; echo requests lost to it: {lost:?}");
    ensure!(lost.iter().all(|lost| *lost < 100), "{lost:?}");
    others.nothing_lost()?;
    ensure!(
        a.container.addresses()?.is_empty(),
        "it has left the old container"
    );
    cluster.host(1).weft(&["audit"])?;
    cluster.close()
}

/// The same by commands: detached there, attached here with the same address; whoever talks to it goes on.
#[test]
fn an_endpoint_is_moved_by_commands() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = one_each(&cluster)?;
    let a = &stations[0];
    let others = between(&stations[1..])?;
    let [v4, v6] = [a.address(true).to_string(), a.address(false).to_string()];
    let mac = cluster.record(a)?["mac"].as_str().unwrap_or_default().to_owned();
    let target = cluster.container("blue-a2")?;
    let path = target.path();
    let attach = [
        "endpoint",
        "attach",
        "blue",
        &path,
        "--id",
        "a",
        "--address",
        &v4,
        "--address",
        &v6,
        "--mac",
        &mac,
        "--wait",
    ];
    // While it is there, it cannot be here, and it is said who has it.
    weft_e2e::refused(cluster.host(2), &attach, 4, "host1/a")?;
    cluster.host(1).weft(&["endpoint", "detach", "blue", "a"])?;
    cluster.host(2).weft(&attach)?;
    for station in &stations[1..] {
        for address in [&v4, &v6] {
            ensure!(
                station
                    .container
                    .ping_within(address.parse()?, Duration::from_millis(900)),
                "{} does not reach {address} at once",
                station.id
            );
        }
    }
    others.nothing_lost()?;
    cluster.close()
}

/// A host's underlay address is replaced by another: its agent rewrites one key, once, and all others follow.
#[test]
fn a_vtep_address_that_changes_is_followed() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = one_each(&cluster)?;
    let others = between(&stations[..2])?;
    let moved = cluster.host(3);
    cluster.put("/mark", "now")?;
    let revision = cluster.get_kv("/mark")?.context("no mark")?.mod_revision;
    let watch = cluster.etcd(1).watch("/weft/v1/", revision + 1)?;
    moved.renumber_underlay(&moved.addresses(), &["10.99.0.33".parse()?])?;
    eventually(SOON, "the record says so", || {
        let record = cluster.get_json("/weft/v1/peers/host3")?.context("no record")?;
        ensure!(record["vteps"] == json!(["10.99.0.33"]), "{record}");
        Ok(())
    })?;
    cluster.all_talk(&stations)?;
    for host in &cluster.hosts()[..2] {
        let rows = weft_e2e::remote_fdb(&host.netns_of("blue"))?;
        ensure!(
            rows.iter().all(|(_, vtep)| vtep != "10.99.0.3"),
            "{}: {rows:?}",
            host.node()
        );
    }
    others.wait_more(20)?;
    others.nothing_lost()?;
    let mut written = Vec::new();
    loop {
        let events = watch.next(Duration::from_millis(500))?;
        if events.is_empty() {
            break;
        }
        written.extend(
            events
                .into_iter()
                .map(|event| event.kv.key)
                .filter(|key| !key.contains("/status/")),
        );
    }
    ensure!(
        written
            .iter()
            .filter(|key| *key == "/weft/v1/peers/host3")
            .count()
            == 1,
        "{written:?}"
    );
    ensure!(
        written
            .iter()
            .all(|key| key.contains("/peers/host3") || key.contains("/alive/host3")),
        "{written:?}"
    );
    cluster.close()
}

/// A host's underlay gets a smaller MTU, and its old one again: every host's networks follow while everybody talks.
#[test]
fn an_mtu_that_changes_is_followed() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let stations = one_each(&cluster)?;
    let traffic = between(&stations)?;
    for (underlay, overlay) in [("1400", 1350), ("1500", 1450)] {
        cluster
            .host(3)
            .exec(&["ip", "link", "set", "eth0", "mtu", underlay])?;
        eventually(SOON, "the MTU is followed on all hosts", || {
            for host in cluster.hosts() {
                for device in ["br0", "vx4"] {
                    let mtu = weft_e2e::link(&host.netns_of("blue"), device)?["mtu"].clone();
                    ensure!(mtu == overlay, "{device} on {}: {mtu}", host.node());
                }
            }
            for station in &stations {
                let mtu = weft_e2e::link(station.container.netns(), "eth0")?["mtu"].clone();
                ensure!(mtu == overlay, "eth0 of {}: {mtu}", station.id);
            }
            Ok(())
        })?;
        traffic.wait_more(20)?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}
