//! Notices: where in the kernel something of ours may have changed. A notice says "look again here"; what it
//! carries beside that serves only to recognise the echo of our own writes and of what is known already.
//!
//! Values only; where they come from is told in `registry` and `notify`.

use std::{collections::HashSet, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use weft_core::{
    dataplane::{Bridge, BridgeTarget, ForwardRow, Interface, Observed, Port, PortFlags, Tunnel},
    dirty::Dirty,
    ownership,
};
use weft_store_schema::{EndpointId, EndpointRef, Family, IfName, Mac, NetworkName, NodeName};

/// Something in the kernel that may have changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A device in a network's namespace.
    Device {
        /// The network.
        network: NetworkName,
        /// What was said of it.
        seen: DeviceSeen,
    },
    /// Something in a container's namespace.
    Container {
        /// The endpoint whose interface it is; where that is not known, all that have one there.
        endpoints: Vec<(NetworkName, EndpointId)>,
        /// What was said.
        seen: ContainerSeen,
    },
    /// A forwarding entry in a network's namespace.
    Forward {
        /// The network.
        network: NetworkName,
        /// Its MAC.
        mac: Mac,
        /// What was said of it.
        seen: ForwardSeen,
    },
    /// A neighbour on a network's bridge.
    Neighbour {
        /// The network.
        network: NetworkName,
        /// Its address.
        address: IpAddr,
        /// Its MAC; none if it is gone or not ours.
        seen: Option<Mac>,
    },
    /// A link, address or route of the host itself.
    Underlay,
    /// A file or a mount came or went in a directory of namespaces.
    Attachments(PathBuf),
    /// Notifications were lost: anything may have changed.
    Overrun,
}

/// What a notification said of a device in a network's namespace.
#[derive(Debug, Clone, PartialEq)]
pub enum DeviceSeen {
    /// The bridge, without its index.
    Bridge(Bridge),
    /// A tunnel.
    Tunnel(Family, Box<Tunnel>),
    /// A host end.
    Port(IfName, Box<Port>),
    /// The flags of a bridge port, told without the rest of the device.
    Flags(String, PortFlags),
    /// What bore this name is gone, or is now something that cannot be recognised.
    Gone(String),
}

/// What a notification said of something in a container's namespace.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerSeen {
    /// An interface, without its addresses and routes.
    Interface(Box<Interface>),
    /// The interface is gone, or lost what makes it ours.
    Gone,
    /// An address of ours that is there (true), or gone or not ours any more.
    Address(IpNet, bool),
    /// A route of ours that is there (true), or gone or not ours any more.
    Route(IpNet, bool),
}

/// What a notification said of a forwarding entry.
#[derive(Debug, Clone, PartialEq)]
pub enum ForwardSeen {
    /// The bridge's table has it there; none when the device is not known.
    Bridge(Option<BridgeTarget>),
    /// The bridge's table has none of ours there any more; none when the device is not known, or when
    /// somebody else's took its place.
    NotInBridge(Option<BridgeTarget>),
    /// A tunnel's table has it to this VTEP.
    Vtep(IpAddr),
    /// A tunnel's table does not have it to this VTEP any more.
    NotVtep(IpAddr),
    /// A tunnel's table has somebody else's.
    ForeignVtep(IpAddr),
}

/// What a notice speaks of: of two that speak of the same, the later is true.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Device(NetworkName, String),
    /// Not undone by a bridge that comes after it: its ports may still be the old one's, which nothing tells of.
    BridgeGone(NetworkName),
    Flags(NetworkName, String),
    Interface(Vec<(NetworkName, EndpointId)>),
    Address(Vec<(NetworkName, EndpointId)>, IpNet),
    Route(Vec<(NetworkName, EndpointId)>, IpNet),
    InBridge(NetworkName, Mac),
    InTunnel(NetworkName, Mac, IpAddr),
    Neighbour(NetworkName, IpAddr),
    Underlay,
    Attachments(PathBuf),
    Overrun,
}

impl Notice {
    /// Leaves of several notices that speak of the same only the last. What was half-way when it was told,
    /// such as a device that was made and then enslaved, thereby shows as it came out.
    pub fn keep_latest(notices: &mut Vec<Self>) {
        let mut told = HashSet::new();
        notices.reverse();
        notices.retain(|notice| told.insert(notice.subject()));
        notices.reverse();
    }

    fn subject(&self) -> Subject {
        match self {
            Self::Device { network, seen } => {
                let network = network.clone();
                match seen {
                    DeviceSeen::Bridge(_) => Subject::Device(network, ownership::BRIDGE.to_owned()),
                    DeviceSeen::Tunnel(family, _) => {
                        Subject::Device(network, ownership::tunnel_name(*family).to_owned())
                    }
                    DeviceSeen::Port(name, _) => Subject::Device(network, name.to_string()),
                    DeviceSeen::Gone(name) if name == ownership::BRIDGE => Subject::BridgeGone(network),
                    DeviceSeen::Gone(name) => Subject::Device(network, name.clone()),
                    DeviceSeen::Flags(name, _) => Subject::Flags(network, name.clone()),
                }
            }
            Self::Container { endpoints, seen } => {
                let endpoints = endpoints.clone();
                match seen {
                    ContainerSeen::Interface(_) | ContainerSeen::Gone => Subject::Interface(endpoints),
                    ContainerSeen::Address(net, _) => Subject::Address(endpoints, *net),
                    ContainerSeen::Route(net, _) => Subject::Route(endpoints, *net),
                }
            }
            Self::Forward { network, mac, seen } => match seen {
                ForwardSeen::Bridge(_) | ForwardSeen::NotInBridge(_) => {
                    Subject::InBridge(network.clone(), *mac)
                }
                ForwardSeen::Vtep(vtep) | ForwardSeen::NotVtep(vtep) | ForwardSeen::ForeignVtep(vtep) => {
                    Subject::InTunnel(network.clone(), *mac, *vtep)
                }
            },
            Self::Neighbour { network, address, .. } => Subject::Neighbour(network.clone(), *address),
            Self::Underlay => Subject::Underlay,
            Self::Attachments(path) => Subject::Attachments(path.clone()),
            Self::Overrun => Subject::Overrun,
        }
    }

    /// Whether what was seen is what is known: then nothing has to be looked at.
    pub fn agrees_with(&self, known: &Observed) -> bool {
        match self {
            Self::Device { network, seen } => {
                let Some(there) = known.networks.get(network) else {
                    // Of a network that is not known nothing is there to be gone.
                    return matches!(seen, DeviceSeen::Gone(_) | DeviceSeen::Flags(..));
                };
                let is_known = |name: &str| {
                    name == ownership::BRIDGE && there.bridge.is_some()
                        || ownership::family_of_tunnel(name).is_some_and(|f| there.tunnels.contains_key(&f))
                        || there.ports.keys().any(|port| port.as_str() == name)
                };
                match seen {
                    DeviceSeen::Bridge(bridge) => there.bridge.as_ref() == Some(bridge),
                    DeviceSeen::Tunnel(family, tunnel) => there.tunnels.get(family) == Some(tunnel),
                    DeviceSeen::Port(name, port) => there.ports.get(name) == Some(port),
                    DeviceSeen::Flags(name, flags) => {
                        let tunnel = ownership::family_of_tunnel(name)
                            .and_then(|f| there.tunnels.get(&f))
                            .map(|tunnel| tunnel.bridge_port);
                        let port = || {
                            let mut ports = there.ports.iter();
                            ports.find(|(port, _)| port.as_str() == name)
                        };
                        let known = tunnel.or_else(|| port().map(|(_, port)| port.bridge_port));
                        known.is_none_or(|known| known == Some(*flags))
                    }
                    DeviceSeen::Gone(name) => !is_known(name),
                }
            }
            Self::Container { endpoints, seen } => endpoints.iter().all(|(network, id)| {
                let interface = known.networks.get(network).and_then(|n| n.interfaces.get(id));
                let Some(interface) = interface else {
                    return matches!(
                        seen,
                        ContainerSeen::Gone
                            | ContainerSeen::Address(_, false)
                            | ContainerSeen::Route(_, false)
                    );
                };
                match seen {
                    ContainerSeen::Interface(seen) => {
                        let link = |i: &Interface| {
                            (i.attachment.ifname.clone(), i.alias.clone(), i.mac, i.mtu, i.up)
                        };
                        link(interface) == link(seen)
                    }
                    ContainerSeen::Gone => false,
                    ContainerSeen::Address(net, there) => interface.addresses.contains(net) == *there,
                    ContainerSeen::Route(net, there) => interface.routes.contains(net) == *there,
                }
            }),
            Self::Forward { network, mac, seen } => {
                let row = known.networks.get(network).and_then(|n| n.forwards.get(mac));
                let bridge = row.and_then(ForwardRow::bridge);
                let vteps = row.map_or([].as_slice(), ForwardRow::vteps);
                match seen {
                    ForwardSeen::Bridge(target) => target.is_some() && bridge == *target,
                    ForwardSeen::NotInBridge(None) => bridge.is_none(),
                    ForwardSeen::NotInBridge(target) => bridge != *target,
                    ForwardSeen::Vtep(vtep) => {
                        vteps.contains(vtep)
                            && vteps.iter().all(|v| v == vtep || v.is_ipv4() != vtep.is_ipv4())
                    }
                    ForwardSeen::NotVtep(vtep) => !vteps.contains(vtep),
                    // One MAC has one set of flags in a tunnel's table: all of it is somebody else's now.
                    ForwardSeen::ForeignVtep(vtep) => !vteps.iter().any(|v| v.is_ipv4() == vtep.is_ipv4()),
                }
            }
            Self::Neighbour {
                network,
                address,
                seen,
            } => {
                let network = known.networks.get(network);
                network.and_then(|n| n.neighbours.get(address)) == seen.as_ref()
            }
            Self::Underlay | Self::Attachments(_) | Self::Overrun => false,
        }
    }

    /// Notes where to look.
    pub fn mark(&self, look: &mut Dirty, node: &NodeName) {
        match self {
            Self::Device { network, .. } => drop(look.links.insert(network.clone())),
            Self::Container { endpoints, .. } => {
                look.endpoints
                    .extend(endpoints.iter().map(|(network, id)| EndpointRef {
                        network: network.clone(),
                        node: node.clone(),
                        id: id.clone(),
                    }));
            }
            Self::Forward { network, mac, .. } => look.mac(network, *mac),
            Self::Neighbour { network, address, .. } => look.address(network, *address),
            Self::Overrun => look.everything = true,
            Self::Underlay | Self::Attachments(_) => {}
        }
    }
}
