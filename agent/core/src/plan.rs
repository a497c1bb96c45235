//! A plan: what is to be done to the kernel, in order, as a value. `diff` decides; whoever applies it makes
//! no choices.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_store_schema::{EndpointId, Family, IfName, Mac, NetworkName};

use crate::dataplane::{
    Bridge, BridgeTarget, Forward, ForwardRow, Interface, Local, ObservedNetwork, Port, Tunnel,
};

/// One change to a network's part of the kernel. Every `Put` creates or replaces, so that doing it twice is
/// doing it once; every `Delete` of what is gone already succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Op {
    /// Make the network's namespace, with loopback up; or mount it again, if it lives on without its file.
    CreateNamespace,
    /// Make the bridge or give it these properties.
    PutBridge(Bridge),
    /// Make a VXLAN device or give the existing one these properties; VNI, port and family of an existing
    /// one are right already.
    PutTunnel(Family, Tunnel),
    /// Remove a VXLAN device, its FDB with it.
    DeleteTunnel(Family),
    /// Make a veth pair: host end in the network's namespace with the bridge's entry for the endpoint's MAC,
    /// container end complete with its addresses and routes. Fails if the container has an interface of that name already.
    CreateLocal(EndpointId, Box<Local>),
    /// Give an existing host end these properties.
    PutPort(EndpointId, IfName, Port),
    /// Give an existing container end these link properties (MAC, MTU, up, alias); addresses and routes have
    /// operations of their own.
    PutInterface(EndpointId, Box<Interface>),
    /// Give a container end an address.
    PutAddress(EndpointId, IpNet),
    /// Take an address from a container end.
    DeleteAddress(EndpointId, IpNet),
    /// Give a container end an on-link route.
    PutRoute(EndpointId, IpNet),
    /// Take a route from a container end.
    DeleteRoute(EndpointId, IpNet),
    /// Remove a veth pair by its host end.
    DeletePort(IfName),
    /// Point a MAC at this place, in the bridge's table and, for a remote one, in the tunnel's (replacing the
    /// VTEP there).
    PutForward(Mac, Forward),
    /// Remove one VTEP of a MAC from the VXLAN device of the VTEP's family; the bridge's entry stays.
    DeleteVtep(Mac, IpAddr),
    /// Remove the bridge's entry of a MAC at this place.
    DeleteBridgeEntry(Mac, BridgeTarget),
    /// Make a permanent neighbour on the bridge.
    PutNeighbour(IpAddr, Mac),
    /// Remove a neighbour from the bridge.
    DeleteNeighbour(IpAddr),
    /// Remove the namespace with all that is left in it.
    DeleteNamespace,
}

/// What an operation needs to be there before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Namespace,
    Bridge,
    Tunnel(Family),
    Local(EndpointId),
    Port(IfName),
}

impl Op {
    /// What the operation brings into being; if it fails, whatever needs that is held back.
    fn makes(&self) -> Option<Need> {
        Some(match self {
            Self::CreateNamespace => Need::Namespace,
            Self::PutBridge(_) => Need::Bridge,
            Self::PutTunnel(family, _) | Self::DeleteTunnel(family) => Need::Tunnel(*family),
            Self::CreateLocal(id, _) => Need::Local(id.clone()),
            // A port that stays outside of the bridge can have no entry in its table.
            Self::DeletePort(port) | Self::PutPort(_, port, _) => Need::Port(port.clone()),
            _ => return None,
        })
    }

    fn needs(&self) -> Vec<Need> {
        match self {
            Self::CreateNamespace
            | Self::DeleteNamespace
            | Self::DeleteTunnel(_)
            | Self::DeletePort(_)
            | Self::DeleteVtep(..)
            | Self::DeleteBridgeEntry(..)
            | Self::DeleteNeighbour(_) => vec![],
            Self::PutBridge(_) => vec![Need::Namespace],
            Self::PutTunnel(family, _) => vec![Need::Namespace, Need::Bridge, Need::Tunnel(*family)],
            Self::PutNeighbour(..) => vec![Need::Namespace, Need::Bridge],
            Self::CreateLocal(_, local) => {
                vec![Need::Namespace, Need::Bridge, Need::Port(local.port_name.clone())]
            }
            Self::PutPort(id, ..)
            | Self::PutInterface(id, _)
            | Self::PutAddress(id, _)
            | Self::DeleteAddress(id, _)
            | Self::PutRoute(id, _)
            | Self::DeleteRoute(id, _) => vec![Need::Namespace, Need::Bridge, Need::Local(id.clone())],
            Self::PutForward(_, Forward::Remote(vtep)) => {
                vec![Need::Namespace, Need::Bridge, Need::Tunnel(Family::of(*vtep))]
            }
            Self::PutForward(_, Forward::Local(port)) => {
                vec![Need::Namespace, Need::Bridge, Need::Port(port.clone())]
            }
        }
    }
}

/// What has failed so far in one network, and thereby what must be held back: an operation whose need failed
/// would only fail again, or do harm.
#[derive(Debug, Default)]
pub struct Failures {
    failed: BTreeSet<Need>,
}

impl Failures {
    /// Whether an operation is to be held back.
    pub fn hold_back(&self, op: &Op) -> bool {
        // Nearly every pass has no failure at all.
        !self.failed.is_empty() && op.needs().iter().any(|need| self.failed.contains(need))
    }

    /// Notes that an operation failed, or was held back.
    pub fn note(&mut self, op: &Op) {
        if let Some(need) = op.makes() {
            if let Op::CreateLocal(_, local) = op {
                self.failed.insert(Need::Port(local.port_name.clone()));
            }
            self.failed.insert(need);
        }
    }
}

/// What is to be done, network by network. Networks do not depend on one another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations of each network, in order. No empty lists.
    pub networks: BTreeMap<NetworkName, Vec<Op>>,
}

impl Plan {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// The number of operations.
    pub fn len(&self) -> usize {
        self.networks.values().map(Vec::len).sum()
    }
}

/// What became of a plan.
#[derive(Debug)]
pub struct Outcome<E> {
    /// Operations done.
    pub done: usize,
    /// Netlink messages sent that change something, and namespaces made or removed.
    pub writes: u64,
    /// Operations that the kernel refused, with its reason.
    pub failed: Vec<(NetworkName, Op, E)>,
    /// Operations not tried because what they need had failed.
    pub held_back: Vec<(NetworkName, Op)>,
}

impl<E> Outcome<E> {
    /// The operations that were not done: refused, or held back.
    pub fn undone(&self) -> HashSet<(&NetworkName, &Op)> {
        let failed = self.failed.iter().map(|(network, op, _)| (network, op));
        let held_back = self.held_back.iter().map(|(network, op)| (network, op));
        failed.chain(held_back).collect()
    }
}

impl<E> Default for Outcome<E> {
    fn default() -> Self {
        Self {
            done: 0,
            writes: 0,
            failed: Vec::new(),
            held_back: Vec::new(),
        }
    }
}

impl ObservedNetwork {
    /// Entries of the bridge's table go with what they point at.
    fn lose_bridge_entries(&mut self, lost: impl Fn(&BridgeTarget) -> bool) {
        self.forwards.retain(|_, row| {
            if row.bridge().is_some_and(|target| lost(&target)) {
                row.set_bridge(None);
            }
            !row.is_empty()
        });
    }

    /// What the kernel holds after an operation was done: the model that `diff` is tested against, and the
    /// agent's memory of what it wrote.
    pub fn record(&mut self, op: &Op) {
        match op {
            // Mounted again, with all that is in it.
            Op::CreateNamespace if self.unmounted => self.unmounted = false,
            Op::CreateNamespace | Op::DeleteNamespace => *self = Self::default(),
            Op::PutBridge(bridge) => {
                if self.bridge.replace(bridge.clone()).is_none() {
                    self.neighbours.clear();
                    self.lose_bridge_entries(|_| true);
                }
            }
            Op::PutTunnel(family, tunnel) => {
                self.tunnels.insert(*family, tunnel.clone());
            }
            Op::DeleteTunnel(family) => {
                self.tunnels.remove(family);
                for row in self.forwards.values_mut() {
                    row.leave(|vtep| Family::of(vtep) != *family);
                }
                self.lose_bridge_entries(|target| *target == BridgeTarget::Tunnel(*family));
            }
            Op::CreateLocal(id, local) => {
                self.ports.insert(local.port_name.clone(), local.port.clone());
                self.interfaces.insert(id.clone(), local.interface.clone());
                let row = self.forwards.entry(local.interface.mac).or_default();
                row.set_bridge(Some(BridgeTarget::Port(local.port_name.clone())));
            }
            Op::PutPort(_, name, port) => {
                self.ports.insert(name.clone(), port.clone());
            }
            Op::PutInterface(id, wanted) => {
                if let Some(interface) = self.interfaces.get_mut(id) {
                    interface.alias.clone_from(&wanted.alias);
                    interface.mac = wanted.mac;
                    interface.mtu = wanted.mtu;
                    interface.up = wanted.up;
                }
            }
            Op::PutAddress(id, address) => {
                self.interfaces.get_mut(id).map(|i| i.addresses.insert(*address));
            }
            Op::DeleteAddress(id, address) => {
                self.interfaces.get_mut(id).map(|i| i.addresses.remove(address));
            }
            Op::PutRoute(id, route) => {
                self.interfaces.get_mut(id).map(|i| i.routes.insert(*route));
            }
            Op::DeleteRoute(id, route) => {
                self.interfaces.get_mut(id).map(|i| i.routes.remove(route));
            }
            Op::DeletePort(name) => {
                if let Some(port) = self.ports.remove(name) {
                    let endpoint = crate::ownership::endpoint_of_alias(&port.alias);
                    // The port may be one of a node that this host once was: ids are unique on a node only.
                    self.interfaces.retain(|_, interface| {
                        endpoint.is_none()
                            || crate::ownership::endpoint_of_alias(&interface.alias) != endpoint
                    });
                }
                self.lose_bridge_entries(|target| *target == BridgeTarget::Port(name.clone()));
            }
            Op::PutForward(mac, forward) => {
                let row = self.forwards.entry(*mac).or_default();
                let wanted = ForwardRow::of(forward);
                // A replace changes the device's entry; the other family's device is another table.
                let of_others = |v: &&IpAddr| !wanted.vteps().iter().any(|w| w.is_ipv4() == v.is_ipv4());
                let kept = row.vteps().iter().filter(of_others);
                let vteps = kept.chain(wanted.vteps()).copied().collect();
                *row = ForwardRow::new(wanted.bridge(), vteps);
            }
            Op::DeleteVtep(mac, vtep) => {
                if let Some(row) = self.forwards.get_mut(mac) {
                    row.leave(|v| v != *vtep);
                    if row.is_empty() {
                        self.forwards.remove(mac);
                    }
                }
            }
            Op::DeleteBridgeEntry(mac, target) => {
                if let Some(row) = self.forwards.get_mut(mac) {
                    if row.bridge().as_ref() == Some(target) {
                        row.set_bridge(None);
                    }
                    if row.is_empty() {
                        self.forwards.remove(mac);
                    }
                }
            }
            Op::PutNeighbour(address, mac) => {
                self.neighbours.insert(*address, *mac);
            }
            Op::DeleteNeighbour(address) => {
                self.neighbours.remove(address);
            }
        }
    }
}

impl crate::dataplane::Observed {
    /// See [`ObservedNetwork::record`].
    pub fn record(&mut self, network: &NetworkName, op: &Op) {
        match op {
            Op::DeleteNamespace => drop(self.networks.remove(network)),
            op => self.networks.entry(network.clone()).or_default().record(op),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::PortFlags;

    #[test]
    fn what_cannot_be_without_a_failed_operation_is_held_back() {
        let port_name: IfName = "ve1".parse().unwrap();
        let port = Port {
            alias: "weft blue/host1/a".to_owned(),
            mtu: 1450,
            up: true,
            bridge_port: Some(PortFlags::ENDPOINT),
        };
        let mac = Mac::new([2, 0, 0, 0, 0, 1]).unwrap();
        let (v4, v6) = ("10.99.0.2".parse().unwrap(), "fd99::2".parse().unwrap());
        let behind = Op::PutForward(mac, Forward::Local(port_name.clone()));
        let at = |vtep| Op::PutForward(mac, Forward::Remote(vtep));
        let held_back_by = |op: &Op, then: &Op| {
            let mut failures = Failures::default();
            failures.note(op);
            failures.hold_back(then)
        };
        for (failed, then, held_back) in [
            (Op::CreateNamespace, &behind, true),
            (
                Op::PutPort("a".parse().unwrap(), port_name.clone(), port),
                &behind,
                true,
            ),
            (Op::DeletePort("ve2".parse().unwrap()), &behind, false),
            (Op::DeleteTunnel(Family::V4), &at(v4), true),
            (Op::DeleteTunnel(Family::V4), &at(v6), false),
            (Op::DeleteTunnel(Family::V4), &behind, false),
            (Op::DeletePort(port_name), &Op::DeleteNamespace, false),
            (at(v4), &Op::DeleteVtep(mac, v6), false),
        ] {
            assert_eq!(
                held_back_by(&failed, then),
                held_back,
                "{failed:?}, then {then:?}"
            );
        }
    }
}
