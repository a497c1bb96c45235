//! Operations and problems as lines for people.

use weft_core::{
    dataplane::{Bridge, BridgeTarget, Forward, Interface, Local, Port, PortFlags, Tunnel},
    ownership::tunnel_name,
    plan::Op,
};

fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    all.join(" ")
}

fn bridge(b: &Bridge) -> String {
    let usual = Bridge {
        mtu: b.mtu,
        up: true,
        multicast_snooping: false,
        ipv6: true,
        link_local: false,
        filtered: false,
    };
    assert_eq!(*b, usual, "a bridge is never wanted otherwise");
    format!("bridge mtu {}", b.mtu)
}

fn tunnel(t: &Tunnel) -> String {
    assert!(t.up && !t.learning && t.bridge_port == Some(PortFlags::TUNNEL));
    format!("vni {} from {} port {} mtu {}", t.vni, t.local, t.port, t.mtu)
}

fn port(p: &Port) -> String {
    assert!(p.up && p.bridge_port == Some(PortFlags::ENDPOINT));
    format!("mtu {} alias \"{}\"", p.mtu, p.alias)
}

fn link(i: &Interface) -> String {
    assert!(i.up);
    format!("{} mtu {} alias \"{}\"", i.mac, i.mtu, i.alias)
}

fn local(l: &Local) -> String {
    let i = &l.interface;
    assert_eq!((&l.port.alias, l.port.mtu), (&i.alias, i.mtu));
    port(&l.port);
    let place = &i.attachment;
    let routes = if i.routes.is_empty() {
        String::new()
    } else {
        format!(" routes {}", list(&i.routes))
    };
    let addresses = list(&i.addresses);
    format!(
        "{} in {} with {addresses}{routes} {}",
        place.ifname,
        place.netns,
        link(i)
    )
}

/// An operation as a line.
pub(crate) fn op(op: &Op) -> String {
    match op {
        Op::CreateNamespace => "make the namespace".to_owned(),
        Op::PutBridge(b) => bridge(b),
        Op::PutTunnel(family, t) => format!("{} {}", tunnel_name(*family), tunnel(t)),
        Op::DeleteTunnel(family) => format!("remove {}", tunnel_name(*family)),
        Op::CreateLocal(id, l) => format!("attach {id}: {}", local(l)),
        Op::PutPort(id, _, p) => format!("port of {id}: {}", port(p)),
        Op::PutInterface(id, i) => format!("interface of {id}: {}", link(i)),
        Op::PutAddress(id, address) => format!("give {id} {address}"),
        Op::DeleteAddress(id, address) => format!("take {address} from {id}"),
        Op::PutRoute(id, route) => format!("give {id} a route to {route}"),
        Op::DeleteRoute(id, route) => format!("take the route to {route} from {id}"),
        Op::DeletePort(name) => format!("remove {name}"),
        Op::PutForward(mac, Forward::Local(name)) => format!("{mac} is behind {name}"),
        Op::PutForward(mac, Forward::Remote(vtep)) => format!("{mac} is at {vtep}"),
        Op::DeleteVtep(mac, vtep) => format!("{mac} is no longer at {vtep}"),
        Op::DeleteBridgeEntry(mac, BridgeTarget::Port(name)) => format!("{mac} is no longer behind {name}"),
        Op::DeleteBridgeEntry(mac, BridgeTarget::Tunnel(family)) => {
            format!("{mac} is no longer behind {}", tunnel_name(*family))
        }
        Op::PutNeighbour(address, mac) => format!("{address} is {mac}"),
        Op::DeleteNeighbour(address) => format!("{address} is nobody"),
        Op::DeleteNamespace => "remove the namespace".to_owned(),
    }
}
