//! Forwarding entries and neighbours as messages, both ways.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteProtocol,
};
use weft_core::{
    address_map::AddressMap,
    dataplane::{BridgeTarget, ForwardRow},
    ownership,
};
use weft_store_schema::Mac;

use crate::{KernelError, channel::Channel, refused};

/// `NUD_NOARP | NUD_REACHABLE`: what iproute2 calls static. The VXLAN table refuses `NOARP` alone.
const STATIC: u16 = 0x42;

/// A device of a network as its entries see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    Bridge,
    Target(BridgeTarget),
}

fn fdb(index: u32, mac: Mac, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = flags;
    message.header.state = NeighbourState::Other(STATIC);
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
    message
}

fn address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(a) => NeighbourAddress::Inet(a),
        IpAddr::V6(a) => NeighbourAddress::Inet6(a),
    }
}

/// Both tables at once: the bridge sends the MAC to the tunnel, the tunnel to the VTEP.
pub(crate) fn put_remote(tunnel: u32, mac: Mac, vtep: IpAddr) -> NeighbourMessage {
    let mut message = fdb(
        tunnel,
        mac,
        NeighbourFlags::Own | NeighbourFlags::Controller | NeighbourFlags::ExtLearned,
    );
    message
        .attributes
        .push(NeighbourAttribute::Destination(address(vtep)));
    message
}

pub(crate) fn put_local(port: u32, mac: Mac) -> NeighbourMessage {
    fdb(port, mac, NeighbourFlags::Controller | NeighbourFlags::ExtLearned)
}

pub(crate) fn delete_vtep(tunnel: u32, mac: Mac, vtep: IpAddr) -> NeighbourMessage {
    let mut message = fdb(tunnel, mac, NeighbourFlags::Own);
    message
        .attributes
        .push(NeighbourAttribute::Destination(address(vtep)));
    message
}

/// All that a tunnel's table has for a MAC.
pub(crate) fn delete_vteps(tunnel: u32, mac: Mac) -> NeighbourMessage {
    fdb(tunnel, mac, NeighbourFlags::Own)
}

pub(crate) fn delete_bridge_entry(port: u32, mac: Mac) -> NeighbourMessage {
    fdb(port, mac, NeighbourFlags::Controller)
}

pub(crate) fn neighbour(bridge: u32, of: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if of.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.header.ifindex = bridge;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address(of)));
    if let Some(mac) = mac {
        // Entries learned elsewhere are exempt from the table's garbage collection (gc_thresh).
        message.header.flags = NeighbourFlags::ExtLearned;
        message.header.state = NeighbourState::Noarp;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
        message
            .attributes
            .push(NeighbourAttribute::Protocol(RouteProtocol::from(
                ownership::PROTOCOL,
            )));
    }
    message
}

/// What a forwarding entry of ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The bridge's table: the MAC is behind this device.
    Bridge(Mac, u32),
    /// A tunnel's table: the MAC is at this VTEP.
    Vtep(Mac, IpAddr),
}

/// Reads a forwarding entry; none if it is not of the kind that is ours.
pub(crate) fn read_entry(message: &NeighbourMessage) -> Option<Entry> {
    if message.header.family != AddressFamily::Bridge
        || !message.header.flags.contains(NeighbourFlags::ExtLearned)
    {
        return None;
    }
    let (mut mac, mut vtep, mut in_bridge) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().and_then(Mac::new);
            }
            NeighbourAttribute::Destination(to) => vtep = read_address(to),
            NeighbourAttribute::Controller(_) => in_bridge = true,
            _ => {}
        }
    }
    let mac = mac?;
    match vtep {
        Some(vtep) if message.header.flags.contains(NeighbourFlags::Own) => Some(Entry::Vtep(mac, vtep)),
        _ if in_bridge => Some(Entry::Bridge(mac, message.header.ifindex)),
        _ => None,
    }
}

/// The bridge family's messages carry addresses without telling their family: the length does.
fn read_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(a) => Some(IpAddr::V4(*a)),
        NeighbourAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}

/// Reads a neighbour; none if it is not ours.
pub(crate) fn read_neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let (mut of, mut mac, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(to) => of = read_address(to),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().and_then(Mac::new);
            }
            NeighbourAttribute::Protocol(protocol) => ours = u8::from(*protocol) == ownership::PROTOCOL,
            _ => {}
        }
    }
    ours.then_some((of?, mac?))
}

/// The address and MAC that a notification speaks of, ours or not.
pub(crate) fn subject_of_neighbour(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(to) => read_address(to),
        _ => None,
    })
}

/// The MAC that a notification about a forwarding entry speaks of, ours or not.
pub(crate) fn subject_of_entry(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().and_then(Mac::new),
        _ => None,
    })
}

/// The VTEP of an entry in a tunnel's table, ours or not; none for one in the bridge's.
pub(crate) fn place_of_entry(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(to) => read_address(to),
        _ => None,
    })
}

/// The MAC of an entry in a tunnel's table that is somebody else's, and the tunnel's index.
fn foreign_in_tunnel(message: &NeighbourMessage, device: &Device) -> Option<(u32, Mac)> {
    let is_foreign = matches!(device, Device::Target(BridgeTarget::Tunnel(_)))
        && read_entry(message).is_none()
        && message.header.flags.contains(NeighbourFlags::Own)
        && place_of_entry(message).is_some();
    is_foreign.then_some((message.header.ifindex, subject_of_entry(message)?))
}

/// All forwarding entries of ours in a network's namespace, and what the tunnels' tables have of others.
pub(crate) fn dump_forwards(
    channel: &mut Channel,
    devices: &HashMap<u32, Device>,
    foreign: &mut HashSet<(u32, Mac)>,
    place: &str,
) -> Result<HashMap<Mac, ForwardRow>, KernelError> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    let rows;
    (rows, *foreign) = channel
        .dump_into(
            &RouteNetlinkMessage::GetNeighbour(message),
            |(rows, foreign), object| read_forward(&object, devices, foreign, rows),
        )
        .map_err(|r| refused(format!("list the forwarding entries of {place}"), r))?;
    Ok(rows)
}

/// Adds the forwarding entry of an answer to what is known of them.
pub(crate) fn read_forward(
    object: &RouteNetlinkMessage,
    devices: &HashMap<u32, Device>,
    foreign: &mut HashSet<(u32, Mac)>,
    rows: &mut HashMap<Mac, ForwardRow>,
) {
    if let RouteNetlinkMessage::NewNeighbour(message) = object
        && let Some(device) = devices.get(&message.header.ifindex)
    {
        foreign.extend(foreign_in_tunnel(message, device));
        add_entry(rows, read_entry(message), device);
    }
}

fn add_entry(rows: &mut HashMap<Mac, ForwardRow>, entry: Option<Entry>, device: &Device) {
    match entry {
        Some(Entry::Bridge(mac, _)) => {
            if let Device::Target(target) = device {
                rows.entry(mac).or_default().set_bridge(Some(target.clone()));
            }
        }
        Some(Entry::Vtep(mac, vtep)) => {
            rows.entry(mac).or_default().add(vtep);
        }
        None => {}
    }
}

/// The forwarding entries of one MAC, asked for one by one.
pub(crate) fn get_forward(
    channel: &mut Channel,
    bridge: u32,
    devices: &HashMap<u32, Device>,
    foreign: &mut HashSet<(u32, Mac)>,
    mac: Mac,
    place: &str,
) -> Result<Option<ForwardRow>, KernelError> {
    let mut rows = HashMap::new();
    foreign.retain(|(_, m)| *m != mac);
    let tunnels = devices
        .iter()
        .filter(|(_, d)| matches!(d, Device::Target(BridgeTarget::Tunnel(_))))
        .map(|(index, _)| fdb_question(*index, mac, NeighbourFlags::Own));
    let mut of_bridge = fdb_question(0, mac, NeighbourFlags::empty());
    of_bridge.attributes.push(NeighbourAttribute::Controller(bridge));
    for question in std::iter::once(of_bridge).chain(tunnels) {
        match channel.request(RouteNetlinkMessage::GetNeighbour(question), 0) {
            Ok(answers) => {
                for answer in &answers {
                    read_forward(answer, devices, foreign, &mut rows);
                }
            }
            Err(refusal) if refusal.is(nix::errno::Errno::ENOENT) => {}
            Err(refusal) => {
                return Err(refused(
                    format!("look up the forwarding entry {mac} of {place}"),
                    refusal,
                ));
            }
        }
    }
    Ok(rows.remove(&mac))
}

fn fdb_question(index: u32, mac: Mac, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = fdb(index, mac, flags);
    // A question that speaks of a state is refused under strict checking.
    message.header.state = NeighbourState::None;
    message
}

/// All neighbours of ours on a network's bridge.
pub(crate) fn dump_neighbours(
    channel: &mut Channel,
    bridge: u32,
    place: &str,
) -> Result<AddressMap<Mac>, KernelError> {
    let mut message = NeighbourMessage::default();
    message.attributes.push(NeighbourAttribute::IfIndex(bridge));
    channel
        .dump_into(
            &RouteNetlinkMessage::GetNeighbour(message),
            |neighbours: &mut AddressMap<Mac>, object| {
                if let Some((address, mac)) = read_neighbour_on(&object, bridge) {
                    neighbours.insert(address, mac);
                }
            },
        )
        .map_err(|r| refused(format!("list the neighbours of {place}"), r))
}

/// The neighbour of a dump, if it is ours and on this bridge.
pub(crate) fn read_neighbour_on(object: &RouteNetlinkMessage, bridge: u32) -> Option<(IpAddr, Mac)> {
    match object {
        RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == bridge => {
            read_neighbour(message)
        }
        _ => None,
    }
}

/// One neighbour on a network's bridge.
pub(crate) fn get_neighbour(
    channel: &mut Channel,
    bridge: u32,
    of: IpAddr,
    place: &str,
) -> Result<Option<Mac>, KernelError> {
    match channel.request(RouteNetlinkMessage::GetNeighbour(neighbour(bridge, of, None)), 0) {
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => read_neighbour(message).map(|(_, mac)| mac),
            _ => None,
        })),
        Err(refusal) if refusal.is(nix::errno::Errno::ENOENT) => Ok(None),
        Err(refusal) => Err(refused(format!("look up the neighbour {of} of {place}"), refusal)),
    }
}
