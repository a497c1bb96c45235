//! What `-o json` prints: the stable shapes that programs may rely on, and that the tables are made from.
//!
//! Every key is always there; what is not known or not given is `null`. Times are RFC 3339 in UTC, sizes in
//! bytes. Keys may be added with any version; none is renamed, removed or given another type.
//!
//! In: messages of the API. Out: values that serialize. It must not know terminals.

mod cluster;

use std::collections::BTreeMap;

use prost_types::Timestamp;
use serde::Serialize;
use weft_proto::v1::{self, AddressState, EndpointState, EventKind, PeerKind, event};

pub(crate) use cluster::{Audit, Deleted, Held, Removed, Republished};

/// One network; `network list` prints an array of them, ordered by name.
#[derive(Debug, Serialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    /// The VNI in force; null while none is claimed.
    pub(crate) vni: Option<u32>,
    /// The MTU in force on this host; null where the network has no endpoint here.
    pub(crate) mtu: Option<u32>,
    /// The MTU that its record sets; null where that follows from the underlay.
    pub(crate) mtu_set: Option<u32>,
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) multicast: bool,
    /// How long an address that was given up is not chosen again.
    pub(crate) cooldown_seconds: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) local_endpoints: u32,
    /// Known only where the network has an endpoint on this host; else null.
    pub(crate) remote_endpoints: Option<u32>,
    /// Path of the namespace with its bridge and tunnel; null where it has no endpoint on this host.
    pub(crate) namespace: Option<String>,
    pub(crate) revision: i64,
    pub(crate) problems: Vec<Problem>,
}

/// What `network create` and `network update` print.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    #[serde(flatten)]
    pub(crate) network: Network,
    /// What is not refused and not good either: an MTU that the underlay does not carry now.
    pub(crate) warnings: Vec<String>,
}

/// One subnet of a network.
#[derive(Debug, Serialize)]
pub(crate) struct Subnet {
    pub(crate) cidr: String,
    pub(crate) gateway: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) reserved: Vec<String>,
    /// Of the addresses that can be chosen, those in use; null where the network has no endpoint on this host.
    pub(crate) used: Option<u64>,
    /// Of those that are not, the ones that were; null as `used`.
    pub(crate) released: Option<u64>,
    /// How many can be chosen at all, at most 2^64 - 1; null as `used`.
    pub(crate) size: Option<u64>,
}

/// One address; `address list` prints an array of them: held and reserved ones in numerical order, then released
/// ones, the oldest first.
#[derive(Debug, Serialize)]
pub(crate) struct Address {
    /// With prefix length.
    pub(crate) address: String,
    /// "held", "reserved", "released" or "unknown".
    pub(crate) state: &'static str,
    /// The node of the endpoint or reservation that holds it.
    pub(crate) node: Option<String>,
    /// The id of the endpoint or reservation that holds it.
    pub(crate) id: Option<String>,
    pub(crate) revision: i64,
}

/// What `address reserve` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Reservation {
    pub(crate) network: String,
    pub(crate) id: String,
    /// With prefix length.
    pub(crate) addresses: Vec<String>,
    pub(crate) ends: Option<String>,
}

/// What `address release` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Released {
    pub(crate) existed: bool,
}

/// One endpoint; `endpoint list` prints an array of them, ordered by network, node and id.
#[derive(Debug, Serialize)]
pub(crate) struct Endpoint {
    pub(crate) network: String,
    pub(crate) node: String,
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    /// Whether it is on the host of the agent that is asked.
    pub(crate) local: bool,
    /// "pending", "ready", "failed" or "unknown".
    pub(crate) state: &'static str,
    /// Why it is in this state.
    pub(crate) message: Option<String>,
    /// With prefix length.
    pub(crate) addresses: Vec<String>,
    /// Without prefix length.
    pub(crate) requested_addresses: Vec<String>,
    pub(crate) mac: Option<String>,
    pub(crate) vtep: Option<String>,
    pub(crate) attachment: Option<Attachment>,
    /// The host's end of its veth pair; null for an endpoint of another host.
    pub(crate) veth: Option<Veth>,
    pub(crate) mtu: Option<u32>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) revision: i64,
}

/// What `endpoint attach` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Attached {
    #[serde(flatten)]
    pub(crate) endpoint: Endpoint,
    /// The hosts that have caught up; null without --wait.
    pub(crate) converged: Option<Converged>,
}

/// A network whose hosts have caught up; `wait` prints an array of them, ordered by name.
#[derive(Debug, Serialize)]
pub(crate) struct Converged {
    pub(crate) network: String,
    /// The store's revision up to which they have programmed everything, at least.
    pub(crate) revision: i64,
    pub(crate) hosts: Vec<String>,
    /// Hosts that were not waited for: endpoints name them, and they have no peer record. No agent runs there (yet), or the
    /// node was removed.
    pub(crate) unannounced: Vec<String>,
}

/// The container's end of an endpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Attachment {
    pub(crate) netns: String,
    pub(crate) ifname: String,
}

/// The host's end of an endpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Veth {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

/// One peer; `peer list` prints an array of them, ordered by node.
#[derive(Debug, Serialize)]
pub(crate) struct Peer {
    pub(crate) node: String,
    /// "agent", "external" or "unknown".
    pub(crate) kind: &'static str,
    /// Nothing if that is not known.
    pub(crate) alive: Option<bool>,
    pub(crate) alive_since: Option<String>,
    pub(crate) vteps: Vec<String>,
    pub(crate) mtu: Option<u32>,
    pub(crate) boot_id: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) local: bool,
    pub(crate) revision: i64,
}

/// Something that is wrong with one object.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    pub(crate) key: String,
    pub(crate) field: Option<String>,
    pub(crate) message: String,
    pub(crate) since: Option<String>,
}

/// What `status` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) node: String,
    pub(crate) boot_id: Option<String>,
    pub(crate) version: String,
    pub(crate) started: Option<String>,
    pub(crate) uptime_seconds: u64,
    pub(crate) store: Store,
    /// The store's revision that the kernel is programmed up to.
    pub(crate) applied_revision: i64,
    pub(crate) counts: Counts,
    pub(crate) netlink_writes: Tally,
    pub(crate) drift_repaired: Tally,
    pub(crate) passes: Passes,
    pub(crate) problems: Vec<Problem>,
    pub(crate) held_deletions: Option<HeldDeletions>,
}

/// The agent's connection to the store.
#[derive(Debug, Serialize)]
pub(crate) struct Store {
    pub(crate) endpoints: Vec<String>,
    pub(crate) connected: bool,
    pub(crate) since: Option<String>,
    pub(crate) revision: i64,
    pub(crate) cluster_id: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) last_error_time: Option<String>,
}

/// How many there are.
#[derive(Debug, Serialize)]
pub(crate) struct Counts {
    /// Null until the agent has read the records since it started.
    pub(crate) networks: Option<u64>,
    pub(crate) local_networks: u64,
    /// Null as `networks`.
    pub(crate) local_endpoints: Option<u64>,
    /// Null as `networks`.
    pub(crate) ready_endpoints: Option<u64>,
    /// Null as `networks`.
    pub(crate) remote_endpoints: Option<u64>,
    /// Null as `networks`.
    pub(crate) peers: Option<u64>,
    pub(crate) fdb_entries: u64,
    pub(crate) neighbours: u64,
}

/// A number, and how it is made up.
#[derive(Debug, Serialize)]
pub(crate) struct Tally {
    pub(crate) total: u64,
    pub(crate) by_kind: BTreeMap<String, u64>,
}

/// Passes of the reconcile loop.
#[derive(Debug, Serialize)]
pub(crate) struct Passes {
    pub(crate) total: u64,
    pub(crate) full: u64,
}

/// Deletions that wait for confirmation.
#[derive(Debug, Serialize)]
pub(crate) struct HeldDeletions {
    pub(crate) count: u64,
    pub(crate) reason: String,
    pub(crate) since: Option<String>,
    /// At most 100 of them.
    pub(crate) keys: Vec<String>,
}

/// What `events` prints, one a line.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    pub(crate) time: Option<String>,
    /// "endpoint_ready", …: the kinds of the API in lower case, or "unknown".
    pub(crate) kind: String,
    pub(crate) network: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) endpoint_id: Option<String>,
    pub(crate) revision: Option<i64>,
    pub(crate) message: Option<String>,
    /// The object that it is about, as it is now.
    pub(crate) subject: Option<Subject>,
}

/// The object of an event, under the name of its type.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    Network(Box<Network>),
    Endpoint(Box<Endpoint>),
    Peer(Peer),
    Problem(Problem),
    Drift {
        kind: String,
        object: String,
        found: Option<String>,
        wanted: Option<String>,
    },
    Lost(u64),
}

/// What `endpoint detach` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Detached {
    pub(crate) existed: bool,
    /// The record is removed later: the store is not available.
    pub(crate) record_pending: bool,
    /// Where there was none, what there is instead, if anything is to be said.
    pub(crate) note: Option<String>,
}

/// What `resync --accept` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Accepted {
    /// Whether deletions were held at all.
    pub(crate) was_holding: bool,
    /// How many records were held.
    pub(crate) count: u64,
    /// Whether a notice was ended that this node had been removed from the cluster.
    pub(crate) removal_acknowledged: bool,
}

/// What `version` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Versions {
    pub(crate) client: ClientVersion,
    /// Null when the agent cannot be reached.
    pub(crate) agent: Option<AgentVersion>,
}

/// This command.
#[derive(Debug, Serialize)]
pub(crate) struct ClientVersion {
    pub(crate) version: &'static str,
}

/// The agent.
#[derive(Debug, Serialize)]
pub(crate) struct AgentVersion {
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) api: String,
}

pub(crate) fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn positive<T: Default + PartialEq>(number: T) -> Option<T> {
    Some(number).filter(|number| *number != T::default())
}

fn time(at: Option<Timestamp>) -> Option<String> {
    at.map(|at| at.to_string())
}

/// The name of an enum's value without its prefix, in lower case: "ready" of "ENDPOINT_STATE_READY".
fn short(name: &'static str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        None | Some("UNSPECIFIED") => "unknown".to_owned(),
        Some(name) => name.to_ascii_lowercase(),
    }
}

impl From<v1::Network> for Network {
    fn from(network: v1::Network) -> Self {
        let spec = network.spec.unwrap_or_default();
        Self {
            name: network.name,
            vni: positive(network.vni),
            mtu: positive(network.mtu),
            mtu_set: spec.mtu,
            subnets: spec
                .subnets
                .into_iter()
                .map(|subnet| {
                    let usage = network.usage.iter().find(|usage| usage.cidr == subnet.cidr);
                    Subnet::new(subnet, usage)
                })
                .collect(),
            multicast: spec.multicast,
            cooldown_seconds: spec
                .cooldown
                .map_or(0, |time| u64::try_from(time.seconds).unwrap_or(0)),
            labels: spec.labels.into_iter().collect(),
            options: spec.options.into_iter().collect(),
            local_endpoints: network.local_endpoints,
            remote_endpoints: network.remote_endpoints,
            namespace: given(network.namespace_path),
            revision: network.revision,
            problems: network.problems.into_iter().map(Problem::from).collect(),
        }
    }
}

impl Subnet {
    fn new(subnet: v1::Subnet, usage: Option<&v1::SubnetUsage>) -> Self {
        Self {
            used: usage.map(|usage| usage.used),
            released: usage.map(|usage| usage.released),
            size: usage.map(|usage| usage.size),
            cidr: subnet.cidr,
            gateway: given(subnet.gateway),
            range: given(subnet.range),
            reserved: subnet.reserved,
        }
    }
}

impl From<v1::Address> for Address {
    fn from(address: v1::Address) -> Self {
        Self {
            state: match address.state() {
                AddressState::Unspecified => "unknown",
                AddressState::Held => "held",
                AddressState::Reserved => "reserved",
                AddressState::Released => "released",
            },
            address: address.address,
            node: given(address.node),
            id: given(address.id),
            revision: address.revision,
        }
    }
}

impl Reservation {
    pub(crate) fn new(network: String, made: v1::ReserveResponse) -> Self {
        Self {
            network,
            id: made.id,
            addresses: made.addresses,
            ends: time(made.ends),
        }
    }
}

impl From<v1::Endpoint> for Endpoint {
    fn from(endpoint: v1::Endpoint) -> Self {
        let state = match endpoint.state() {
            EndpointState::Unspecified => "unknown",
            EndpointState::Pending => "pending",
            EndpointState::Ready => "ready",
            EndpointState::Failed => "failed",
        };
        let namespace = given(endpoint.veth_namespace);
        Self {
            state,
            network: endpoint.network,
            node: endpoint.node,
            id: endpoint.id,
            name: given(endpoint.name),
            local: endpoint.local,
            message: given(endpoint.message),
            addresses: endpoint.addresses,
            requested_addresses: endpoint.requested_addresses,
            mac: given(endpoint.mac),
            vtep: given(endpoint.vtep),
            attachment: endpoint.attachment.map(|at| Attachment {
                netns: at.netns,
                ifname: at.ifname,
            }),
            veth: given(endpoint.veth).map(|name| Veth { name, namespace }),
            mtu: positive(endpoint.mtu),
            labels: endpoint.labels.into_iter().collect(),
            revision: endpoint.revision,
        }
    }
}

impl From<v1::Convergence> for Converged {
    fn from(converged: v1::Convergence) -> Self {
        Self {
            network: converged.network,
            revision: converged.revision,
            hosts: converged.hosts,
            unannounced: converged.unannounced,
        }
    }
}

impl From<v1::Peer> for Peer {
    fn from(peer: v1::Peer) -> Self {
        Self {
            kind: match peer.kind() {
                PeerKind::Unspecified => "unknown",
                PeerKind::Agent => "agent",
                PeerKind::External => "external",
            },
            node: peer.node,
            alive: peer.alive,
            alive_since: time(peer.alive_since),
            vteps: peer.vteps,
            mtu: positive(peer.mtu),
            boot_id: given(peer.boot_id),
            version: given(peer.version),
            local: peer.local,
            revision: peer.revision,
        }
    }
}

impl From<v1::Problem> for Problem {
    fn from(problem: v1::Problem) -> Self {
        Self {
            key: problem.key,
            field: given(problem.field),
            message: problem.message,
            since: time(problem.since),
        }
    }
}

impl Tally {
    fn new(total: u64, by_kind: Vec<v1::CountByKind>) -> Self {
        Self {
            total,
            by_kind: by_kind.into_iter().map(|each| (each.kind, each.count)).collect(),
        }
    }
}

impl From<v1::AgentStatus> for Status {
    fn from(status: v1::AgentStatus) -> Self {
        let store = status.store.unwrap_or_default();
        let counts = status.counts.unwrap_or_default();
        // Agents that know none of these counts as unknown send no 0; but they too plan nothing before they know the records.
        let known = counts.networks.is_some() || status.applied_revision > 0;
        let count = |count: Option<u64>| known.then(|| count.unwrap_or_default());
        Self {
            node: status.node,
            boot_id: given(status.boot_id),
            version: status.version,
            started: time(status.started),
            uptime_seconds: status
                .uptime
                .map_or(0, |up| u64::try_from(up.seconds).unwrap_or(0)),
            store: Store {
                endpoints: store.endpoints,
                connected: store.connected,
                since: time(store.since),
                revision: store.revision,
                cluster_id: given(store.cluster_id),
                last_error: given(store.last_error),
                last_error_time: time(store.last_error_time),
            },
            applied_revision: status.applied_revision,
            counts: Counts {
                networks: count(counts.networks),
                local_networks: counts.local_networks,
                local_endpoints: count(counts.local_endpoints),
                ready_endpoints: count(counts.ready_endpoints),
                remote_endpoints: count(counts.remote_endpoints),
                peers: count(counts.peers),
                fdb_entries: counts.fdb_entries,
                neighbours: counts.neighbours,
            },
            netlink_writes: Tally::new(status.netlink_writes, status.netlink_writes_by_kind),
            drift_repaired: Tally::new(status.drift_repaired, status.drift_repaired_by_kind),
            passes: Passes {
                total: status.passes,
                full: status.full_passes,
            },
            problems: status.problems.into_iter().map(Problem::from).collect(),
            held_deletions: status.held_deletions.map(|held| HeldDeletions {
                count: held.count,
                reason: held.reason,
                since: time(held.since),
                keys: held.keys,
            }),
        }
    }
}

impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        let kind = EventKind::try_from(event.kind).unwrap_or(EventKind::Unspecified);
        Self {
            time: time(event.time),
            kind: short(kind.as_str_name(), "EVENT_KIND_"),
            network: given(event.network),
            node: given(event.node),
            endpoint_id: given(event.endpoint_id),
            revision: positive(event.revision),
            message: given(event.message),
            subject: event.subject.map(|subject| match subject {
                event::Subject::NetworkState(network) => Subject::Network(Box::new(network.into())),
                event::Subject::Endpoint(endpoint) => Subject::Endpoint(Box::new(endpoint.into())),
                event::Subject::Peer(peer) => Subject::Peer(peer.into()),
                event::Subject::Problem(problem) => Subject::Problem(problem.into()),
                event::Subject::Drift(drift) => Subject::Drift {
                    kind: drift.kind,
                    object: drift.object,
                    found: given(drift.found),
                    wanted: given(drift.wanted),
                },
                event::Subject::Lost(lost) => Subject::Lost(lost),
            }),
        }
    }
}

impl From<v1::VersionResponse> for AgentVersion {
    fn from(version: v1::VersionResponse) -> Self {
        Self {
            version: version.version,
            node: version.node,
            api: version.api,
        }
    }
}
