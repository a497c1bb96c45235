//! What is not ours is neither reported nor touched.

use weft_core::{dataplane::Forward, plan::Op};
use weft_kernel::KernelError;
use weft_store_schema::Family;

use crate::ground::{
    chain, create, devices, find, id, inside, ip, json, local, mac, make_namespace, network, on_host, run,
};

#[test]
fn foreign_objects_are_neither_reported_nor_touched() {
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
                Op::PutNeighbour(ip("10.1.0.100"), mac(1)),
            ],
        );
        for command in [
            "ip link add foreign type veth peer name other",
            "ip link set foreign up master br0",
            "ip link set other up",
            "bridge fdb add 02:42:00:00:77:01 dev foreign master static",
            "bridge fdb add 02:42:00:00:77:02 dev vx4 dst 10.99.0.9 self permanent",
            "bridge fdb add 02:42:00:00:77:03 dev vx4 master static",
            "ip neigh add 10.1.0.200 lladdr 02:42:00:00:77:01 dev br0 nud permanent",
            "ip neigh add 10.1.0.201 lladdr 02:42:00:00:77:01 dev br0 proto static",
            "ip addr add 10.1.99.99/16 dev br0",
        ] {
            ground.meddle(&blue, command);
        }
        for command in [
            "ip link add foreign type veth peer name other",
            "ip link set foreign up",
            "ip addr add 192.168.1.1/24 dev foreign",
            "ip addr add 192.168.2.1/24 dev eth0",
            "ip addr add 10.1.0.77/16 dev eth0",
            "ip route add 10.9.0.0/16 dev eth0",
            "ip route add 10.8.0.0/16 dev eth0 proto bird",
            "ip -6 route add fd08::/64 dev eth0",
        ] {
            run(&inside(&c1, command));
        }
        // A namespace that does not bear our name.
        make_namespace(&ground.netns_dir.join("other-blue"));
        ground.assert_as_modelled(&blue, "foreign objects");
        let (observed, errors) = ground.kernel.observe(&[]);
        assert!(errors.is_empty());
        assert_eq!(observed.networks.keys().collect::<Vec<_>>(), [&blue]);
        assert_eq!(
            ground
                .kernel
                .observe_forward(&blue, &[mac(0x7701), mac(0x7702), mac(0x7703)])
                .unwrap(),
            [(mac(0x7701), None), (mac(0x7702), None), (mac(0x7703), None)]
        );
        assert_eq!(
            ground
                .kernel
                .observe_neighbours(&blue, &[ip("10.1.0.200"), ip("10.1.0.201")])
                .unwrap(),
            [(ip("10.1.0.200"), None), (ip("10.1.0.201"), None)]
        );

        // Everything of ours goes, but for the devices.
        ground.apply(
            &blue,
            vec![
                Op::DeleteNeighbour(ip("10.1.0.100")),
                Op::DeleteVtep(mac(1), ip("10.99.0.2")),
                Op::DeleteRoute(id("web"), "10.2.0.0/16".parse().unwrap()),
                Op::DeleteRoute(id("web"), "fd02::/64".parse().unwrap()),
                Op::PutAddress(id("web"), "10.1.0.6/16".parse().unwrap()),
                Op::DeleteAddress(id("web"), "10.1.0.5/16".parse().unwrap()),
                Op::DeleteAddress(id("web"), "fd01::5/64".parse().unwrap()),
            ],
        );
        ground.assert_as_modelled(&blue, "deletions");
        let fdb = ground.ask(&blue, "bridge -j fdb show");
        for mac in ["02:42:00:00:77:01", "02:42:00:00:77:02", "02:42:00:00:77:03"] {
            assert!(find(&fdb, "mac", mac).is_some(), "{mac}");
        }
        let neighbours = ground.ask(&blue, "ip -j neigh");
        assert!(find(&neighbours, "dst", "10.1.0.200").is_some());
        assert!(find(&neighbours, "dst", "10.1.0.201").is_some());
        assert!(find(&ground.ask(&blue, "ip -j link"), "ifname", "foreign").is_some());
        let routes = json(&inside(&c1, "ip -j route"));
        for route in ["10.9.0.0/16", "10.8.0.0/16", "192.168.2.0/24"] {
            assert!(find(&routes, "dst", route).is_some(), "{route}");
        }
        let addresses = json(&inside(&c1, "ip -j addr show eth0"));
        let all = addresses[0]["addr_info"].as_array().unwrap();
        for address in ["192.168.2.1", "10.1.0.77"] {
            assert!(find(all, "local", address).is_some(), "{address}");
        }

        ground.apply(&blue, vec![Op::DeletePort(web.port_name)]);
        assert!(find(&json(&inside(&c1, "ip -j link")), "ifname", "foreign").is_some());
        // A plan for the devices leaves the others alone.
        ground.apply(
            &blue,
            vec![Op::DeleteTunnel(Family::V4), Op::DeleteTunnel(Family::V6)],
        );
        assert!(find(&ground.ask(&blue, "ip -j link"), "ifname", "foreign").is_some());
    });
}

#[test]
fn an_interface_that_was_there_stays_and_nothing_is_left_behind() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        run(&inside(&c1, "ip link add eth0 type veth peer name other"));
        let before = json(&inside(&c1, "ip -j link show eth0"));
        ground.apply(&blue, devices(100));
        let outcome = ground.attempt(&blue, vec![create(&local(&blue, "web", &c1, 5), "web")]);
        let [(_, _, error)] = outcome.failed.as_slice() else {
            panic!("{outcome:?}");
        };
        assert!(
            matches!(error, KernelError::InterfaceExists { ifname, .. } if ifname == "eth0"),
            "{}",
            chain(error)
        );
        ground.assert_as_modelled(&blue, "a refused veth");
        assert_eq!(json(&inside(&c1, "ip -j link show eth0")), before);
        assert_eq!(ground.ask(&blue, "ip -j link").len(), 4, "lo, br0, vx4, vx6");
        // Without the obstacle it works.
        run(&inside(&c1, "ip link del eth0"));
        ground.apply(&blue, vec![create(&local(&blue, "web", &c1, 5), "web")]);
        ground.assert_as_modelled(&blue, "a veth made at the second try");
    });
}

/// What somebody else put in the place of ours becomes ours when we put it.
#[test]
fn what_takes_the_place_of_ours_is_taken_back() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        let all = vec![
            Op::PutForward(web.interface.mac, Forward::Local(web.port_name.clone())),
            Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.2"))),
            Op::PutNeighbour(ip("10.1.0.100"), mac(1)),
            Op::PutNeighbour(ip("fd01::100"), mac(1)),
            Op::PutAddress(id("web"), "10.1.0.5/16".parse().unwrap()),
            Op::PutAddress(id("web"), "fd01::5/64".parse().unwrap()),
            Op::PutRoute(id("web"), "10.2.0.0/16".parse().unwrap()),
            Op::PutRoute(id("web"), "fd02::/64".parse().unwrap()),
        ];
        ground.apply(&blue, vec![create(&web, "web")]);
        ground.apply(&blue, all.clone());
        let mac = web.interface.mac;
        for command in [
            format!("bridge fdb replace {mac} dev vx4 master static"),
            "bridge fdb replace 02:42:00:00:00:01 dev vx4 dst 10.99.0.9 self".to_owned(),
            format!(
                "bridge fdb replace 02:42:00:00:00:01 dev {} master",
                web.port_name
            ),
            "ip neigh replace 10.1.0.100 lladdr 02:42:00:00:77:01 dev br0 nud permanent".to_owned(),
            "ip neigh replace fd01::100 lladdr 02:42:00:00:77:01 dev br0 nud permanent".to_owned(),
        ] {
            ground.meddle(&blue, &command);
        }
        for command in [
            "ip addr del 10.1.0.5/16 dev eth0",
            "ip addr add 10.1.0.5/16 dev eth0",
            "ip addr del fd01::5/64 dev eth0",
            "ip addr add fd01::5/64 dev eth0",
            "ip route replace 10.2.0.0/16 dev eth0",
            "ip -6 route replace fd02::/64 dev eth0",
        ] {
            run(&inside(&c1, command));
        }
        // As always before a repair, the part that changed is looked at.
        assert_eq!(
            ground
                .kernel
                .observe_forward(&blue, &[crate::ground::mac(1)])
                .unwrap()[0]
                .1
                .as_ref()
                .map(|row| row.vteps().len()),
            Some(0)
        );
        assert_ne!(ground.observed(&blue), Some(ground.modelled(&blue)));
        ground.apply(&blue, all);
        ground.assert_as_modelled(&blue, "taking it back");
        assert_eq!(json(&inside(&c1, "ip -j route show 10.2.0.0/16")).len(), 1);
    });
}
