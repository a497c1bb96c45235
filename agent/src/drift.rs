//! Names for operations: what was repaired, what was found in its place and what it was put back to, for counters, logs and events.

use std::fmt::{self, Display};

use weft_core::{
    dataplane::{Bridge, BridgeTarget, ForwardRow, Interface, ObservedNetwork, Port, PortFlags, Tunnel},
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

/// Kinds of objects that weft makes, as operations and repairs are counted.
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
    /// Of an address or a VNI, in the store: no operation makes one, but it is repaired.
    Claim,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Namespace,
        Self::Bridge,
        Self::Vxlan,
        Self::Veth,
        Self::Interface,
        Self::Address,
        Self::Route,
        Self::Fdb,
        Self::Neighbour,
        Self::Claim,
    ];

    /// Those of the kernel's objects.
    pub(crate) fn of_kernel() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| *kind != Self::Claim)
    }

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
            Self::Claim => "claim",
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

/// What somebody had made of an object, and what it was put back to, for people. Only what differs of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Repair {
    /// What was found; empty when nothing was there.
    pub(crate) found: String,
    /// What should be there; empty when nothing should.
    pub(crate) wanted: String,
}

impl Repair {
    fn of(found: impl Into<String>, wanted: impl Into<String>) -> Self {
        Self {
            found: found.into(),
            wanted: wanted.into(),
        }
    }

    /// What is not wanted at all.
    fn unwanted(found: impl Into<String>) -> Self {
        Self::of(found, "")
    }

    fn all(parts: &[Option<Self>]) -> Self {
        let join = |side: fn(&Self) -> &str| {
            let texts: Vec<&str> = parts.iter().flatten().map(side).collect();
            texts.join("; ")
        };
        Self::of(join(|part| &part.found), join(|part| &part.wanted))
    }
}

/// For a line that has both: "nothing" is told in words.
pub(crate) fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}

impl Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.found.as_str(), self.wanted.as_str()) {
            ("", "") => f.write_str("it was missing"),
            ("", wanted) => write!(f, "it was missing, should be {wanted}"),
            (found, "") => write!(f, "found {found}, which should not be there"),
            (found, wanted) => write!(f, "found {found}, should be {wanted}"),
        }
    }
}

/// What is found where an operation is about to put something right, and what it makes of it.
pub(crate) fn repair(there: Option<&ObservedNetwork>, op: &Op) -> Repair {
    let nothing = ObservedNetwork::default();
    let there = there.unwrap_or(&nothing);
    match op {
        Op::CreateNamespace if there.unmounted => Repair::of("not mounted", "mounted"),
        Op::CreateNamespace => Repair::of("", "there"),
        Op::DeleteNamespace => Repair::unwanted("a namespace"),
        Op::PutBridge(wanted) => there.bridge.as_ref().map_or_else(
            || Repair::of("", format!("mtu {}", wanted.mtu)),
            |found| bridge(found, wanted),
        ),
        Op::PutTunnel(family, wanted) => {
            let found = there.tunnels.get(family);
            found.map_or_else(|| Repair::of("", device(wanted)), |found| tunnel(found, wanted))
        }
        Op::DeleteTunnel(family) => {
            Repair::unwanted(there.tunnels.get(family).map_or_else(String::new, device))
        }
        Op::PutPort(_, name, wanted) => {
            let found = there.ports.get(name);
            found.map_or_else(|| Repair::of("", &wanted.alias), |found| port(found, wanted))
        }
        Op::DeletePort(name) => {
            let found = there.ports.get(name);
            Repair::unwanted(found.map_or_else(String::new, |found| format!("alias {}", found.alias)))
        }
        Op::CreateLocal(id, local) => match (there.ports.get(&local.port_name), there.interfaces.get(id)) {
            (None, None) => Repair::of("", "both ends"),
            (Some(_), None) => Repair::of("the host's end without the container's", "both ends"),
            (None, Some(_)) => Repair::of("the container's end without the host's", "both ends"),
            (Some(found), Some(end)) => {
                let both = [port(found, &local.port), ends(end, &local.interface)];
                Repair::all(&both.map(|part| Some(part).filter(|part| *part != Repair::default())))
            }
        },
        Op::PutInterface(id, wanted) => {
            let found = there.interfaces.get(id);
            found.map_or_else(|| Repair::of("", &wanted.alias), |found| ends(found, wanted))
        }
        Op::PutAddress(_, net) | Op::PutRoute(_, net) => Repair::of("", net.to_string()),
        Op::DeleteAddress(_, net) | Op::DeleteRoute(_, net) => Repair::unwanted(net.to_string()),
        Op::PutForward(mac, forward) => entries(there.forwards.get(mac), &ForwardRow::of(forward)),
        Op::DeleteVtep(_, vtep) => Repair::unwanted(format!("tunnel to {vtep}")),
        Op::DeleteBridgeEntry(_, target) => Repair::unwanted(bridge_to(target)),
        Op::PutNeighbour(address, mac) => {
            let found = there.neighbours.get(address);
            Repair::of(
                found.map_or_else(String::new, ToString::to_string),
                mac.to_string(),
            )
        }
        Op::DeleteNeighbour(address) => {
            let found = there.neighbours.get(address);
            Repair::unwanted(found.map_or_else(String::new, ToString::to_string))
        }
    }
}

fn device(of: &Tunnel) -> String {
    format!("vni {}, port {}, local {}", of.vni, of.port, of.local)
}

fn up(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn differs<T: PartialEq + Display + ?Sized>(what: &str, found: &T, wanted: &T) -> Option<Repair> {
    (found != wanted).then(|| Repair::of(format!("{what} {found}"), format!("{what} {wanted}")))
}

fn flags(found: Option<PortFlags>, wanted: Option<PortFlags>) -> Option<Repair> {
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
    Some(Repair::all(&all)).filter(|all| *all != Repair::default())
}

fn bridge(found: &Bridge, wanted: &Bridge) -> Repair {
    Repair::all(&[
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
}

fn tunnel(found: &Tunnel, wanted: &Tunnel) -> Repair {
    Repair::all(&[
        differs("vni", &found.vni, &wanted.vni),
        differs("port", &found.port, &wanted.port),
        differs("local", &found.local, &wanted.local),
        differs("mtu", &found.mtu, &wanted.mtu),
        differs("state", up(found.up), up(wanted.up)),
        differs("learning", &found.learning, &wanted.learning),
        flags(found.bridge_port, wanted.bridge_port),
    ])
}

fn port(found: &Port, wanted: &Port) -> Repair {
    Repair::all(&[
        differs("alias", &found.alias, &wanted.alias),
        differs("mtu", &found.mtu, &wanted.mtu),
        differs("state", up(found.up), up(wanted.up)),
        flags(found.bridge_port, wanted.bridge_port),
    ])
}

fn ends(found: &Interface, wanted: &Interface) -> Repair {
    Repair::all(&[
        differs("netns", &found.attachment.netns, &wanted.attachment.netns),
        differs("name", &found.attachment.ifname, &wanted.attachment.ifname),
        differs("alias", &found.alias, &wanted.alias),
        differs("mac", &found.mac, &wanted.mac),
        differs("mtu", &found.mtu, &wanted.mtu),
        differs("state", up(found.up), up(wanted.up)),
    ])
}

fn bridge_to(target: &BridgeTarget) -> String {
    match target {
        BridgeTarget::Port(name) => format!("bridge to {name}"),
        BridgeTarget::Tunnel(family) => format!("bridge to {}", ownership::tunnel_name(*family)),
    }
}

/// Of a MAC's entries, the one of the bridge or the one of the tunnel may be all that is wrong.
fn entries(found: Option<&ForwardRow>, wanted: &ForwardRow) -> Repair {
    let nothing = ForwardRow::default();
    let found = found.unwrap_or(&nothing);
    let bridge = |row: &ForwardRow| row.bridge().as_ref().map(bridge_to);
    let tunnel = |row: &ForwardRow| {
        let vteps: Vec<String> = row.vteps().iter().map(ToString::to_string).collect();
        (!vteps.is_empty()).then(|| format!("tunnel to {}", vteps.join(" and ")))
    };
    let part = |what: &str, found: Option<String>, wanted: Option<String>| {
        let none = || format!("no entry of the {what}");
        (found != wanted).then(|| Repair::of(found.unwrap_or_else(none), wanted.unwrap_or_else(none)))
    };
    let both = Repair::all(&[
        part("bridge", bridge(found), bridge(wanted)),
        part("tunnel", tunnel(found), tunnel(wanted)),
    ]);
    match found.is_empty() {
        true => Repair::of("", both.wanted),
        false => both,
    }
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

#[cfg(test)]
mod tests;
