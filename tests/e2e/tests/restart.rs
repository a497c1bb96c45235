//! Agents that are killed, stopped and started again: forwarding goes on, nothing that is right is written again, and
//! what changed meanwhile is caught up.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON, Station, neighbours, remote_fdb, writes};
use weft_lab::{PingStream, eventually};

const CIDRS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

fn two(cluster: &Cluster) -> Result<Vec<Station>> {
    cluster.network("blue", &CIDRS)?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 2, "b")?,
    ];
    cluster.up(&mut stations)?;
    Ok(stations)
}

/// Echo at 100 a second in both directions and families.
fn streams(stations: &[Station]) -> Result<Vec<PingStream>> {
    let mut streams = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        for address in &stations[to].addresses {
            streams.push(stations[from].container.ping_stream(*address, 100)?);
        }
    }
    wait_sent(&streams, 10)?;
    Ok(streams)
}

/// Waits until each stream has sent this many more.
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

fn none_lost(streams: Vec<PingStream>) {
    for (number, stream) in streams.into_iter().enumerate() {
        let sum = stream.stop();
        assert_eq!(sum.lost(), 0, "stream {number}: {sum:?}");
        assert!(sum.sent > 50, "too few to tell: {sum:?}");
    }
}

/// Waits until a host has seen the store as it is now.
fn caught_up(cluster: &Cluster, host: usize) -> Result<()> {
    // A record of no meaning to the data plane, whose revision the agent has to get to.
    let key = "/weft/v1/networks/marker";
    cluster.put(key, r#"{"subnets":[{"cidr":"192.168.0.0/24"}]}"#)?;
    let revision = cluster.get_kv(key)?.map_or(0, |kv| kv.mod_revision);
    eventually(SOON, "the agent has seen all", || {
        let seen = weft_e2e::counter(cluster.host(host), "/applied_revision")?;
        ensure!(seen >= u64::try_from(revision)?, "{seen} of {revision}");
        Ok(())
    })
}

#[test]
fn a_killed_agent_loses_no_packet_and_rewrites_nothing() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = two(&cluster)?;
    let before: Vec<String> = cluster
        .hosts()
        .iter()
        .map(|h| picture(h, "blue"))
        .collect::<Result<_>>()?;
    let streams = streams(&stations)?;
    for host in [1, 2, 1] {
        cluster.host(host).kill9()?;
        wait_sent(&streams, 30)?;
        cluster.host(host).start_weftd()?;
        wait_sent(&streams, 30)?;
    }
    none_lost(streams);
    for host in [1, 2] {
        caught_up(&cluster, host)?;
        assert_eq!(
            writes(cluster.host(host))?,
            0,
            "{}",
            weft_e2e::status(cluster.host(host))?
        );
        assert_eq!(weft_e2e::counter(cluster.host(host), "/drift_repaired/total")?, 0);
    }
    let after: Vec<String> = cluster
        .hosts()
        .iter()
        .map(|h| picture(h, "blue"))
        .collect::<Result<_>>()?;
    assert_eq!(before, after);
    cluster.close()
}

/// Everything in a network's namespace, down to the interfaces' numbers: made anew, it would differ.
fn picture(host: &weft_lab::Host, network: &str) -> Result<String> {
    let namespace = host.netns_of(network);
    let links = namespace.ip_json(&["link", "show"])?;
    let names: Vec<String> = links
        .as_array()
        .into_iter()
        .flatten()
        .map(|l| format!("{} {} {} {}", l["ifindex"], l["ifname"], l["address"], l["mtu"]))
        .collect();
    Ok(format!(
        "{names:#?} {:#?} {:#?}",
        weft_e2e::fdb(&namespace)?,
        neighbours(&namespace)?
    ))
}

#[test]
fn a_stopped_agent_leaves_forwarding_and_goes_on_where_it_was() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = two(&cluster)?;
    let before = picture(cluster.host(1), "blue")?;
    let streams = streams(&stations)?;
    // SIGTERM; fails when the exit status is not 0.
    cluster.hosts().iter().try_for_each(weft_lab::Host::stop)?;
    wait_sent(&streams, 50)?;
    assert_eq!(picture(cluster.host(1), "blue")?, before);
    cluster.start_all()?;
    wait_sent(&streams, 30)?;
    none_lost(streams);
    caught_up(&cluster, 1)?;
    assert_eq!(writes(cluster.host(1))?, 0);
    assert_eq!(picture(cluster.host(1), "blue")?, before);
    cluster.close()
}

#[test]
fn an_agent_killed_at_any_moment_of_a_burst_converges() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &CIDRS)?;
    let mut stations: Vec<Station> = Vec::new();
    // The pauses put the kills at different moments of the agent's work; the numbers are what random() gave, so that
    // every run is the same.
    let pauses = [3, 17, 0, 41, 8, 26, 1, 60];
    for (round, pause) in pauses.iter().enumerate() {
        for n in 0..3 {
            stations.push(cluster.endpoint("blue", 1 + (round + n) % 2, &format!("e{round}-{n}"))?);
        }
        if round % 2 == 1 {
            // Deletions in the burst too.
            let gone = stations.remove(0);
            cluster.del(&gone.key())?;
        }
        std::thread::sleep(Duration::from_millis(*pause));
        cluster.host(1).kill9()?;
        cluster.host(1).spawn_weftd(&[])?;
    }
    cluster.host(1).wait_ready()?;
    cluster.up(&mut stations)?;
    for host in cluster.hosts() {
        let (own, others): (Vec<_>, Vec<_>) = stations.iter().partition(|s| s.host == host.number());
        eventually(SOON, "nothing too much and nothing too little", || {
            let namespace = host.netns_of("blue");
            let veths = namespace.ip_json(&["link", "show", "type", "veth"])?;
            let veths = veths.as_array().map_or(0, Vec::len);
            ensure!(veths == own.len(), "{veths} veths for {}", own.len());
            let (fdb, neighbours) = (remote_fdb(&namespace)?.len(), neighbours(&namespace)?.len());
            ensure!(
                fdb == others.len() && neighbours == 2 * fdb,
                "{fdb}, {neighbours} of {}",
                others.len()
            );
            ensure!(weft_e2e::status(host)?["problems"] == serde_json::json!([]));
            Ok(())
        })?;
    }
    eventually(SOON, "claims are those of the endpoints", || {
        let claims = cluster.get_prefix("/weft/v1/addresses/")?;
        ensure!(claims.len() == 2 * stations.len(), "{} claims", claims.len());
        Ok(())
    })?;
    cluster.close()
}

#[test]
fn what_changed_while_an_agent_was_down_is_caught_up() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &CIDRS)?;
    let mut stations = Vec::new();
    for (host, id) in [
        (1, "a"),
        (1, "gone-here"),
        (2, "stays"),
        (2, "gone"),
        (2, "moves"),
        (2, "reused"),
    ] {
        stations.push(cluster.endpoint("blue", host, id)?);
    }
    cluster.up(&mut stations)?;
    let take = |stations: &mut Vec<Station>, id: &str| {
        let at = stations.iter().position(|s| s.id == id).unwrap();
        stations.remove(at)
    };

    cluster.host(1).kill9()?;
    // Removed, here and there.
    for id in ["gone", "gone-here"] {
        let station = take(&mut stations, id);
        cluster.del(&station.key())?;
    }
    // Moved to another host with its address, and an address reused by another endpoint on another host.
    for (id, new_id) in [("moves", "moves"), ("reused", "heir")] {
        let old = take(&mut stations, id);
        cluster.del(&old.key())?;
        eventually(SOON, "its claims are gone", || {
            let claim = cluster.get(&format!("/weft/v1/addresses/blue/{}", old.addresses[0]))?;
            ensure!(claim.is_none(), "{claim:?}");
            Ok(())
        })?;
        let addresses: Vec<String> = old.addresses.iter().map(ToString::to_string).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let container = cluster.container(&format!("{new_id}-again"))?;
        let record = container.endpoint_record(&addresses);
        let new = Station {
            host: 3,
            id: new_id.to_owned(),
            container,
            ..old
        };
        cluster.put(&new.key(), &record)?;
        stations.push(new);
    }
    // Added, on all hosts.
    for host in 1..=3 {
        stations.push(cluster.endpoint("blue", host, &format!("new{host}"))?);
    }
    // Another network, that this host hears of only when it is back.
    cluster.network("red", &CIDRS)?;
    let mut red = vec![
        cluster.endpoint("red", 1, "r1")?,
        cluster.endpoint("red", 2, "r2")?,
    ];

    cluster.host(1).start_weftd()?;
    cluster.up(&mut stations)?;
    cluster.up(&mut red)?;
    let others: Vec<_> = stations.iter().filter(|s| s.host != 1).collect();
    eventually(SOON, "host1 has what is, and no more", || {
        let namespace = cluster.host(1).netns_of("blue");
        let (fdb, neighbours) = (remote_fdb(&namespace)?, neighbours(&namespace)?);
        ensure!(
            fdb.len() == others.len() && neighbours.len() == 2 * others.len(),
            "{fdb:?} {neighbours:?}"
        );
        let veths = namespace.ip_json(&["link", "show", "type", "veth"])?;
        ensure!(veths.as_array().map(Vec::len) == Some(2), "{veths}");
        let claims = cluster.get_prefix("/weft/v1/addresses/blue/")?;
        ensure!(claims.len() == 2 * stations.len(), "{claims:?}");
        ensure!(weft_e2e::status(cluster.host(1))?["problems"] == serde_json::json!([]));
        Ok(())
    })?;
    cluster.close()
}

#[test]
fn a_network_that_ended_while_an_agent_was_down_is_cleared_away() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = two(&cluster)?;
    let vni = cluster.get_json(&Cluster::network_key("blue"))?.unwrap()["vni"].clone();
    cluster.host(1).kill9()?;
    for station in &stations {
        cluster.del(&station.key())?;
    }
    cluster.del(&Cluster::network_key("blue"))?;
    cluster.host(1).start_weftd()?;
    eventually(SOON, "nothing of blue is left", || {
        for host in cluster.hosts() {
            let left = host.netns_of("blue");
            ensure!(
                !left.path().exists(),
                "on {}, a namespace: {}",
                host.node(),
                left.exists()
            );
        }
        for directory in ["endpoints/", "addresses/", "vnis/", "networks/"] {
            let left = cluster.get_prefix(&format!("/weft/v1/{directory}"))?;
            ensure!(left.is_empty(), "VNI {vni}, left: {left:?}");
        }
        Ok(())
    })?;
    cluster.close()
}
