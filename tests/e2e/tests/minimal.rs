//! Records written with `etcdctl` alone, and nothing in them but what must be: the agents complete them, packets
//! pass, and what is deleted is gone everywhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use weft_e2e::{Cluster, SOON, Station, neighbours, remote_fdb, status};
use weft_lab::{Lab, Underlay, eventually};

/// Three endpoints on three hosts, and a second one on the first.
fn four(cluster: &Cluster, network: &str) -> Result<Vec<Station>> {
    let mut stations = Vec::new();
    for (host, id) in [(1, "a"), (2, "b"), (3, "c"), (1, "d")] {
        stations.push(cluster.endpoint(network, host, id)?);
    }
    Ok(stations)
}

/// What an agent has to make of a minimal record, as etcd has it.
fn check_completed(cluster: &Cluster, station: &Station, cidrs: &[&str]) -> Result<()> {
    let record = cluster.record(station)?;
    assert_eq!(station.addresses.len(), cidrs.len(), "one a subnet: {record}");
    for address in &station.addresses {
        let claim = cluster
            .get_json(&format!("/weft/v1/addresses/{}/{address}", station.network))?
            .with_context(|| format!("{address} is not claimed"))?;
        assert_eq!(claim["endpoint"], format!("host{}/{}", station.host, station.id));
    }
    let mac = record["mac"].as_str().context("no mac")?;
    if let Some(IpAddr::V4(v4)) = station.addresses.iter().find(|a| a.is_ipv4()) {
        let [a, b, c, d] = v4.octets();
        assert_eq!(mac, format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}"));
    }
    assert_eq!(
        record["attachment"]["netns"],
        station.container.path(),
        "what was written stays"
    );
    // The interface in the container is what the record says.
    let eth0 = weft_e2e::link(station.container.netns(), "eth0")?;
    assert_eq!(eth0["address"], mac);
    assert_eq!(eth0["operstate"], "UP");
    let held: BTreeSet<IpAddr> = station.container.addresses()?.into_iter().collect();
    assert_eq!(held, station.addresses.iter().copied().collect());
    Ok(())
}

/// Every host has exactly the entries for the endpoints of the others.
fn check_entries(cluster: &Cluster, stations: &[Station]) -> Result<()> {
    for host in cluster.hosts() {
        let network = host.netns_of(&stations[0].network);
        let (mut macs, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for station in stations.iter().filter(|s| s.host != host.number()) {
            let mac = cluster.record(station)?["mac"]
                .as_str()
                .context("mac")?
                .to_owned();
            // The first family that both have, IPv4 before IPv6.
            let vtep = cluster.host_of(station).addresses()[0].to_string();
            addresses.extend(station.addresses.iter().map(|a| (a.to_string(), mac.clone())));
            macs.insert((mac, vtep));
        }
        eventually(SOON, &format!("{} has the entries", host.node()), || {
            let (fdb, neighbours) = (remote_fdb(&network)?, neighbours(&network)?);
            ensure!(fdb == macs, "fdb {fdb:?}, wanted {macs:?}");
            ensure!(
                neighbours == addresses,
                "neighbours {neighbours:?}, wanted {addresses:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn a_minimal_network_works(underlay: Underlay, cidrs: &[&str], mtu: u64) -> Result<()> {
    let cluster = Cluster::build(Lab::builder().hosts(3).underlay(underlay))?;
    cluster.network("blue", cidrs)?;
    let mut stations = four(&cluster, "blue")?;
    cluster.up(&mut stations)?;

    let network = cluster
        .get_json(&Cluster::network_key("blue"))?
        .context("network")?;
    let vni = network["vni"]
        .as_u64()
        .with_context(|| format!("no vni in {network}"))?;
    assert_eq!(
        cluster
            .get_json(&format!("/weft/v1/vnis/{vni}"))?
            .context("vni claim")?["network"],
        "blue"
    );
    assert_eq!(network["subnets"].as_array().map(Vec::len), Some(cidrs.len()));
    for station in &stations {
        check_completed(&cluster, station, cidrs)?;
        let eth0 = weft_e2e::link(station.container.netns(), "eth0")?;
        assert_eq!(eth0["mtu"], mtu, "the underlay's less the encapsulation");
    }
    let all: BTreeSet<_> = stations.iter().flat_map(|s| &s.addresses).collect();
    assert_eq!(all.len(), 4 * cidrs.len(), "no address twice: {all:?}");
    check_entries(&cluster, &stations)?;
    for host in cluster.hosts() {
        let status = status(host)?;
        assert_eq!(status["problems"], serde_json::json!([]), "{}", host.node());
        assert_eq!(status["counts"]["fdb_entries"], 4, "{status}");
        for address in host.addresses() {
            let tunnel = if address.is_ipv4() { "vx4" } else { "vx6" };
            let link = weft_e2e::link(&host.netns_of("blue"), tunnel)?;
            assert_eq!(link["linkinfo"]["info_data"]["id"], vni, "{link}");
        }
    }
    cluster.close()
}

const V4: &str = "10.1.0.0/16";
const V6: &str = "fd00:1::/64";

#[test]
fn ipv4_network_on_an_ipv4_underlay() -> Result<()> {
    a_minimal_network_works(Underlay::V4, &[V4], 1450)
}

#[test]
fn ipv6_network_on_an_ipv4_underlay() -> Result<()> {
    a_minimal_network_works(Underlay::V4, &[V6], 1450)
}

#[test]
fn dual_stack_network_on_an_ipv4_underlay() -> Result<()> {
    a_minimal_network_works(Underlay::V4, &[V4, V6], 1450)
}

#[test]
fn dual_stack_network_on_an_ipv6_underlay() -> Result<()> {
    a_minimal_network_works(Underlay::V6, &[V4, V6], 1430)
}

#[test]
fn dual_stack_network_on_an_underlay_of_both() -> Result<()> {
    a_minimal_network_works(Underlay::Dual, &[V4, V6], 1450)
}

#[test]
fn hosts_of_one_family_and_of_both_meet_where_they_can() -> Result<()> {
    let lab = Lab::builder().hosts(3).underlay(Underlay::Dual).build()?;
    // host1 has both; host2 offers only IPv6, as if it had nothing else.
    lab.host(1).spawn_weftd(&[])?;
    lab.host(3).spawn_weftd(&[])?;
    lab.host(2).spawn_weftd(&["--underlay-address", "fd99::2"])?;
    lab.hosts().iter().try_for_each(weft_lab::Host::wait_ready)?;
    let cluster = Cluster::from_running(lab);
    cluster.network("blue", &[V4, V6])?;
    let mut stations = four(&cluster, "blue")?;
    cluster.up(&mut stations)?;
    let seen = remote_fdb(&cluster.host(1).netns_of("blue"))?;
    let vteps: BTreeSet<_> = seen.iter().map(|(_, vtep)| vtep.as_str()).collect();
    assert_eq!(vteps, BTreeSet::from(["fd99::2", "10.99.0.3"]));
    let mtu = weft_e2e::link(stations[0].container.netns(), "eth0")?["mtu"].clone();
    assert_eq!(mtu, 1430, "one of them is reached over IPv6 only");
    cluster.close()
}

#[test]
fn what_is_deleted_is_gone_everywhere() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &[V4, V6])?;
    let mut stations = four(&cluster, "blue")?;
    cluster.up(&mut stations)?;
    let vni = cluster
        .get_json(&Cluster::network_key("blue"))?
        .context("network")?["vni"]
        .clone();

    // One of two on host1: its entries, its veth and its claims go, the rest stays.
    let gone = stations.remove(0);
    assert!(cluster.del(&gone.key())?);
    eventually(SOON, "its claims are gone", || {
        let claims = cluster.get_prefix("/weft/v1/addresses/blue/")?;
        ensure!(claims.len() == 6, "{claims:?}");
        ensure!(
            gone.addresses
                .iter()
                .all(|a| !claims.contains_key(&format!("/weft/v1/addresses/blue/{a}")))
        );
        Ok(())
    })?;
    eventually(SOON, "its interface is gone", || {
        ensure!(weft_e2e::link(gone.container.netns(), "eth0").is_err());
        let ports = cluster
            .host(1)
            .netns_of("blue")
            .ip_json(&["link", "show", "type", "veth"])?;
        ensure!(ports.as_array().map(Vec::len) == Some(1), "{ports}");
        Ok(())
    })?;
    check_entries(&cluster, &stations)?;
    cluster.all_talk(&stations)?;

    // Host by host the last one: the namespace goes with it.
    for station in &stations {
        cluster.del(&station.key())?;
    }
    for host in cluster.hosts() {
        eventually(SOON, &format!("{} has nothing of blue", host.node()), || {
            let network = host.netns_of("blue");
            ensure!(
                !network.exists() && !network.path().exists(),
                "{}",
                network.path().display()
            );
            Ok(())
        })?;
    }
    eventually(SOON, "all claims are gone", || {
        let claims = cluster.get_prefix("/weft/v1/addresses/")?;
        ensure!(claims.is_empty(), "{claims:?}");
        Ok(())
    })?;
    assert!(
        cluster.get(&format!("/weft/v1/vnis/{vni}"))?.is_some(),
        "the network is there still"
    );
    cluster.del(&Cluster::network_key("blue"))?;
    eventually(SOON, "the VNI is free", || {
        ensure!(cluster.get(&format!("/weft/v1/vnis/{vni}"))?.is_none());
        Ok(())
    })?;
    for host in cluster.hosts() {
        assert_eq!(
            status(host)?["problems"],
            serde_json::json!([]),
            "{}",
            host.node()
        );
    }
    cluster.close()
}

#[test]
fn the_order_of_records_does_not_matter() -> Result<()> {
    let cluster = Cluster::of(2)?;
    // Endpoints of a network that is not there yet, one of them in a container that is not there yet.
    let late = cluster.container("late")?;
    late.remove()?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint_in("blue", 2, "b", late)?,
    ];
    cluster.network("blue", &[V4, V6])?;
    cluster.settle(&mut stations)?;
    eventually(SOON, "host2 says that there is no container", || {
        let found = weft_e2e::problems(cluster.host(2), "endpoints/blue/host2/b")?;
        ensure!(
            found.iter().any(|(_, m)| m.contains("no such network namespace")),
            "{found:?}"
        );
        Ok(())
    })?;
    cluster.container("late")?;
    cluster.all_talk(&stations)?;
    for host in cluster.hosts() {
        eventually(SOON, "nothing is wrong any more", || {
            ensure!(
                status(host)?["problems"] == serde_json::json!([]),
                "{}",
                status(host)?["problems"]
            );
            Ok(())
        })?;
    }
    cluster.close()
}
