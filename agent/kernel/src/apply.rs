//! Carrying out a plan: each operation as messages, in order, without choices. Entries go out many at once.

mod attachment;
mod devices;
mod forwarding;

use std::collections::HashMap;

use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use nix::errno::Errno;
use weft_core::{
    ownership,
    plan::{Failures, Op, Outcome, Plan},
};
use weft_store_schema::NetworkName;

use crate::{
    Kernel, KernelError,
    channel::{Channel, Refusal},
    links,
    namespace::Identity,
    refused,
};

/// So many entries are sent before it is seen to that whoever listens to the kernel keeps up.
const AT_ONCE: usize = 4096;

/// One network while a plan is applied to it.
struct Site<'k> {
    kernel: &'k mut Kernel,
    network: &'k NetworkName,
    place: String,
    /// Which namespace it was when the plan began, if there was one.
    within: Option<Identity>,
    /// Indexes of the namespace's links by name, asked for when first needed.
    indexes: HashMap<String, u32>,
    /// They are from before this plan: as good as ever for entries, of which one for a link that is gone is refused.
    remembered: bool,
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
        let (mut is_heard, mut untold) = (true, 0);
        for (network, ops) in &plan.networks {
            self.clear_replaced(network);
            let mut site = Site::new(self, network);
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
                    .take(AT_ONCE)
                    .count();
                let links = rest.iter().take_while(|op| deleted_link(op).is_some()).count();
                let together = if links > 1 { links } else { entries.max(1) };
                let (now, later) = rest.split_at(together);
                let failed = if entries > 0 {
                    let failed = site.entries(now);
                    untold += entries;
                    if untold >= AT_ONCE && is_heard {
                        // Behind for long, it is not waited for again.
                        is_heard = site.kernel.registry.listener.catch_up();
                        untold = 0;
                    }
                    failed
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
            site.leave();
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

impl<'k> Site<'k> {
    fn new(kernel: &'k mut Kernel, network: &'k NetworkName) -> Self {
        // If it cannot be entered, the first operation says why.
        let namespace = kernel.enter(network).ok().flatten();
        let (within, indexes) = namespace
            .map(|namespace| (namespace.identity, std::mem::take(&mut namespace.indexes)))
            .unzip();
        let indexes = indexes.unwrap_or_default();
        Self {
            within,
            remembered: !indexes.is_empty(),
            place: ownership::namespace_name(network),
            kernel,
            network,
            indexes,
            writes: 0,
        }
    }

    /// Leaves what is known of the namespace's links to the next plan, if it is still the same namespace.
    fn leave(self) {
        let namespace = self.kernel.networks.get_mut(self.network);
        if let Some(namespace) = namespace.filter(|namespace| Some(namespace.identity) == self.within) {
            namespace.indexes = self.indexes;
        }
    }

    /// Forgets what was known of the links before this plan: whether there is one decides what is done.
    fn look_again(&mut self) {
        if std::mem::take(&mut self.remembered) {
            self.indexes.clear();
        }
    }

    fn one(&mut self, op: &Op) -> Result<(), KernelError> {
        self.look_again();
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
            Op::PutAddress(id, net) => self.put_address(id, *net),
            Op::DeleteAddress(id, net) => self.delete_address(id, *net),
            Op::PutRoute(id, net) => self.put_route(id, *net),
            Op::DeleteRoute(id, net) => self.delete_route(id, *net),
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
}
