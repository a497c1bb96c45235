//! Carrying out a plan: each operation as messages, in order, without choices. Entries go out many at once.

use std::{
    collections::HashMap,
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
    dataplane::{Bridge, BridgeTarget, Forward, Interface, Local, Port, PortFlags, Tunnel},
    ownership,
    plan::{Failures, Op, Outcome, Plan},
};
use weft_store_schema::{EndpointId, Family, IfName, NetworkName};

use crate::{
    Kernel, KernelError, addresses,
    channel::{Channel, Refusal},
    entries, links, namespace, refused,
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

/// One network while a plan is applied to it.
struct Site<'k> {
    kernel: &'k mut Kernel,
    network: &'k NetworkName,
    place: String,
    /// Indexes of the namespace's links by name, asked for when first needed.
    indexes: HashMap<String, u32>,
    writes: u64,
}

impl Kernel {
    /// Carries out a plan. What an operation needs and has failed holds it back; everything else is tried.
    pub fn apply(&mut self, plan: &Plan) -> Outcome<KernelError> {
        let mut outcome = Outcome {
            done: 0,
            writes: 0,
            failed: Vec::new(),
            held_back: Vec::new(),
        };
        for (network, ops) in &plan.networks {
            let mut site = Site {
                kernel: self,
                network,
                place: ownership::namespace_name(network),
                indexes: HashMap::new(),
                writes: 0,
            };
            let mut failures = Failures::default();
            let mut rest = ops.as_slice();
            while let Some(op) = rest.first() {
                if failures.hold_back(op) {
                    failures.note(op);
                    outcome.held_back.push((network.clone(), op.clone()));
                    rest = &rest[1..];
                    continue;
                }
                let entries = rest
                    .iter()
                    .take_while(|op| is_entry(op) && !failures.hold_back(op))
                    .count();
                let links = rest.iter().take_while(|op| deleted_link(op).is_some()).count();
                let together = if links > 1 { links } else { entries.max(1) };
                let (now, later) = rest.split_at(together);
                let failed = if entries > 0 {
                    site.entries(now)
                } else if links > 1 {
                    site.delete_links(now)
                } else {
                    site.one(op).err().map(|error| (0, error)).into_iter().collect()
                };
                outcome.done += now.len() - failed.len();
                for (i, error) in failed {
                    failures.note(&now[i]);
                    outcome.failed.push((network.clone(), now[i].clone(), error));
                }
                rest = later;
            }
            outcome.writes += site.writes;
        }
        outcome
    }
}

/// The device that an operation removes.
fn deleted_link(op: &Op) -> Option<&str> {
    match op {
        Op::DeletePort(name) => Some(name.as_str()),
        Op::DeleteTunnel(family) => Some(ownership::tunnel_name(*family)),
        _ => None,
    }
}

fn is_entry(op: &Op) -> bool {
    matches!(
        op,
        Op::PutForward(..)
            | Op::DeleteVtep(..)
            | Op::DeleteBridgeEntry(..)
            | Op::PutNeighbour(..)
            | Op::DeleteNeighbour(_)
    )
}

fn is_deletion(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteVtep(..) | Op::DeleteBridgeEntry(..) | Op::DeleteNeighbour(_)
    )
}

/// Deleting what is gone already is done.
fn unless_gone(result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(refusal)
            if [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL]
                .iter()
                .any(|e| refusal.is(*e)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Containers are often made with IPv6 off for all that comes (Docker's are): an endpoint that has an IPv6
/// address needs it on its own interface, and on no other.
fn allow_ipv6(container: &File, ifname: &str, netns: &str) -> Result<(), KernelError> {
    let path = Path::new("/proc/sys/net/ipv6/conf")
        .join(ifname)
        .join("disable_ipv6");
    let allowed = namespace::within(container, || match fs::read_to_string(&path) {
        Ok(now) if now.trim() != "0" => fs::write(&path, "0"),
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
    fn one(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::CreateNamespace => self.create_namespace(),
            Op::DeleteNamespace => self.delete_namespace(),
            Op::PutBridge(bridge) => self.put_bridge(bridge),
            Op::PutTunnel(family, tunnel) => self.put_tunnel(*family, tunnel),
            Op::DeleteTunnel(family) => self.delete_link(ownership::tunnel_name(*family)),
            Op::DeletePort(name) => {
                self.delete_link(name.as_str())?;
                self.kernel.forget_container(self.network, name.as_str());
                Ok(())
            }
            Op::CreateLocal(id, local) => self.create_local(id, local),
            Op::PutPort(_, name, port) => self.put_port(name, port),
            Op::PutInterface(id, interface) => self.put_interface(id, interface),
            Op::PutAddress(id, net) => {
                let end = self.container_end(id)?;
                if net.addr().is_ipv6() {
                    allow_ipv6(&end.file, &end.ifname, &end.netns)?;
                }
                let message = |index| {
                    (
                        RouteNetlinkMessage::NewAddress(addresses::address(index, *net)),
                        NLM_F_CREATE | NLM_F_REPLACE,
                    )
                };
                self.request_at(end, id, message, &format!("give {net} to"))
            }
            Op::DeleteAddress(id, net) => self.delete_address(id, *net),
            Op::PutRoute(id, net) => {
                let mut end = self.container_end(id)?;
                self.writes += 1;
                put_route(&mut end.channel, end.index, *net, &end.netns)
            }
            Op::DeleteRoute(id, net) => self.interface_request(
                id,
                |index| (RouteNetlinkMessage::DelRoute(addresses::route(index, *net)), 0),
                &format!("take the route {net} from"),
            ),
            Op::PutForward(..)
            | Op::DeleteVtep(..)
            | Op::DeleteBridgeEntry(..)
            | Op::PutNeighbour(..)
            | Op::DeleteNeighbour(_) => Ok(()),
        }
    }

    fn channel(&mut self) -> Result<&mut Channel, KernelError> {
        match self.kernel.enter(self.network)? {
            Some(namespace) => Ok(&mut namespace.channel),
            None => Err(KernelError::NoNamespace {
                place: self.place.clone(),
            }),
        }
    }

    fn index(&mut self, name: &str) -> Result<u32, KernelError> {
        if let Some(index) = self.indexes.get(name) {
            return Ok(*index);
        }
        let place = self.place.clone();
        let index =
            links::index_of(self.channel()?, name, &place)?.ok_or_else(|| KernelError::NoInterface {
                place,
                ifname: name.to_owned(),
            })?;
        self.indexes.insert(name.to_owned(), index);
        Ok(index)
    }

    fn exists(&mut self, name: &str) -> Result<bool, KernelError> {
        match self.index(name) {
            Ok(_) => Ok(true),
            Err(KernelError::NoInterface { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends link messages in order; the first that is refused ends it.
    fn send(&mut self, what: &str, messages: Vec<(LinkMessage, u16)>) -> Result<(), KernelError> {
        for (message, flags) in messages {
            self.writes += 1;
            let what = format!("{what} in {}", self.place);
            self.channel()?
                .request(RouteNetlinkMessage::NewLink(message), flags)
                .map_err(|r| refused(what, r))?;
        }
        Ok(())
    }

    fn create_namespace(&mut self) -> Result<(), KernelError> {
        self.kernel.forget(self.network);
        let path = self.kernel.path_of(self.network);
        self.writes += u64::from(namespace::create(&path)?);
        self.indexes.clear();
        // The sockets in it and its notifications.
        self.channel().map(drop)
    }

    fn delete_namespace(&mut self) -> Result<(), KernelError> {
        self.kernel.forget(self.network);
        self.kernel.containers.retain(|(n, _), _| n != self.network);
        self.writes += 1;
        namespace::remove(&self.kernel.path_of(self.network))
    }

    fn put_bridge(&mut self, bridge: &Bridge) -> Result<(), KernelError> {
        let what = format!("make bridge {}", ownership::BRIDGE);
        if bridge.ipv6 {
            // Of devices that are there; for one to be made the default counts.
            self.sysctl(&format!("net/ipv6/conf/{}/disable_ipv6", ownership::BRIDGE), "0")?;
        }
        let mut messages = vec![(links::set_bridge(bridge), 0)];
        if !self.exists(ownership::BRIDGE)? {
            messages.insert(0, (links::new_bridge(bridge), NLM_F_CREATE | NLM_F_EXCL));
        }
        self.send(&what, messages)
    }

    fn sysctl(&mut self, name: &str, value: &str) -> Result<(), KernelError> {
        let path = Path::new("/proc/sys").join(name);
        let what = format!("set {} to {value} in {}", name.replace('/', "."), self.place);
        let Some(namespace) = self.kernel.enter(self.network)? else {
            return Ok(());
        };
        let written = namespace::within(&namespace.file, || match fs::read_to_string(&path) {
            Ok(now) if now.trim() != value => fs::write(&path, value).map(|()| true),
            Ok(_) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        });
        match written.and_then(|inner| inner) {
            Ok(changed) => {
                self.writes += u64::from(changed);
                Ok(())
            }
            Err(source) => Err(KernelError::Refused {
                what,
                hint: None,
                source,
            }),
        }
    }

    fn put_tunnel(&mut self, family: Family, tunnel: &Tunnel) -> Result<(), KernelError> {
        let name = ownership::tunnel_name(family);
        let bridge = self.index(ownership::BRIDGE)?;
        let exists = self.exists(name)?;
        if !exists {
            let Some(namespace) = self.kernel.enter(self.network)? else {
                return Err(KernelError::NoNamespace {
                    place: self.place.clone(),
                });
            };
            let fd = namespace.file.as_raw_fd();
            let message = links::new_tunnel(family, tunnel, fd);
            let what = format!(
                "make vxlan device {name} with VNI {} on UDP port {} in {}",
                tunnel.vni, tunnel.port, self.place
            );
            self.writes += 1;
            // Asked for from the host's namespace, the device's UDP socket is there.
            self.kernel
                .host
                .request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
                .map_err(|r| refused(what, r))?;
        }
        let mut messages = vec![(links::set_master(name, bridge), 0)];
        let flags = tunnel.bridge_port.unwrap_or(PortFlags::TUNNEL);
        messages.push((links::set_port_flags(name, flags), 0));
        if exists {
            messages.push((links::set_tunnel(family, tunnel), 0));
        }
        // Up last: until then nothing is flooded.
        messages.push((links::set_tunnel_link(family, tunnel), 0));
        // The UDP socket is made when the device comes up.
        let what = format!("set up vxlan device {name} (UDP port {})", tunnel.port);
        self.send(&what, messages).map_err(|error| match error {
            KernelError::Refused { what, source, .. }
                if source.raw_os_error() == Some(Errno::EADDRINUSE as i32) =>
            {
                KernelError::Refused {
                    what: format!(
                        "{what}; another program on this host has the port (`ss -lunp sport = :{}` names it), and \
                         another port would have to be that of all hosts",
                        tunnel.port
                    ),
                    hint: None,
                    source,
                }
            }
            other => other,
        })
    }

    /// Removes several devices at once. One by one, the kernel waits for grace periods (20 ms and more) after
    /// each; so they are put into a device group, and the group is removed.
    fn delete_links(&mut self, ops: &[Op]) -> Vec<(usize, KernelError)> {
        let names = || ops.iter().filter_map(deleted_link);
        let group = links::doomed_group();
        let together = self.channel().and_then(|channel| {
            let into_group =
                names().map(|name| (RouteNetlinkMessage::NewLink(links::set_group(name, group)), 0));
            // Refused are those that are gone already.
            drop(channel.batch(into_group.collect()));
            let doomed = RouteNetlinkMessage::DelLink(links::delete_group(group));
            unless_gone(channel.request(doomed, 0).map(drop))
                .map_err(|r| refused("remove devices together".to_owned(), r))
        });
        if let Err(error) = together {
            tracing::debug!(%error, "devices are removed one by one");
        }
        self.writes += names().count() as u64;
        let mut failed = Vec::new();
        for (i, op) in ops.iter().enumerate() {
            let Some(name) = deleted_link(op) else { continue };
            self.indexes.remove(name);
            let left = match self.exists(name) {
                Ok(true) => self.delete_link(name),
                Ok(false) | Err(KernelError::NoNamespace { .. }) => Ok(()),
                Err(error) => Err(error),
            };
            match left {
                Ok(()) => self.kernel.forget_container(self.network, name),
                Err(error) => failed.push((i, error)),
            }
        }
        failed
    }

    fn delete_link(&mut self, name: &str) -> Result<(), KernelError> {
        let what = format!("remove {name} from {}", self.place);
        self.indexes.remove(name);
        let channel = match self.channel() {
            Ok(channel) => channel,
            Err(KernelError::NoNamespace { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let deleted = channel
            .request(RouteNetlinkMessage::DelLink(links::delete(name)), 0)
            .map(drop);
        self.writes += 1;
        unless_gone(deleted).map_err(|r| refused(what, r))
    }

    fn create_local(&mut self, id: &EndpointId, local: &Local) -> Result<(), KernelError> {
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
        if made.as_ref().is_err_and(|refusal| refusal.is(Errno::EEXIST)) && self.is_half_made(port_name)? {
            self.delete_link(port_name.as_str())?;
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

    fn put_port(&mut self, name: &IfName, port: &Port) -> Result<(), KernelError> {
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

    fn delete_address(&mut self, id: &EndpointId, net: IpNet) -> Result<(), KernelError> {
        let end = self.container_end(id)?;
        if net.addr().is_ipv4() {
            // Of a subnet's addresses the first is primary, and the others go with it unless they are
            // promoted. The setting is that of our own interface.
            let path = Path::new("/proc/sys/net/ipv4/conf")
                .join(&end.ifname)
                .join("promote_secondaries");
            let promoted = namespace::within(&end.file, || fs::write(&path, "1"));
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

    fn put_interface(&mut self, id: &EndpointId, interface: &Interface) -> Result<(), KernelError> {
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

    /// Forwarding entries and neighbours, as many as there are in a row.
    fn entries(&mut self, ops: &[Op]) -> Vec<(usize, KernelError)> {
        let mut failed = Vec::new();
        let mut messages = Vec::with_capacity(ops.len());
        let mut places = Vec::with_capacity(ops.len());
        for (i, op) in ops.iter().enumerate() {
            match self.entry(op) {
                Ok(Some(message)) => {
                    if let Some(obstacle) = self.obstacle(op) {
                        messages.push(obstacle);
                        places.push((i, true));
                    }
                    messages.push(message);
                    places.push((i, is_deletion(op)));
                }
                Ok(None) => {}
                Err(error) => failed.push((i, error)),
            }
        }
        self.writes += messages.len() as u64;
        let refusals = match self.channel() {
            Ok(channel) => channel.batch(messages),
            Err(_) => (0..messages.len()).map(|i| (i, Refusal::Lost)).collect(),
        };
        for (i, refusal) in refusals {
            let (i, deletes) = places[i];
            let result = if deletes {
                unless_gone(Err(refusal))
            } else {
                Err(refusal)
            };
            if let Err(refusal) = result {
                failed.push((
                    i,
                    refused(format!("{} of {}", describe(&ops[i]), self.place), refusal),
                ));
            }
        }
        failed.sort_by_key(|(i, _)| *i);
        // An operation of two messages fails once.
        failed.dedup_by_key(|(i, _)| *i);
        failed
    }

    /// What has to go before an entry can be put: in a tunnel's table an entry that a user has made without
    /// `NTF_EXT_LEARNED` does not take that flag any more, and would stay somebody else's for ever.
    fn obstacle(&mut self, op: &Op) -> Option<(RouteNetlinkMessage, u16)> {
        let Op::PutForward(mac, Forward::Remote(vtep)) = op else {
            return None;
        };
        let tunnel = self.index(ownership::tunnel_name(Family::of(*vtep))).ok()?;
        let namespace = self.kernel.networks.get_mut(self.network)?;
        let message = || RouteNetlinkMessage::DelNeighbour(entries::delete_vteps(tunnel, *mac));
        namespace.foreign.remove(&(tunnel, *mac)).then(|| (message(), 0))
    }

    /// The message of an entry's operation; none if the device is gone and the deletion thereby done.
    fn entry(&mut self, op: &Op) -> Result<Option<(RouteNetlinkMessage, u16)>, KernelError> {
        let replace = NLM_F_CREATE | NLM_F_REPLACE;
        let put = |message| Some((RouteNetlinkMessage::NewNeighbour(message), replace));
        let delete = |message| Some((RouteNetlinkMessage::DelNeighbour(message), 0));
        Ok(match op {
            Op::PutForward(mac, Forward::Remote(vtep)) => {
                let tunnel = self.index(ownership::tunnel_name(Family::of(*vtep)))?;
                put(entries::put_remote(tunnel, *mac, *vtep))
            }
            Op::PutForward(mac, Forward::Local(port)) => {
                put(entries::put_local(self.index(port.as_str())?, *mac))
            }
            Op::PutNeighbour(of, mac) => put(entries::neighbour(
                self.index(ownership::BRIDGE)?,
                *of,
                Some(*mac),
            )),
            Op::DeleteVtep(mac, vtep) => match self.index(ownership::tunnel_name(Family::of(*vtep))) {
                Ok(tunnel) => delete(entries::delete_vtep(tunnel, *mac, *vtep)),
                Err(KernelError::NoInterface { .. } | KernelError::NoNamespace { .. }) => None,
                Err(error) => return Err(error),
            },
            Op::DeleteBridgeEntry(mac, target) => {
                let name = match target {
                    BridgeTarget::Port(port) => port.to_string(),
                    BridgeTarget::Tunnel(family) => ownership::tunnel_name(*family).to_owned(),
                };
                match self.index(&name) {
                    Ok(port) => delete(entries::delete_bridge_entry(port, *mac)),
                    Err(KernelError::NoInterface { .. } | KernelError::NoNamespace { .. }) => None,
                    Err(error) => return Err(error),
                }
            }
            Op::DeleteNeighbour(of) => match self.index(ownership::BRIDGE) {
                Ok(bridge) => delete(entries::neighbour(bridge, *of, None)),
                Err(KernelError::NoInterface { .. } | KernelError::NoNamespace { .. }) => None,
                Err(error) => return Err(error),
            },
            _ => None,
        })
    }
}

fn describe(op: &Op) -> String {
    match op {
        Op::PutForward(mac, Forward::Remote(vtep)) => format!("put the forwarding entry {mac} to {vtep}"),
        Op::PutForward(mac, Forward::Local(port)) => format!("put the forwarding entry {mac} to {port}"),
        Op::DeleteVtep(mac, vtep) => format!("remove the forwarding entry {mac} to {vtep}"),
        Op::DeleteBridgeEntry(mac, _) => format!("remove the bridge's entry {mac}"),
        Op::PutNeighbour(of, mac) => format!("put the neighbour {of} at {mac}"),
        Op::DeleteNeighbour(of) => format!("remove the neighbour {of}"),
        other => format!("{other:?}"),
    }
}
