//! Notices: where in the kernel something of ours may have changed. A notice says "look again here"; what it
//! carries beside that serves only to recognise the echo of our own writes and of what is known already.
//!
//! One socket in the host's namespace hears all namespaces that have an id there (`NETLINK_LISTEN_ALL_NSID`). So no
//! socket is open inside a container's namespace: it would keep a dead container's namespace alive.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, IoSliceMut},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkMessage,
    neighbour::NeighbourMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
        socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt},
    },
};
use tokio::io::unix::AsyncFd;
use weft_core::{
    dataplane::{Bridge, Interface, Observed, Port, PortFlags, Tunnel},
    dirty::Dirty,
    ownership,
};
use weft_store_schema::{EndpointId, EndpointRef, Family, IfName, Mac, NetworkName, NodeName};

use crate::{
    Kernel, KernelError, addresses,
    channel::{Channel, Refusal, decode_all},
    entries::{self, Entry},
    links::{self, Link},
    observe,
};

/// Room for notifications that wait to be read, in bytes. When it is full, the kernel drops and says so.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Datagrams read before what they told is handed over.
const AT_ONCE: usize = 512;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
/// `NETLINK_LISTEN_ALL_NSID`, as a socket option and as the type of the control message.
const LISTEN_ALL_NSID: i32 = 8;

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
    /// A container end.
    Container {
        /// The endpoints that have an interface in that namespace.
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
        /// What was said of it; none if it is gone or not ours.
        seen: Option<ForwardSeen>,
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
    /// A link or address of the host itself.
    Underlay,
    /// A file came or went in a directory of namespaces.
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
    /// It is gone, or something is there that cannot be recognised.
    Other(String),
    /// Nothing that could be one of ours.
    Foreign,
}

/// What a notification said of something in a container's namespace.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerSeen {
    /// An interface.
    Interface(EndpointRef, Box<Interface>),
    /// An address that is there (true) or gone.
    Address(ipnet::IpNet, bool),
    /// A route that is there (true) or gone.
    Route(ipnet::IpNet, bool),
    /// Something that cannot be compared.
    Other,
}

/// What a notification said of a forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardSeen {
    /// It is in the bridge's table.
    Bridge,
    /// It is in a tunnel's table, to this VTEP.
    Vtep(IpAddr),
}

impl Notice {
    /// Whether what was seen is what is known: then nothing has to be looked at.
    pub fn agrees_with(&self, known: &Observed) -> bool {
        match self {
            Self::Device { network, seen } => {
                let Some(there) = known.networks.get(network) else {
                    return false;
                };
                match seen {
                    DeviceSeen::Bridge(bridge) => there.bridge.as_ref() == Some(bridge),
                    DeviceSeen::Tunnel(family, tunnel) => there.tunnels.get(family) == Some(tunnel),
                    DeviceSeen::Port(name, port) => there.ports.get(name) == Some(port),
                    DeviceSeen::Flags(name, flags) => {
                        let port = || there.ports.iter().find(|(port, _)| port.as_str() == name);
                        let known = match ownership::family_of_tunnel(name) {
                            Some(family) => there.tunnels.get(&family).map(|tunnel| tunnel.bridge_port),
                            None => port().map(|(_, port)| port.bridge_port),
                        };
                        known.is_none_or(|known| known == Some(*flags))
                    }
                    DeviceSeen::Other(name) => {
                        let is_known = name == ownership::BRIDGE && there.bridge.is_some()
                            || ownership::family_of_tunnel(name)
                                .is_some_and(|f| there.tunnels.contains_key(&f))
                            || there.ports.keys().any(|port| port.as_str() == name);
                        !is_known
                    }
                    DeviceSeen::Foreign => true,
                }
            }
            Self::Container { endpoints, seen } => endpoints.iter().all(|(network, id)| {
                let interface = known.networks.get(network).and_then(|n| n.interfaces.get(id));
                let Some(interface) = interface else { return false };
                match seen {
                    ContainerSeen::Interface(of, seen) if of.network == *network && of.id == *id => {
                        let link = |i: &Interface| {
                            (i.attachment.ifname.clone(), i.alias.clone(), i.mac, i.mtu, i.up)
                        };
                        link(interface) == link(seen)
                    }
                    ContainerSeen::Interface(..) => true,
                    ContainerSeen::Address(net, there) => interface.addresses.contains(net) == *there,
                    ContainerSeen::Route(net, there) => interface.routes.contains(net) == *there,
                    ContainerSeen::Other => false,
                }
            }),
            Self::Forward { network, mac, seen } => {
                let row = known.networks.get(network).and_then(|n| n.forwards.get(mac));
                match (row, seen) {
                    (None, None) => true,
                    (Some(row), Some(ForwardSeen::Bridge)) => row.bridge.is_some(),
                    (Some(row), Some(ForwardSeen::Vtep(vtep))) => row.vteps == [*vtep],
                    _ => false,
                }
            }
            Self::Neighbour {
                network,
                address,
                seen,
            } => {
                known
                    .networks
                    .get(network)
                    .and_then(|n| n.neighbours.get(address))
                    == seen.as_ref()
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

/// Whose namespace an id stands for.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    Network { name: NetworkName, bridge: Option<u32> },
    Container(BTreeSet<(NetworkName, EndpointId)>),
}

/// Which namespaces are listened to. Written by the kernel's thread, read by whoever listens.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    places: Mutex<HashMap<i32, Place>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watch_network(&self, host: &mut Channel, namespace: &File, network: &NetworkName) {
        if let Some(id) = nsid(host, namespace) {
            self.lock().insert(
                id,
                Place::Network {
                    name: network.clone(),
                    bridge: None,
                },
            );
        }
    }

    pub(crate) fn forget_network(&self, network: &NetworkName) {
        self.lock()
            .retain(|_, place| !matches!(place, Place::Network { name, .. } if name == network));
    }

    pub(crate) fn watch_container(
        &self,
        host: &mut Channel,
        namespace: &File,
        network: &NetworkName,
        id: &EndpointId,
    ) {
        let Some(nsid) = nsid(host, namespace) else { return };
        let mut places = self.lock();
        let member = (network.clone(), id.clone());
        match places.get_mut(&nsid) {
            Some(Place::Container(members)) => drop(members.insert(member)),
            _ => drop(places.insert(nsid, Place::Container([member].into()))),
        }
    }
}

/// The id of a namespace in the host's, given now if it has none. Without one its notifications do not
/// reach us, and the periodic look has to do.
fn nsid(host: &mut Channel, namespace: &File) -> Option<i32> {
    let fd = u32::try_from(namespace.as_raw_fd()).ok()?;
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Id(-1), NsidAttribute::Fd(fd)];
    match host.request(RouteNetlinkMessage::NewNsId(message), NLM_F_CREATE) {
        Ok(_) => {}
        Err(refusal) if refusal.is(Errno::EEXIST) => {}
        Err(refusal) => {
            tracing::warn!(
                ?refusal,
                "a namespace cannot be listened to; changes in it are found only by the periodic look"
            );
            return None;
        }
    }
    let mut question = NsidMessage::default();
    question.attributes = vec![NsidAttribute::Fd(fd)];
    let answers: Result<_, Refusal> = host.request(RouteNetlinkMessage::GetNsId(question), 0);
    answers.ok()?.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => message.attributes.into_iter().find_map(|a| match a {
            NsidAttribute::Id(id) if id >= 0 => Some(id),
            _ => None,
        }),
        _ => None,
    })
}

/// Listens. Belongs to the runtime, unlike the rest of this crate.
#[derive(Debug)]
pub struct Notifications {
    socket: Socket,
    /// The same descriptor, as the runtime wants it.
    readable: AsyncFd<OwnedFd>,
    inotify: Inotify,
    /// The same descriptor, as the runtime wants it.
    files: AsyncFd<OwnedFd>,
    dirs: HashMap<WatchDescriptor, PathBuf>,
    registry: std::sync::Arc<Registry>,
    buffer: Vec<u8>,
}

impl Notifications {
    /// Starts to listen; to be called in the host's namespace, within the runtime.
    ///
    /// # Errors
    /// When the sockets cannot be made.
    pub fn open(kernel: &Kernel) -> Result<Self, KernelError> {
        let error = |source: io::Error| KernelError::Socket {
            place: "for notifications".to_owned(),
            source,
        };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(error)?;
        socket.bind_auto().map_err(error)?;
        socket.set_listen_all_namespaces(true).map_err(error)?;
        socket.set_non_blocking(true).map_err(error)?;
        let fd = socket.as_fd();
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(|e| error(e.into()))?;
        }
        for group in [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ] {
            socket.add_membership(group).map_err(error)?;
        }
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| error(e.into()))?;
        let mut dirs = HashMap::new();
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR
            // Making a namespace at a file that is there opens it last: then it can be attached to.
            | AddWatchFlags::IN_CLOSE | AddWatchFlags::IN_ATTRIB;
        for dir in kernel
            .config
            .attachment_dirs
            .iter()
            .chain([&kernel.config.netns_dir])
        {
            // A directory that does not exist yet cannot be watched; attachments there are retried by time.
            if let Ok(watch) = inotify.add_watch(dir, flags) {
                dirs.insert(watch, dir.clone());
            }
        }
        Ok(Self {
            readable: register(&socket).map_err(error)?,
            socket,
            files: register(&inotify).map_err(error)?,
            inotify,
            dirs,
            registry: kernel.registry.clone(),
            buffer: vec![0; 1 << 16],
        })
    }

    /// What has happened since the last call; waits until something has. May be dropped while it waits.
    pub async fn next(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        while notices.is_empty() {
            tokio::select! {
                ready = self.readable.readable_mut() => {
                    let Ok(mut ready) = ready else { return vec![Notice::Overrun] };
                    for _ in 0..AT_ONCE {
                        let read = ready.try_io(|_| receive(&self.socket, &mut self.buffer));
                        match read {
                            Ok(Ok((size, nsid))) => {
                                for message in decode_all(&self.buffer[..size]) {
                                    read_notice(&self.registry, nsid, message, &mut notices);
                                }
                            }
                            Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                                notices.push(Notice::Overrun);
                            }
                            Ok(Err(error)) => {
                                tracing::warn!(%error, "notifications of the kernel cannot be read");
                                notices.push(Notice::Overrun);
                                break;
                            }
                            Err(_would_block) => break,
                        }
                    }
                }
                ready = self.files.readable_mut() => {
                    let Ok(mut ready) = ready else { return vec![Notice::Overrun] };
                    let read = ready.try_io(|_| self.inotify.read_events().map_err(io::Error::from));
                    if let Ok(Ok(events)) = read {
                        let changed: BTreeSet<PathBuf> = events
                            .into_iter()
                            .filter_map(|event| Some(self.dirs.get(&event.wd)?.join(event.name?)))
                            .collect();
                        notices.extend(changed.into_iter().map(Notice::Attachments));
                    }
                }
            }
        }
        notices.dedup();
        notices
    }
}

/// Has the runtime tell when something can be read. The descriptor is a duplicate, so that it belongs to the
/// registration alone.
fn register(source: &impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let duplicate = source.as_fd().try_clone_to_owned()?;
    #[expect(
        unsafe_code,
        reason = "the safe constructor is deprecated for types that might change their descriptor"
    )]
    // SAFETY: `OwnedFd` keeps one descriptor, open and unchanged, until the registration drops it.
    let registered = unsafe { AsyncFd::register(duplicate) };
    registered.map_err(Into::into)
}

/// Reads a datagram, and the id of the namespace that it comes from; none for the host's own.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<NetlinkAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let mut nsid = None;
    for control in message.cmsgs().map_err(io::Error::from)? {
        if let ControlMessageOwned::Unknown(unknown) = control
            && unknown.cmsg_header.cmsg_type == LISTEN_ALL_NSID
        {
            nsid = unknown
                .data_bytes
                .get(..4)
                .and_then(|b| b.try_into().ok())
                .map(i32::from_ne_bytes);
        }
    }
    Ok((message.bytes, nsid))
}

fn read_notice(
    registry: &Registry,
    nsid: Option<i32>,
    message: RouteNetlinkMessage,
    notices: &mut Vec<Notice>,
) {
    let Some(nsid) = nsid else {
        if matches!(
            message,
            RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_)
                | RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_)
                | RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
        ) && !notices.contains(&Notice::Underlay)
        {
            notices.push(Notice::Underlay);
        }
        return;
    };
    let mut places = registry.lock();
    match places.get_mut(&nsid) {
        Some(Place::Network { name, bridge }) => {
            let network = name.clone();
            notices.extend(in_network(network, bridge, message));
        }
        Some(Place::Container(members)) => {
            let endpoints = members.iter().cloned().collect();
            notices.extend(in_container(message).map(|seen| Notice::Container { endpoints, seen }));
        }
        None => {}
    }
}

fn in_network(
    network: NetworkName,
    bridge: &mut Option<u32>,
    message: RouteNetlinkMessage,
) -> Option<Notice> {
    match message {
        // The bridge tells of its ports in messages of its own family: of changed flags only there.
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Bridge => {
            let (name, flags) = links::read_port_flags(link)?;
            let seen = DeviceSeen::Flags(name, flags);
            Some(Notice::Device { network, seen })
        }
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            let seen = device(link, bridge);
            Some(Notice::Device { network, seen })
        }
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            let link = Link::read(link);
            Some(Notice::Device {
                network,
                seen: DeviceSeen::Other(link.name),
            })
        }
        RouteNetlinkMessage::NewNeighbour(message) => entry(network, &message, true),
        RouteNetlinkMessage::DelNeighbour(message) => entry(network, &message, false),
        _ => None,
    }
}

fn device(message: LinkMessage, bridge: &mut Option<u32>) -> DeviceSeen {
    let link = Link::read(message);
    if link.is_bridge() {
        *bridge = Some(link.index);
        return DeviceSeen::Bridge(link.to_bridge());
    }
    // Before the bridge was heard of, whatever a device is enslaved to is taken for it.
    let master = bridge.or(link.master);
    if let Some(family) = link.tunnel_family() {
        return match link.to_tunnel(master) {
            Some(tunnel) => DeviceSeen::Tunnel(family, Box::new(tunnel)),
            None => DeviceSeen::Other(link.name),
        };
    }
    match link.to_port(master) {
        Some((name, port)) if link.endpoint().is_some() => DeviceSeen::Port(name, Box::new(port)),
        // A port of ours that lost its alias is still known by its name.
        Some(_) => DeviceSeen::Other(link.name),
        None => DeviceSeen::Foreign,
    }
}

fn entry(network: NetworkName, message: &NeighbourMessage, there: bool) -> Option<Notice> {
    if message.header.family == AddressFamily::Bridge {
        let mac = entries::subject_of_entry(message)?;
        let seen = entries::read_entry(message)
            .filter(|_| there)
            .map(|entry| match entry {
                Entry::Bridge(..) => ForwardSeen::Bridge,
                Entry::Vtep(_, vtep) => ForwardSeen::Vtep(vtep),
            });
        return Some(Notice::Forward { network, mac, seen });
    }
    let address = entries::subject_of_neighbour(message)?;
    let seen = entries::read_neighbour(message)
        .filter(|_| there)
        .map(|(_, mac)| mac);
    Some(Notice::Neighbour {
        network,
        address,
        seen,
    })
}

fn in_container(message: RouteNetlinkMessage) -> Option<ContainerSeen> {
    match message {
        RouteNetlinkMessage::NewLink(link) => {
            let link = Link::read(link);
            let Some(endpoint) = link.endpoint() else {
                // An interface of ours may have lost its alias; any other is none of our business.
                return link.peer.map(|_| ContainerSeen::Other);
            };
            let interface = observe::read_interface(&link, "");
            Some(interface.map_or(ContainerSeen::Other, |i| {
                ContainerSeen::Interface(endpoint, Box::new(i))
            }))
        }
        RouteNetlinkMessage::DelLink(link) => Link::read(link).peer.map(|_| ContainerSeen::Other),
        RouteNetlinkMessage::NewAddress(address) => {
            addresses::read_address(&address).map(|(_, net)| ContainerSeen::Address(net, true))
        }
        RouteNetlinkMessage::DelAddress(address) => {
            addresses::read_address(&address).map(|(_, net)| ContainerSeen::Address(net, false))
        }
        RouteNetlinkMessage::NewRoute(route) => {
            addresses::read_route(&route).map(|(_, net)| ContainerSeen::Route(net, true))
        }
        RouteNetlinkMessage::DelRoute(route) => {
            addresses::read_route(&route).map(|(_, net)| ContainerSeen::Route(net, false))
        }
        _ => None,
    }
}
