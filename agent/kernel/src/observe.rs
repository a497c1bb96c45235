//! What the kernel holds of ours, read through dumps and single questions.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use weft_core::{
    dataplane::{BridgeTarget, ForwardRow, Interface, LookInto, Observed, ObservedNetwork},
    ownership,
};
use weft_store_schema::{Attachment, EndpointId, EndpointRef, IfName, Mac, NetworkName};

use crate::{
    Kernel, KernelError, addresses,
    channel::Channel,
    entries::{self, Device},
    links::{self, Link},
    namespace,
};

/// A network's links, and what else has to be asked for by their indexes.
pub(crate) struct Links {
    network: ObservedNetwork,
    bridge: Option<u32>,
    pub(crate) devices: HashMap<u32, Device>,
    /// Indexes of the host ends by name.
    ports: HashMap<IfName, u32>,
}

impl Kernel {
    /// Everything of ours: every namespace that bears our name, and container ends where `look_into` says.
    ///
    /// What could not be seen is returned beside it, by network: such a network is not in the result, which
    /// does not mean that it is not there.
    pub fn observe(&mut self, look_into: &[LookInto]) -> (Observed, Vec<(String, KernelError)>) {
        let mut observed = Observed::default();
        let mut errors = Vec::new();
        let found = match namespace::list(&self.config.netns_dir) {
            Ok(found) => found,
            Err(error) => {
                errors.push((self.config.netns_dir.display().to_string(), error));
                return (observed, errors);
            }
        };
        // Also those whose file is gone.
        let found: BTreeSet<NetworkName> = found
            .into_iter()
            .map(|(network, _)| network)
            .chain(self.networks.keys().cloned())
            .collect();
        for network in found {
            let places: Vec<LookInto> = look_into
                .iter()
                .filter(|p| p.network == network)
                .cloned()
                .collect();
            match self.observe_network(&network, &places) {
                Ok(Some(seen)) => drop(observed.networks.insert(network, seen)),
                Ok(None) => {}
                Err(error) => errors.push((network.to_string(), error)),
            }
        }
        (observed, errors)
    }

    /// One network as a whole; none if its namespace is not there.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn observe_network(
        &mut self,
        network: &NetworkName,
        look_into: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError> {
        let Some(links) = self.links(network, look_into)? else {
            return Ok(None);
        };
        let place = ownership::namespace_name(network);
        let Some(namespace) = self.enter(network)? else {
            return Ok(None);
        };
        let mut seen = links.network;
        seen.forwards = entries::dump_forwards(
            &mut namespace.channel,
            &links.devices,
            &mut namespace.foreign,
            &place,
        )?;
        if let Some(bridge) = links.bridge {
            seen.neighbours = entries::dump_neighbours(&mut namespace.channel, bridge, &place)?;
        }
        Ok(Some(seen))
    }

    /// One network's devices, ports and container ends, without forwarding entries and neighbours.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn observe_links(
        &mut self,
        network: &NetworkName,
        look_into: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError> {
        Ok(self.links(network, look_into)?.map(|links| links.network))
    }

    /// What the tables hold for these MACs.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn observe_forward(
        &mut self,
        network: &NetworkName,
        macs: &[Mac],
    ) -> Result<Vec<(Mac, Option<ForwardRow>)>, KernelError> {
        let place = ownership::namespace_name(network);
        let Some(links) = self.links(network, &[])? else {
            return Ok(macs.iter().map(|m| (*m, None)).collect());
        };
        let Some(namespace) = self.enter(network)? else {
            return Ok(macs.iter().map(|m| (*m, None)).collect());
        };
        let Some(bridge) = links.bridge else {
            return Ok(macs.iter().map(|m| (*m, None)).collect());
        };
        macs.iter()
            .map(|mac| {
                let row = entries::get_forward(
                    &mut namespace.channel,
                    bridge,
                    &links.devices,
                    &mut namespace.foreign,
                    *mac,
                    &place,
                )?;
                Ok((*mac, row))
            })
            .collect()
    }

    /// What the bridge has for these addresses.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn observe_neighbours(
        &mut self,
        network: &NetworkName,
        of: &[IpAddr],
    ) -> Result<Vec<(IpAddr, Option<Mac>)>, KernelError> {
        let place = ownership::namespace_name(network);
        let none = || of.iter().map(|a| (*a, None)).collect();
        let Some(namespace) = self.enter(network)? else {
            return Ok(none());
        };
        let Some(bridge) = links::index_of(&mut namespace.channel, ownership::BRIDGE, &place)? else {
            return Ok(none());
        };
        of.iter()
            .map(|address| {
                Ok((
                    *address,
                    entries::get_neighbour(&mut namespace.channel, bridge, *address, &place)?,
                ))
            })
            .collect()
    }

    fn links(&mut self, network: &NetworkName, look_into: &[LookInto]) -> Result<Option<Links>, KernelError> {
        let place = ownership::namespace_name(network);
        let Some(namespace) = self.enter(network)? else {
            return Ok(None);
        };
        namespace.indexes.clear();
        let all = links::dump(&mut namespace.channel, &place)?;
        let mut links = sort(&all);
        if let Some(bridge) = &mut links.network.bridge {
            bridge.filtered = namespace.is_filtered();
        }
        links.network.unmounted = self.is_unmounted(network);
        self.registry.know_devices(network, &links.devices);
        // Whose container nobody named, it was not looked into: that is not to be taken for its end being gone.
        let named: HashSet<&EndpointId> = look_into.iter().map(|at| &at.id).collect();
        let unnamed = all
            .iter()
            .filter_map(Link::endpoint)
            .map(|endpoint| endpoint.id)
            .filter(|id| !named.contains(id));
        links.network.unseen.extend(unnamed);
        for at in look_into {
            let Some(port) = links.ports.get(&at.port_name).copied() else {
                // Without a host end there is nothing of ours to be found; whether the container is there
                // shows when the veth is made.
                continue;
            };
            match self.interface(at, port) {
                Ok(Some(interface)) => drop(links.network.interfaces.insert(at.id.clone(), interface)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(endpoint = %at.id, %error, "cannot look into the container's namespace");
                    links.network.unseen.insert(at.id.clone());
                }
            }
        }
        Ok(Some(links))
    }

    /// The container end of an endpoint's veth, if it is where it should be.
    fn interface(&mut self, at: &LookInto, port: u32) -> Result<Option<Interface>, KernelError> {
        let netns = at.attachment.netns.to_string();
        let file = self.open_attachment(&at.attachment.netns)?;
        self.watch_container(&file, &netns, &at.network, &at.id, &at.port_name);
        let mut channel = Self::channel_in(&file, &netns)?;
        let Some(link) = find_interface(&mut channel, &netns, &at.network, &at.id, port)? else {
            return Ok(None);
        };
        self.registry.know_end(&at.network, &at.id, link.index);
        let (addresses, routes) = addresses::dump(&mut channel, link.index, &netns)?;
        let Some(interface) = read_interface(&link, &at.attachment.netns) else {
            return Ok(None);
        };
        Ok(Some(Interface {
            addresses,
            routes,
            ..interface
        }))
    }

    pub(crate) fn channel_in(file: &std::fs::File, place: &str) -> Result<Channel, KernelError> {
        let error = |source| KernelError::Socket {
            place: format!("in {place}"),
            source,
        };
        namespace::within(file, Channel::open)
            .map_err(error)?
            .map_err(error)
    }
}

/// The container end whose other end is this port.
pub(crate) fn find_interface(
    channel: &mut Channel,
    netns: &str,
    network: &NetworkName,
    id: &EndpointId,
    port: u32,
) -> Result<Option<Link>, KernelError> {
    let is_ours = |link: &Link| {
        link.peer == Some(port)
            && link.endpoint().is_some_and(
                |EndpointRef {
                     network: n, id: i, ..
                 }| n == *network && i == *id,
            )
    };
    Ok(links::dump(channel, netns)?.into_iter().find(is_ours))
}

/// The interface without its addresses and routes.
pub(crate) fn read_interface(link: &Link, netns: &str) -> Option<Interface> {
    Some(Interface {
        attachment: Attachment {
            netns: netns.into(),
            ifname: IfName::new(&link.name).ok()?,
        },
        alias: link.alias.clone(),
        mac: link.mac?,
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        up: link.up,
        addresses: BTreeSet::new(),
        routes: BTreeSet::new(),
    })
}

pub(crate) fn sort(all: &[Link]) -> Links {
    let bridge = all.iter().find(|link| link.is_bridge());
    let index = bridge.map(|b| b.index);
    let mut links = Links {
        network: ObservedNetwork {
            bridge: bridge.map(Link::to_bridge),
            ..ObservedNetwork::default()
        },
        bridge: index,
        devices: index.map(|i| (i, Device::Bridge)).into_iter().collect(),
        ports: HashMap::new(),
    };
    for link in all {
        if let Some(family) = link.tunnel_family() {
            if let Some(tunnel) = link.to_tunnel(index) {
                links.network.tunnels.insert(family, tunnel);
            }
            links
                .devices
                .insert(link.index, Device::Target(BridgeTarget::Tunnel(family)));
        } else if link.is_veth()
            && ownership::is_port_name(&link.name)
            && let Some((name, port)) = link.to_port(index)
        {
            links
                .devices
                .insert(link.index, Device::Target(BridgeTarget::Port(name.clone())));
            links.ports.insert(name.clone(), link.index);
            links.network.ports.insert(name, port);
        }
    }
    links
}
