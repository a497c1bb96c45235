//! What is wanted and what is there → what is to be done. Whole values are compared, both ways, over the
//! union of both sides; the order of operations is such that traffic finds its way at every step.

use std::collections::{BTreeSet, HashMap, HashSet};

use ipnet::IpNet;
use weft_store_schema::{EndpointId, EndpointRef, Family, IfName, Mac, NetworkName, NodeName};

use crate::{
    dataplane::{BridgeTarget, Forward, ForwardRow, Interface, Local, Observed, ObservedNetwork},
    desired::{Assessment, Carried, Desired, Devices, Host, Wanted, desired},
    dirty::Dirty,
    ownership,
    plan::{Op, Plan},
    snapshot::Snapshot,
};

/// One pass over a scope: what is to be done there, and what is wrong there.
///
/// The scope widens by itself where a part cannot be judged alone: a network or device that has to be made
/// takes everything in it along.
pub fn plan(snapshot: &Snapshot, host: &Host, observed: &Observed, dirty: &Dirty) -> (Plan, Assessment) {
    let (wanted, assessment) = desired(snapshot, host, observed, dirty);
    let first = diff(&wanted, observed, snapshot.node());
    let wider: BTreeSet<NetworkName> = first
        .networks
        .iter()
        .filter(|(network, ops)| {
            loses_entries(ops, observed.networks.get(*network)) && !is_complete(&wanted, network)
        })
        .map(|(network, _)| network.clone())
        .collect();
    if wider.is_empty() {
        return (first, assessment);
    }
    let mut dirty = dirty.clone();
    dirty.networks.extend(wider);
    let (wanted, assessment) = desired(snapshot, host, observed, &dirty);
    (diff(&wanted, observed, snapshot.node()), assessment)
}

fn is_complete(desired: &Desired, network: &NetworkName) -> bool {
    matches!(
        desired.networks.get(network),
        Some(Wanted::Is(Carried { complete: true, .. }))
    )
}

fn loses_entries(ops: &[Op], observed: Option<&ObservedNetwork>) -> bool {
    ops.iter().any(|op| match op {
        Op::CreateNamespace => observed.is_none(),
        Op::PutBridge(_) => observed.is_none_or(|o| o.bridge.is_none()),
        Op::PutTunnel(family, _) => observed.is_none_or(|o| !o.tunnels.contains_key(family)),
        Op::DeleteTunnel(_) => true,
        _ => false,
    })
}

/// What is to be done for the wanted to become true. Nothing foreign is ever named, since nothing foreign
/// is ever observed.
pub fn diff(desired: &Desired, observed: &Observed, node: &NodeName) -> Plan {
    let mut plan = Plan::default();
    let mut add = |network: &NetworkName, ops: Vec<Op>| {
        if !ops.is_empty() {
            plan.networks.insert(network.clone(), ops);
        }
    };
    for (network, wanted) in &desired.networks {
        let there = observed.networks.get(network);
        match wanted {
            Wanted::Keep => {}
            Wanted::Absent => add(network, there.map(remove).unwrap_or_default()),
            Wanted::Is(carried) => add(network, carry(carried, there, network, node)),
        }
    }
    if desired.complete {
        for (network, there) in &observed.networks {
            if !desired.networks.contains_key(network) {
                add(network, remove(there));
            }
        }
    }
    plan
}

/// Ports and tunnels go one by one before their namespace: the kernel clears a namespace some time after
/// its removal, and until then names, VNI and port would be taken.
fn remove(there: &ObservedNetwork) -> Vec<Op> {
    let ports = there.ports.keys().cloned().map(Op::DeletePort);
    let tunnels = there.tunnels.keys().copied().map(Op::DeleteTunnel);
    ports.chain(tunnels).chain([Op::DeleteNamespace]).collect()
}

fn carry(
    wanted: &Carried,
    there: Option<&ObservedNetwork>,
    network: &NetworkName,
    node: &NodeName,
) -> Vec<Op> {
    let nothing = ObservedNetwork::default();
    let mut ops = Vec::new();
    if there.is_none() {
        if wanted.devices.is_none() {
            // Not enough is spoken of to make the network; `plan` comes back with all of it.
            return vec![Op::CreateNamespace];
        }
        ops.push(Op::CreateNamespace);
    }
    let there = there.unwrap_or(&nothing);
    if there.unmounted {
        ops.push(Op::CreateNamespace);
    }
    let mut lost = Lost::default();
    if let Some(devices) = &wanted.devices {
        diff_devices(devices, there, &mut ops, &mut lost);
    }

    let mut ports_gone = Vec::new();
    let mut locals = Vec::new();
    let absent = stale_ports(wanted, there, network, node);
    for port in absent {
        lost.ports.insert(port.clone());
        ports_gone.push(Op::DeletePort(port));
    }
    for (id, wanted) in &wanted.locals {
        if let Wanted::Is(local) = wanted {
            diff_local(id, local, there, &mut ports_gone, &mut locals, &mut lost);
        }
    }

    let made: HashSet<&IfName> = wanted
        .locals
        .values()
        .filter_map(|local| match local {
            Wanted::Is(local) => Some(&local.port_name),
            _ => None,
        })
        .collect();
    let mut late = Vec::new();
    let mut local_forwards = Vec::new();
    let row_there = |mac: &Mac| {
        there
            .forwards
            .get(mac)
            .map(|row| lost.without(row))
            .unwrap_or_default()
    };
    for (mac, wanted) in sorted(&wanted.forwards) {
        let row = row_there(mac);
        match wanted {
            Wanted::Keep => {}
            // Looked at alone, before its endpoint's turn has come: the entry is put together with the port.
            Wanted::Is(Forward::Local(port)) if !will_be(port, &made, there, &lost) => {
                drop_row(*mac, &row, &mut late);
            }
            Wanted::Is(forward @ Forward::Local(_)) => {
                diff_forward(*mac, forward, &row, &mut local_forwards, &mut late);
            }
            Wanted::Is(forward @ Forward::Remote(_)) => {
                diff_forward(*mac, forward, &row, &mut ops, &mut late);
            }
            Wanted::Absent => drop_row(*mac, &row, &mut late),
        }
    }
    for (address, wanted) in sorted(&wanted.neighbours) {
        let mac = there.neighbours.get(address);
        match wanted {
            Wanted::Keep => {}
            Wanted::Is(wanted) if mac == Some(wanted) && !lost.bridge => {}
            Wanted::Is(wanted) => ops.push(Op::PutNeighbour(*address, *wanted)),
            Wanted::Absent if mac.is_some() && !lost.bridge => late.push(Op::DeleteNeighbour(*address)),
            Wanted::Absent => {}
        }
    }
    if wanted.complete && !wanted.keep_unexplained {
        for mac in sorted(&there.forwards)
            .map(|(mac, _)| mac)
            .filter(|mac| !wanted.forwards.contains_key(*mac))
        {
            drop_row(*mac, &row_there(mac), &mut late);
        }
        let unexplained = there
            .neighbours
            .keys()
            .filter(|a| !wanted.neighbours.contains_key(a) && !lost.bridge);
        late.extend(
            unexplained
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(Op::DeleteNeighbour),
        );
    }

    ops.append(&mut ports_gone);
    ops.append(&mut locals);
    ops.append(&mut local_forwards);
    ops.append(&mut late);
    ops
}

/// Whether there is such a port when the plan is carried out.
fn will_be(port: &IfName, made: &HashSet<&IfName>, there: &ObservedNetwork, lost: &Lost) -> bool {
    made.contains(port) || there.ports.contains_key(port) && !lost.ports.contains(port)
}

/// A plan is a value: the same input gives the same order.
fn sorted<K: Ord, V>(map: &HashMap<K, V>) -> impl Iterator<Item = (&K, &V)> {
    let mut pairs: Vec<_> = map.iter().collect();
    pairs.sort_unstable_by(|a, b| a.0.cmp(b.0));
    pairs.into_iter()
}

/// What goes along when a device goes, and so does not count as there.
#[derive(Default)]
struct Lost {
    bridge: bool,
    tunnels: BTreeSet<Family>,
    ports: BTreeSet<IfName>,
}

impl Lost {
    fn without(&self, row: &ForwardRow) -> ForwardRow {
        if !self.bridge && self.tunnels.is_empty() && self.ports.is_empty() {
            return row.clone();
        }
        let bridge = row.bridge().filter(|target| match target {
            BridgeTarget::Port(port) => !self.ports.contains(port),
            BridgeTarget::Tunnel(family) => !self.tunnels.contains(family),
        });
        let vteps = row.vteps().iter().copied();
        ForwardRow::new(
            bridge.filter(|_| !self.bridge),
            vteps
                .filter(|v| !self.tunnels.contains(&Family::of(*v)))
                .collect(),
        )
    }
}

fn diff_devices(wanted: &Devices, there: &ObservedNetwork, ops: &mut Vec<Op>, lost: &mut Lost) {
    lost.bridge = there.bridge.is_none();
    if there.bridge.as_ref() != Some(&wanted.bridge) {
        ops.push(Op::PutBridge(wanted.bridge.clone()));
    }
    for (family, tunnel) in &there.tunnels {
        if !wanted.tunnels.get(family).is_some_and(|w| tunnel.can_become(w)) {
            lost.tunnels.insert(*family);
            ops.push(Op::DeleteTunnel(*family));
        }
    }
    for (family, tunnel) in &wanted.tunnels {
        if !there.tunnels.contains_key(family) {
            lost.tunnels.insert(*family);
        }
        if lost.tunnels.contains(family) || there.tunnels.get(family) != Some(tunnel) {
            ops.push(Op::PutTunnel(*family, tunnel.clone()));
        }
    }
}

/// Host ends that are there for endpoints that should not be.
fn stale_ports(
    wanted: &Carried,
    there: &ObservedNetwork,
    network: &NetworkName,
    node: &NodeName,
) -> BTreeSet<IfName> {
    let port_of = |id: &EndpointId| {
        ownership::port_name(&EndpointRef {
            network: network.clone(),
            node: node.clone(),
            id: id.clone(),
        })
    };
    // Where the devices are spoken of, so are all local endpoints.
    if wanted.devices.is_some() && !wanted.keep_ports {
        let named: BTreeSet<IfName> = wanted
            .locals
            .iter()
            .filter(|(_, w)| !matches!(w, Wanted::Absent))
            .map(|(id, _)| port_of(id))
            .collect();
        return there
            .ports
            .keys()
            .filter(|port| !named.contains(*port))
            .cloned()
            .collect();
    }
    wanted
        .locals
        .iter()
        .filter(|(_, w)| matches!(w, Wanted::Absent))
        .map(|(id, _)| port_of(id))
        .filter(|port| there.ports.contains_key(port))
        .collect()
}

/// What has to go goes before anything comes: two endpoints may have changed places.
fn diff_local(
    id: &EndpointId,
    wanted: &Local,
    there: &ObservedNetwork,
    gone: &mut Vec<Op>,
    ops: &mut Vec<Op>,
    lost: &mut Lost,
) {
    let create = |ops: &mut Vec<Op>| ops.push(Op::CreateLocal(id.clone(), Box::new(wanted.clone())));
    let Some(port) = there.ports.get(&wanted.port_name) else {
        return create(ops);
    };
    let interface = match there.interfaces.get(id) {
        Some(interface) if interface.attachment == wanted.interface.attachment => Some(interface),
        // It cannot be seen whether the other end is as it should be, so nothing is done to it.
        None if there.unseen.contains(id) => None,
        _ => {
            lost.ports.insert(wanted.port_name.clone());
            gone.push(Op::DeletePort(wanted.port_name.clone()));
            return create(ops);
        }
    };
    if *port != wanted.port {
        ops.push(Op::PutPort(
            id.clone(),
            wanted.port_name.clone(),
            wanted.port.clone(),
        ));
    }
    if let Some(interface) = interface {
        diff_interface(id, &wanted.interface, interface, ops);
    }
}

fn diff_interface(id: &EndpointId, wanted: &Interface, there: &Interface, ops: &mut Vec<Op>) {
    let link = |i: &Interface| (i.alias.clone(), i.mac, i.mtu, i.up);
    if link(wanted) != link(there) {
        ops.push(Op::PutInterface(id.clone(), Box::new(wanted.clone())));
    }
    // The kernel has one entry of an IPv6 address on a device, whatever its prefix length: put over it, another
    // length is not taken, and the old one's deletion then takes the address away. So the old one goes first.
    let stands_in_the_way =
        |old: &IpNet| old.addr().is_ipv6() && wanted.addresses.iter().any(|new| new.addr() == old.addr());
    let (first, last): (Vec<IpNet>, Vec<IpNet>) = there
        .addresses
        .difference(&wanted.addresses)
        .partition(|old| stands_in_the_way(old));
    ops.extend(first.into_iter().map(|a| Op::DeleteAddress(id.clone(), a)));
    // A device that comes up again has lost its routes: they are put after it, whatever was seen.
    let rises = wanted.up && !there.up;
    ops.extend(
        wanted
            .addresses
            .difference(&there.addresses)
            .map(|a| Op::PutAddress(id.clone(), *a)),
    );
    ops.extend(
        wanted
            .routes
            .iter()
            .filter(|r| rises || !there.routes.contains(*r))
            .map(|r| Op::PutRoute(id.clone(), *r)),
    );
    ops.extend(
        there
            .routes
            .difference(&wanted.routes)
            .map(|r| Op::DeleteRoute(id.clone(), *r)),
    );
    ops.extend(last.into_iter().map(|a| Op::DeleteAddress(id.clone(), a)));
}

fn diff_forward(mac: Mac, wanted: &Forward, row: &ForwardRow, puts: &mut Vec<Op>, late: &mut Vec<Op>) {
    let goal = ForwardRow::of(wanted);
    let put = row.bridge() != goal.bridge() || goal.vteps().iter().any(|v| !row.vteps().contains(v));
    if put {
        puts.push(Op::PutForward(mac, wanted.clone()));
    }
    for vtep in row.vteps().iter().filter(|v| !goal.vteps().contains(v)) {
        // Putting replaces the VTEP in the same device; deleting the old one then would find nothing.
        let replaced = put && goal.vteps().iter().any(|v| v.is_ipv4() == vtep.is_ipv4());
        if !replaced {
            late.push(Op::DeleteVtep(mac, *vtep));
        }
    }
}

fn drop_row(mac: Mac, row: &ForwardRow, late: &mut Vec<Op>) {
    late.extend(row.bridge().map(|target| Op::DeleteBridgeEntry(mac, target)));
    late.extend(row.vteps().iter().map(|vtep| Op::DeleteVtep(mac, *vtep)));
}

/// Whether an endpoint is carried by this host as its record says: a local one attached and reachable, a
/// remote one forwarded to.
pub fn in_place(snapshot: &Snapshot, host: &Host, observed: &Observed, endpoint: &EndpointRef) -> bool {
    let Some(value) = snapshot.endpoint(endpoint).and_then(|slot| slot.value.as_ref()) else {
        return false;
    };
    let mut dirty = Dirty::default();
    dirty.endpoints.insert(endpoint.clone());
    if let Some(mac) = value.mac {
        dirty.mac(&endpoint.network, mac);
    }
    for address in &value.addresses {
        dirty.address(&endpoint.network, *address);
    }
    let (wanted, _) = desired(snapshot, host, observed, &dirty);
    let Some(Wanted::Is(carried)) = wanted.networks.get(&endpoint.network) else {
        return false;
    };
    let there = observed.networks.get(&endpoint.network);
    let known = if endpoint.node == *snapshot.node() {
        // Nothing is done to what was not looked into, such as containers before the records told of them: that says
        // nothing about how it is.
        let was_seen = !there.is_some_and(|there| there.unseen.contains(&endpoint.id));
        was_seen && matches!(carried.locals.get(&endpoint.id), Some(Wanted::Is(_)))
    } else {
        value
            .mac
            .and_then(|mac| carried.forwards.get(&mac))
            .is_some_and(|w| matches!(w, Wanted::Is(_)))
    };
    let made = there.is_some_and(|there| there.bridge.is_some());
    known && made && diff(&wanted, observed, snapshot.node()).is_empty()
}
