//! Single questions answer as the dump does.

use std::net::IpAddr;

use weft_core::{dataplane::Forward, plan::Op};
use weft_store_schema::{Family, Mac};

use crate::ground::{create, devices, ip, local, mac, network, on_host};

#[test]
fn single_questions_agree_with_the_dump() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(
            &blue,
            vec![
                create(&web, "web"),
                Op::PutForward(web.interface.mac, Forward::Local(web.port_name.clone())),
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.2"))),
                Op::PutForward(mac(2), Forward::Remote(ip("fd99::2"))),
                // Both tunnels have it; the bridge, the later one.
                Op::PutForward(mac(3), Forward::Remote(ip("10.99.0.3"))),
                Op::PutForward(mac(3), Forward::Remote(ip("fd99::3"))),
                // Only a tunnel has it.
                Op::PutForward(mac(4), Forward::Remote(ip("10.99.0.4"))),
                Op::DeleteBridgeEntry(mac(4), weft_core::dataplane::BridgeTarget::Tunnel(Family::V4)),
                // Only the bridge has it.
                Op::PutForward(mac(5), Forward::Remote(ip("fd99::5"))),
                Op::DeleteVtep(mac(5), ip("fd99::5")),
                Op::PutNeighbour(ip("10.1.0.1"), mac(1)),
                Op::PutNeighbour(ip("fd01::2"), mac(2)),
            ],
        );
        ground.assert_as_modelled(&blue, "all kinds of entries");
        let dump = ground.observed(&blue).unwrap();
        let macs: Vec<Mac> = (1..9).map(mac).chain([web.interface.mac]).collect();
        for (mac, row) in ground.kernel.observe_forward(&blue, &macs).unwrap() {
            assert_eq!(row.as_ref(), dump.forwards.get(&mac), "{mac}");
        }
        let addresses: Vec<IpAddr> = ["10.1.0.1", "10.1.0.2", "fd01::2", "fd01::3"].map(ip).into();
        for (address, seen) in ground.kernel.observe_neighbours(&blue, &addresses).unwrap() {
            assert_eq!(seen.as_ref(), dump.neighbours.get(&address), "{address}");
        }
        let links = ground
            .kernel
            .observe_links(&blue, &crate::ground::places(&blue, &dump))
            .unwrap()
            .unwrap();
        assert_eq!((links.bridge, links.tunnels), (dump.bridge, dump.tunnels));
        assert_eq!((links.ports, links.interfaces), (dump.ports, dump.interfaces));
        assert!(links.forwards.is_empty() && links.neighbours.is_empty());
    });
}

#[test]
fn of_what_is_not_there_nothing_is_told() {
    on_host(|ground| {
        let blue = network("blue");
        for stage in ["nothing", "a namespace"] {
            assert_eq!(
                ground.kernel.observe_forward(&blue, &[mac(1)]).unwrap(),
                [(mac(1), None)],
                "{stage}"
            );
            let address = ip("10.1.0.1");
            assert_eq!(
                ground.kernel.observe_neighbours(&blue, &[address]).unwrap(),
                [(address, None)],
                "{stage}"
            );
            ground.apply(&blue, vec![Op::CreateNamespace]);
        }
    });
}

/// A container that cannot be looked into is told of, and is not taken for one without an interface.
#[test]
fn what_cannot_be_looked_into_is_unseen() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(&blue, vec![create(&web, "web")]);
        let holder = crate::ground::inside(&c1, "sleep 60");
        let mut words = holder.split(' ');
        let mut process = std::process::Command::new(words.next().unwrap())
            .args(words)
            .spawn()
            .unwrap();
        crate::ground::eventually("the container's process is in it", || {
            std::fs::read_link(format!("/proc/{}/ns/net", process.id())).unwrap()
                != crate::ground::own_namespace()
        });
        // The namespace lives on in its process, its file is gone.
        crate::ground::remove_namespace(&c1);
        let seen = ground.observed(&blue).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(
            seen.unseen,
            ground.modelled(&blue).interfaces.into_keys().collect()
        );
        assert!(seen.interfaces.is_empty());
        assert!(seen.ports.contains_key(&web.port_name));
    });
}
