//! Forwarding entries and neighbours: many in one send, each failure given to its operation.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use weft_core::{
    dataplane::{BridgeTarget, Forward},
    ownership,
    plan::Op,
};
use weft_store_schema::Family;

use super::{Site, unless_gone};
use crate::{KernelError, channel::Refusal, entries, refused};

impl Site<'_> {
    /// Forwarding entries and neighbours, as many as there are in a row.
    pub(super) fn entries(&mut self, ops: &[Op]) -> Vec<(usize, KernelError)> {
        loop {
            let (failed, misled) = self.try_entries(ops);
            if !misled {
                return failed;
            }
            // Somebody has made a link anew since the last plan. What was carried out may be so again.
            self.look_again();
        }
    }

    /// The same; and whether a link was not there any more that is remembered from an earlier plan.
    fn try_entries(&mut self, ops: &[Op]) -> (Vec<(usize, KernelError)>, bool) {
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
        let misled = self.remembered && refusals.iter().any(|(_, refusal)| refusal.is(Errno::ENODEV));
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
        (failed, misled)
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

fn is_deletion(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteVtep(..) | Op::DeleteBridgeEntry(..) | Op::DeleteNeighbour(_)
    )
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
