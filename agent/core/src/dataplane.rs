//! What weft has in a host's kernel, as values: the same types say what should be there (desired) and
//! what is (observed), so that a comparison is an equality.
//!
//! Nothing here knows records, etcd or netlink.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use weft_store_schema::{Attachment, EndpointId, Family, IfName, Mac, NetworkName, Vni};

use crate::address_map::AddressMap;

/// The bridge of a network on this host, always named [`crate::ownership::BRIDGE`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bridge {
    /// MTU in bytes.
    pub mtu: u16,
    /// Administratively up.
    pub up: bool,
    /// IGMP/MLD snooping; off, so that multicast among local endpoints needs no querier.
    pub multicast_snooping: bool,
    /// IPv6 enabled on the device (`disable_ipv6=0`): without it the kernel drops the IPv6 neighbours that
    /// neighbour suppression answers from.
    pub ipv6: bool,
    /// An automatic link-local address on the device (`addr_gen_mode` other than none); off, so that the
    /// bridge itself never speaks.
    pub link_local: bool,
    /// Frames go through a packet filter that is meant for routed traffic (`bridge-nf-call-*` in the network's
    /// namespace, which the kernel turns on in each new one): off, as there are no rules, and asking costs.
    pub filtered: bool,
}

/// A VXLAN device of a network on this host, one for each underlay family.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tunnel {
    /// The VNI. A device's VNI cannot be changed: another one means another device.
    pub vni: Vni,
    /// UDP port of the VTEPs. Cannot be changed either.
    pub port: u16,
    /// This host's VTEP address.
    pub local: IpAddr,
    /// MTU in bytes.
    pub mtu: u16,
    /// Administratively up.
    pub up: bool,
    /// Whether the device learns from received packets; always off.
    pub learning: bool,
    /// Enslaved to the network's bridge, with these flags; none when it is not enslaved.
    pub bridge_port: Option<PortFlags>,
}

impl Tunnel {
    /// Whether a device can be changed into this one while it lives.
    pub fn can_become(&self, other: &Self) -> bool {
        self.vni == other.vni && self.port == other.port && self.local.is_ipv4() == other.local.is_ipv4()
    }
}

/// Flags of a bridge port (`IFLA_BRPORT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortFlags {
    /// Learn source addresses of received frames.
    pub learning: bool,
    /// Send frames for unknown unicast addresses here.
    pub unicast_flood: bool,
    /// Send multicast frames here.
    pub multicast_flood: bool,
    /// Send broadcast frames here.
    pub broadcast_flood: bool,
    /// Answer ARP and ND for known neighbours instead of sending the question here.
    pub neigh_suppress: bool,
}

impl PortFlags {
    /// The tunnel's port: everything known is programmed, so nothing is learned or flooded.
    pub const TUNNEL: Self = Self {
        learning: false,
        unicast_flood: false,
        multicast_flood: false,
        broadcast_flood: false,
        neigh_suppress: true,
    };

    /// A local endpoint's port: its own address is programmed, so neither learning (a forged source address
    /// would draw another endpoint's traffic) nor unknown unicast; broadcast and multicast reach it.
    pub const ENDPOINT: Self = Self {
        learning: false,
        unicast_flood: false,
        multicast_flood: true,
        broadcast_flood: true,
        neigh_suppress: false,
    };
}

/// The host end of a local endpoint's veth, in the network's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Port {
    /// The alias: [`crate::ownership::alias`] of the endpoint.
    pub alias: String,
    /// MTU in bytes.
    pub mtu: u16,
    /// Administratively up.
    pub up: bool,
    /// Enslaved to the network's bridge, with these flags.
    pub bridge_port: Option<PortFlags>,
}

/// The container end of a local endpoint's veth, in the container's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Where it is.
    pub attachment: Attachment,
    /// The alias: [`crate::ownership::alias`] of the endpoint.
    pub alias: String,
    /// The endpoint's MAC.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u16,
    /// Administratively up.
    pub up: bool,
    /// Addresses with their prefix length, those of weft only (`IFA_PROTO`).
    pub addresses: BTreeSet<IpNet>,
    /// On-link routes to the network's other subnets, those of weft only (`RTA_PROTOCOL`).
    pub routes: BTreeSet<IpNet>,
}

/// A local endpoint's veth pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Local {
    /// The host end's name: [`crate::ownership::port_name`] of the endpoint.
    pub port_name: IfName,
    /// The host end.
    pub port: Port,
    /// The container end.
    pub interface: Interface,
}

/// Where a network's bridge sends frames for a MAC.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Forward {
    /// To the local endpoint behind this port.
    Local(IfName),
    /// Through the tunnel of the address' family to this VTEP.
    Remote(IpAddr),
}

/// What the kernel's two forwarding tables hold for a MAC: the bridge's entry, and the VXLAN devices' entries, remote VTEPs in
/// their order. One VTEP at most when all is right.
#[derive(Clone, PartialEq, Eq)]
pub struct ForwardRow(Row);

/// One for each endpoint of a network, so the usual one is small. What can be said by an earlier one is.
#[derive(Clone, PartialEq, Eq)]
enum Row {
    Nothing,
    /// The tunnel of the VTEP's family, and that VTEP.
    Remote(IpAddr),
    Other(Box<(Option<BridgeTarget>, Vec<IpAddr>)>),
}

/// Where a bridge FDB entry points.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BridgeTarget {
    /// A local endpoint's port.
    Port(IfName),
    /// The VXLAN device of a family.
    Tunnel(Family),
}

impl Default for ForwardRow {
    fn default() -> Self {
        Self(Row::Nothing)
    }
}

impl ForwardRow {
    /// A row of these entries.
    pub fn new(bridge: Option<BridgeTarget>, mut vteps: Vec<IpAddr>) -> Self {
        vteps.sort_unstable();
        vteps.dedup();
        Self(match (&bridge, &vteps[..]) {
            (None, []) => Row::Nothing,
            (Some(BridgeTarget::Tunnel(family)), [vtep]) if Family::of(*vtep) == *family => {
                Row::Remote(*vtep)
            }
            _ => Row::Other(Box::new((bridge, vteps))),
        })
    }

    /// The row that a MAC should have.
    pub fn of(forward: &Forward) -> Self {
        match forward {
            Forward::Local(port) => Self::new(Some(BridgeTarget::Port(port.clone())), Vec::new()),
            Forward::Remote(vtep) => Self(Row::Remote(*vtep)),
        }
    }

    /// The bridge's entry.
    pub fn bridge(&self) -> Option<BridgeTarget> {
        match &self.0 {
            Row::Nothing => None,
            Row::Remote(vtep) => Some(BridgeTarget::Tunnel(Family::of(*vtep))),
            Row::Other(other) => other.0.clone(),
        }
    }

    /// The remote VTEPs, in their order.
    pub fn vteps(&self) -> &[IpAddr] {
        match &self.0 {
            Row::Nothing => &[],
            Row::Remote(vtep) => std::slice::from_ref(vtep),
            Row::Other(other) => &other.1,
        }
    }

    /// Gives it another entry of the bridge's, or none.
    pub fn set_bridge(&mut self, bridge: Option<BridgeTarget>) {
        *self = Self::new(bridge, self.vteps().to_vec());
    }

    /// Leaves only some of the VTEPs.
    pub fn leave(&mut self, keep: impl Fn(IpAddr) -> bool) {
        let left = self.vteps().iter().copied().filter(|vtep| keep(*vtep));
        *self = Self::new(self.bridge(), left.collect());
    }

    /// Adds a VTEP.
    pub fn add(&mut self, vtep: IpAddr) {
        let vteps = self.vteps().iter().copied().chain([vtep]);
        *self = Self::new(self.bridge(), vteps.collect());
    }

    /// Whether the kernel holds nothing for the MAC.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Row::Nothing)
    }
}

impl fmt::Debug for ForwardRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardRow")
            .field("bridge", &self.bridge())
            .field("vteps", &self.vteps())
            .finish()
    }
}

/// What the kernel holds of one network; only objects that are ours by the table in [`crate::ownership`].
/// Its existence means that the network's namespace exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// The namespace lives on, held open by this agent, but nothing is mounted on its file: a process that starts would not
    /// find it.
    pub unmounted: bool,
    /// The bridge.
    pub bridge: Option<Bridge>,
    /// The VXLAN devices.
    pub tunnels: BTreeMap<Family, Tunnel>,
    /// Host ends of veth pairs by name.
    pub ports: BTreeMap<IfName, Port>,
    /// Container ends by endpoint, found in the namespaces that were looked into. One is here only if it is
    /// the other end of the port that belongs to the endpoint.
    pub interfaces: BTreeMap<EndpointId, Interface>,
    /// Endpoints whose container's namespace could not be looked into.
    pub unseen: BTreeSet<EndpointId>,
    /// Forwarding entries by MAC; no empty rows.
    pub forwards: HashMap<Mac, ForwardRow>,
    /// Permanent neighbours on the bridge.
    pub neighbours: AddressMap<Mac>,
}

/// What the kernel of this host holds of weft's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// By network.
    pub networks: BTreeMap<NetworkName, ObservedNetwork>,
}

/// A container namespace to look into, and whose interface to look for there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LookInto {
    /// The endpoint's network.
    pub network: NetworkName,
    /// The endpoint.
    pub id: EndpointId,
    /// Name of its veth's host end.
    pub port_name: IfName,
    /// Where its interface should be.
    pub attachment: Attachment,
}
