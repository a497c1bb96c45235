//! A network's namespace, bridge and tunnels: made, put right and removed.

use std::{fs, io, os::fd::AsRawFd, path::Path};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use nix::errno::Errno;
use weft_core::{
    dataplane::{Bridge, PortFlags, Tunnel},
    ownership,
    plan::Op,
};
use weft_store_schema::Family;

use super::{Site, deleted_link, unless_gone};
use crate::{KernelError, channel::Refusal, fault, links, namespace, refused};

impl Site<'_> {
    pub(super) fn create_namespace(&mut self) -> Result<(), KernelError> {
        let path = self.kernel.path_of(self.network);
        let held = self.kernel.networks.get(self.network);
        let made = match held.filter(|_| self.kernel.is_unmounted(self.network)) {
            Some(held) => namespace::mount_again(&held.file, &path)?,
            None => {
                self.kernel.forget(self.network);
                namespace::create(&path)?
            }
        };
        self.writes += u64::from(made);
        self.indexes.clear();
        // The sockets in it and its notifications.
        self.channel().map(drop)
    }

    pub(super) fn delete_namespace(&mut self) -> Result<(), KernelError> {
        self.kernel.forget(self.network);
        self.kernel.containers.retain(|(n, _), _| n != self.network);
        self.writes += 1;
        namespace::remove(&self.kernel.path_of(self.network))
    }

    pub(super) fn put_bridge(&mut self, bridge: &Bridge) -> Result<(), KernelError> {
        let what = format!("make bridge {}", ownership::BRIDGE);
        if bridge.ipv6 {
            // Of devices that are there; for one to be made the default counts.
            self.sysctl(&format!("net/ipv6/conf/{}/disable_ipv6", ownership::BRIDGE), "0")?;
        }
        if !bridge.filtered {
            self.unfilter()?;
        }
        let mut messages = vec![(links::set_bridge(bridge), 0)];
        if !self.exists(ownership::BRIDGE)? {
            messages.insert(0, (links::new_bridge(bridge), NLM_F_CREATE | NLM_F_EXCL));
        }
        self.send(&what, messages)
    }

    fn unfilter(&mut self) -> Result<(), KernelError> {
        let what = format!("set net.bridge.bridge-nf-call-* to 0 in {}", self.place);
        let Some(namespace) = self.kernel.enter(self.network)? else {
            return Ok(());
        };
        self.writes += namespace.unfilter().map_err(|source| KernelError::Refused {
            what,
            hint: None,
            source,
        })?;
        Ok(())
    }

    fn sysctl(&mut self, name: &str, value: &str) -> Result<(), KernelError> {
        let path = Path::new("/proc/sys").join(name);
        let what = format!("set {} to {value} in {}", name.replace('/', "."), self.place);
        let Some(namespace) = self.kernel.enter(self.network)? else {
            return Ok(());
        };
        let written = namespace::within(&namespace.file, || match fs::read_to_string(&path) {
            Ok(now) if now.trim() != value => fault::change()
                .and_then(|()| fs::write(&path, value))
                .map(|()| true),
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

    pub(super) fn put_tunnel(&mut self, family: Family, tunnel: &Tunnel) -> Result<(), KernelError> {
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
            let mut made = self.make_tunnel(&message);
            if made.as_ref().is_err_and(|refusal| refusal.is(Errno::EEXIST))
                && let Some(renamed) = self.renamed_tunnel(tunnel)?
            {
                self.delete_link(&renamed)?;
                made = self.make_tunnel(&message);
            }
            made.map_err(|r| refused(what, r))?;
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

    /// Asked for from the host's namespace, the device's UDP socket is there.
    fn make_tunnel(&mut self, message: &LinkMessage) -> Result<(), Refusal> {
        self.writes += 1;
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let host = &mut self.kernel.host;
        host.request(RouteNetlinkMessage::NewLink(message.clone()), flags)
            .map(drop)
    }

    /// A tunnel of ours that somebody has renamed: in the network's own namespace, nobody else has its VNI.
    fn renamed_tunnel(&mut self, wanted: &Tunnel) -> Result<Option<String>, KernelError> {
        let place = self.place.clone();
        let links = links::dump(self.channel()?, &place)?;
        let is_it = |link: &links::Link| {
            let tunnel = link.to_tunnel(None);
            tunnel.is_some_and(|tunnel| tunnel.can_become(wanted))
        };
        Ok(links.into_iter().find(is_it).map(|link| link.name))
    }

    /// Removes several devices at once. One by one, the kernel waits for grace periods (20 ms and more) after
    /// each; so they are put into a device group, and the group is removed.
    pub(super) fn delete_links(&mut self, ops: &[Op]) -> Vec<(usize, KernelError)> {
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

    pub(super) fn delete_link(&mut self, name: &str) -> Result<(), KernelError> {
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
}
