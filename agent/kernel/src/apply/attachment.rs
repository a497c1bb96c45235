//! A local endpoint's veth pair: the host end as a port of the bridge, the container end with its addresses and routes.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use nix::errno::Errno;
use weft_core::{
    dataplane::{Interface, Local, Port, PortFlags},
    ownership,
};
use weft_store_schema::{EndpointId, IfName};

use super::{Site, unless_gone};
use crate::{
    Kernel, KernelError, addresses,
    channel::{Channel, Refusal},
    entries, fault, links, namespace, refused,
};

/// How long a new veth pair's host end may take to come up. It takes milliseconds, a second on a host that is busy.
const CARRIER_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at it.
const CARRIER_LOOK: Duration = Duration::from_micros(200);

/// The container end of an endpoint's veth, and a socket beside it.
struct ContainerEnd {
    file: File,
    netns: String,
    channel: Channel,
    index: u32,
    ifname: String,
}

/// Containers are often made with IPv6 off for all that comes (Docker's are): an endpoint that has an IPv6
/// address needs it on its own interface, and on no other.
fn allow_ipv6(container: &File, ifname: &str, netns: &str) -> Result<(), KernelError> {
    let path = Path::new("/proc/sys/net/ipv6/conf")
        .join(ifname)
        .join("disable_ipv6");
    let allowed = namespace::within(container, || match fs::read_to_string(&path) {
        Ok(now) if now.trim() != "0" => fault::change().and_then(|()| fs::write(&path, "0")),
        Ok(_) => Ok(()),
        // Without IPv6 in the kernel the address itself is refused, with its reason.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    });
    allowed
        .and_then(|inner| inner)
        .map_err(|source| KernelError::Refused {
            what: format!("enable IPv6 on {ifname} in {netns}"),
            hint: None,
            source,
        })
}

/// Makes an on-link route. A `replace` alone would also take the place of a route through another interface, since
/// the kernel looks at destination and metric only: it comes when the route that is there is on our own.
fn put_route(channel: &mut Channel, index: u32, net: IpNet, netns: &str) -> Result<(), KernelError> {
    let message = || RouteNetlinkMessage::NewRoute(addresses::route(index, net));
    let what = || format!("give {netns} the route {net}");
    match channel.request(message(), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.is(Errno::EEXIST) => {
            if !addresses::has_route(channel, index, net, netns)? {
                return Err(KernelError::Refused {
                    what: format!("{}; it has one through another interface", what()),
                    hint: None,
                    source: io::Error::from_raw_os_error(Errno::EEXIST as i32),
                });
            }
            let replaced = channel.request(message(), NLM_F_CREATE | NLM_F_REPLACE);
            replaced.map(drop).map_err(|r| refused(what(), r))
        }
        Err(refusal) => Err(refused(what(), refusal)),
    }
}

impl Site<'_> {
    pub(super) fn create_local(&mut self, id: &EndpointId, local: &Local) -> Result<(), KernelError> {
        let Local {
            port_name,
            port,
            interface,
        } = local;
        let netns = interface.attachment.netns.to_string();
        let ifname = &interface.attachment.ifname;
        let bridge = self.index(ownership::BRIDGE)?;
        let container = self.kernel.open_attachment(&netns)?;
        self.kernel
            .watch_container(&container, &netns, self.network, id, port_name);
        let mut channel = Kernel::channel_in(&container, &netns)?;
        let message = links::new_veth(
            port_name.as_str(),
            port,
            bridge,
            ifname.as_str(),
            interface.mac,
            interface.mtu,
            container.as_raw_fd(),
        );
        let mut made = self.make_veth(&message);
        if made.as_ref().is_err_and(|refusal| refusal.is(Errno::EEXIST)) {
            if self.is_half_made(port_name)? {
                self.delete_link(port_name.as_str())?;
            }
            self.delete_stale_end(id, port_name, &mut channel, (ifname.as_str(), &netns))?;
            made = self.make_veth(&message);
        }
        match made {
            Ok(_) => {}
            Err(refusal)
                if refusal.is(Errno::EEXIST)
                    && links::dump(&mut channel, &netns)?
                        .iter()
                        .any(|link| link.name == ifname.as_str() && !self.is_end_of(link, id)) =>
            {
                return Err(KernelError::InterfaceExists {
                    netns,
                    ifname: ifname.to_string(),
                });
            }
            Err(refusal) => {
                return Err(refused(
                    format!(
                        "make the veth pair {port_name} in {} and {ifname} in {netns}",
                        self.place
                    ),
                    refusal,
                ));
            }
        }
        let finished = self.finish_local(local, &container, &mut channel, &netns);
        if finished.is_err() {
            // Half a veth would be found as an interface that is not the endpoint's.
            if let Err(error) = self.delete_link(port_name.as_str()) {
                tracing::warn!(%error, "a veth pair that was made half-way stays");
            }
        }
        finished
    }

    fn is_end_of(&self, link: &links::Link, id: &EndpointId) -> bool {
        link.endpoint()
            .is_some_and(|e| e.network == *self.network && e.id == *id)
    }

    fn make_veth(&mut self, message: &LinkMessage) -> Result<(), Refusal> {
        self.writes += 1;
        let channel = self.channel().map_err(|_| Refusal::Lost)?;
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        channel
            .request(RouteNetlinkMessage::NewLink(message.clone()), flags)
            .map(drop)
    }

    /// Whether a host end bears the name of ours but not the alias: a process that ended between making a pair
    /// and naming it leaves that, and as long as it is there the pair cannot be made.
    fn is_half_made(&mut self, port_name: &IfName) -> Result<bool, KernelError> {
        let place = self.place.clone();
        let links = links::dump(self.channel()?, &place)?;
        Ok(links
            .iter()
            .any(|link| link.name == port_name.as_str() && link.is_veth() && link.endpoint().is_none()))
    }

    /// Removes a container end of ours whose host end is not where it should be: somebody renamed it, or took it elsewhere.
    fn delete_stale_end(
        &mut self,
        id: &EndpointId,
        port_name: &IfName,
        channel: &mut Channel,
        (ifname, netns): (&str, &str),
    ) -> Result<(), KernelError> {
        let place = self.place.clone();
        let port = links::index_of(self.channel()?, port_name.as_str(), &place)?;
        let mut links = links::dump(channel, netns)?.into_iter();
        let is_stale = |link: &links::Link| port.is_none() || link.peer != port;
        if links.any(|link| link.name == ifname && self.is_end_of(&link, id) && is_stale(&link)) {
            self.writes += 1;
            let deleted = channel.request(RouteNetlinkMessage::DelLink(links::delete(ifname)), 0);
            unless_gone(deleted.map(drop))
                .map_err(|r| refused(format!("remove {ifname} from {netns}"), r))?;
        }
        Ok(())
    }

    /// Waits until a host end whose other end has just come up can send. The kernel gives it its queue a little
    /// later, from a work queue (net/core/link_watch.c); until then it drops what the bridge sends through
    /// it, such as the answer to the container's first ARP request, which is asked again only after a second.
    ///
    /// The container end is waited for, too: IPv6 takes a link into use when it has become operational.
    fn await_carrier(&mut self, name: &str, inside: (&mut Channel, &str, &str)) -> Result<(), KernelError> {
        let deadline = Instant::now() + CARRIER_PATIENCE;
        let place = self.place.clone();
        let (channel, ifname, netns) = inside;
        while !links::is_operational(self.channel()?, name, &place)?
            || !links::is_operational(channel, ifname, netns)?
        {
            if Instant::now() > deadline {
                // Nothing is wrong with it; the first packets may be lost.
                tracing::debug!(port = name, "no carrier yet");
                break;
            }
            thread::sleep(CARRIER_LOOK);
        }
        Ok(())
    }

    /// Waits until the container end listens for its IPv6 addresses' solicited-node groups (RFC 4291 section
    /// 2.7.1). The kernel joins them from a work queue, also without duplicate address detection, and what
    /// asks for the address before goes unheard, to ask again only after a second. Read from procfs, because
    /// the packet crate does not know RTM_GETMULTICAST.
    fn await_groups(&self, container: &File, interface: &Interface) -> Result<(), KernelError> {
        let groups: Vec<String> = interface
            .addresses
            .iter()
            .filter_map(|net| match net.addr() {
                IpAddr::V6(address) => {
                    let [.., a, b, c] = address.octets();
                    Some(format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}"))
                }
                IpAddr::V4(_) => None,
            })
            .collect();
        if groups.is_empty() {
            return Ok(());
        }
        let ifname = interface.attachment.ifname.as_str();
        let deadline = Instant::now() + CARRIER_PATIENCE;
        let listens = || -> io::Result<()> {
            while Instant::now() < deadline {
                let joined = fs::read_to_string("/proc/thread-self/net/igmp6")?;
                let is_joined = |group: &String| {
                    joined.lines().any(|line| {
                        let mut words = line.split_whitespace().skip(1);
                        words.next() == Some(ifname) && words.next() == Some(group)
                    })
                };
                if groups.iter().all(is_joined) {
                    break;
                }
                thread::sleep(CARRIER_LOOK);
            }
            Ok(())
        };
        let source = match namespace::within(container, listens) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(source)) | Err(source) => source,
        };
        // Without IPv6 in the kernel there is no such file, and no such address could have been given.
        Err(KernelError::Refused {
            what: format!(
                "see which groups {ifname} in {} listens to",
                interface.attachment.netns
            ),
            hint: None,
            source,
        })
    }

    fn finish_local(
        &mut self,
        local: &Local,
        container: &File,
        channel: &mut Channel,
        netns: &str,
    ) -> Result<(), KernelError> {
        let Local {
            port_name,
            port,
            interface,
        } = local;
        let name = port_name.as_str();
        let flags = port.bridge_port.unwrap_or(PortFlags::ENDPOINT);
        let bridge = self.index(ownership::BRIDGE)?;
        let what = format!("set up {name}");
        // The alias once more: a kernel that makes nothing of it in the request that makes the device would
        // leave us without what says that it is ours.
        self.send(
            &what,
            vec![
                (links::set_port_flags(name, flags), 0),
                (links::set_port(name, port, bridge), 0),
            ],
        )?;
        let ifname = interface.attachment.ifname.as_str();
        let index = links::index_of(channel, ifname, netns)?.ok_or_else(|| KernelError::NoInterface {
            place: netns.to_owned(),
            ifname: ifname.to_owned(),
        })?;
        let link = links::set_interface(
            index,
            &interface.alias,
            interface.mac,
            interface.mtu,
            interface.up,
        );
        self.writes += 1;
        channel
            .request(RouteNetlinkMessage::NewLink(link), 0)
            .map_err(|r| refused(format!("set up {ifname} in {netns}"), r))?;
        // Whoever waits for an address to appear sends the moment that it does: by then the way back has to be
        // there. The plan puts the forwarding entry, too, but only after this.
        let port_index = self.index(name)?;
        self.writes += 1;
        self.channel()?
            .request(
                RouteNetlinkMessage::NewNeighbour(entries::put_local(port_index, interface.mac)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
            .map_err(|r| refused(format!("put the forwarding entry {} to {name}", interface.mac), r))?;
        if port.up && interface.up {
            self.await_carrier(name, (channel, ifname, netns))?;
        }
        if interface.addresses.iter().any(|net| net.addr().is_ipv6()) {
            allow_ipv6(container, ifname, netns)?;
        }
        let mut messages = Vec::new();
        let replace = NLM_F_CREATE | NLM_F_REPLACE;
        for net in &interface.addresses {
            messages.push((
                RouteNetlinkMessage::NewAddress(addresses::address(index, *net)),
                replace,
            ));
        }
        self.writes += (messages.len() + interface.routes.len()) as u64;
        if let Some((_, refusal)) = channel.batch(messages).into_iter().next() {
            return Err(refused(format!("give {ifname} in {netns} its address"), refusal));
        }
        for net in &interface.routes {
            put_route(channel, index, *net, netns)?;
        }
        if port.up && interface.up {
            self.await_groups(container, interface)?;
        }
        Ok(())
    }

    pub(super) fn put_port(&mut self, name: &IfName, port: &Port) -> Result<(), KernelError> {
        let bridge = self.index(ownership::BRIDGE)?;
        let flags = port.bridge_port.unwrap_or(PortFlags::ENDPOINT);
        let name = name.as_str();
        // Enslaved first: flags are the port's, which comes with the bridge.
        let messages = vec![
            (links::set_port(name, port, bridge), 0),
            (links::set_port_flags(name, flags), 0),
        ];
        self.send(&format!("set up {name}"), messages)
    }

    /// The container end of an endpoint's veth, found again by its alias and its other end.
    fn container_end(&mut self, id: &EndpointId) -> Result<ContainerEnd, KernelError> {
        let missing = || KernelError::Lost {
            what: format!("the interface of endpoint {id} of network {}", self.network),
        };
        let (file, netns): (File, String) = {
            let place = self
                .kernel
                .containers
                .get(&(self.network.clone(), id.clone()))
                .map(|container| container.path.clone())
                .ok_or_else(missing)?;
            (self.kernel.open_attachment(&place)?, place)
        };
        let mut channel = Kernel::channel_in(&file, &netns)?;
        let link = links::dump(&mut channel, &netns)?
            .into_iter()
            .find(|link| self.is_end_of(link, id))
            .ok_or_else(missing)?;
        Ok(ContainerEnd {
            file,
            netns,
            channel,
            index: link.index,
            ifname: link.name,
        })
    }

    pub(super) fn put_address(&mut self, id: &EndpointId, net: IpNet) -> Result<(), KernelError> {
        let end = self.container_end(id)?;
        if net.addr().is_ipv6() {
            allow_ipv6(&end.file, &end.ifname, &end.netns)?;
        }
        let message = |index| {
            (
                RouteNetlinkMessage::NewAddress(addresses::address(index, net)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
        };
        self.request_at(end, id, message, &format!("give {net} to"))
    }

    pub(super) fn put_route(&mut self, id: &EndpointId, net: IpNet) -> Result<(), KernelError> {
        let mut end = self.container_end(id)?;
        self.writes += 1;
        put_route(&mut end.channel, end.index, net, &end.netns)
    }

    pub(super) fn delete_route(&mut self, id: &EndpointId, net: IpNet) -> Result<(), KernelError> {
        self.interface_request(
            id,
            |index| (RouteNetlinkMessage::DelRoute(addresses::route(index, net)), 0),
            &format!("take the route {net} from"),
        )
    }

    pub(super) fn delete_address(&mut self, id: &EndpointId, net: IpNet) -> Result<(), KernelError> {
        let end = self.container_end(id)?;
        if net.addr().is_ipv4() {
            // Of a subnet's addresses the first is primary, and the others go with it unless they are
            // promoted. The setting is that of our own interface.
            let path = Path::new("/proc/sys/net/ipv4/conf")
                .join(&end.ifname)
                .join("promote_secondaries");
            let promoted =
                namespace::within(&end.file, || fault::change().and_then(|()| fs::write(&path, "1")));
            if let Err(source) = promoted.and_then(|inner| inner) {
                return Err(KernelError::Refused {
                    what: format!("keep the other addresses of {} in {}", end.ifname, end.netns),
                    hint: None,
                    source,
                });
            }
        }
        let message = |index| (RouteNetlinkMessage::DelAddress(addresses::address(index, net)), 0);
        self.request_at(end, id, message, &format!("take {net} from"))
    }

    pub(super) fn put_interface(
        &mut self,
        id: &EndpointId,
        interface: &Interface,
    ) -> Result<(), KernelError> {
        let mut end = self.container_end(id)?;
        let link = links::set_interface(
            end.index,
            &interface.alias,
            interface.mac,
            interface.mtu,
            interface.up,
        );
        self.writes += 1;
        end.channel
            .request(RouteNetlinkMessage::NewLink(link), 0)
            .map(drop)
            .map_err(|r| refused(format!("set up {} in {}", end.ifname, end.netns), r))
    }

    fn interface_request(
        &mut self,
        id: &EndpointId,
        message: impl FnOnce(u32) -> (RouteNetlinkMessage, u16),
        what: &str,
    ) -> Result<(), KernelError> {
        let end = self.container_end(id)?;
        self.request_at(end, id, message, what)
    }

    fn request_at(
        &mut self,
        mut end: ContainerEnd,
        id: &EndpointId,
        message: impl FnOnce(u32) -> (RouteNetlinkMessage, u16),
        what: &str,
    ) -> Result<(), KernelError> {
        let (message, flags) = message(end.index);
        self.writes += 1;
        let result = end.channel.request(message, flags).map(drop);
        let result = if flags == 0 { unless_gone(result) } else { result };
        result.map_err(|r| {
            refused(
                format!("{what} the interface of endpoint {id} in {}", end.netns),
                r,
            )
        })
    }
}
