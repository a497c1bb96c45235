//! What may be found in a kernel in the place of what should be there.

use std::net::IpAddr;

use proptest::{prelude::*, sample::select};
use weft_core::{
    dataplane::{Bridge, BridgeTarget, ForwardRow, Observed, ObservedNetwork, Port, PortFlags, Tunnel},
    dirty::Dirty,
    ownership,
};
use weft_store_schema::{EndpointRef, Family, Mac, NetworkName, NodeName, Vni};

use crate::records::{ADDRESSES, IDS, MACS, NETWORKS, NODES, VNIS};

/// One thing that is not as it was.
#[derive(Debug, Clone)]
pub(crate) struct Damage {
    network: &'static str,
    family: Family,
    /// Picks one of several.
    nth: usize,
    mac: Mac,
    address: IpAddr,
    vni: u32,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    NoNetwork,
    EmptyNamespace,
    Unmounted,
    NoBridge,
    BridgeLooks,
    NoTunnel,
    TunnelVni,
    TunnelPort,
    TunnelLocal,
    TunnelFlags,
    TunnelFree,
    NoPort,
    PortMtu,
    PortAlias,
    PortFree,
    StalePort,
    NoInterface,
    InterfaceElsewhere,
    InterfaceMac,
    InterfaceDown,
    AddressMore,
    AddressLess,
    RouteMore,
    RouteLess,
    RowLess,
    RowBehindTunnel,
    RowBehindPort,
    RowAt,
    NeighbourLess,
    NeighbourWrong,
    NeighbourMore,
}

use What::{
    AddressLess, AddressMore, BridgeLooks, EmptyNamespace, InterfaceDown, InterfaceElsewhere, InterfaceMac,
    NeighbourLess, NeighbourMore, NeighbourWrong, NoBridge, NoInterface, NoNetwork, NoPort, NoTunnel,
    PortAlias, PortFree, PortMtu, RouteLess, RouteMore, RowAt, RowBehindPort, RowBehindTunnel, RowLess,
    StalePort, TunnelFlags, TunnelFree, TunnelLocal, TunnelPort, TunnelVni, Unmounted,
};

const ALL: [What; 31] = [
    NoNetwork,
    EmptyNamespace,
    Unmounted,
    NoBridge,
    BridgeLooks,
    NoTunnel,
    TunnelVni,
    TunnelPort,
    TunnelLocal,
    TunnelFlags,
    TunnelFree,
    NoPort,
    PortMtu,
    PortAlias,
    PortFree,
    StalePort,
    NoInterface,
    InterfaceElsewhere,
    InterfaceMac,
    InterfaceDown,
    AddressMore,
    AddressLess,
    RouteMore,
    RouteLess,
    RowLess,
    RowBehindTunnel,
    RowBehindPort,
    RowAt,
    NeighbourLess,
    NeighbourWrong,
    NeighbourMore,
];

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    (
        select(&NETWORKS[..]),
        select(&Family::ALL[..]),
        0..4_usize,
        select(&MACS[..]),
        select(&ADDRESSES[..]),
        select(&VNIS[..]),
        select(&ALL[..]),
    )
        .prop_map(|(network, family, nth, mac, address, vni, what)| Damage {
            network,
            family,
            nth,
            mac: mac.parse().unwrap(),
            address: address.parse().unwrap(),
            vni,
            what,
        })
}

fn nth<'a, K: Ord, V: 'a>(mut all: impl Iterator<Item = (K, &'a mut V)>, n: usize) -> Option<(K, &'a mut V)> {
    all.nth(n)
}

impl Damage {
    /// Does it, and says where the kernel's notification would have us look.
    pub(crate) fn apply(&self, observed: &mut Observed, node: &NodeName) -> Dirty {
        let network: NetworkName = self.network.parse().unwrap();
        let mut dirty = Dirty::default();
        if let NoNetwork = self.what {
            if observed.networks.remove(&network).is_some() {
                dirty.networks.insert(network);
            }
            return dirty;
        }
        if let EmptyNamespace = self.what {
            observed
                .networks
                .insert(network.clone(), ObservedNetwork::default());
            dirty.networks.insert(network);
            return dirty;
        }
        let Some(there) = observed.networks.get_mut(&network) else {
            return dirty;
        };
        match self.what {
            NoNetwork | EmptyNamespace => {}
            Unmounted => {
                there.unmounted = true;
                dirty.networks.insert(network);
            }
            NoBridge | BridgeLooks | NoTunnel | TunnelVni | TunnelPort | TunnelLocal | TunnelFlags
            | TunnelFree => {
                self.devices(there);
                dirty.networks.insert(network);
            }
            NoPort | PortMtu | PortAlias | PortFree | StalePort | NoInterface | InterfaceElsewhere
            | InterfaceMac | InterfaceDown | AddressMore | AddressLess | RouteMore | RouteLess => {
                let endpoint = self.endpoint(&network, node);
                self.local(&endpoint, there);
                // Which of our endpoints' ends it was is only known for those we know.
                dirty.endpoints.insert(endpoint);
                dirty.networks.insert(network);
            }
            RowLess | RowBehindTunnel | RowBehindPort | RowAt => {
                self.row(there);
                dirty.mac(&network, self.mac);
            }
            NeighbourLess | NeighbourWrong | NeighbourMore => {
                self.neighbour(there);
                dirty.address(&network, self.address);
            }
        }
        dirty
    }

    fn endpoint(&self, network: &NetworkName, node: &NodeName) -> EndpointRef {
        EndpointRef {
            network: network.clone(),
            node: node.clone(),
            id: IDS[self.nth % IDS.len()].parse().unwrap(),
        }
    }

    fn devices(&self, there: &mut ObservedNetwork) {
        if let NoBridge = self.what {
            there.bridge = None;
        }
        if let (BridgeLooks, Some(bridge)) = (self.what, &mut there.bridge) {
            *bridge = match self.nth {
                0 => Bridge {
                    mtu: 1300,
                    ..bridge.clone()
                },
                1 => Bridge {
                    up: false,
                    ..bridge.clone()
                },
                2 => Bridge {
                    multicast_snooping: true,
                    ipv6: false,
                    ..bridge.clone()
                },
                _ => Bridge {
                    link_local: true,
                    filtered: true,
                    ..bridge.clone()
                },
            };
        }
        if let NoTunnel = self.what {
            there.tunnels.remove(&self.family);
        }
        if let Some(tunnel) = there.tunnels.get_mut(&self.family) {
            match self.what {
                TunnelVni => tunnel.vni = Vni::new(self.vni.into()).unwrap(),
                TunnelPort => tunnel.port = 8472,
                TunnelLocal => {
                    let other = if self.family == Family::V4 {
                        "10.99.9.9"
                    } else {
                        "fd99::9"
                    };
                    tunnel.local = other.parse().unwrap();
                }
                TunnelFlags => {
                    let bridge_port = Some(PortFlags::ENDPOINT);
                    *tunnel = Tunnel {
                        learning: true,
                        up: false,
                        bridge_port,
                        ..tunnel.clone()
                    };
                }
                TunnelFree => tunnel.bridge_port = None,
                _ => {}
            }
        }
    }

    fn local(&self, endpoint: &EndpointRef, there: &mut ObservedNetwork) {
        let name = ownership::port_name(endpoint);
        let foreign = EndpointRef {
            node: NODES[self.nth % NODES.len()].parse().unwrap(),
            ..endpoint.clone()
        };
        match self.what {
            NoPort => drop(there.ports.remove(&name)),
            StalePort => {
                // Of a former life, or of a node that had another name.
                let port = Port {
                    alias: ownership::alias(&foreign, Some("stale")),
                    mtu: 1450,
                    up: false,
                    bridge_port: Some(PortFlags::ENDPOINT),
                };
                there.ports.entry(ownership::port_name(&foreign)).or_insert(port);
            }
            NoInterface => drop(there.interfaces.remove(&endpoint.id)),
            _ => {}
        }
        if let Some(port) = there.ports.get_mut(&name) {
            match self.what {
                PortMtu => port.mtu = 1300,
                PortAlias => port.alias = ownership::alias(endpoint, Some("renamed")),
                PortFree => port.bridge_port = None,
                _ => {}
            }
        }
        let Some(interface) = there.interfaces.get_mut(&endpoint.id) else {
            return;
        };
        match self.what {
            InterfaceElsewhere => interface.attachment.netns = "/run/netns/z".into(),
            InterfaceMac => interface.mac = self.mac,
            InterfaceDown => {
                interface.up = false;
                interface.routes.clear();
            }
            AddressMore => {
                let more = format!(
                    "{}/{}",
                    self.address,
                    if self.address.is_ipv4() { 24 } else { 64 }
                );
                interface.addresses.insert(more.parse().unwrap());
            }
            AddressLess => interface.addresses.clear(),
            RouteMore => drop(interface.routes.insert("10.66.0.0/16".parse().unwrap())),
            RouteLess => interface.routes.clear(),
            _ => {}
        }
    }

    fn row(&self, there: &mut ObservedNetwork) {
        let port = nth(there.ports.iter_mut(), self.nth).map(|(name, _)| name.clone());
        let row = there.forwards.entry(self.mac).or_default();
        match self.what {
            RowLess => *row = ForwardRow::default(),
            RowBehindTunnel => row.set_bridge(Some(BridgeTarget::Tunnel(self.family))),
            RowBehindPort => row.set_bridge(port.map(BridgeTarget::Port)),
            RowAt => {
                let vtep = if self.family == Family::V4 {
                    "10.99.8.8"
                } else {
                    "fd99::8"
                };
                row.leave(|v| Family::of(v) != self.family);
                row.add(vtep.parse().unwrap());
            }
            _ => {}
        }
        there.forwards.retain(|_, row| !row.is_empty());
    }

    fn neighbour(&self, there: &mut ObservedNetwork) {
        match self.what {
            NeighbourLess => drop(there.neighbours.remove(&self.address)),
            NeighbourWrong | NeighbourMore => drop(there.neighbours.insert(self.address, self.mac)),
            _ => {}
        }
    }
}
