//! What is told of each kind of repair.

use std::net::IpAddr;

use weft_core::dataplane::Forward;
use weft_store_schema::{Family, IfName, Mac, Vni};

use super::*;

fn mac(last: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, last]).unwrap()
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn bridge() -> Bridge {
    Bridge {
        mtu: 1450,
        up: true,
        multicast_snooping: false,
        ipv6: true,
        link_local: false,
        filtered: false,
    }
}

fn tunnel() -> Tunnel {
    Tunnel {
        vni: Vni::new(100).unwrap(),
        port: 4789,
        local: at("10.99.0.1"),
        mtu: 1450,
        up: true,
        learning: false,
        bridge_port: Some(PortFlags::TUNNEL),
    }
}

fn port() -> Port {
    Port {
        alias: "weft blue/host1/web".to_owned(),
        mtu: 1450,
        up: true,
        bridge_port: Some(PortFlags::ENDPOINT),
    }
}

fn interface() -> Interface {
    Interface {
        attachment: weft_store_schema::Attachment {
            netns: "/run/netns/web".into(),
            ifname: "eth0".parse().unwrap(),
        },
        alias: "weft blue/host1/web".to_owned(),
        mac: mac(2),
        mtu: 1450,
        up: true,
        addresses: ["10.1.0.2/24".parse().unwrap()].into(),
        routes: [].into(),
    }
}

/// Everything as it should be.
fn right() -> ObservedNetwork {
    let mut there = ObservedNetwork {
        bridge: Some(bridge()),
        ..ObservedNetwork::default()
    };
    there.tunnels.insert(Family::V4, tunnel());
    there.ports.insert(veth(), port());
    there.interfaces.insert(web(), interface());
    there
        .forwards
        .insert(mac(3), ForwardRow::of(&Forward::Remote(at("10.99.0.2"))));
    there.neighbours.insert(at("10.1.0.3"), mac(3));
    there
}

fn veth() -> IfName {
    "ve1".parse().unwrap()
}

fn web() -> EndpointId {
    "web".parse().unwrap()
}

/// What is told when an operation repairs what somebody did.
fn told(damage: impl FnOnce(&mut ObservedNetwork), op: &Op) -> String {
    let mut there = right();
    damage(&mut there);
    repair(Some(&there), op).to_string()
}

#[test]
fn what_was_found_and_what_should_be_are_told_of_each_kind() {
    let to = |vtep| Op::PutForward(mac(3), Forward::Remote(at(vtep)));
    let (far, other) = (at("10.99.0.2"), at("10.99.0.77"));
    let row = |bridge: bool, vteps: &[IpAddr]| {
        let bridge = bridge.then_some(BridgeTarget::Tunnel(Family::V4));
        ForwardRow::new(bridge, vteps.to_vec())
    };
    let put_row =
        |row: ForwardRow| move |there: &mut ObservedNetwork| drop(there.forwards.insert(mac(3), row));
    let same = |_: &mut ObservedNetwork| {};
    for (told, expected) in [
        (
            told(|n| n.unmounted = true, &Op::CreateNamespace),
            "found not mounted, should be mounted",
        ),
        (
            told(
                |n| n.bridge.as_mut().unwrap().mtu = 1400,
                &Op::PutBridge(bridge()),
            ),
            "found mtu 1400, should be mtu 1450",
        ),
        (
            told(|n| n.bridge = None, &Op::PutBridge(bridge())),
            "it was missing, should be mtu 1450",
        ),
        (
            told(
                |n| {
                    let tunnel = n.tunnels.get_mut(&Family::V4).unwrap();
                    (tunnel.up, tunnel.bridge_port) = (false, None);
                },
                &Op::PutTunnel(Family::V4, tunnel()),
            ),
            "found state down; enslaved false, should be state up; enslaved true",
        ),
        (
            told(same, &Op::DeleteTunnel(Family::V4)),
            "found vni 100, port 4789, local 10.99.0.1, which should not be there",
        ),
        (
            told(
                |n| n.ports.get_mut(&veth()).unwrap().alias = "x".to_owned(),
                &Op::PutPort(web(), veth(), port()),
            ),
            "found alias x, should be alias weft blue/host1/web",
        ),
        (
            told(same, &Op::DeletePort(veth())),
            "found alias weft blue/host1/web, which should not be there",
        ),
        (
            told(
                |n| n.interfaces.get_mut(&web()).unwrap().mac = mac(9),
                &Op::PutInterface(web(), Box::new(interface())),
            ),
            "found mac 02:00:00:00:00:09, should be mac 02:00:00:00:00:02",
        ),
        (
            told(same, &Op::DeleteAddress(web(), "10.1.0.9/24".parse().unwrap())),
            "found 10.1.0.9/24, which should not be there",
        ),
        (
            told(same, &Op::PutAddress(web(), "10.1.0.2/24".parse().unwrap())),
            "it was missing, should be 10.1.0.2/24",
        ),
        // Of two entries, the one that is right is not told of.
        (
            told(put_row(row(true, &[other])), &to("10.99.0.2")),
            "found tunnel to 10.99.0.77, should be tunnel to 10.99.0.2",
        ),
        (
            told(put_row(row(true, &[])), &to("10.99.0.2")),
            "found no entry of the tunnel, should be tunnel to 10.99.0.2",
        ),
        (
            told(put_row(row(false, &[far])), &to("10.99.0.2")),
            "found no entry of the bridge, should be bridge to vx4",
        ),
        (
            told(|n| n.forwards.clear(), &to("10.99.0.2")),
            "it was missing, should be bridge to vx4; tunnel to 10.99.0.2",
        ),
        (
            told(put_row(row(true, &[far, other])), &Op::DeleteVtep(mac(3), other)),
            "found tunnel to 10.99.0.77, which should not be there",
        ),
        (
            told(
                same,
                &Op::DeleteBridgeEntry(mac(3), BridgeTarget::Tunnel(Family::V4)),
            ),
            "found bridge to vx4, which should not be there",
        ),
        (
            told(
                |n| {
                    n.neighbours.insert(at("10.1.0.3"), mac(9));
                },
                &Op::PutNeighbour(at("10.1.0.3"), mac(3)),
            ),
            "found 02:00:00:00:00:09, should be 02:00:00:00:00:03",
        ),
        (
            told(
                |n| n.neighbours = Default::default(),
                &Op::PutNeighbour(at("10.1.0.3"), mac(3)),
            ),
            "it was missing, should be 02:00:00:00:00:03",
        ),
        (
            told(same, &Op::DeleteNeighbour(at("10.1.0.3"))),
            "found 02:00:00:00:00:03, which should not be there",
        ),
    ] {
        assert_eq!(told, expected);
    }
}
