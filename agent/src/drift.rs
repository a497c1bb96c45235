//! Names for operations: what was repaired, for counters, logs and events.

use weft_core::{ownership, plan::Op};
use weft_store_schema::{EndpointId, NetworkName};

/// The kind of object that an operation is about.
pub(crate) fn kind(op: &Op) -> &'static str {
    match op {
        Op::CreateNamespace | Op::DeleteNamespace => "namespace",
        Op::PutBridge(_) => "bridge",
        Op::PutTunnel(..) | Op::DeleteTunnel(_) => "vxlan",
        Op::CreateLocal(..) | Op::PutPort(..) | Op::DeletePort(_) => "veth",
        Op::PutInterface(..) => "interface",
        Op::PutAddress(..) | Op::DeleteAddress(..) => "address",
        Op::PutRoute(..) | Op::DeleteRoute(..) => "route",
        Op::PutForward(..) | Op::DeleteVtep(..) | Op::DeleteBridgeEntry(..) => "fdb",
        Op::PutNeighbour(..) | Op::DeleteNeighbour(_) => "neighbour",
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
