//! Finding this host's place on the underlay.

use std::net::IpAddr;

use weft_kernel::{Underlay, UnderlaySelection};

use crate::ground::{Ground, chain, ip, on_host, run};

/// Two interfaces with two addresses of each family; `up0` has the default routes.
fn wire(routes: &[&str]) {
    for (n, name) in ["up0", "up1"].iter().enumerate() {
        run(&format!("ip link add {name} type veth peer name peer{n}"));
        run(&format!(
            "ip link set {name} up addrgenmode none mtu {}",
            1500 - 100 * n
        ));
        run(&format!("ip link set peer{n} up"));
        run(&format!("ip addr add 10.{n}.0.1/24 dev {name}"));
        run(&format!("ip addr add 10.{n}.0.2/24 dev {name}"));
        run(&format!("ip addr add fd0{n}::1/64 dev {name} nodad"));
        run(&format!("ip addr add fe80::1/64 dev {name} nodad"));
    }
    for route in routes {
        run(&format!("ip {route}"));
    }
}

fn select(interface: Option<&str>, addresses: &[&str]) -> UnderlaySelection {
    UnderlaySelection {
        interface: interface.map(|name| name.parse().unwrap()),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
    }
}

fn found(ifname: &str, v4: Option<&str>, v6: Option<&str>, mtu: u16) -> Underlay {
    let of = |address: Option<&str>| address.map(|a| a.parse::<IpAddr>().unwrap());
    Underlay {
        ifname: ifname.to_owned(),
        v4: of(v4),
        v6: of(v6),
        mtu,
    }
}

fn refusal(ground: &mut Ground, selection: &UnderlaySelection) -> String {
    chain(&ground.kernel.underlay(selection).unwrap_err())
}

#[test]
fn by_interface_and_by_addresses() {
    on_host(|ground| {
        wire(&[]);
        for (selection, wanted) in [
            (
                select(Some("up0"), &[]),
                found("up0", Some("10.0.0.1"), Some("fd00::1"), 1500),
            ),
            (
                select(Some("up1"), &[]),
                found("up1", Some("10.1.0.1"), Some("fd01::1"), 1400),
            ),
            (
                select(None, &["10.0.0.2"]),
                found("up0", Some("10.0.0.2"), None, 1500),
            ),
            (
                select(None, &["fd01::1"]),
                found("up1", None, Some("fd01::1"), 1400),
            ),
            (
                select(None, &["10.0.0.1", "fd01::1"]),
                found("up0", Some("10.0.0.1"), Some("fd01::1"), 1400),
            ),
            (
                select(Some("up0"), &["10.0.0.1"]),
                found("up0", Some("10.0.0.1"), None, 1500),
            ),
        ] {
            assert_eq!(
                ground.kernel.underlay(&selection).unwrap(),
                wanted,
                "{selection:?}"
            );
        }
        for (selection, why) in [
            (select(Some("up9"), &[]), "this host has no interface up9"),
            (
                select(Some("peer0"), &[]),
                "interface peer0 has no address of global scope",
            ),
            (
                select(None, &["10.9.9.9"]),
                "10.9.9.9 is not an address of this host's interfaces",
            ),
            (
                select(Some("up1"), &["10.0.0.1"]),
                "10.0.0.1 is not an address of interface up1",
            ),
            (select(None, &[]), "this host has no default route"),
        ] {
            let said = refusal(ground, &selection);
            assert!(
                said.starts_with("no usable underlay: ") && said.contains(why),
                "{said}"
            );
        }
        run("ip link set up1 mtu 500");
        let said = refusal(ground, &select(None, &["10.1.0.1"]));
        assert!(said.contains("500"), "{said}");
    });
}

#[test]
fn by_the_default_route() {
    on_host(|ground| {
        wire(&[
            "route add default via 10.0.0.254",
            "route add default via 10.1.0.254 metric 50",
        ]);
        let wanted = found("up0", Some("10.0.0.1"), Some("fd00::1"), 1500);
        assert_eq!(ground.kernel.underlay(&select(None, &[])).unwrap(), wanted);
    });
}

#[test]
fn by_the_default_route_of_ipv6() {
    on_host(|ground| {
        wire(&["-6 route add default via fd01::254"]);
        let wanted = found("up1", Some("10.1.0.1"), Some("fd01::1"), 1400);
        assert_eq!(ground.kernel.underlay(&select(None, &[])).unwrap(), wanted);
    });
}

/// A default route over several next hops has no interface of its own: the first hop's counts.
#[test]
fn by_a_default_route_of_several_hops() {
    on_host(|ground| {
        wire(&["route add default nexthop via 10.1.0.254 nexthop via 10.0.0.254"]);
        let wanted = found("up1", Some("10.1.0.1"), Some("fd01::1"), 1400);
        assert_eq!(ground.kernel.underlay(&select(None, &[])).unwrap(), wanted);
    });
}
