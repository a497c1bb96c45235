//! Two networks with the same subnet, on the same hosts, with the same addresses: neither sees the other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weft_e2e::{Cluster, SOON, Station};
use weft_lab::eventually;

const ADDRESSES: [(usize, &str, &str); 3] = [
    (1, "a", "10.1.0.11"),
    (2, "b", "10.1.0.12"),
    (1, "d", "10.1.0.14"),
];

fn put(cluster: &Cluster, network: &str, host: usize, id: &str, addresses: &[&str]) -> Result<Station> {
    let container = cluster.container(&format!("{network}-{id}"))?;
    cluster.put(
        &Cluster::endpoint_key(network, host, id),
        &container.endpoint_record(addresses),
    )?;
    Ok(Station {
        network: network.to_owned(),
        host,
        id: id.to_owned(),
        container,
        addresses: addresses.iter().map(|a| a.parse()).collect::<Result<_, _>>()?,
    })
}

/// How many packets have come in at a container's interface.
fn received(station: &Station) -> Result<u64> {
    let links = station
        .container
        .netns()
        .ip_json(&["-s", "link", "show", "eth0"])?;
    links[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .context("rx packets")
}

#[test]
fn networks_with_the_same_addresses_do_not_see_each_other() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let mut nets: Vec<Vec<Station>> = Vec::new();
    for network in ["blue", "red"] {
        cluster.network(network, &["10.1.0.0/24", "fd00:1::/64"])?;
        let mut stations = Vec::new();
        for (host, id, address) in ADDRESSES {
            let v6 = address.replace("10.1.0.", "fd00:1::");
            stations.push(put(&cluster, network, host, id, &[address, &v6])?);
        }
        nets.push(stations);
    }
    // One address that only blue has, one that only red has, on the third host.
    nets[0].push(put(&cluster, "blue", 3, "only", &["10.1.0.50", "fd00:1::50"])?);
    nets[1].push(put(&cluster, "red", 3, "only", &["10.1.0.60", "fd00:1::60"])?);
    for stations in &mut nets {
        cluster.up(stations)?;
    }

    // Different VNIs, the same MACs and addresses on every host, in different namespaces.
    let vni = |network: &str| -> Result<u64> {
        let record = cluster
            .get_json(&Cluster::network_key(network))?
            .context("record")?;
        record["vni"].as_u64().context("vni")
    };
    assert_ne!(vni("blue")?, vni("red")?);
    for pair in nets[0].iter().zip(&nets[1]).take(ADDRESSES.len()) {
        assert_eq!(pair.0.addresses, pair.1.addresses);
        let mac = |s: &Station| -> Result<_> {
            Ok(weft_e2e::link(s.container.netns(), "eth0")?["address"].clone())
        };
        assert_eq!(mac(pair.0)?, mac(pair.1)?);
    }

    // What only the other network has does not answer.
    for (stations, foreign) in [(&nets[0], "60"), (&nets[1], "50")] {
        for station in stations {
            for target in [format!("10.1.0.{foreign}"), format!("fd00:1::{foreign}")] {
                let target = target.parse()?;
                assert!(
                    !station.container.ping_within(target, Duration::from_millis(300)),
                    "{target}"
                );
            }
        }
    }

    // The right one answers: requests within blue reach blue's container and not the one of the same address in red.
    for (own, other) in [(0, 1), (1, 0)] {
        let (from, to, twin) = (&nets[own][0], &nets[own][1], &nets[other][1]);
        let before = (received(to)?, received(twin)?);
        let count = 100;
        let stream = from.container.ping_stream(to.address(true), 1000)?;
        eventually(SOON, "a hundred requests", || {
            ensure!(stream.so_far().sent >= count);
            Ok(())
        })?;
        let sum = stream.stop();
        assert_eq!(sum.lost(), 0);
        assert!(received(to)? - before.0 >= count);
        // Neighbour discovery of its own may come in meanwhile, no hundred of them.
        assert!(received(twin)? - before.1 < 10, "{}", twin.network);
    }

    // One network's end is not the other's.
    for station in nets.remove(1) {
        cluster.del(&station.key())?;
    }
    cluster.del(&Cluster::network_key("red"))?;
    eventually(SOON, "red is gone from all hosts", || {
        for host in cluster.hosts() {
            ensure!(!host.netns_of("red").path().exists(), "{}", host.node());
        }
        Ok(())
    })?;
    let silent = weft_e2e::unanswered(&nets[0], Duration::from_secs(2))?;
    assert_eq!(silent, Vec::<String>::new());
    cluster.close()
}
