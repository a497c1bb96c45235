//! This host's place on the underlay: which interface, which addresses, which MTU.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use weft_store_schema::{Family, IfName, Mtu};

use crate::{Kernel, KernelError, links, refused};

/// How the underlay is to be found. With neither interface nor addresses, it is the default route's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderlaySelection {
    /// The interface.
    pub interface: Option<IfName>,
    /// VTEP addresses, at most one of each family; they need not be on one interface.
    pub addresses: Vec<IpAddr>,
}

/// This host's place on the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The interface that has the first address.
    pub ifname: String,
    /// IPv4 VTEP address.
    pub v4: Option<IpAddr>,
    /// IPv6 VTEP address.
    pub v6: Option<IpAddr>,
    /// MTU in bytes, the smallest if the addresses are on several interfaces.
    pub mtu: u16,
}

/// An address of this host.
pub(crate) struct Own {
    index: u32,
    address: IpAddr,
    /// Global scope, and not on its way out or in.
    lasting: bool,
}

impl Kernel {
    /// Finds the underlay in the host's namespace.
    ///
    /// # Errors
    /// When there is none of the kind that was asked for; the message says what there is.
    pub fn underlay(&mut self, selection: &UnderlaySelection) -> Result<Underlay, KernelError> {
        let none = |why: String| KernelError::Underlay { why };
        let links = links::dump(&mut self.host, "the host")?;
        let own = self.own_addresses()?;
        let name_of = |index: u32| {
            links
                .iter()
                .find(|l| l.index == index)
                .map_or("?", |l| l.name.as_str())
        };
        let chosen: Vec<&Own> = if selection.addresses.is_empty() {
            let index = match &selection.interface {
                Some(name) => links
                    .iter()
                    .find(|l| l.name == name.as_str())
                    .map(|l| l.index)
                    .ok_or_else(|| none(format!("this host has no interface {name}")))?,
                None => self.default_interface()?.ok_or_else(|| {
                    none("this host has no default route to find the underlay's interface by".to_owned())
                })?,
            };
            // The first of each family: the kernel lists the primary one first.
            let first = |family| {
                own.iter()
                    .find(|o| o.index == index && o.lasting && Family::of(o.address) == family)
            };
            let found: Vec<&Own> = Family::ALL.into_iter().filter_map(first).collect();
            if found.is_empty() {
                return Err(none(format!(
                    "interface {} has no address of global scope",
                    name_of(index)
                )));
            }
            found
        } else {
            selection
                .addresses
                .iter()
                .map(|wanted| {
                    own.iter()
                        .find(|o| {
                            o.address == *wanted
                                && selection
                                    .interface
                                    .as_ref()
                                    .is_none_or(|i| name_of(o.index) == i.as_str())
                        })
                        .ok_or_else(|| {
                            none(match &selection.interface {
                                Some(interface) => {
                                    format!("{wanted} is not an address of interface {interface}")
                                }
                                None => format!("{wanted} is not an address of this host's interfaces"),
                            })
                        })
                })
                .collect::<Result<_, _>>()?
        };
        let mtu = chosen
            .iter()
            .filter_map(|o| links.iter().find(|l| l.index == o.index))
            .map(|l| l.mtu)
            .min()
            .unwrap_or_default();
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        if Mtu::new(mtu.into()).is_none() {
            return Err(none(format!(
                "an MTU of {mtu} is below {}, the least a tunnel needs",
                Mtu::MIN
            )));
        }
        let of = |family| {
            chosen
                .iter()
                .map(|o| o.address)
                .find(|a| Family::of(*a) == family)
        };
        Ok(Underlay {
            ifname: chosen.first().map_or("?", |o| name_of(o.index)).to_owned(),
            v4: of(Family::V4),
            v6: of(Family::V6),
            mtu,
        })
    }

    fn own_addresses(&mut self) -> Result<Vec<Own>, KernelError> {
        let objects = self
            .host
            .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))
            .map_err(|r| refused("list the host's addresses".to_owned(), r))?;
        Ok(objects.iter().filter_map(read_own).collect())
    }

    /// The interface of the default route, IPv4's if there is one.
    fn default_interface(&mut self) -> Result<Option<u32>, KernelError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let objects = self
                .host
                .dump(&RouteNetlinkMessage::GetRoute(question))
                .map_err(|r| refused("list the host's routes".to_owned(), r))?;
            let best = objects.iter().filter_map(read_default).min();
            if let Some((_, index)) = best {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

/// An address of the host.
pub(crate) fn read_own(object: &RouteNetlinkMessage) -> Option<Own> {
    let RouteNetlinkMessage::NewAddress(message) = object else {
        return None;
    };
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Address(a) => address = Some(*a),
            AddressAttribute::Flags(f) => flags = *f,
            _ => {}
        }
    }
    // `Secondary` on IPv6 means a temporary privacy address; on IPv4 a second one of a subnet.
    let passing = AddressFlags::Tentative
        | AddressFlags::Deprecated
        | AddressFlags::Dadfailed
        | AddressFlags::Secondary;
    Some(Own {
        index: message.header.index,
        address: local.or(address)?,
        lasting: message.header.scope == AddressScope::Universe && !flags.intersects(passing),
    })
}

/// Priority and interface of a default route.
pub(crate) fn read_default(object: &RouteNetlinkMessage) -> Option<(u32, u32)> {
    let RouteNetlinkMessage::NewRoute(message) = object else {
        return None;
    };
    if message.header.destination_prefix_length != 0
        || message.header.table != RouteHeader::RT_TABLE_MAIN
        || message.header.kind != RouteType::Unicast
    {
        return None;
    }
    let priority = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Priority(p) => Some(*p),
        _ => None,
    });
    // Of several next hops the first.
    let oif = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    });
    Some((priority.unwrap_or_default(), oif?))
}
