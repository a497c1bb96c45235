//! Announcements: what containers make of them, and who does not hear them.

use weft_core::announce::{Announcement, Announcements};
use weft_store_schema::Mac;

use crate::ground::{Ground, create, devices, inside, ip, json, local, mac, network, on_host, run};

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
            let (lladdr, _) = known(ground, "a", address).unwrap();
            assert_eq!(lladdr, mac(2).to_string(), "{address}");
            // Linux keeps an answer for a second whatever others say; an announcement it believes.
            announce(ground, address, mac(3), None);
            let (lladdr, _) = known(ground, "a", address).unwrap();
            assert_eq!(lladdr, mac(3).to_string(), "{address} again");
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
        let (to_a, to_b) = (a.port_name.as_str(), b.port_name.as_str());
        let (a_before, b_before) = (sent(ground, to_a), sent(ground, to_b));
        announce(ground, "10.1.0.2", mac(9), Some(to_b));
        assert_eq!(
            (sent(ground, to_a) - a_before, sent(ground, to_b) - b_before),
            (1, 0)
        );
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
