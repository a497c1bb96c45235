//! The kernel as far as weft uses it, and stricter: an operation that lacks what it needs, or that repeats
//! what is done, is a bug of the plan and panics; one that the kernel would refuse for a reason outside of
//! the plan fails.
//!
//! It is written without a look at `ObservedNetwork::record`, so that each is a test of the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use weft_core::{
    address_map::AddressMap,
    dataplane::{
        Bridge, BridgeTarget, Forward, ForwardRow, Interface, Observed, ObservedNetwork, Port, Tunnel,
    },
    ownership,
    plan::Op,
};
use weft_store_schema::{EndpointId, Family, IfName, Mac, NetworkName};

#[derive(Debug, Clone, Default)]
struct Namespace {
    unmounted: bool,
    bridge: Option<Bridge>,
    tunnels: BTreeMap<Family, Tunnel>,
    ports: BTreeMap<IfName, Port>,
    /// The other ends, by port.
    interfaces: BTreeMap<IfName, (EndpointId, Interface)>,
    bridge_fdb: HashMap<Mac, BridgeTarget>,
    vxlan_fdb: HashMap<(Family, Mac), IpAddr>,
    neighbours: AddressMap<Mac>,
}

/// One host's kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kernel {
    namespaces: BTreeMap<NetworkName, Namespace>,
}

impl Kernel {
    /// A kernel that holds this. What cannot be in a kernel is left out, so that any rubbish may be given.
    pub(crate) fn holding(observed: &Observed) -> Self {
        let mut kernel = Self::default();
        let mut places = BTreeSet::new();
        let mut sockets = BTreeSet::new();
        for (name, there) in &observed.networks {
            let mut ns = Namespace {
                unmounted: there.unmounted,
                bridge: there.bridge.clone(),
                ..Namespace::default()
            };
            let up = there.bridge.is_some();
            for (family, tunnel) in &there.tunnels {
                let is_family = Family::of(tunnel.local) == *family;
                if is_family && sockets.insert((*family, tunnel.vni, tunnel.port)) {
                    let bridge_port = tunnel.bridge_port.filter(|_| up);
                    ns.tunnels.insert(
                        *family,
                        Tunnel {
                            bridge_port,
                            ..tunnel.clone()
                        },
                    );
                }
            }
            for (port_name, port) in &there.ports {
                let bridge_port = port.bridge_port.filter(|_| up);
                ns.ports.insert(
                    port_name.clone(),
                    Port {
                        bridge_port,
                        ..port.clone()
                    },
                );
                let Some(owner) = ownership::endpoint_of_alias(&port.alias) else {
                    continue;
                };
                if let Some(interface) = there.interfaces.get(&owner.id)
                    && ownership::endpoint_of_alias(&interface.alias).as_ref() == Some(&owner)
                    && ownership::port_name(&owner) == *port_name
                    && places.insert(interface.attachment.clone())
                {
                    ns.interfaces
                        .insert(port_name.clone(), (owner.id, interface.clone()));
                }
            }
            for (mac, row) in &there.forwards {
                if let Some(target) = row.bridge()
                    && ns.is_enslaved(&target)
                {
                    ns.bridge_fdb.insert(*mac, target);
                }
                for vtep in row.vteps() {
                    let family = Family::of(*vtep);
                    if ns.tunnels.contains_key(&family) {
                        ns.vxlan_fdb.insert((family, *mac), *vtep);
                    }
                }
            }
            if up {
                ns.neighbours.clone_from(&there.neighbours);
            }
            kernel.namespaces.insert(name.clone(), ns);
        }
        kernel
    }

    /// All that is there.
    pub(crate) fn observe(&self) -> Observed {
        let networks = self.namespaces.iter().map(|(name, ns)| {
            let mut forwards: HashMap<Mac, ForwardRow> = HashMap::new();
            for (mac, target) in &ns.bridge_fdb {
                forwards.entry(*mac).or_default().set_bridge(Some(target.clone()));
            }
            let vteps: BTreeMap<_, _> = ns.vxlan_fdb.iter().collect();
            for ((_, mac), vtep) in vteps {
                forwards.entry(*mac).or_default().add(*vtep);
            }
            let observed = ObservedNetwork {
                unmounted: ns.unmounted,
                bridge: ns.bridge.clone(),
                tunnels: ns.tunnels.clone(),
                ports: ns.ports.clone(),
                interfaces: ns.interfaces.values().cloned().collect(),
                unseen: BTreeSet::new(),
                forwards,
                neighbours: ns.neighbours.clone(),
            };
            (name.clone(), observed)
        });
        Observed {
            networks: networks.collect(),
        }
    }

    /// Does one operation.
    pub(crate) fn apply(&mut self, network: &NetworkName, op: &Op) -> Result<(), String> {
        if let Op::CreateNamespace = op {
            if let Some(lost) = self.namespaces.get_mut(network).filter(|ns| ns.unmounted) {
                lost.unmounted = false;
                return Ok(());
            }
            let before = self.namespaces.insert(network.clone(), Namespace::default());
            assert!(before.is_none(), "the namespace of {network} is there already");
            return Ok(());
        }
        if let Op::DeleteNamespace = op {
            self.namespaces.remove(network);
            return Ok(());
        }
        if let Op::PutTunnel(family, tunnel) = op
            && let Some(other) = self.socket_user(network, *family, tunnel)
        {
            return Err(format!("vxlan: VNI {} is in use by {other}", tunnel.vni));
        }
        if let Op::CreateLocal(_, local) = op
            && self.has_interface_at(&local.interface)
        {
            return Err(format!("{:?} exists", local.interface.attachment));
        }
        let ns = self
            .namespaces
            .get_mut(network)
            .unwrap_or_else(|| panic!("no namespace of {network} for {op:?}"));
        ns.apply(op);
        Ok(())
    }

    fn socket_user(&self, network: &NetworkName, family: Family, tunnel: &Tunnel) -> Option<&NetworkName> {
        let other = self.namespaces.iter().find(|(name, ns)| {
            *name != network
                && ns
                    .tunnels
                    .get(&family)
                    .is_some_and(|t| (t.vni, t.port) == (tunnel.vni, tunnel.port))
        });
        other.map(|(name, _)| name)
    }

    fn has_interface_at(&self, interface: &Interface) -> bool {
        let mut all = self.namespaces.values().flat_map(|ns| ns.interfaces.values());
        all.any(|(_, there)| there.attachment == interface.attachment)
    }
}

impl Namespace {
    fn is_enslaved(&self, target: &BridgeTarget) -> bool {
        match target {
            BridgeTarget::Port(port) => self.ports.get(port).is_some_and(|p| p.bridge_port.is_some()),
            BridgeTarget::Tunnel(family) => self.tunnels.get(family).is_some_and(|t| t.bridge_port.is_some()),
        }
    }

    fn interface(&mut self, id: &EndpointId, op: &Op) -> &mut Interface {
        let mut all = self.interfaces.values_mut();
        match all.find(|(there, _)| there == id) {
            Some((_, interface)) => interface,
            None => panic!("no interface for {op:?}"),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateNamespace | Op::DeleteNamespace => unreachable!("done outside"),
            Op::PutBridge(bridge) => self.bridge = Some(bridge.clone()),
            Op::PutTunnel(family, tunnel) => {
                assert!(self.bridge.is_some(), "no bridge for {op:?}");
                assert_eq!(Family::of(tunnel.local), *family);
                if let Some(there) = self.tunnels.get(family) {
                    assert!(there.can_become(tunnel), "{there:?} cannot become {tunnel:?}");
                }
                self.tunnels.insert(*family, tunnel.clone());
            }
            Op::DeleteTunnel(family) => {
                self.tunnels.remove(family);
                self.vxlan_fdb.retain(|(f, _), _| f != family);
                self.bridge_fdb
                    .retain(|_, target| *target != BridgeTarget::Tunnel(*family));
            }
            Op::CreateLocal(id, local) => {
                assert!(self.bridge.is_some(), "no bridge for {op:?}");
                let before = self.ports.insert(local.port_name.clone(), local.port.clone());
                assert!(before.is_none(), "the port is there already for {op:?}");
                let target = BridgeTarget::Port(local.port_name.clone());
                self.bridge_fdb.insert(local.interface.mac, target);
                let end = (id.clone(), local.interface.clone());
                self.interfaces.insert(local.port_name.clone(), end);
                let target = BridgeTarget::Port(local.port_name.clone());
                self.bridge_fdb.insert(local.interface.mac, target);
            }
            Op::PutPort(_, name, port) => {
                assert!(self.bridge.is_some(), "no bridge for {op:?}");
                let before = self.ports.insert(name.clone(), port.clone());
                assert!(before.is_some(), "no port for {op:?}");
            }
            Op::PutInterface(id, wanted) => {
                let interface = self.interface(id, op);
                interface.alias.clone_from(&wanted.alias);
                (interface.mac, interface.mtu) = (wanted.mac, wanted.mtu);
                if wanted.up && !interface.up {
                    // Routes go with a link that is down; so what was seen of them is not there.
                    interface.routes.clear();
                }
                interface.up = wanted.up;
            }
            Op::PutAddress(id, address) => drop(self.interface(id, op).addresses.insert(*address)),
            Op::DeleteAddress(id, address) => drop(self.interface(id, op).addresses.remove(address)),
            Op::PutRoute(id, route) => {
                let interface = self.interface(id, op);
                assert!(interface.up, "the link is down for {op:?}");
                interface.routes.insert(*route);
            }
            Op::DeleteRoute(id, route) => drop(self.interface(id, op).routes.remove(route)),
            Op::DeletePort(name) => {
                self.ports.remove(name);
                self.interfaces.remove(name);
                self.bridge_fdb
                    .retain(|_, target| *target != BridgeTarget::Port(name.clone()));
            }
            Op::PutForward(mac, forward) => {
                let target = match forward {
                    Forward::Local(port) => BridgeTarget::Port(port.clone()),
                    Forward::Remote(vtep) => BridgeTarget::Tunnel(Family::of(*vtep)),
                };
                assert!(self.is_enslaved(&target), "no bridge port for {op:?}");
                self.bridge_fdb.insert(*mac, target);
                if let Forward::Remote(vtep) = forward {
                    self.vxlan_fdb.insert((Family::of(*vtep), *mac), *vtep);
                }
            }
            Op::DeleteVtep(mac, vtep) => {
                let at = (Family::of(*vtep), *mac);
                if self.vxlan_fdb.get(&at) == Some(vtep) {
                    self.vxlan_fdb.remove(&at);
                }
            }
            Op::DeleteBridgeEntry(mac, target) => {
                if self.bridge_fdb.get(mac) == Some(target) {
                    self.bridge_fdb.remove(mac);
                }
            }
            Op::PutNeighbour(address, mac) => {
                assert!(self.bridge.is_some(), "no bridge for {op:?}");
                self.neighbours.insert(*address, *mac);
            }
            Op::DeleteNeighbour(address) => drop(self.neighbours.remove(address)),
        }
    }
}
