//! Each operation, done once and again: what the kernel then holds is what the model predicts, and what `ip`
//! and `bridge` say.

use weft_core::{
    dataplane::{BridgeTarget, Forward, PortFlags},
    plan::Op,
};
use weft_store_schema::Family;

use crate::ground::{
    Ground, bridge, create, devices, find, id, inside, ip, json, local, mac, network, on_host, put_tunnel,
    tunnel,
};

/// Does each operation twice, looking after each.
fn each_twice(ground: &mut Ground, ops: Vec<Op>) {
    let blue = network("blue");
    for op in ops {
        for round in ["once", "again"] {
            ground.apply(&blue, vec![op.clone()]);
            ground.assert_as_modelled(&blue, &format!("{op:?} done {round}"));
        }
    }
}

#[test]
fn a_namespace_is_made_and_removed() {
    on_host(|ground| {
        let blue = network("blue");
        each_twice(ground, vec![Op::CreateNamespace]);
        let links = ground.ask(&blue, "ip -j -d link");
        assert_eq!(links.len(), 1, "{links:?}");
        assert!(
            find(&links, "ifname", "lo").unwrap()["flags"]
                .to_string()
                .contains("UP")
        );
        each_twice(ground, vec![Op::DeleteNamespace]);
        assert!(!ground.namespace(&blue).exists());
    });
}

#[test]
fn making_a_namespace_that_is_there_keeps_what_is_in_it() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        ground
            .kernel
            .apply(&crate::ground::plan(&blue, vec![Op::CreateNamespace]));
        ground.assert_as_modelled(&blue, "making a namespace that was there");
        // Nor are there two, one over the other.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let path = ground.namespace(&blue).display().to_string();
        assert_eq!(mounts.lines().filter(|l| l.contains(&path)).count(), 1);
    });
}

#[test]
fn bridge_is_made_and_changed() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, vec![Op::CreateNamespace]);
        let mut down = bridge(1400);
        down.up = false;
        let mut snooping = bridge(1500);
        snooping.multicast_snooping = true;
        each_twice(
            ground,
            vec![
                Op::PutBridge(bridge(1430)),
                Op::PutBridge(down),
                Op::PutBridge(snooping),
                Op::PutBridge(bridge(1280)),
            ],
        );
        let links = ground.ask(&blue, "ip -j -d link show br0");
        assert_eq!(links[0]["mtu"], 1280);
        assert_eq!(links[0]["linkinfo"]["info_kind"], "bridge");
        assert_eq!(links[0]["linkinfo"]["info_data"]["mcast_snooping"], 0);
        assert_eq!(links[0]["inet6_addr_gen_mode"], "none");
        let addresses = ground.ask(&blue, "ip -j addr show br0");
        assert_eq!(
            addresses[0]["addr_info"].as_array().unwrap().len(),
            0,
            "{addresses:?}"
        );
    });
}

/// The kernel adjusts a bridge's MTU to its ports' unless it was set by hand, which the request that makes the
/// bridge is not.
#[test]
fn the_bridges_mtu_stays_when_ports_come_and_go() {
    on_host(|ground| {
        let blue = network("blue");
        for mtu in [1400, 1500, 9000] {
            ground.apply(
                &blue,
                vec![
                    Op::CreateNamespace,
                    Op::PutBridge(bridge(mtu)),
                    put_tunnel(Family::V4, 100, 1300),
                ],
            );
            ground.assert_as_modelled(&blue, "a port of a smaller MTU came");
            ground.apply(&blue, vec![Op::DeleteTunnel(Family::V4)]);
            ground.assert_as_modelled(&blue, "the last port went");
            ground.apply(&blue, vec![Op::DeleteNamespace]);
        }
    });
}

#[test]
fn tunnels_are_made_changed_and_removed() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, vec![Op::CreateNamespace, Op::PutBridge(bridge(1430))]);
        for family in Family::ALL {
            let (_, mut other) = tunnel(family, 100, 1300);
            other.local = if family == Family::V4 {
                ip("10.99.0.2")
            } else {
                ip("fd99::2")
            };
            let mut odd = other.clone();
            odd.learning = true;
            odd.bridge_port = Some(PortFlags {
                learning: true,
                ..PortFlags::TUNNEL
            });
            let mut down = other.clone();
            down.up = false;
            each_twice(
                ground,
                vec![
                    put_tunnel(family, 100, 1430),
                    Op::PutTunnel(family, other),
                    Op::PutTunnel(family, odd),
                    Op::PutTunnel(family, down),
                    put_tunnel(family, 100, 1400),
                ],
            );
        }
        let links = ground.ask(&blue, "ip -j -d link");
        for (name, local_key, local) in [("vx4", "local", "10.99.0.1"), ("vx6", "local6", "fd99::1")] {
            let link = find(&links, "ifname", name).unwrap();
            let data = &link["linkinfo"]["info_data"];
            assert_eq!(link["master"], "br0");
            assert_eq!(link["mtu"], 1400);
            assert_eq!((&data["id"], &data["port"]), (&100.into(), &4789.into()));
            assert_eq!(data[local_key], local);
            assert_eq!(data["learning"], false);
            let port = &link["linkinfo"]["info_slave_data"];
            for (flag, on) in [
                ("learning", false),
                ("flood", false),
                ("mcast_flood", false),
                ("bcast_flood", false),
                ("neigh_suppress", true),
            ] {
                assert_eq!(port[flag], on, "{flag}");
            }
        }
        // The sockets are the host's, and the network's namespace has none.
        let sockets = |prefix: &str| {
            let all = crate::ground::run(&format!("{prefix} ss -H -l -n -u"));
            all.lines().filter(|l| l.contains(":4789")).count()
        };
        assert_eq!(sockets("env"), 2);
        assert_eq!(sockets(&inside(&ground.namespace(&blue), "")), 0);
        each_twice(
            ground,
            vec![Op::DeleteTunnel(Family::V4), Op::DeleteTunnel(Family::V6)],
        );
    });
}

#[test]
fn a_veth_pair_is_made_changed_and_removed() {
    on_host(|ground| {
        let blue = network("blue");
        let netns = ground.container("c1");
        ground.apply(&blue, devices(100));
        let first = local(&blue, "web", &netns, 5);
        ground.apply(&blue, vec![create(&first, "web")]);
        ground.assert_as_modelled(&blue, "CreateLocal");

        let links = json(&inside(&netns, "ip -j -d link"));
        let link = find(&links, "ifname", "eth0").unwrap();
        assert_eq!(link["address"], "02:42:0a:01:00:05");
        assert_eq!(link["mtu"], 1430);
        assert_eq!(link["ifalias"], "weft blue/host1/web a name");
        assert_eq!(link["linkinfo"]["info_kind"], "veth");
        let routes = json(&inside(&netns, "ip -j route"));
        let route = find(&routes, "dst", "10.2.0.0/16").unwrap();
        assert_eq!((&route["dev"], &route["scope"]), (&"eth0".into(), &"link".into()));
        let routes = json(&inside(&netns, "ip -j -6 route"));
        assert_eq!(find(&routes, "dst", "fd02::/64").unwrap()["dev"], "eth0");
        let addresses = json(&inside(&netns, "ip -j addr show eth0"));
        let info = addresses[0]["addr_info"].as_array().unwrap();
        let v4 = find(info, "local", "10.1.0.5").unwrap();
        assert_eq!(
            (&v4["prefixlen"], &v4["broadcast"]),
            (&16.into(), &"10.1.255.255".into())
        );
        let v6 = find(info, "local", "fd01::5").unwrap();
        assert_eq!(v6["nodad"], true);
        let host_end = &ground.ask(&blue, &format!("ip -j -d link show {}", first.port_name))[0];
        assert_eq!(host_end["master"], "br0");
        let port = &host_end["linkinfo"]["info_slave_data"];
        for (flag, on) in [
            ("learning", false),
            ("flood", false),
            ("mcast_flood", true),
            ("bcast_flood", true),
            ("neigh_suppress", false),
        ] {
            assert_eq!(port[flag], on, "{flag}");
        }

        let mut changed = first.clone();
        changed.port.mtu = 1400;
        changed.port.alias = "weft blue/host1/web other".to_owned();
        changed.interface.mtu = 1400;
        changed.interface.mac = mac(7);
        changed.interface.alias.clone_from(&changed.port.alias);
        let mut odd = changed.port.clone();
        odd.up = false;
        odd.bridge_port = Some(PortFlags {
            learning: true,
            unicast_flood: true,
            ..PortFlags::ENDPOINT
        });
        let name = first.port_name.clone();
        each_twice(
            ground,
            vec![
                Op::PutPort(id("web"), name.clone(), changed.port.clone()),
                Op::PutPort(id("web"), name.clone(), odd),
                Op::PutPort(id("web"), name.clone(), changed.port.clone()),
                Op::PutInterface(id("web"), Box::new(changed.interface.clone())),
                Op::PutAddress(id("web"), "10.1.0.6/16".parse().unwrap()),
                Op::PutAddress(id("web"), "fd01::6/64".parse().unwrap()),
                Op::PutAddress(id("web"), "10.1.0.9/32".parse().unwrap()),
                Op::PutAddress(id("web"), "10.1.4.4/31".parse().unwrap()),
                Op::DeleteAddress(id("web"), "10.1.0.6/16".parse().unwrap()),
                Op::DeleteAddress(id("web"), "fd01::6/64".parse().unwrap()),
                Op::PutRoute(id("web"), "10.3.0.0/16".parse().unwrap()),
                Op::PutRoute(id("web"), "fd03::/64".parse().unwrap()),
                Op::DeleteRoute(id("web"), "10.3.0.0/16".parse().unwrap()),
                Op::DeleteRoute(id("web"), "fd03::/64".parse().unwrap()),
                Op::DeletePort(name),
            ],
        );
        assert_eq!(json(&inside(&netns, "ip -j link")).len(), 1);
    });
}

/// The first address of a subnet goes: the kernel takes the others of that subnet along unless it is told to
/// promote them.
#[test]
fn the_first_address_of_a_subnet_goes_alone() {
    on_host(|ground| {
        let blue = network("blue");
        let netns = ground.container("c1");
        ground.apply(&blue, devices(100));
        ground.apply(&blue, vec![create(&local(&blue, "web", &netns, 5), "web")]);
        ground.apply(
            &blue,
            vec![Op::PutAddress(id("web"), "10.1.0.6/16".parse().unwrap())],
        );
        ground.apply(
            &blue,
            vec![Op::DeleteAddress(id("web"), "10.1.0.5/16".parse().unwrap())],
        );
        ground.assert_as_modelled(&blue, "the deletion of a subnet's first address");
    });
}

#[test]
fn a_link_that_rises_again_is_complete() {
    on_host(|ground| {
        let blue = network("blue");
        let netns = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &netns, 5);
        ground.apply(&blue, vec![create(&web, "web")]);
        crate::ground::run(&inside(&netns, "ip link set eth0 down"));
        let seen = ground.observed(&blue).unwrap();
        // What a diff of that would say.
        let there = &seen.interfaces[&id("web")];
        let mut ops = vec![Op::PutInterface(id("web"), Box::new(web.interface.clone()))];
        ops.extend(
            web.interface
                .addresses
                .difference(&there.addresses)
                .map(|a| Op::PutAddress(id("web"), *a)),
        );
        ops.extend(web.interface.routes.iter().map(|r| Op::PutRoute(id("web"), *r)));
        ground.apply(&blue, ops);
        ground.assert_as_modelled(&blue, "a link rose again");
    });
}

#[test]
fn forwarding_entries() {
    on_host(|ground| {
        let blue = network("blue");
        let netns = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &netns, 5);
        ground.apply(&blue, vec![create(&web, "web")]);
        let port = web.port_name.clone();
        each_twice(
            ground,
            vec![
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.2"))),
                Op::PutForward(mac(2), Forward::Remote(ip("fd99::2"))),
                Op::PutForward(mac(3), Forward::Local(port.clone())),
                // Moves: to another VTEP, to the other family, to this host, and away again.
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.3"))),
                Op::PutForward(mac(1), Forward::Remote(ip("fd99::3"))),
                Op::DeleteVtep(mac(1), ip("10.99.0.3")),
                Op::PutForward(mac(1), Forward::Local(port.clone())),
                Op::DeleteVtep(mac(1), ip("fd99::3")),
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.4"))),
                // At the wrong place there is nothing to delete.
                Op::DeleteBridgeEntry(mac(1), BridgeTarget::Port(port.clone())),
                Op::DeleteBridgeEntry(mac(1), BridgeTarget::Tunnel(Family::V6)),
                Op::DeleteVtep(mac(1), ip("10.99.0.5")),
                Op::DeleteVtep(mac(1), ip("fd99::5")),
                Op::DeleteBridgeEntry(mac(1), BridgeTarget::Tunnel(Family::V4)),
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.4"))),
                Op::DeleteBridgeEntry(mac(3), BridgeTarget::Port(port.clone())),
                Op::PutForward(mac(3), Forward::Local(port)),
            ],
        );
        let fdb = ground.ask(&blue, "bridge -j fdb show");
        let of = |mac: &str| fdb.iter().filter(|e| e["mac"] == mac).collect::<Vec<_>>();
        let remote = of("02:42:00:00:00:01");
        assert_eq!(remote.len(), 2, "{remote:?}");
        assert!(
            remote
                .iter()
                .any(|e| e["master"] == "br0" && e["ifname"] == "vx4")
        );
        assert!(remote.iter().any(|e| e["dst"] == "10.99.0.4"));
        assert!(
            remote
                .iter()
                .all(|e| e["flags"].to_string().contains("extern_learn"))
        );
        let local = of("02:42:00:00:00:03");
        assert_eq!(local.len(), 1, "{local:?}");
        assert_eq!(local[0]["ifname"], web.port_name.as_str());
        each_twice(
            ground,
            vec![
                Op::DeletePort(web.port_name),
                Op::DeleteTunnel(Family::V4),
                Op::DeleteTunnel(Family::V6),
            ],
        );
        assert!(ground.modelled(&blue).forwards.is_empty());
    });
}

#[test]
fn neighbours() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        each_twice(
            ground,
            vec![
                Op::PutNeighbour(ip("10.1.0.7"), mac(1)),
                Op::PutNeighbour(ip("fd01::7"), mac(1)),
                Op::PutNeighbour(ip("10.1.0.7"), mac(2)),
                Op::PutNeighbour(ip("fd01::7"), mac(2)),
            ],
        );
        let neighbours = ground.ask(&blue, "ip -j neigh");
        for address in ["10.1.0.7", "fd01::7"] {
            let entry = find(&neighbours, "dst", address).unwrap();
            assert_eq!(
                (&entry["dev"], &entry["lladdr"]),
                (&"br0".into(), &"02:42:00:00:00:02".into())
            );
            assert_eq!(entry["state"][0], "NOARP");
        }
        each_twice(
            ground,
            vec![
                Op::DeleteNeighbour(ip("10.1.0.7")),
                Op::DeleteNeighbour(ip("fd01::7")),
                Op::DeleteNeighbour(ip("fd01::8")),
            ],
        );
        assert_eq!(ground.ask(&blue, "ip -j neigh show dev br0").len(), 0);
    });
}

#[test]
fn two_networks_side_by_side() {
    on_host(|ground| {
        let (blue, red) = (network("blue"), network("red"));
        ground.apply(&blue, devices(100));
        ground.apply(&red, devices(101));
        let netns = ground.container("c1");
        let (of_blue, mut of_red) = (local(&blue, "web", &netns, 5), local(&red, "web", &netns, 5));
        of_red.interface.attachment.ifname = "eth1".parse().unwrap();
        of_red.interface.addresses = ["10.7.0.5/16".parse().unwrap()].into();
        of_red.interface.routes.clear();
        ground.apply(&blue, vec![create(&of_blue, "web")]);
        ground.apply(&red, vec![create(&of_red, "web")]);
        ground.apply(&red, vec![Op::PutNeighbour(ip("10.1.0.7"), mac(1))]);
        ground.assert_as_modelled(&blue, "its making beside another");
        ground.assert_as_modelled(&red, "its making beside another");
        let all = ground.modelled(&blue);
        let mut places = crate::ground::places(&blue, &all);
        places.extend(crate::ground::places(&red, &ground.modelled(&red)));
        let (observed, errors) = ground.kernel.observe(&places);
        assert!(errors.is_empty());
        assert_eq!(observed, ground.model);
        ground.apply(
            &blue,
            vec![Op::DeletePort(of_blue.port_name), Op::DeleteNamespace],
        );
        ground.assert_as_modelled(&red, "the other's removal");
    });
}

/// Indexes are remembered from one plan to the next; of a device that somebody made anew, they are not what counts.
#[test]
fn entries_reach_a_device_that_somebody_has_made_anew() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        let put = |n| Op::PutForward(mac(n), Forward::Remote(ip("10.99.0.2")));
        ground.apply(&blue, vec![put(1)]);
        ground.meddle(&blue, "ip link del vx4");
        ground.meddle(&blue, "ip link add vx4 type vxlan id 100 dstport 4789 nolearning");
        ground.meddle(&blue, "ip link set vx4 master br0 up");
        let entries = |ground: &Ground| {
            let fdb = ground.ask(&blue, "bridge -j fdb show dev vx4");
            let macs = fdb.iter().filter(|entry| entry["dst"] == "10.99.0.2");
            macs.map(|entry| entry["mac"].clone()).collect::<Vec<_>>()
        };
        ground
            .kernel
            .apply(&crate::ground::plan(&blue, vec![put(2), put(3)]));
        assert_eq!(entries(ground), ["02:42:00:00:00:03", "02:42:00:00:00:02"]);
        ground.meddle(&blue, "ip link set vx4 name old");
        ground.meddle(&blue, "ip link del old");
        ground.meddle(&blue, "ip link add vx4 type vxlan id 100 dstport 4789 nolearning");
        ground.meddle(
            &blue,
            "bridge fdb add 02:42:00:00:00:02 dev vx4 dst 10.99.0.2 self extern_learn",
        );
        let gone = vec![Op::DeleteVtep(mac(2), ip("10.99.0.2"))];
        let outcome = ground.kernel.apply(&crate::ground::plan(&blue, gone));
        assert!(outcome.failed.is_empty());
        assert!(entries(ground).is_empty(), "what is to go goes from the new one");
    });
}
