//! Names for operations: what was repaired and what was found in its place, for counters, logs and events.

use std::fmt::Display;

use weft_core::{
    dataplane::{BridgeTarget, ForwardRow, Interface, ObservedNetwork, Port, PortFlags, Tunnel},
    ownership,
    plan::Op,
};
use weft_store_schema::{EndpointId, NetworkName};

/// The kind of object that an operation is about.
pub(crate) fn kind(op: &Op) -> Kind {
    match op {
        Op::CreateNamespace | Op::DeleteNamespace => Kind::Namespace,
        Op::PutBridge(_) => Kind::Bridge,
        Op::PutTunnel(..) | Op::DeleteTunnel(_) => Kind::Vxlan,
        Op::CreateLocal(..) | Op::PutPort(..) | Op::DeletePort(_) => Kind::Veth,
        Op::PutInterface(..) => Kind::Interface,
        Op::PutAddress(..) | Op::DeleteAddress(..) => Kind::Address,
        Op::PutRoute(..) | Op::DeleteRoute(..) => Kind::Route,
        Op::PutForward(..) | Op::DeleteVtep(..) | Op::DeleteBridgeEntry(..) => Kind::Fdb,
        Op::PutNeighbour(..) | Op::DeleteNeighbour(_) => Kind::Neighbour,
    }
}

/// Kinds of kernel objects that weft makes, as operations are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Namespace,
    Bridge,
    Vxlan,
    Veth,
    Interface,
    Address,
    Route,
    Fdb,
    Neighbour,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Bridge,
        Self::Vxlan,
        Self::Veth,
        Self::Interface,
        Self::Address,
        Self::Route,
        Self::Fdb,
        Self::Neighbour,
    ];

    /// Its name in status, events, logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Bridge => "bridge",
            Self::Vxlan => "vxlan",
            Self::Veth => "veth",
            Self::Interface => "interface",
            Self::Address => "address",
            Self::Route => "route",
            Self::Fdb => "fdb",
            Self::Neighbour => "neighbour",
        }
    }
}

/// The object that an operation is about, for people.
pub(crate) fn object(network: &NetworkName, op: &Op) -> String {
    let what = match op {
        Op::CreateNamespace | Op::DeleteNamespace => {
            format!("namespace {}", ownership::namespace_name(network))
        }
        Op::PutBridge(_) => format!("bridge {}", ownership::BRIDGE),
        Op::PutTunnel(family, _) | Op::DeleteTunnel(family) => {
            format!("vxlan device {}", ownership::tunnel_name(*family))
        }
        Op::CreateLocal(id, local) => format!("veth {} of endpoint {id}", local.port_name),
        Op::PutPort(id, port, _) => format!("veth {port} of endpoint {id}"),
        Op::DeletePort(port) => format!("veth {port}"),
        Op::PutInterface(id, interface) => {
            format!("interface {} of endpoint {id}", interface.attachment.ifname)
        }
        Op::PutAddress(id, address) | Op::DeleteAddress(id, address) => {
            format!("address {address} of endpoint {id}")
        }
        Op::PutRoute(id, route) | Op::DeleteRoute(id, route) => format!("route {route} of endpoint {id}"),
        Op::PutForward(mac, _) | Op::DeleteBridgeEntry(mac, _) => format!("forwarding entry {mac}"),
        Op::DeleteVtep(mac, vtep) => format!("forwarding entry {mac} to {vtep}"),
        Op::PutNeighbour(address, _) | Op::DeleteNeighbour(address) => format!("neighbour {address}"),
    };
    format!("{what} of network {network}")
}

/// What was found where an operation is about to put something right, for people; empty when nothing was there.
pub(crate) fn found(there: Option<&ObservedNetwork>, op: &Op) -> String {
    let Some(there) = there else { return String::new() };
    let interface = |id| there.interfaces.get(id);
    match op {
        Op::CreateNamespace if there.unmounted => "it, unmounted".to_owned(),
        Op::CreateNamespace | Op::PutAddress(..) | Op::PutRoute(..) => String::new(),
        Op::DeleteNamespace => "a namespace that is not wanted".to_owned(),
        Op::DeleteTunnel(family) => match there.tunnels.get(family) {
            Some(found) => format!("VNI {}, port {}, local {}", found.vni, found.port, found.local),
            None => String::new(),
        },
        Op::DeletePort(_) | Op::DeleteAddress(..) | Op::DeleteRoute(..) => "it, unwanted".to_owned(),
        Op::PutBridge(wanted) => there.bridge.as_ref().map_or_else(String::new, |found| {
            differences(&[
                differs("mtu", &found.mtu, &wanted.mtu),
                differs("state", up(found.up), up(wanted.up)),
                differs(
                    "mcast_snooping",
                    &found.multicast_snooping,
                    &wanted.multicast_snooping,
                ),
                differs("ipv6", &found.ipv6, &wanted.ipv6),
                differs("link_local", &found.link_local, &wanted.link_local),
                differs("bridge-nf-call", &found.filtered, &wanted.filtered),
            ])
        }),
        Op::PutTunnel(family, wanted) => {
            let found = there.tunnels.get(family);
            found.map_or_else(String::new, |found| tunnel(found, wanted))
        }
        Op::PutPort(_, name, wanted) => {
            let found = there.ports.get(name);
            found.map_or_else(String::new, |found| port(found, wanted))
        }
        Op::CreateLocal(id, local) => match (there.ports.get(&local.port_name), interface(id)) {
            (None, None) => String::new(),
            (Some(_), None) => "the host's end without the container's".to_owned(),
            (None, Some(_)) => "the container's end without the host's".to_owned(),
            (Some(found), Some(end)) => {
                let both = [port(found, &local.port), ends(end, &local.interface)];
                differences(&both.map(|text| Some(text).filter(|text| !text.is_empty())))
            }
        },
        Op::PutInterface(id, wanted) => interface(id).map_or_else(String::new, |found| ends(found, wanted)),
        Op::PutForward(mac, _) | Op::DeleteVtep(mac, _) | Op::DeleteBridgeEntry(mac, _) => {
            there.forwards.get(mac).map_or_else(String::new, row)
        }
        Op::PutNeighbour(address, _) | Op::DeleteNeighbour(address) => {
            let found = there.neighbours.get(address);
            found.map_or_else(String::new, ToString::to_string)
        }
    }
}

fn up(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn differs<T: PartialEq + Display + ?Sized>(what: &str, found: &T, wanted: &T) -> Option<String> {
    (found != wanted).then(|| format!("{what} {found}, not {wanted}"))
}

fn differences(of: &[Option<String>]) -> String {
    let texts: Vec<&str> = of.iter().flatten().map(String::as_str).collect();
    texts.join("; ")
}

fn flags(found: Option<PortFlags>, wanted: Option<PortFlags>) -> Option<String> {
    let (Some(found), Some(wanted)) = (found, wanted) else {
        return differs("enslaved", &found.is_some(), &wanted.is_some());
    };
    let all = [
        differs("learning", &found.learning, &wanted.learning),
        differs("flood", &found.unicast_flood, &wanted.unicast_flood),
        differs("mcast_flood", &found.multicast_flood, &wanted.multicast_flood),
        differs("bcast_flood", &found.broadcast_flood, &wanted.broadcast_flood),
        differs("neigh_suppress", &found.neigh_suppress, &wanted.neigh_suppress),
    ];
    Some(differences(&all)).filter(|text| !text.is_empty())
}

fn tunnel(found: &Tunnel, wanted: &Tunnel) -> String {
    differences(&[
        differs("vni", &found.vni, &wanted.vni),
        differs("port", &found.port, &wanted.port),
        differs("local", &found.local, &wanted.local),
        differs("mtu", &found.mtu, &wanted.mtu),
        differs("state", up(found.up), up(wanted.up)),
        differs("learning", &found.learning, &wanted.learning),
        flags(found.bridge_port, wanted.bridge_port),
    ])
}

fn port(found: &Port, wanted: &Port) -> String {
    differences(&[
        differs("alias", &found.alias, &wanted.alias),
        differs("mtu", &found.mtu, &wanted.mtu),
        differs("state", up(found.up), up(wanted.up)),
        flags(found.bridge_port, wanted.bridge_port),
    ])
}

fn ends(found: &Interface, wanted: &Interface) -> String {
    differences(&[
        differs("netns", &found.attachment.netns, &wanted.attachment.netns),
        differs("name", &found.attachment.ifname, &wanted.attachment.ifname),
        differs("alias", &found.alias, &wanted.alias),
        differs("mac", &found.mac, &wanted.mac),
        differs("mtu", &found.mtu, &wanted.mtu),
        differs("state", up(found.up), up(wanted.up)),
    ])
}

fn row(found: &ForwardRow) -> String {
    let bridge = found.bridge().map(|target| match target {
        BridgeTarget::Port(name) => format!("bridge to {name}"),
        BridgeTarget::Tunnel(family) => format!("bridge to {}", ownership::tunnel_name(family)),
    });
    let vteps = found.vteps().iter().map(|vtep| Some(format!("tunnel to {vtep}")));
    differences(&std::iter::once(bridge).chain(vteps).collect::<Vec<_>>())
}

/// The local endpoint that an operation is about, if it is about one.
pub(crate) fn endpoint_of(op: &Op) -> Option<&EndpointId> {
    match op {
        Op::CreateLocal(id, _)
        | Op::PutPort(id, ..)
        | Op::PutInterface(id, _)
        | Op::PutAddress(id, _)
        | Op::DeleteAddress(id, _)
        | Op::PutRoute(id, _)
        | Op::DeleteRoute(id, _) => Some(id),
        _ => None,
    }
}
