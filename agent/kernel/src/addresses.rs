//! Addresses and on-link routes of a container's interface as messages, both ways.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use weft_core::ownership;

use crate::{KernelError, channel::Channel, refused};

fn family(of: IpAddr) -> AddressFamily {
    if of.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

pub(crate) fn address(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    match net {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            message
                .attributes
                .push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V4(_) => {}
        // The claim in the store has made sure that the address is nobody else's, and the peers answer for
        // it at once: there is nothing to wait for.
        IpNet::V6(_) => message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
        .attributes
        .push(AddressAttribute::Protocol(AddressProtocol::from(
            ownership::PROTOCOL,
        )));
    message
}

/// The interface's index, the address, and whether it is ours.
pub(crate) fn subject_of_address(message: &AddressMessage) -> Option<(u32, IpNet, bool)> {
    let (mut local, mut remote, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => remote = Some(*address),
            AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == ownership::PROTOCOL,
            _ => {}
        }
    }
    let net = IpNet::new(local.or(remote)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net, ours))
}

pub(crate) fn route(index: u32, net: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(net.addr());
    message.header.destination_prefix_length = net.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ownership::PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = if net.addr().is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    let destination = match net.network() {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    };
    message.attributes.push(RouteAttribute::Destination(destination));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// The interface's index, the destination, and whether the route is ours.
pub(crate) fn subject_of_route(message: &RouteMessage) -> Option<(u32, IpNet, bool)> {
    let ours = u8::from(message.header.protocol) == ownership::PROTOCOL;
    let (mut to, mut index) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(a)) => to = Some(IpAddr::V4(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => to = Some(IpAddr::V6(*a)),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    Some((
        index?,
        IpNet::new(to?, message.header.destination_prefix_length).ok()?,
        ours,
    ))
}

/// Whether an interface has a route, whoever's it is.
pub(crate) fn has_route(
    channel: &mut Channel,
    index: u32,
    net: IpNet,
    place: &str,
) -> Result<bool, KernelError> {
    let mut question = RouteMessage::default();
    question.header.address_family = family(net.addr());
    question.attributes.push(RouteAttribute::Oif(index));
    let objects = channel
        .dump(&RouteNetlinkMessage::GetRoute(question))
        .map_err(|r| refused(format!("list the routes of {place}"), r))?;
    let there = |object: &RouteNetlinkMessage| {
        matches!(object, RouteNetlinkMessage::NewRoute(message)
            if message.header.table == RouteHeader::RT_TABLE_MAIN
                && subject_of_route(message).is_some_and(|(on, to, _)| on == index && to == net.trunc()))
    };
    Ok(objects.iter().any(there))
}

/// Addresses and routes of ours on an interface.
pub(crate) fn dump(
    channel: &mut Channel,
    index: u32,
    place: &str,
) -> Result<(BTreeSet<IpNet>, BTreeSet<IpNet>), KernelError> {
    let mut question = AddressMessage::default();
    question.header.index = index;
    let objects = channel
        .dump(&RouteNetlinkMessage::GetAddress(question))
        .map_err(|r| refused(format!("list the addresses of {place}"), r))?;
    let addresses = read_on(&objects, index);
    let mut routes = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.protocol = RouteProtocol::from(ownership::PROTOCOL);
        question.attributes.push(RouteAttribute::Oif(index));
        let objects = channel
            .dump(&RouteNetlinkMessage::GetRoute(question))
            .or_else(|refusal| {
                // A dump of an empty table with a filter is answered with ENOENT.
                if refusal.is(nix::errno::Errno::ENOENT) {
                    Ok(Vec::new())
                } else {
                    Err(refusal)
                }
            })
            .map_err(|r| refused(format!("list the routes of {place}"), r))?;
        routes.append(&mut read_on(&objects, index));
    }
    Ok((addresses, routes))
}

/// The addresses or routes of a dump that are ours and on this interface.
pub(crate) fn read_on(objects: &[RouteNetlinkMessage], index: u32) -> BTreeSet<IpNet> {
    objects
        .iter()
        .filter_map(|object| match object {
            RouteNetlinkMessage::NewAddress(message) => subject_of_address(message),
            RouteNetlinkMessage::NewRoute(message) => subject_of_route(message),
            _ => None,
        })
        .filter(|(on, _, ours)| *ours && *on == index)
        .map(|(_, net, _)| net)
        .collect()
}
