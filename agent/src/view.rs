//! The loop's state as the API shows it. Reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    time::SystemTime,
};

use weft_core::{
    claims,
    members::{Members, Slot},
    ownership,
    record::Entry,
};
use weft_proto::v1;
use weft_store_schema::{
    AliveDocument, Endpoint, EndpointRef, Family, Holder, Key, Network, NetworkName, NodeName, Peer,
    PeerKind, Vni, decode,
};

use crate::{drift::Kind, metrics::Figures, node::VERSION, problems::Source, reconcile::Reconciler};

/// A network; none while its record was never valid.
pub(crate) fn network(
    r: &Reconciler,
    name: &NetworkName,
    slot: &Slot<Network>,
    netns_dir: &Path,
) -> Option<v1::Network> {
    let network = slot.value.as_ref()?;
    let members = r.snapshot.members(name);
    let all = members.map_or(0, Members::count);
    let local = members.map_or(0, |m| m.count_on(&r.node.name));
    // Elsewhere only the own ones are.
    let followed = r.snapshot.takes_part(name) && r.snapshot.knows_members(name);
    let there = r.observed.networks.get(name);
    Some(v1::Network {
        name: name.to_string(),
        spec: Some(v1::NetworkSpec {
            subnets: network
                .subnets
                .iter()
                .map(|s| v1::Subnet {
                    cidr: s.net.to_string(),
                    gateway: s.gateway.map(|g| g.to_string()).unwrap_or_default(),
                    range: match (s.range.first, s.range.last) {
                        (first, last) if first == s.net.network() && last == s.net.broadcast() => {
                            String::new()
                        }
                        (first, last) => format!("{first}-{last}"),
                    },
                    reserved: s
                        .reserved
                        .iter()
                        .map(|r| format!("{}-{}", r.first, r.last))
                        .collect(),
                })
                .collect(),
            vni: network.vni.map(Vni::get),
            mtu: network.mtu.map(|m| m.get().into()),
            multicast: network.multicast,
            labels: network.labels.clone().into_iter().collect(),
            options: network.options.clone().into_iter().collect(),
            cooldown: prost_types::Duration::try_from(network.cooldown)
                .ok()
                .filter(|time| time.seconds > 0),
        }),
        vni: network.vni.map_or(0, Vni::get),
        mtu: there.and_then(|t| t.bridge.as_ref()).map_or(0, |b| b.mtu.into()),
        local_endpoints: u32::try_from(local).unwrap_or(u32::MAX),
        remote_endpoints: followed.then(|| u32::try_from(all - local).unwrap_or(u32::MAX)),
        namespace_path: there
            .map(|_| {
                netns_dir
                    .join(ownership::namespace_name(name))
                    .display()
                    .to_string()
            })
            .unwrap_or_default(),
        revision: slot.mod_revision,
        problems: r.problems.of_to_proto(&Key::Network(name.clone()).to_string()),
        usage: members
            .filter(|_| r.snapshot.knows_claims(name))
            .map(|members| subnet_usage(network, members))
            .unwrap_or_default(),
    })
}

fn subnet_usage(network: &Network, members: &Members) -> Vec<v1::SubnetUsage> {
    let few = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    let all = claims::fullness(network, members).into_iter();
    all.map(|subnet| v1::SubnetUsage {
        cidr: subnet.net.to_string(),
        used: few(subnet.used),
        released: few(subnet.released),
        size: few(subnet.size),
    })
    .collect()
}

/// An address with the prefix length of its subnet, if it has one.
pub(crate) fn with_length(r: &Reconciler, network: &NetworkName, address: IpAddr) -> String {
    let network = r.snapshot.network(network).and_then(|s| s.value.as_ref());
    let length = network
        .and_then(|n| n.subnet_of(address))
        .map(|s| s.net.prefix_len());
    length.map_or_else(|| address.to_string(), |length| format!("{address}/{length}"))
}

/// A network's addresses that are held or reserved, and those that were.
pub(crate) fn addresses(r: &Reconciler, network: &NetworkName, released: bool) -> Vec<v1::Address> {
    let Some(members) = r.snapshot.members(network) else {
        return Vec::new();
    };
    let claimed = members.claims().map(|(address, slot)| {
        let claim = slot.value.as_ref();
        v1::Address {
            address: with_length(r, network, address),
            state: match claim.map(|claim| claim.holder) {
                Some(Holder::Endpoint) => v1::AddressState::Held,
                Some(Holder::Reservation) => v1::AddressState::Reserved,
                None => v1::AddressState::Unspecified,
            }
            .into(),
            node: claim.map(|c| c.node.to_string()).unwrap_or_default(),
            id: claim.map(|c| c.id.to_string()).unwrap_or_default(),
            revision: slot.mod_revision,
        }
    });
    let released = members
        .released()
        .filter(|(_, address)| released && members.claim(*address).is_none());
    let released = released.map(|(revision, address)| v1::Address {
        address: with_length(r, network, address),
        state: v1::AddressState::Released.into(),
        revision,
        ..v1::Address::default()
    });
    claimed.chain(released).collect()
}

/// An endpoint in view.
pub(crate) fn endpoint_by_name(r: &Reconciler, name: &EndpointRef) -> Option<v1::Endpoint> {
    let slot = r.snapshot.endpoint(name)?;
    Some(endpoint(r, name, slot.value.as_ref()?, slot.mod_revision))
}

/// Endpoints in view, of one network or all but some, on one node or all.
pub(crate) fn endpoints(
    r: &Reconciler,
    network: Option<&NetworkName>,
    node: Option<&NodeName>,
    except: &BTreeSet<NetworkName>,
) -> Vec<v1::Endpoint> {
    let mut endpoints = Vec::new();
    for (name, members) in r.snapshot.all_members() {
        if network.is_some_and(|n| n != name) || except.contains(name) {
            continue;
        }
        for (on, id, slot) in members.endpoints() {
            if node.is_some_and(|n| n != on) {
                continue;
            }
            let Some(value) = &slot.value else { continue };
            let name = EndpointRef {
                network: name.clone(),
                node: on.clone(),
                id: id.clone(),
            };
            endpoints.push(endpoint(r, &name, value, slot.mod_revision));
        }
    }
    endpoints
}

/// An endpoint, in view or read from the store.
pub(crate) fn endpoint(r: &Reconciler, name: &EndpointRef, value: &Endpoint, revision: i64) -> v1::Endpoint {
    let local = name.node == r.node.name;
    let in_view = r.snapshot.endpoint(name).is_some();
    let (state, message) = if in_view {
        r.state_of(name)
    } else {
        (
            v1::EndpointState::Unspecified,
            "this host takes no part in the network and does not forward to it".to_owned(),
        )
    };
    let port = ownership::port_name(name);
    let there = r.observed.networks.get(&name.network);
    let veth = there.filter(|_| local).and_then(|n| n.ports.get(&port));
    let peer = r.snapshot.peer(&name.node);
    v1::Endpoint {
        network: name.network.to_string(),
        node: name.node.to_string(),
        id: name.id.to_string(),
        name: value.name().unwrap_or_default().to_owned(),
        attachment: Some(v1::Attachment {
            netns: value.netns().to_owned(),
            ifname: value.attachment().ifname.to_string(),
        }),
        addresses: value
            .addresses
            .iter()
            .map(|a| with_length(r, &name.network, *a))
            .collect(),
        requested_addresses: value.requested().iter().map(ToString::to_string).collect(),
        mac: value.mac.map(|m| m.to_string()).unwrap_or_default(),
        vtep: peer
            .and_then(|p| Family::ALL.into_iter().find_map(|f| p.vtep(f)))
            .map(|v| v.to_string())
            .unwrap_or_default(),
        veth: veth.map(|_| port.to_string()).unwrap_or_default(),
        veth_namespace: veth
            .map(|_| {
                r.node
                    .netns_dir
                    .join(ownership::namespace_name(&name.network))
                    .display()
                    .to_string()
            })
            .unwrap_or_default(),
        state: state.into(),
        message,
        mtu: veth.map_or(0, |v| v.mtu.into()),
        labels: value
            .labels()
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .collect(),
        revision,
        local,
    }
}

/// Who is present, and what they say of it as far as that can be read.
pub(crate) type Present = BTreeMap<NodeName, Option<AliveDocument>>;

/// Who is present, by the records of presence.
pub(crate) fn present(r: &Reconciler, alive: &[Entry]) -> Present {
    let node = |entry: &Entry| match r.snapshot.prefix().parse(&entry.key) {
        Ok(Key::Alive(node)) => Some((node, decode(&entry.value).ok())),
        _ => None,
    };
    alive.iter().filter_map(node).collect()
}

/// All peers, with who is present if that is known.
pub(crate) fn peers(r: &Reconciler, present: Option<&Present>) -> Vec<v1::Peer> {
    r.snapshot
        .peers()
        .filter_map(|(node, slot)| peer(r, node, slot, present))
        .collect()
}

/// A peer, and its presence if that was looked up; none while its record was never valid.
pub(crate) fn peer(
    r: &Reconciler,
    node: &NodeName,
    slot: &Slot<Peer>,
    present: Option<&Present>,
) -> Option<v1::Peer> {
    let peer = slot.value.as_ref()?;
    Some(v1::Peer {
        node: node.to_string(),
        vteps: peer.vteps().map(|v| v.to_string()).collect(),
        mtu: peer.mtu.get().into(),
        boot_id: peer.boot_id.as_deref().unwrap_or_default().to_owned(),
        version: peer.agent_version.as_deref().unwrap_or_default().to_owned(),
        kind: match peer.kind {
            PeerKind::Agent => v1::PeerKind::Agent,
            PeerKind::External => v1::PeerKind::External,
        }
        .into(),
        alive: present.map(|present| present.contains_key(node)),
        alive_since: present
            .and_then(|present| present.get(node)?.as_ref())
            .map(|a| (SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(a.since.min(1 << 40))).into()),
        local: *node == r.node.name,
        revision: slot.mod_revision,
    })
}

/// How the agent is.
pub(crate) fn status(r: &Reconciler) -> v1::AgentStatus {
    let health = r.store.health();
    let (local, remote) = r.endpoint_counts();
    let since = SystemTime::now() - health.since.elapsed();
    let uptime = r.node.begun.elapsed();
    let count = |n: usize| n as u64;
    let known = r.has_read_records();
    let by_kind = |counts: Vec<(Kind, u64)>| {
        counts
            .into_iter()
            .map(|(kind, count)| v1::CountByKind {
                kind: kind.name().to_owned(),
                count,
            })
            .collect()
    };
    let (passes, full_passes) = r.metrics.passes();
    let drift = r.metrics.drift();
    v1::AgentStatus {
        node: r.node.name.to_string(),
        boot_id: r.node.boot_id.clone(),
        version: VERSION.to_owned(),
        started: Some(r.node.started.into()),
        uptime: prost_types::Duration::try_from(uptime).ok(),
        store: Some(v1::StoreStatus {
            endpoints: health.endpoints,
            connected: r.is_connected(),
            since: Some(since.into()),
            revision: health.revision,
            cluster_id: health.cluster_id.map(|id| format!("{id:x}")).unwrap_or_default(),
            last_error: health.last_error.unwrap_or_default(),
            last_error_time: health.last_error_at.map(Into::into),
        }),
        applied_revision: r.reached.applied(),
        counts: Some(v1::StatusCounts {
            networks: known.then(|| count(r.snapshot.networks().count())),
            local_networks: count(r.observed.networks.len()),
            local_endpoints: known.then_some(local),
            ready_endpoints: known.then(|| r.ready_endpoints()),
            remote_endpoints: known.then_some(remote),
            peers: known.then(|| count(r.snapshot.peers().count())),
            fdb_entries: r
                .observed
                .networks
                .values()
                .map(|n| count(n.forwards.len()))
                .sum(),
            neighbours: r
                .observed
                .networks
                .values()
                .map(|n| count(n.neighbours.len()))
                .sum(),
        }),
        netlink_writes: r.metrics.writes(),
        netlink_writes_by_kind: by_kind(r.metrics.changes()),
        drift_repaired: drift.iter().map(|(_, count)| count).sum(),
        drift_repaired_by_kind: by_kind(drift),
        passes,
        full_passes,
        problems: r.problems.to_proto(),
        held_deletions: r.surely_held().map(|(keys, reason, since)| v1::HeldDeletions {
            count: count(keys.len()),
            reason,
            since: since.map(Into::into),
            keys: keys.iter().take(100).map(ToString::to_string).collect(),
        }),
    }
}

/// The loop's state in figures.
pub(crate) fn figures(r: &Reconciler) -> Figures {
    let (local_endpoints, remote_endpoints) = r.endpoint_counts();
    let networks = r.observed.networks.values();
    Figures {
        ready: r.is_ready(),
        applied_revision: r.reached.applied(),
        networks: r
            .snapshot
            .networks()
            .filter(|(_, slot)| slot.value.is_some())
            .count() as u64,
        local_networks: r.observed.networks.len() as u64,
        local_endpoints,
        ready_endpoints: r.ready_endpoints(),
        remote_endpoints,
        peers: r
            .snapshot
            .peers()
            .filter(|(_, slot)| slot.value.is_some())
            .count() as u64,
        fdb_entries: networks.clone().map(|n| n.forwards.len() as u64).sum(),
        neighbours: networks.map(|n| n.neighbours.len() as u64).sum(),
        problems: Source::ALL
            .into_iter()
            .map(|source| (source.name(), r.problems.count(source) as u64))
            .collect(),
        held_deletions: r.held_deletions().map_or(0, |(keys, ..)| keys.len() as u64),
        chores_owed: r.book.owed() as u64,
        kernel_busy: r.busy_for().unwrap_or_default().as_secs_f64(),
    }
}
