//! Links as messages: from the values of the data plane to requests, and from dumps to the values.

use std::{io, net::IpAddr, os::fd::RawFd};

use netlink_packet_core::Nla as _;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
        LinkMessage,
    },
};
use nix::errno::Errno;
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};
use weft_core::{
    dataplane::{Bridge, Port, PortFlags, Tunnel},
    ownership,
};
use weft_store_schema::{EndpointRef, Family, IfName, Mac, Vni};

use crate::{
    KernelError,
    channel::{Channel, Refusal},
    refused,
};

/// The MAC of every bridge of ours: locally administered, and not in the range that endpoints' come from.
const BRIDGE_MAC: [u8; 6] = *b"\x0aweft\x01";

/// One link of a namespace as a dump tells it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) mac: Option<Mac>,
    pub(crate) master: Option<u32>,
    /// Index of the other end of a veth, in the other end's namespace.
    pub(crate) peer: Option<u32>,
    data: Option<InfoData>,
    port: Option<PortFlags>,
    ipv6: bool,
    link_local: bool,
}

impl Link {
    pub(crate) fn read(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.master = Some(index).filter(|i| *i != 0),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().and_then(Mac::new),
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                LinkAttribute::AfSpecUnspec(specs) => link.read_families(specs),
                _ => {}
            }
        }
        link
    }

    fn read_info(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind),
                LinkInfo::Data(data) => self.data = Some(data),
                LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
                    let flag = |wanted: fn(&InfoBridgePort) -> Option<bool>| {
                        attributes.iter().find_map(wanted).unwrap_or_default()
                    };
                    self.port = Some(PortFlags {
                        learning: flag(|a| {
                            if let InfoBridgePort::Learning(v) = a {
                                Some(*v)
                            } else {
                                None
                            }
                        }),
                        unicast_flood: flag(|a| {
                            if let InfoBridgePort::UnicastFlood(v) = a {
                                Some(*v)
                            } else {
                                None
                            }
                        }),
                        multicast_flood: flag(|a| {
                            if let InfoBridgePort::MulticastFlood(v) = a {
                                Some(*v)
                            } else {
                                None
                            }
                        }),
                        broadcast_flood: flag(|a| {
                            if let InfoBridgePort::BroadcastFlood(v) = a {
                                Some(*v)
                            } else {
                                None
                            }
                        }),
                        neigh_suppress: flag(|a| {
                            if let InfoBridgePort::NeighSupress(v) = a {
                                Some(*v)
                            } else {
                                None
                            }
                        }),
                    });
                }
                _ => {}
            }
        }
    }

    fn read_families(&mut self, specs: Vec<AfSpecUnspec>) {
        for spec in specs {
            let AfSpecUnspec::Inet6(attributes) = spec else {
                continue;
            };
            // The family is listed only for a device that has IPv6 at all.
            self.ipv6 = true;
            self.link_local = true;
            for attribute in attributes {
                match attribute {
                    AfSpecInet6::DevConf(conf) => self.ipv6 = conf.disable_ipv6 == 0,
                    AfSpecInet6::AddrGenMode(mode) => self.link_local = mode != In6AddrGenMode::None,
                    _ => {}
                }
            }
        }
    }

    pub(crate) fn is_bridge(&self) -> bool {
        self.kind == Some(InfoKind::Bridge) && self.name == ownership::BRIDGE
    }

    pub(crate) fn tunnel_family(&self) -> Option<Family> {
        ownership::family_of_tunnel(&self.name).filter(|_| self.kind == Some(InfoKind::Vxlan))
    }

    pub(crate) fn is_veth(&self) -> bool {
        self.kind == Some(InfoKind::Veth)
    }

    /// The endpoint that a veth is an end of, if its alias says that it is ours.
    pub(crate) fn endpoint(&self) -> Option<EndpointRef> {
        ownership::endpoint_of_alias(&self.alias).filter(|_| self.is_veth())
    }

    fn mtu(&self) -> u16 {
        // Larger than any MTU of ours: different from whatever is wanted.
        u16::try_from(self.mtu).unwrap_or(u16::MAX)
    }

    /// The bridge, as far as a link tells: whether frames are filtered is the namespace's.
    pub(crate) fn to_bridge(&self) -> Bridge {
        let mut snooping = true;
        if let Some(InfoData::Bridge(attributes)) = &self.data {
            for attribute in attributes {
                if let InfoBridge::MulticastSnooping(on) = attribute {
                    snooping = *on;
                }
            }
        }
        Bridge {
            mtu: self.mtu(),
            up: self.up,
            multicast_snooping: snooping,
            ipv6: self.ipv6,
            link_local: self.link_local,
            filtered: false,
        }
    }

    /// The tunnel; none if it lacks what makes it one of ours, which only a device made by somebody else can.
    pub(crate) fn to_tunnel(&self, bridge: Option<u32>) -> Option<Tunnel> {
        let Some(InfoData::Vxlan(attributes)) = &self.data else {
            return None;
        };
        let (mut vni, mut port, mut local, mut learning) = (None, None, None, false);
        for attribute in attributes {
            match attribute {
                InfoVxlan::Id(id) => vni = Vni::new((*id).into()),
                InfoVxlan::Port(number) => port = Some(*number),
                InfoVxlan::Local(address) => local = Some(IpAddr::V4(*address)),
                InfoVxlan::Local6(address) => local = Some(IpAddr::V6(*address)),
                InfoVxlan::Learning(on) => learning = *on,
                _ => {}
            }
        }
        Some(Tunnel {
            vni: vni?,
            port: port?,
            local: local?,
            mtu: self.mtu(),
            up: self.up,
            learning,
            bridge_port: self.bridge_port(bridge),
        })
    }

    pub(crate) fn to_port(&self, bridge: Option<u32>) -> Option<(IfName, Port)> {
        let port = Port {
            alias: self.alias.clone(),
            mtu: self.mtu(),
            up: self.up,
            bridge_port: self.bridge_port(bridge),
        };
        Some((IfName::new(&self.name).ok()?, port))
    }

    fn bridge_port(&self, bridge: Option<u32>) -> Option<PortFlags> {
        self.port
            .filter(|_| self.master.is_some() && self.master == bridge)
    }
}

/// `IFLA_BRPORT_*` of include/uapi/linux/if_link.h, as they come in a message of the bridge's own family.
const BRPORT_LEARNING: u16 = 8;
const BRPORT_UNICAST_FLOOD: u16 = 9;
const BRPORT_MCAST_FLOOD: u16 = 27;
const BRPORT_BCAST_FLOOD: u16 = 30;
const BRPORT_NEIGH_SUPPRESS: u16 = 32;

/// Name and flags of a bridge port, from a message of the bridge's own family.
pub(crate) fn read_port_flags(message: LinkMessage) -> Option<(String, PortFlags)> {
    let (mut name, mut flags) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::ProtoInfoBridge(infos) => {
                let flag = |kind: u16| {
                    infos.iter().any(|info| {
                        let mut value = [0];
                        let is_it = info.kind() == kind && info.value_len() == value.len();
                        if is_it {
                            info.emit_value(&mut value);
                        }
                        is_it && value != [0]
                    })
                };
                flags = Some(PortFlags {
                    learning: flag(BRPORT_LEARNING),
                    unicast_flood: flag(BRPORT_UNICAST_FLOOD),
                    multicast_flood: flag(BRPORT_MCAST_FLOOD),
                    broadcast_flood: flag(BRPORT_BCAST_FLOOD),
                    neigh_suppress: flag(BRPORT_NEIGH_SUPPRESS),
                });
            }
            _ => {}
        }
    }
    Some((name?, flags?))
}

/// All links of a namespace.
pub(crate) fn dump(channel: &mut Channel, place: &str) -> Result<Vec<Link>, KernelError> {
    let message = LinkMessageBuilder::<LinkUnspec>::new()
        .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
        .build();
    let objects = channel
        .dump(&RouteNetlinkMessage::GetLink(message))
        .map_err(|r| refused(format!("list the interfaces of {place}"), r))?;
    Ok(read_all(objects))
}

/// The links of a dump.
pub(crate) fn read_all(objects: Vec<RouteNetlinkMessage>) -> Vec<Link> {
    objects
        .into_iter()
        .filter_map(|object| match object {
            RouteNetlinkMessage::NewLink(link) => Some(Link::read(link)),
            _ => None,
        })
        .collect()
}

/// Whether a link can carry packets (RFC 2863's operational state, `IF_OPER_UP`).
pub(crate) fn is_operational(channel: &mut Channel, name: &str, place: &str) -> Result<bool, KernelError> {
    let question = LinkUnspec::new_with_name(name).build();
    let answers = channel
        .request(RouteNetlinkMessage::GetLink(question), 0)
        .map_err(|r| refused(format!("look at {name} in {place}"), r))?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link
            .attributes
            .iter()
            .any(|a| matches!(a, LinkAttribute::OperState(netlink_packet_route::link::State::Up))),
        _ => false,
    }))
}

/// The index of the link of that name; none if there is none.
pub(crate) fn index_of(channel: &mut Channel, name: &str, place: &str) -> Result<Option<u32>, KernelError> {
    let question = LinkUnspec::new_with_name(name)
        .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
        .build();
    match channel.request(RouteNetlinkMessage::GetLink(question), 0) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
            _ => None,
        })),
        Err(refusal) if refusal.is(Errno::ENODEV) => Ok(None),
        Err(refusal) => Err(refused(
            format!("look up the interface {name} of {place}"),
            refusal,
        )),
    }
}

/// Removes a network's tunnels and host ends, all at once.
pub(crate) fn delete_ours(channel: &mut Channel, place: &str) -> Result<(), KernelError> {
    let group = doomed_group();
    let into_group: Vec<_> = dump(channel, place)?
        .into_iter()
        .filter(|link| link.tunnel_family().is_some() || link.endpoint().is_some())
        .map(|link| (RouteNetlinkMessage::NewLink(set_group(&link.name, group)), 0))
        .collect();
    if into_group.is_empty() {
        return Ok(());
    }
    let refused_as = |r| refused(format!("remove the devices of {place}"), r);
    if let Some((_, refusal)) = channel.batch(into_group).into_iter().next() {
        return Err(refused_as(refusal));
    }
    channel
        .request(RouteNetlinkMessage::DelLink(delete_group(group)), 0)
        .map(drop)
        .map_err(refused_as)
}

/// A device group that no other removal uses: one that a crash cut short must not, much later, take along what was
/// adopted meanwhile.
pub(crate) fn doomed_group() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Never 0, which every device is in.
    0x7700_0000 | now.map_or(1, |now| now.subsec_nanos() & 0x00ff_ffff)
}

pub(crate) fn set_group(name: &str, group: u32) -> LinkMessage {
    let mut message = LinkUnspec::new_with_name(name).link_group(group).build();
    keep_flags(&mut message);
    message
}

pub(crate) fn delete_group(group: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    message
}

pub(crate) fn raise_loopback(channel: &mut Channel) -> io::Result<()> {
    match channel.request(RouteNetlinkMessage::NewLink(by_name("lo", true).build()), 0) {
        Ok(_) => Ok(()),
        Err(Refusal::Errno(errno, _)) => Err(io::Error::from_raw_os_error(errno)),
        Err(Refusal::Socket(error)) => Err(error),
        Err(Refusal::Lost) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A bridge to be made. The kernel adjusts a bridge's MTU to its ports' for as long as nobody has *changed* it
/// (`BROPT_MTU_SET_BY_USER`), and to 1500 when the last port goes. So it is made with another MTU than the
/// one wanted, which [`set_bridge`] then sets.
///
/// Its MAC is given because a bridge without one takes that of a port and changes it as ports come and go, and
/// with each change the kernel drops all neighbours of the device. It never appears in a frame.
pub(crate) fn new_bridge(bridge: &Bridge) -> LinkMessage {
    let other = if bridge.mtu == 1500 { 1499 } else { 1500 };
    LinkMessageBuilder::<LinkBridge>::new(ownership::BRIDGE)
        .mcast_snooping(bridge.multicast_snooping)
        .address(BRIDGE_MAC.to_vec())
        .mtu(other)
        .build()
}

/// All of a bridge that exists.
pub(crate) fn set_bridge(bridge: &Bridge) -> LinkMessage {
    let mode = if bridge.link_local {
        In6AddrGenMode::Eui64
    } else {
        In6AddrGenMode::None
    };
    let spec = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])];
    let mut message = by_name(ownership::BRIDGE, bridge.up)
        .mtu(bridge.mtu.into())
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(spec))
        .build();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(
            bridge.multicast_snooping,
        )])),
    ]));
    message
}

fn by_name(name: &str, up: bool) -> LinkMessageBuilder<LinkUnspec> {
    let builder = LinkUnspec::new_with_name(name);
    if up { builder.up() } else { builder.down() }
}

pub(crate) fn new_tunnel(family: Family, tunnel: &Tunnel, namespace: RawFd) -> LinkMessage {
    let builder = LinkVxlan::new(ownership::tunnel_name(family), tunnel.vni.get())
        .port(tunnel.port)
        .learning(tunnel.learning);
    let builder = match tunnel.local {
        IpAddr::V4(address) => builder.local(address),
        IpAddr::V6(address) => builder.local6(address),
    };
    builder.mtu(tunnel.mtu.into()).setns_by_fd(namespace).build()
}

/// What of an existing tunnel can be changed and is the tunnel's own.
pub(crate) fn set_tunnel(family: Family, tunnel: &Tunnel) -> LinkMessage {
    let local = match tunnel.local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    let data = InfoData::Vxlan(vec![
        InfoVxlan::Id(tunnel.vni.get()),
        local,
        InfoVxlan::Learning(tunnel.learning),
    ]);
    let mut message = LinkUnspec::new_with_name(ownership::tunnel_name(family)).build();
    keep_flags(&mut message);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(data),
    ]));
    message
}

/// What of an existing tunnel is every link's. The kernel takes it only in a message of its own: with the
/// tunnel's data it says "Cannot change mtu".
pub(crate) fn set_tunnel_link(family: Family, tunnel: &Tunnel) -> LinkMessage {
    by_name(ownership::tunnel_name(family), tunnel.up)
        .mtu(tunnel.mtu.into())
        .build()
}

/// Enslaves a device to the bridge.
pub(crate) fn set_master(name: &str, bridge: u32) -> LinkMessage {
    let mut message = LinkUnspec::new_with_name(name).controller(bridge).build();
    keep_flags(&mut message);
    message
}

/// A message that does not speak of `up` must not change it.
fn keep_flags(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::empty();
    message.header.change_mask = LinkFlags::empty();
}

/// Sets a bridge port's flags.
pub(crate) fn set_port_flags(name: &str, flags: PortFlags) -> LinkMessage {
    let data = InfoPortData::BridgePort(vec![
        InfoBridgePort::Learning(flags.learning),
        InfoBridgePort::UnicastFlood(flags.unicast_flood),
        InfoBridgePort::MulticastFlood(flags.multicast_flood),
        InfoBridgePort::BroadcastFlood(flags.broadcast_flood),
        InfoBridgePort::NeighSupress(flags.neigh_suppress),
    ]);
    let mut message = LinkUnspec::new_with_name(name)
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(data)
        .build();
    keep_flags(&mut message);
    message
}

/// A veth pair: the host end here, enslaved; the container end in the container's namespace.
pub(crate) fn new_veth(
    name: &str,
    port: &Port,
    bridge: u32,
    ifname: &str,
    mac: Mac,
    mtu: u16,
    container: RawFd,
) -> LinkMessage {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(ifname)
        .address(mac.bytes().to_vec())
        .mtu(mtu.into())
        .setns_by_fd(container)
        .build();
    LinkMessageBuilder::<LinkVeth>::new(name, ifname)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .alias(port.alias.clone())
        .mtu(port.mtu.into())
        .controller(bridge)
        .build()
}

pub(crate) fn set_port(name: &str, port: &Port, bridge: u32) -> LinkMessage {
    by_name(name, port.up)
        .alias(port.alias.clone())
        .mtu(port.mtu.into())
        .controller(bridge)
        .build()
}

pub(crate) fn set_interface(index: u32, alias: &str, mac: Mac, mtu: u16, up: bool) -> LinkMessage {
    let builder = LinkUnspec::new_with_index(index);
    let builder = if up { builder.up() } else { builder.down() };
    builder
        .alias(alias)
        .address(mac.bytes().to_vec())
        .mtu(mtu.into())
        .build()
}

pub(crate) fn delete(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}
