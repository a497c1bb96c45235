//! Endpoints that move, and addresses that others have now.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::{Cluster, SOON, Station};
use weft_faults::one_each;
use weft_lab::eventually;

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
        let there = weft_e2e::fdb(&host.netns_of("blue"))?;
        ensure!(
            !there.iter().any(|row| row.mac == "02:00:00:00:00:01"),
            "{}: {there:?}",
            host.node()
        );
    }
    cluster.close()
}
