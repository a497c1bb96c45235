//! Announcements: what containers make of them, and who does not hear them.

use serde_json::Value;
use weft_core::announce::{Announcement, Announcements};
use weft_store_schema::Mac;

use crate::ground::{
    Ground, create, devices, eventually, inside, ip, json, local, mac, network, on_host, run,
};

/// What a container knows of an address: its MAC and the entry's state.
fn known(ground: &Ground, container: &str, address: &str) -> Option<(String, String)> {
    let netns = ground.containers.join(container);
    let entries = json(&inside(&netns, "ip -j neigh show dev eth0"));
    let entry = entries.into_iter().find(|entry| entry["dst"] == address)?;
    let state = entry["state"][0].as_str().unwrap_or_default().to_owned();
    Some((entry["lladdr"].as_str()?.to_owned(), state))
}

/// Packets that a device of the network has sent.
fn sent(ground: &Ground, device: &str) -> u64 {
    let links = ground.ask(&network("blue"), &format!("ip -j -s link show {device}"));
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// Counts in a container how many ARP packets name an address as their sender's.
fn listen_for(ground: &Ground, container: &str, address: &str) {
    let netns = ground.containers.join(container);
    for rule in [
        "table arp heard",
        "chain arp heard input { type filter hook input priority 0 ; }",
        &format!("rule arp heard input arp saddr ip {address} counter"),
    ] {
        run(&inside(&netns, &format!("nft add {rule}")));
    }
}

/// What `listen_for` has counted.
fn heard(ground: &Ground, container: &str) -> u64 {
    let netns = ground.containers.join(container);
    let rules: Value =
        serde_json::from_str(&run(&inside(&netns, "nft -j list chain arp heard input"))).unwrap();
    let mut entries = rules["nftables"].as_array().unwrap().iter();
    entries
        .find_map(|entry| entry["rule"]["expr"][1]["counter"]["packets"].as_u64())
        .unwrap()
}

fn announce(ground: &mut Ground, address: &str, mac: Mac, holder: Option<&str>) {
    let blue = network("blue");
    let one = Announcement {
        address: ip(address),
        mac,
        holder: holder.map(|port| port.parse().unwrap()),
    };
    ground.kernel.announce(&Announcements::from([(blue, vec![one])]));
}

#[test]
fn containers_believe_another_mac_at_once() {
    on_host(|ground| {
        let blue = network("blue");
        let containers = ["a", "b"].map(|name| ground.container(name));
        let a = local(&blue, "a", &containers[0], 1);
        let b = local(&blue, "b", &containers[1], 2);
        ground.apply(&blue, devices(100));
        ground.apply(&blue, vec![create(&a, "a"), create(&b, "b")]);
        let before = ground.ask(&blue, "bridge -j fdb");
        let tunnels = ["vx4", "vx6"].map(|tunnel| sent(ground, tunnel));
        for address in ["10.1.0.100", "fd01::100"] {
            let old = mac(1);
            run(&inside(
                &containers[0],
                &format!("ip neigh replace {address} lladdr {old} dev eth0 nud reachable"),
            ));
            announce(ground, address, mac(2), None);
            eventually(&format!("{address} is known to be mac(2)"), || {
                known(ground, "a", address).unwrap().0 == mac(2).to_string()
            });
            // Linux keeps an answer for a second whatever others say; an announcement it believes.
            announce(ground, address, mac(3), None);
            eventually(&format!("{address} is known to be mac(3)"), || {
                known(ground, "a", address).unwrap().0 == mac(3).to_string()
            });
            // Who has never talked to it need not remember it, and what somebody has fixed stays.
            assert_eq!(known(ground, "b", address), None);
            run(&inside(
                &containers[0],
                &format!("ip neigh replace {address} lladdr {old} dev eth0 nud permanent"),
            ));
            announce(ground, address, mac(4), None);
            assert_eq!(
                known(ground, "a", address),
                Some((old.to_string(), "PERMANENT".to_owned()))
            );
        }
        // The bridge learns nothing of it, and the tunnels hear nothing.
        assert_eq!(ground.ask(&blue, "bridge -j fdb"), before);
        assert_eq!(["vx4", "vx6"].map(|tunnel| sent(ground, tunnel)), tunnels);
        // Its holder is not told, or its kernel would complain of somebody else with its address.
        for container in ["a", "b"] {
            listen_for(ground, container, "10.1.0.2");
        }
        announce(ground, "10.1.0.2", mac(9), Some(b.port_name.as_ref()));
        eventually("the other one is told", || heard(ground, "a") == 1);
        assert_eq!(heard(ground, "b"), 0);
        announce(ground, "10.1.0.2", mac(9), None);
        eventually("both are told", || {
            (heard(ground, "a"), heard(ground, "b")) == (2, 1)
        });
    });
}

#[test]
fn there_may_be_nobody_to_tell() {
    on_host(|ground| {
        // No such network, a network without containers, a port that is down.
        announce(ground, "10.1.0.100", mac(1), None);
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        announce(ground, "10.1.0.100", mac(1), None);
        let container = ground.container("a");
        let a = local(&blue, "a", &container, 1);
        ground.apply(&blue, vec![create(&a, "a")]);
        ground.meddle(&blue, &format!("ip link set {} down", a.port_name));
        announce(ground, "10.1.0.100", mac(1), None);
        ground.meddle(&blue, &format!("ip link set {} up", a.port_name));
        announce(ground, "10.1.0.100", mac(1), None);
    });
}
