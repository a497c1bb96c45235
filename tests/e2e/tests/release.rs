//! Giving addresses up: another host may have one as soon as its claim is gone, so it must be off the interface before.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use weft_e2e::{Cluster, SOON, Station};

/// Puts as many endpoints on host1 as make a pass over them take longer than a transaction.
fn many(cluster: &Cluster) -> Result<Vec<Station>> {
    cluster.network("blue", &["10.1.0.0/24", "fd00:1::/64"])?;
    let mut stations = Vec::new();
    for n in 0..24 {
        stations.push(cluster.endpoint("blue", 1, &format!("e{n}"))?);
    }
    cluster.settle(&mut stations)?;
    weft_lab::eventually(SOON, "all have their addresses", || {
        for station in &stations {
            let there = station.container.addresses()?;
            ensure!(there.len() == 2, "{} has {there:?}", station.id);
        }
        Ok(())
    })?;
    Ok(stations)
}

/// Hears of each claim that is given up and looks into its container at that moment.
fn claims_outlive_addresses(
    cluster: &Cluster,
    stations: &[Station],
    give_up: impl FnOnce() + Send,
) -> Result<()> {
    let mut held: BTreeMap<IpAddr, &Station> = BTreeMap::new();
    for station in stations {
        held.extend(station.addresses.iter().map(|address| (*address, station)));
    }
    let revision = cluster.etcd(1).status()?.revision;
    let watch = cluster.etcd(1).watch("/weft/v1/addresses/blue/", revision + 1)?;
    std::thread::scope(|scope| {
        scope.spawn(give_up);
        let end = Instant::now() + SOON;
        while !held.is_empty() && Instant::now() < end {
            for event in watch.next(Duration::from_millis(100))? {
                let address: IpAddr = event.kv.key.rsplit('/').next().unwrap_or_default().parse()?;
                let Some(station) = held.remove(&address).filter(|_| event.deleted) else {
                    continue;
                };
                // A socket can be bound to what is on an interface only; faster than a program that lists addresses.
                let bound = station
                    .container
                    .netns()
                    .within(|| UdpSocket::bind((address, 0)))?;
                ensure!(
                    bound.is_err(),
                    "the claim of {address} is gone and {} still has it",
                    station.id
                );
            }
        }
        ensure!(held.is_empty(), "still claimed: {:?}", held.keys());
        Ok(())
    })
}

#[test]
fn a_detached_endpoints_claims_outlive_its_interface() -> Result<()> {
    let cluster = Cluster::of(1)?;
    let stations = many(&cluster)?;
    claims_outlive_addresses(&cluster, &stations, || {
        std::thread::scope(|scope| {
            for station in &stations {
                let host = cluster.host(1);
                scope.spawn(|| host.weft(&["endpoint", "detach", "blue", &station.id]).map(drop));
            }
        });
    })?;
    cluster.close()
}

#[test]
fn a_deleted_records_claims_outlive_its_interface() -> Result<()> {
    let cluster = Cluster::of(1)?;
    let stations = many(&cluster)?;
    claims_outlive_addresses(&cluster, &stations, || {
        // Whether it was done is seen by the claims.
        let _ = cluster.del_prefix("/weft/v1/endpoints/blue/host1/");
    })?;
    cluster.close()
}

#[test]
fn an_address_that_is_exchanged_is_claimed_until_it_is_off_the_interface() -> Result<()> {
    let cluster = Cluster::of(1)?;
    let stations = many(&cluster)?;
    claims_outlive_addresses(&cluster, &stations, || {
        for (n, station) in stations.iter().enumerate() {
            let (v4, v6) = (format!("10.1.0.{}", 20 + n), format!("fd00:1::aaaa:{n}"));
            // Whether it was done is seen by the claims.
            let _ = cluster.put(&station.key(), &station.container.endpoint_record(&[&v4, &v6]));
        }
    })?;
    cluster.close()
}

/// An operator deletes the record of an endpoint whose agent is down: its container has the address until the agent is
/// back, so nobody else may have it.
#[test]
fn nobody_gives_up_the_claims_of_a_host_that_is_down() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 2, "b")?,
    ];
    cluster.up(&mut stations)?;
    let address = stations[0].addresses[0];
    cluster.host(1).kill9()?;
    cluster.del(&stations[0].key())?;
    let heir = cluster.container("heir")?;
    let path = heir.path();
    let wish = address.to_string();
    let attach = [
        "endpoint",
        "attach",
        "blue",
        &path,
        "--id",
        "heir",
        "--address",
        &wish,
    ];
    // Longer than another agent would wait for its turn to clear away what nobody's is.
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let output = cluster.host(2).weft_output(&attach)?;
        ensure!(
            !output.status.success(),
            "{:?} and {:?} both have {address}",
            stations[0].container.addresses()?,
            heir.addresses()?
        );
    }
    cluster.host(1).start_weftd()?;
    weft_lab::eventually(SOON, "the agent is back and gives the address up", || {
        cluster.host(2).weft(&attach).map(drop)
    })?;
    let there = stations[0].container.addresses()?;
    ensure!(!there.contains(&address), "{there:?}");
    cluster.close()
}

/// A record is deleted while its host is down, and the host is rebooted: nothing in its kernel leads to the network any
/// more, and the claim is given up all the same.
#[test]
fn what_was_held_before_a_reboot_is_given_up_after_it() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    let mut stations = vec![cluster.endpoint("blue", 1, "a")?];
    cluster.up(&mut stations)?;
    let claim = format!("/weft/v1/addresses/blue/{}", stations[0].addresses[0]);
    cluster.host(1).stop()?;
    cluster.del(&stations[0].key())?;
    // As after a reboot: the namespace with the devices is gone, and it is another run of the kernel.
    cluster.host(1).teardown()?;
    let peer = cluster.get("/weft/v1/peers/host1")?.context("no peer record")?;
    let mut peer: serde_json::Value = serde_json::from_str(&peer)?;
    peer["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    cluster.put("/weft/v1/peers/host1", &peer.to_string())?;
    ensure!(cluster.get(&claim)?.is_some(), "nobody else gives it up");
    cluster.host(1).start_weftd()?;
    weft_lab::eventually(SOON, "the claim is given up", || {
        let left = cluster.get(&claim)?;
        ensure!(left.is_none(), "{left:?}");
        Ok(())
    })?;
    cluster.close()
}

/// The agent learns of a record and is asked to detach it at the same moment: whichever it looks at first, it is gone.
#[test]
fn what_was_recorded_a_moment_ago_is_detached_too() -> Result<()> {
    let cluster = Cluster::of(1)?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    let host = cluster.host(1);
    let container = cluster.container("c")?;
    let record = container.endpoint_record(&[]);
    for n in 0..12 {
        let id = format!("e{n}");
        let key = Cluster::endpoint_key("blue", 1, &id);
        host.signal(Signal::SIGSTOP)?;
        cluster.put(&key, &record)?;
        let answer = std::thread::scope(|scope| {
            let detached = scope.spawn(|| host.weft_json(&["endpoint", "detach", "blue", &id]));
            // The question waits in the agent's socket, as the news does in another one.
            let asked = weft_lab::eventually(SOON, "the question is in the agent's socket", || {
                let sockets = host
                    .netns()
                    .within(|| std::fs::read_to_string("/proc/thread-self/net/unix"))??;
                let path = host.socket().display().to_string();
                ensure!(sockets.matches(&path).count() > 1, "{sockets}");
                Ok(())
            });
            host.signal(Signal::SIGCONT)?;
            asked?;
            detached
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let gone = || {
            let left = cluster.get(&key)?;
            ensure!(
                left.is_none(),
                "{id} was detached ({answer}) and is there: {left:?}"
            );
            Ok(())
        };
        if answer["record_pending"] == true {
            weft_lab::eventually(SOON, "what is left to do is done", gone)?;
        } else {
            gone()?;
        }
    }
    cluster.close()
}
