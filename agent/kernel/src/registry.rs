//! Which namespaces are listened to, and what is known of the devices in them: enough to tell whose a
//! notification is.
//!
//! In: namespaces and their links from whoever looks into them, netlink messages from whoever listens. Out:
//! notices. Written by the kernel's thread and by the listener's.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    os::fd::AsRawFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkMessage,
    neighbour::NeighbourMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use nix::errno::Errno;
use weft_core::{dataplane::BridgeTarget, ownership};
use weft_store_schema::{EndpointId, NetworkName};

use crate::{
    addresses,
    backlog::Listener,
    channel::{Channel, Refusal},
    entries::{self, Device, Entry},
    links::{self, Link},
    namespace::{Identity, identity},
    notice::{ContainerSeen, DeviceSeen, ForwardSeen, Notice},
    observe,
};

type Member = (NetworkName, EndpointId);

/// Whose namespace an id stands for. The kernel gives the ids of dead namespaces to new ones, so each says
/// which one it knows.
#[derive(Debug)]
struct Place {
    identity: Identity,
    inside: Inside,
}

#[derive(Debug)]
enum Inside {
    Network {
        name: NetworkName,
        /// By index; of a dead device too, until its index is another's.
        devices: HashMap<u32, Device>,
    },
    Container {
        members: BTreeSet<Member>,
        /// Container ends by index.
        ends: HashMap<u32, Member>,
    },
}

/// The namespaces that are listened to, by their id in the host's.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Who listens.
    pub(crate) listener: Listener,
    places: Mutex<HashMap<i32, Place>>,
    /// It was told that a namespace cannot be listened to.
    complained: AtomicBool,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to a network's namespace from now on; returns whether that is possible.
    pub(crate) fn watch_network(&self, host: &mut Channel, namespace: &File, network: &NetworkName) -> bool {
        let (Some(id), Ok(identity)) = (nsid(host, namespace, &self.complained), identity(namespace)) else {
            return false;
        };
        let inside = Inside::Network {
            name: network.clone(),
            devices: HashMap::new(),
        };
        self.lock().insert(id, Place { identity, inside });
        true
    }

    /// What was seen of a network's devices.
    pub(crate) fn know_devices(&self, network: &NetworkName, seen: &HashMap<u32, Device>) {
        for place in self.lock().values_mut() {
            if let Inside::Network { name, devices } = &mut place.inside
                && name == network
            {
                // What a notification told since is not forgotten: it is newer, or tells the same.
                devices.extend(seen.iter().map(|(index, device)| (*index, device.clone())));
            }
        }
    }

    /// Forgets a network and its endpoints' places.
    pub(crate) fn forget_network(&self, network: &NetworkName) {
        let mut places = self.lock();
        places.retain(|_, place| match &mut place.inside {
            Inside::Network { name, .. } => name != network,
            Inside::Container { members, ends } => {
                members.retain(|(n, _)| n != network);
                ends.retain(|_, (n, _)| n != network);
                !members.is_empty()
            }
        });
    }

    pub(crate) fn watch_container(
        &self,
        host: &mut Channel,
        namespace: &File,
        network: &NetworkName,
        id: &EndpointId,
    ) {
        let (Some(nsid), Ok(identity)) = (nsid(host, namespace, &self.complained), identity(namespace))
        else {
            return;
        };
        let member = (network.clone(), id.clone());
        let mut places = self.lock();
        forget(&mut places, &member, Some(nsid));
        let place = places.entry(nsid).or_insert_with(|| Place::container(identity));
        if place.identity != identity {
            *place = Place::container(identity);
        }
        if let Inside::Container { members, .. } = &mut place.inside {
            members.insert(member);
        }
    }

    /// Where an endpoint's interface was seen.
    pub(crate) fn know_end(&self, network: &NetworkName, id: &EndpointId, index: u32) {
        let member = (network.clone(), id.clone());
        for place in self.lock().values_mut() {
            if let Inside::Container { members, ends } = &mut place.inside
                && members.contains(&member)
            {
                ends.insert(index, member.clone());
            }
        }
    }

    /// Forgets an endpoint that is not here any more.
    pub(crate) fn forget_container(&self, network: &NetworkName, id: &EndpointId) {
        forget(&mut self.lock(), &(network.clone(), id.clone()), None);
    }

    /// A network (0) and a container (1) as if they had been looked into.
    pub(crate) fn of(
        network: &NetworkName,
        devices: HashMap<u32, Device>,
        ends: HashMap<u32, EndpointId>,
    ) -> Self {
        let ends: HashMap<u32, Member> = ends
            .into_iter()
            .map(|(index, id)| (index, (network.clone(), id)))
            .collect();
        let members = ends.values().cloned().collect();
        let inside = [
            Inside::Network {
                name: network.clone(),
                devices,
            },
            Inside::Container { members, ends },
        ];
        let places = (0..).zip(inside).map(|(nsid, inside)| {
            let identity = (0, 0);
            (nsid, Place { identity, inside })
        });
        Self {
            listener: Listener::default(),
            places: Mutex::new(places.collect()),
            complained: AtomicBool::default(),
        }
    }

    /// Reads a notification; `nsid` is none for one of the host's own namespace.
    pub(crate) fn read(&self, nsid: Option<i32>, message: RouteNetlinkMessage, notices: &mut Vec<Notice>) {
        let Some(nsid) = nsid else {
            if is_of_underlay(&message) {
                notices.push(Notice::Underlay);
            }
            return;
        };
        match self.lock().get_mut(&nsid).map(|place| &mut place.inside) {
            Some(Inside::Network { name, devices }) => {
                in_network(name, devices, message, notices);
            }
            Some(Inside::Container { members, ends }) => {
                notices.extend(in_container(members, ends, message));
            }
            None => {}
        }
    }
}

impl Place {
    fn container(identity: Identity) -> Self {
        let inside = Inside::Container {
            members: BTreeSet::new(),
            ends: HashMap::new(),
        };
        Self { identity, inside }
    }
}

fn forget(places: &mut HashMap<i32, Place>, member: &Member, except: Option<i32>) {
    places.retain(|nsid, place| match &mut place.inside {
        Inside::Container { members, ends } if Some(*nsid) != except => {
            members.remove(member);
            ends.retain(|_, m| m != member);
            !members.is_empty()
        }
        _ => true,
    });
}

/// The id of a namespace in the host's, given now if it has none. Without one its notifications do not
/// reach us, and the periodic look has to do.
fn nsid(host: &mut Channel, namespace: &File, complained: &AtomicBool) -> Option<i32> {
    let fd = u32::try_from(namespace.as_raw_fd()).ok()?;
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Id(-1), NsidAttribute::Fd(fd)];
    match host.request(RouteNetlinkMessage::NewNsId(message), NLM_F_CREATE) {
        Ok(_) => {}
        Err(refusal) if refusal.is(Errno::EEXIST) => {}
        Err(refusal) => {
            // With each look at each namespace again.
            if !complained.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    ?refusal,
                    "a namespace cannot be listened to; changes in it are found only by the periodic look"
                );
            }
            return None;
        }
    }
    let mut question = NsidMessage::default();
    question.attributes = vec![NsidAttribute::Fd(fd)];
    let answers: Result<_, Refusal> = host.request(RouteNetlinkMessage::GetNsId(question), 0);
    read_nsid(&answers.ok()?)
}

/// The id that the kernel answered; none if it has given none.
pub(crate) fn read_nsid(answers: &[RouteNetlinkMessage]) -> Option<i32> {
    answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => message.attributes.iter().find_map(|a| match a {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

fn is_of_underlay(message: &RouteNetlinkMessage) -> bool {
    matches!(
        message,
        RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
    )
}

fn in_network(
    network: &NetworkName,
    devices: &mut HashMap<u32, Device>,
    message: RouteNetlinkMessage,
    notices: &mut Vec<Notice>,
) {
    let mut tell = |seen| {
        notices.push(Notice::Device {
            network: network.clone(),
            seen,
        });
    };
    match message {
        // The bridge tells of its ports in messages of its own family: of changed flags only there.
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Bridge => {
            if let Some((name, flags)) = links::read_port_flags(link) {
                tell(DeviceSeen::Flags(name, flags));
            }
        }
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            device(link, devices).into_iter().for_each(tell);
        }
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            // Its entries are told of after it, so its index stays known.
            tell(DeviceSeen::Gone(Link::read(link).name));
        }
        RouteNetlinkMessage::NewNeighbour(message) => notices.extend(entry(network, devices, &message, true)),
        RouteNetlinkMessage::DelNeighbour(message) => {
            notices.extend(entry(network, devices, &message, false));
        }
        _ => {}
    }
}

fn device(message: LinkMessage, devices: &mut HashMap<u32, Device>) -> Vec<DeviceSeen> {
    let link = Link::read(message);
    let bridge = devices
        .iter()
        .find(|(_, device)| **device == Device::Bridge)
        .map(|(index, _)| *index);
    // Before the bridge was heard of, whatever a device is enslaved to is taken for it.
    let master = bridge.or(link.master);
    let seen = if link.is_bridge() {
        Some((Device::Bridge, DeviceSeen::Bridge(link.to_bridge())))
    } else if let Some(family) = link.tunnel_family() {
        link.to_tunnel(master).map(|tunnel| {
            let device = Device::Target(BridgeTarget::Tunnel(family));
            (device, DeviceSeen::Tunnel(family, Box::new(tunnel)))
        })
    } else if link.endpoint().is_some() {
        link.to_port(master).map(|(name, port)| {
            let device = Device::Target(BridgeTarget::Port(name.clone()));
            (device, DeviceSeen::Port(name, Box::new(port)))
        })
    } else {
        None
    };
    let before = match &seen {
        Some((device, _)) => {
            if *device == Device::Bridge {
                devices.retain(|_, other| *other != Device::Bridge);
            }
            devices.insert(link.index, device.clone())
        }
        None => devices.remove(&link.index),
    };
    // What it was it is no more: it was renamed, or lost its alias.
    let gone = before
        .filter(|before| seen.as_ref().is_none_or(|(now, _)| now != before))
        .map(|before| DeviceSeen::Gone(name_of(&before)));
    gone.into_iter().chain(seen.map(|(_, seen)| seen)).collect()
}

fn name_of(device: &Device) -> String {
    match device {
        Device::Bridge => ownership::BRIDGE.to_owned(),
        Device::Target(BridgeTarget::Tunnel(family)) => ownership::tunnel_name(*family).to_owned(),
        Device::Target(BridgeTarget::Port(name)) => name.to_string(),
    }
}

fn entry(
    network: &NetworkName,
    devices: &HashMap<u32, Device>,
    message: &NeighbourMessage,
    there: bool,
) -> Option<Notice> {
    let device = devices.get(&message.header.ifindex);
    let network = network.clone();
    if message.header.family == AddressFamily::Bridge {
        let mac = entries::subject_of_entry(message)?;
        let target = match device {
            Some(Device::Target(target)) => Some(target.clone()),
            _ => None,
        };
        let seen = match (entries::read_entry(message), entries::place_of_entry(message)) {
            (Some(Entry::Bridge(..)), _) if there => ForwardSeen::Bridge(target),
            (Some(Entry::Vtep(_, vtep)), _) if there => ForwardSeen::Vtep(vtep),
            (_, Some(vtep)) if there => ForwardSeen::ForeignVtep(vtep),
            (_, Some(vtep)) => ForwardSeen::NotVtep(vtep),
            // There is one entry of a MAC in the bridge's table: somebody else's is in the place of ours.
            (_, None) if there => ForwardSeen::NotInBridge(None),
            (_, None) => ForwardSeen::NotInBridge(target),
        };
        return Some(Notice::Forward { network, mac, seen });
    }
    // Neighbours on other devices than the bridge are not ours, nor are they in the place of ours.
    if device.is_some_and(|device| *device != Device::Bridge) {
        return None;
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

fn in_container(
    members: &BTreeSet<Member>,
    ends: &mut HashMap<u32, Member>,
    message: RouteNetlinkMessage,
) -> Option<Notice> {
    let (index, seen) = match message {
        RouteNetlinkMessage::NewLink(link) => {
            let link = Link::read(link);
            let ours = link
                .endpoint()
                .map(|of| (of.network, of.id))
                .filter(|of| members.contains(of));
            match ours {
                Some(of) => drop(ends.insert(link.index, of)),
                // Of an interface that is not known to be ours nothing is told; one that was has lost its alias.
                None if !ends.contains_key(&link.index) => return None,
                None => {}
            }
            let seen = link
                .endpoint()
                .and_then(|_| observe::read_interface(&link, ""))
                .map_or(ContainerSeen::Gone, |i| ContainerSeen::Interface(Box::new(i)));
            (link.index, seen)
        }
        RouteNetlinkMessage::DelLink(link) => {
            let of = ends.remove(&link.header.index)?;
            return Some(Notice::Container {
                endpoints: vec![of],
                seen: ContainerSeen::Gone,
            });
        }
        RouteNetlinkMessage::NewAddress(message) => {
            let (index, net, ours) = addresses::subject_of_address(&message)?;
            (index, ContainerSeen::Address(net, ours))
        }
        RouteNetlinkMessage::DelAddress(message) => {
            let (index, net, _) = addresses::subject_of_address(&message)?;
            (index, ContainerSeen::Address(net, false))
        }
        RouteNetlinkMessage::NewRoute(message) => {
            let (index, net, ours) = addresses::subject_of_route(&message)?;
            (index, ContainerSeen::Route(net, ours))
        }
        RouteNetlinkMessage::DelRoute(message) => {
            let (index, net, ours) = addresses::subject_of_route(&message)?;
            // The going of somebody else's says nothing of ours.
            if !ours {
                return None;
            }
            (index, ContainerSeen::Route(net, false))
        }
        _ => return None,
    };
    let endpoints = match ends.get(&index) {
        Some(member) => vec![member.clone()],
        // Not on an interface of ours, or on one whose making has not been told of yet.
        None => return None,
    };
    Some(Notice::Container { endpoints, seen })
}
