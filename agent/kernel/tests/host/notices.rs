//! What is heard of changes: every kind of drift, and not the echo of what was done by plan.

use std::{path::Path, time::Duration};

use tokio::{runtime::Runtime, time::timeout};
use weft_core::{dataplane::Forward, dirty::Dirty, plan::Op};
use weft_kernel::{Notice, Notifications};
use weft_store_schema::{Family, NetworkName};

use crate::ground::{
    Ground, NODE, PATIENCE, bridge, create, devices, endpoint, eventually, id, inside, ip, local, mac,
    make_namespace, network, on_host, put_tunnel, remove_namespace, run,
};

pub(crate) struct Ears {
    runtime: Runtime,
    notifications: Notifications,
}

impl Ears {
    pub(crate) fn open(ground: &Ground) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let notifications = {
            let _inside = runtime.enter();
            Notifications::open(&ground.kernel).unwrap()
        };
        Self {
            runtime,
            notifications,
        }
    }

    /// All that was told until now. The kernel tells in order, so a change made on purpose in the host's own
    /// namespace marks the end.
    fn told(&mut self) -> Vec<Notice> {
        run("ip link set lo alias the-end");
        let mut told = Vec::new();
        while !told.contains(&Notice::Underlay) {
            told.extend(self.next().expect("the end is told"));
        }
        told.retain(|notice| *notice != Notice::Underlay);
        Notice::keep_latest(&mut told);
        told
    }

    pub(crate) fn next(&mut self) -> Option<Vec<Notice>> {
        let next = self.notifications.next();
        self.runtime
            .block_on(async { timeout(PATIENCE, next).await.ok() })
    }

    /// What was told and is not what the model says.
    fn strange(&mut self, ground: &Ground) -> Vec<Notice> {
        let mut told = self.told();
        told.retain(|notice| !notice.agrees_with(&ground.model) && !matches!(notice, Notice::Attachments(_)));
        told
    }
}

fn marked(notices: &[Notice]) -> Dirty {
    let mut look = Dirty::default();
    for notice in notices {
        notice.mark(&mut look, &NODE.parse().unwrap());
    }
    look
}

/// A network with both tunnels, two endpoints in one container and one in another, entries of every kind.
fn furnish(ground: &mut Ground, blue: &NetworkName) {
    let (c1, c2) = (ground.container("c1"), ground.container("c2"));
    ground.apply(blue, devices(100));
    let (web, mut side, db) = (
        local(blue, "web", &c1, 5),
        local(blue, "side", &c1, 6),
        local(blue, "db", &c2, 7),
    );
    side.interface.attachment.ifname = "eth1".parse().unwrap();
    side.interface.addresses = ["10.1.0.6/32".parse().unwrap()].into();
    side.interface.routes.clear();
    ground.apply(
        blue,
        vec![
            Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.2"))),
            Op::PutForward(mac(2), Forward::Remote(ip("fd99::2"))),
            Op::PutNeighbour(ip("10.1.0.100"), mac(1)),
            Op::PutNeighbour(ip("fd01::100"), mac(2)),
            create(&web, "web"),
            create(&side, "side"),
            create(&db, "db"),
            Op::PutForward(web.interface.mac, Forward::Local(web.port_name)),
            Op::PutForward(db.interface.mac, Forward::Local(db.port_name)),
        ],
    );
    ground.assert_as_modelled(blue, "furnishing");
}

#[test]
fn the_echo_of_what_was_done_agrees() {
    on_host(|ground| {
        let blue = network("blue");
        let mut ears = Ears::open(ground);
        furnish(ground, &blue);
        let strange = ears.strange(ground);
        assert!(strange.is_empty(), "making: {strange:#?}");

        let web = local(&blue, "web", &ground.containers.join("c1"), 5);
        let mut interface = web.interface.clone();
        interface.mtu = 1400;
        interface.mac = mac(77);
        let mut port = web.port.clone();
        port.mtu = 1400;
        let steps = vec![
            vec![
                Op::PutBridge(bridge(1400)),
                put_tunnel(Family::V4, 100, 1400),
                put_tunnel(Family::V6, 100, 1400),
                Op::PutPort(id("web"), web.port_name.clone(), port),
                Op::PutInterface(id("web"), Box::new(interface)),
            ],
            vec![
                Op::PutAddress(id("web"), "10.1.0.9/16".parse().unwrap()),
                Op::DeleteAddress(id("web"), "10.1.0.5/16".parse().unwrap()),
                Op::PutRoute(id("web"), "10.3.0.0/16".parse().unwrap()),
                Op::DeleteRoute(id("web"), "10.2.0.0/16".parse().unwrap()),
                Op::DeleteRoute(id("web"), "fd02::/64".parse().unwrap()),
            ],
            vec![
                // A move to another VTEP, one to the other family, one to this host.
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.3"))),
                Op::PutForward(mac(2), Forward::Remote(ip("10.99.0.3"))),
                Op::DeleteVtep(mac(2), ip("fd99::2")),
                Op::PutNeighbour(ip("10.1.0.100"), mac(3)),
            ],
            vec![
                Op::PutForward(mac(1), Forward::Local(web.port_name.clone())),
                Op::DeleteVtep(mac(1), ip("10.99.0.3")),
                Op::DeleteNeighbour(ip("10.1.0.100")),
                Op::DeleteBridgeEntry(mac(2), weft_core::dataplane::BridgeTarget::Tunnel(Family::V4)),
                Op::DeleteVtep(mac(2), ip("10.99.0.3")),
            ],
            vec![
                Op::DeletePort(web.port_name.clone()),
                create(&web, "web"),
                Op::DeleteTunnel(Family::V4),
                put_tunnel(Family::V4, 101, 1400),
            ],
            vec![Op::DeletePort(web.port_name.clone())],
            vec![
                Op::DeletePort(local(&blue, "side", Path::new("/"), 6).port_name),
                Op::DeletePort(local(&blue, "db", Path::new("/"), 7).port_name),
                Op::DeleteTunnel(Family::V4),
                Op::DeleteTunnel(Family::V6),
                Op::DeleteNamespace,
            ],
        ];
        for ops in steps {
            ground.apply(&blue, ops.clone());
            let strange = ears.strange(ground);
            assert!(strange.is_empty(), "{ops:#?}: {strange:#?}");
        }
    });
}

type Scope = fn(&Dirty, &NetworkName) -> bool;

fn links(look: &Dirty, network: &NetworkName) -> bool {
    look.links.contains(network)
}

fn web(look: &Dirty, network: &NetworkName) -> bool {
    look.endpoints.contains(&endpoint(network, "web"))
}

fn mac_1(look: &Dirty, network: &NetworkName) -> bool {
    look.macs.get(network).is_some_and(|macs| macs.contains(&mac(1)))
}

fn mac_2(look: &Dirty, network: &NetworkName) -> bool {
    look.macs.get(network).is_some_and(|macs| macs.contains(&mac(2)))
}

fn mac_of_web(look: &Dirty, network: &NetworkName) -> bool {
    let web = local(network, "web", Path::new("/"), 5).interface.mac;
    look.macs.get(network).is_some_and(|macs| macs.contains(&web))
}

fn v4_neighbour(look: &Dirty, network: &NetworkName) -> bool {
    look.addresses
        .get(network)
        .is_some_and(|all| all.contains(&ip("10.1.0.100")))
}

fn v6_neighbour(look: &Dirty, network: &NetworkName) -> bool {
    look.addresses
        .get(network)
        .is_some_and(|all| all.contains(&ip("fd01::100")))
}

/// In the network's namespace; `PORT` is web's host end, `SIDE` another one, `WEBMAC` web's MAC.
const IN_NETWORK: &[(&str, Scope)] = &[
    ("bridge fdb del 02:42:00:00:00:01 dev vx4 self", mac_1),
    ("bridge fdb del 02:42:00:00:00:01 dev vx4 master", mac_1),
    (
        "bridge fdb replace 02:42:00:00:00:01 dev vx4 dst 10.99.0.9 self extern_learn",
        mac_1,
    ),
    (
        "bridge fdb replace 02:42:00:00:00:01 dev vx4 dst 10.99.0.9 self",
        mac_1,
    ),
    ("bridge fdb del 02:42:00:00:00:02 dev vx6 self", mac_2),
    (
        "bridge fdb replace 02:42:00:00:00:01 dev PORT master extern_learn static",
        mac_1,
    ),
    ("bridge fdb replace WEBMAC dev SIDE master static", mac_of_web),
    ("bridge fdb del WEBMAC dev PORT master", mac_of_web),
    ("ip neigh del 10.1.0.100 dev br0", v4_neighbour),
    ("ip neigh del fd01::100 dev br0", v6_neighbour),
    (
        "ip neigh replace 10.1.0.100 lladdr 02:42:00:00:00:99 dev br0 nud permanent",
        v4_neighbour,
    ),
    ("ip neigh flush dev br0 nud noarp", v6_neighbour),
    ("ip link del vx4", links),
    ("ip link del br0", links),
    ("ip link del PORT", links),
    ("ip link set vx4 down", links),
    ("ip link set br0 down", links),
    ("ip link set PORT down", links),
    ("ip link set vx4 mtu 1300", links),
    ("ip link set br0 mtu 1300", links),
    ("ip link set PORT mtu 1300", links),
    ("ip link set PORT alias other", links),
    ("ip link set PORT nomaster", links),
    ("ip link set vx6 nomaster", links),
    ("ip link set vx4 type vxlan id 100 local 10.99.0.77", links),
    ("ip link set vx4 down name other", links),
    ("ip link set PORT down name other", links),
    ("bridge link set dev vx4 learning on", links),
    ("bridge link set dev vx4 flood on", links),
    ("bridge link set dev PORT learning on", links),
    ("ip link set dev PORT type bridge_slave flood on", links),
    ("ip link set br0 type bridge mcast_snooping 1", links),
    ("ip link set br0 addrgenmode eui64", links),
    ("sysctl -qw net.ipv6.conf.br0.disable_ipv6=1", v6_neighbour),
];

/// In web's container.
const IN_CONTAINER: &[(&str, Scope)] = &[
    ("ip link del eth0", web),
    ("ip link set eth0 down", web),
    ("ip link set eth0 mtu 1300", web),
    ("ip link set eth0 address 02:42:00:00:00:99", web),
    ("ip link set eth0 alias other", web),
    ("ip link set eth0 down name other", web),
    ("ip addr flush dev eth0", web),
    ("ip addr del 10.1.0.5/16 dev eth0", web),
    ("ip addr del fd01::5/64 dev eth0", web),
    ("ip route del 10.2.0.0/16 dev eth0", web),
    ("ip -6 route del fd02::/64 dev eth0", web),
];

fn every_drift(all: &'static [(&'static str, Scope)], in_container: bool) {
    on_host(move |ground| {
        let blue = network("blue");
        furnish(ground, &blue);
        let mut ears = Ears::open(ground);
        let port = local(&blue, "web", Path::new("/"), 5);
        let side = local(&blue, "side", Path::new("/"), 6);
        let mut missed = Vec::new();
        for (change, expected) in all {
            // A tunnel under another name keeps its VNI for as long as it lives.
            let renamed = change.contains("vx4 down name other");
            let command = change
                .replace("PORT", port.port_name.as_str())
                .replace("SIDE", side.port_name.as_str())
                .replace("WEBMAC", &port.interface.mac.to_string());
            let namespace = if in_container {
                ground.containers.join("c1")
            } else {
                ground.namespace(&blue)
            };
            run(&inside(&namespace, &command));
            let strange = ears.strange(ground);
            if !expected(&marked(&strange), &blue) {
                missed.push((command, strange));
            }
            if renamed {
                ground.meddle(&blue, "ip link del other");
            }
            refurnish(ground, &blue);
            ears.told();
        }
        assert!(missed.is_empty(), "{missed:#?}");
    });
}

/// Makes the network anew, in the same containers.
fn refurnish(ground: &mut Ground, blue: &NetworkName) {
    let before = ground.modelled(blue);
    let ports = before.ports.into_keys().map(Op::DeletePort);
    let ops = ports
        .chain([
            Op::DeleteTunnel(Family::V4),
            Op::DeleteTunnel(Family::V6),
            Op::DeleteNamespace,
        ])
        .collect();
    // Their host ends may have been renamed.
    for container in ["c1", "c2"] {
        remove_namespace(&ground.containers.join(container));
    }
    ground.apply(blue, ops);
    furnish(ground, blue);
}

#[test]
fn every_drift_in_a_network_is_told() {
    every_drift(IN_NETWORK, false);
}

#[test]
fn every_drift_in_a_container_is_told() {
    every_drift(IN_CONTAINER, true);
}

#[test]
fn a_namespace_that_comes_or_goes_is_told() {
    on_host(|ground| {
        let blue = network("blue");
        furnish(ground, &blue);
        let mut ears = Ears::open(ground);
        let mut expect = |what: &str, path: &Path| {
            let told = || Notice::Attachments(path.to_owned());
            let mut heard = Vec::new();
            while !heard.contains(&told()) {
                heard.extend(
                    ears.next()
                        .unwrap_or_else(|| panic!("{what} is told; heard {heard:?}")),
                );
            }
            assert!(!told().agrees_with(&ground.model));
        };
        let c1 = ground.containers.join("c1");
        remove_namespace(&c1);
        expect("a container's end", &c1);
        std::fs::write(&c1, "").unwrap();
        expect("a container's file", &c1);
        make_namespace(&c1);
        expect("a container's mount", &c1);
        nix::mount::umount2(&c1, nix::mount::MntFlags::MNT_DETACH).unwrap();
        expect("a container's unmounting", &c1);
        let own = ground.namespace(&blue);
        nix::mount::umount2(&own, nix::mount::MntFlags::MNT_DETACH).unwrap();
        expect("the unmounting of a network's namespace", &own);
        std::fs::remove_file(&own).unwrap();
        expect("the removal of a network's namespace", &own);
    });
}

/// Whoever waits for a namespace looks at what is there in its place; that must not wake it up again.
#[test]
fn looking_at_an_attachment_is_not_told() {
    on_host(|ground| {
        let mut ears = Ears::open(ground);
        let plain = ground.containers.join("plain");
        std::fs::write(&plain, "").unwrap();
        while !ears.next().unwrap().contains(&Notice::Attachments(plain.clone())) {}
        let attachment = weft_store_schema::Attachment {
            netns: plain.to_str().unwrap().into(),
            ifname: "eth0".parse().unwrap(),
        };
        ground.kernel.check_attachment(&attachment).unwrap_err();
        let after = ground.containers.join("after");
        std::fs::write(&after, "").unwrap();
        let mut heard = Vec::new();
        while !heard.contains(&Notice::Attachments(after.clone())) {
            heard.extend(ears.next().unwrap());
        }
        assert!(!heard.contains(&Notice::Attachments(plain)), "{heard:?}");
    });
}

#[test]
fn a_dead_containers_namespace_dies() {
    on_host(|ground| {
        let blue = network("blue");
        furnish(ground, &blue);
        let mut ears = Ears::open(ground);
        ground.assert_as_modelled(&blue, "furnishing");
        let db = local(&blue, "db", Path::new("/"), 7);
        // A namespace that dies takes its ends of veth pairs along, and thereby the host ends.
        remove_namespace(&ground.containers.join("c2"));
        eventually("the container's veth goes with it", || {
            let links = ground.ask(&blue, "ip -j link");
            !links.iter().any(|l| l["ifname"] == db.port_name.as_str())
        });
        let strange = ears.strange(ground);
        assert!(links(&marked(&strange), &blue), "{strange:#?}");
    });
}

/// The kernel gives the id of a dead namespace to the next one: what was known of the dead one must not be
/// taken for the new one's.
#[test]
fn ids_of_dead_namespaces_are_used_again() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        let mut ears = Ears::open(ground);
        for round in 0..4_u8 {
            let name = format!("c{round}");
            let netns = ground.container(&name);
            let web = local(&blue, &name, &netns, 10 + round);
            ground.apply(&blue, vec![create(&web, &name)]);
            let strange = ears.strange(ground);
            assert!(strange.is_empty(), "round {round}: {strange:#?}");
            run(&inside(&netns, "ip link set eth0 mtu 1300"));
            let told = marked(&ears.strange(ground));
            assert_eq!(
                told.endpoints.into_iter().collect::<Vec<_>>(),
                [endpoint(&blue, &name)],
                "round {round}"
            );
            ground.apply(&blue, vec![Op::DeletePort(web.port_name)]);
            remove_namespace(&netns);
            ears.told();
        }
    });
}

/// What goes on in a container beside our interface is nobody's business.
#[test]
fn other_interfaces_of_a_container_are_not_told() {
    on_host(|ground| {
        let blue = network("blue");
        furnish(ground, &blue);
        let mut ears = Ears::open(ground);
        let c1 = ground.containers.join("c1");
        for command in [
            "ip link add foreign type veth peer name other",
            "ip link set foreign up",
            "ip addr add 192.168.1.1/24 dev foreign",
            "ip route add 10.9.0.0/16 dev eth0",
            "ip addr add 192.168.2.1/24 dev eth0",
            "ip link del foreign",
            "ip addr del 192.168.2.1/24 dev eth0",
        ] {
            run(&inside(&c1, command));
            let strange = ears.strange(ground);
            assert!(strange.is_empty(), "{command}: {strange:#?}");
        }
        ground.meddle(&blue, "ip link add foreign type veth peer name other");
        ground.meddle(&blue, "ip link set foreign up master br0");
        ground.meddle(
            &blue,
            "bridge fdb add 02:42:00:00:77:01 dev foreign master static",
        );
        ground.meddle(&blue, "ip neigh add 10.1.0.200 lladdr 02:42:00:00:77:01 dev br0");
        ground.meddle(&blue, "ip link del foreign");
        let strange = ears.strange(ground);
        assert!(strange.is_empty(), "in the network: {strange:#?}");
    });
}

#[test]
fn nothing_is_told_when_nothing_happens() {
    on_host(|ground| {
        let blue = network("blue");
        furnish(ground, &blue);
        let mut ears = Ears::open(ground);
        // Looking changes nothing.
        for _ in 0..3 {
            ground.assert_as_modelled(&blue, "nothing");
        }
        let told = ears.strange(ground);
        assert!(told.is_empty(), "{told:#?}");
        let waited = ears
            .runtime
            .block_on(async { timeout(Duration::from_millis(50), ears.notifications.next()).await });
        if let Ok(notices) = waited {
            assert!(
                notices.iter().all(|n| n.agrees_with(&ground.model)),
                "{notices:#?}"
            );
        }
    });
}
