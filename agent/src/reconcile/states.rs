//! What the loop tells: how endpoints are, what records did, the status record.

use std::collections::BTreeSet;

use weft_core::{
    desired::{self, look_into},
    diff,
    dirty::Dirty,
    record::Change,
};
use weft_proto::v1::{self, EventKind, event::Subject};
use weft_store_schema::{EndpointRef, Key, NetworkName};

use crate::{problems::Source, reconcile::Reconciler, view};

impl Reconciler {
    /// How an endpoint is, and why it is not ready.
    pub(crate) fn state_of(&self, endpoint: &EndpointRef) -> (v1::EndpointState, String) {
        let key = Key::Endpoint(endpoint.clone()).to_string();
        let Some(host) = self.host() else {
            return (
                v1::EndpointState::Pending,
                "this host's underlay is not known yet".to_owned(),
            );
        };
        if let Some(problem) = self.problems.seen_by(Source::Kernel, &key) {
            return (v1::EndpointState::Failed, problem.message.clone());
        }
        if diff::in_place(&self.snapshot, &host, &self.observed, endpoint) {
            return (v1::EndpointState::Ready, String::new());
        }
        if let Some(problem) = self.problems.of(&key).next() {
            return (v1::EndpointState::Failed, problem.to_string());
        }
        let network = Key::Network(endpoint.network.clone()).to_string();
        if let Some(problem) = self.problems.of(&network).next() {
            return (v1::EndpointState::Failed, problem.to_string());
        }
        (
            v1::EndpointState::Pending,
            "waiting for its addresses and for the kernel".to_owned(),
        )
    }

    /// The field of an endpoint's record that is at fault, where it failed because of one.
    pub(crate) fn fault_of(&self, endpoint: &EndpointRef) -> Option<String> {
        let key = Key::Endpoint(endpoint.clone()).to_string();
        let by_kernel = self.problems.seen_by(Source::Kernel, &key);
        by_kernel.or(self.problems.of(&key).next())?.field.clone()
    }

    /// Forgets what was wrong with an endpoint of the same name that the store had lost, until the next pass.
    pub(crate) fn judge_anew(&mut self, endpoint: &EndpointRef) {
        let key = Key::Endpoint(endpoint.clone()).to_string();
        self.problems.set(Source::Assessment, &key, None);
    }

    /// Tells of endpoints of this host that became ready or failed.
    pub(super) fn update_states(&mut self, dirty: &Dirty) {
        let node = self.node.name.clone();
        let concerned: BTreeSet<EndpointRef> =
            if dirty.everything || !dirty.networks.is_empty() || !dirty.links.is_empty() {
                look_into(&self.snapshot, &Dirty::everything())
                    .into_iter()
                    .map(|place| EndpointRef {
                        network: place.network,
                        node: node.clone(),
                        id: place.id,
                    })
                    .chain(self.states.keys().cloned())
                    .collect()
            } else {
                dirty
                    .endpoints
                    .iter()
                    .filter(|e| e.node == node)
                    .cloned()
                    .collect()
            };
        for endpoint in concerned {
            if self.snapshot.endpoint(&endpoint).is_none() {
                self.states.remove(&endpoint);
                continue;
            }
            let (state, message) = self.state_of(&endpoint);
            if self.states.insert(endpoint.clone(), state) == Some(state) {
                continue;
            }
            let kind = match state {
                v1::EndpointState::Ready => EventKind::EndpointReady,
                v1::EndpointState::Failed => EventKind::EndpointFailed,
                _ => continue,
            };
            if state == v1::EndpointState::Ready {
                tracing::info!(endpoint = %endpoint, "ready");
            }
            self.events.publish(v1::Event {
                kind: kind.into(),
                network: endpoint.network.to_string(),
                node: node.to_string(),
                endpoint_id: endpoint.id.to_string(),
                message,
                subject: view::endpoint_by_name(self, &endpoint).map(Subject::Endpoint),
                ..v1::Event::default()
            });
        }
    }

    pub(super) fn announce(&self, changes: &[Change]) {
        if !self.events.is_watched() {
            return;
        }
        for change in changes {
            let (key, revision, put) = match change {
                Change::Put(entry) => (&entry.key, entry.mod_revision, true),
                Change::Deleted { key, mod_revision } => (key, *mod_revision, false),
            };
            let Ok(key) = self.snapshot.prefix().parse(key) else {
                continue;
            };
            let mut event = v1::Event {
                revision,
                message: key.to_string(),
                ..v1::Event::default()
            };
            // As it is now: of several changes that came together each has the last.
            let (on_put, on_delete, now) = match key {
                Key::Network(network) => {
                    event.network = network.to_string();
                    let slot = self.snapshot.network(&network);
                    let now = slot.and_then(|slot| view::network(self, &network, slot, &self.node.netns_dir));
                    let now = now.map(Subject::NetworkState);
                    (EventKind::NetworkPut, EventKind::NetworkDeleted, now)
                }
                Key::Endpoint(endpoint) => {
                    event.network = endpoint.network.to_string();
                    event.node = endpoint.node.to_string();
                    event.endpoint_id = endpoint.id.to_string();
                    let now = view::endpoint_by_name(self, &endpoint).map(Subject::Endpoint);
                    (EventKind::EndpointPut, EventKind::EndpointDeleted, now)
                }
                Key::Peer(node) => {
                    event.node = node.to_string();
                    let slot = self.snapshot.peer_slot(&node);
                    let now = slot.and_then(|slot| view::peer(self, &node, slot, None));
                    let now = now.map(Subject::Peer);
                    (EventKind::PeerPut, EventKind::PeerDeleted, now)
                }
                _ => continue,
            };
            event.kind = if put { on_put } else { on_delete }.into();
            event.subject = now.filter(|_| put);
            self.events.publish(event);
        }
    }

    pub(super) fn report(&self) {
        let (local, remote) = self.endpoint_counts();
        let status = weft_store_schema::StatusDocument {
            applied_revision: self.reached.applied(),
            networks: self.observed.networks.len() as u64,
            local_endpoints: local,
            remote_endpoints: remote,
            problems: self
                .problems
                .iter()
                .take(100)
                .map(|p| weft_store_schema::StatusProblem {
                    key: p.key.clone(),
                    field: p.field.clone(),
                    message: p.message.clone(),
                })
                .collect(),
            problem_count: self.problems.len() as u64,
        };
        self.store
            .report(weft_store_schema::encode(&status), self.snapshot.peer_count());
    }

    /// Whether nothing more is to be expected of the kernel for a network: its devices are as the records say, or this host
    /// has no part in it, or cannot carry it as things are.
    pub(crate) fn has_followed(&self, network: &NetworkName) -> bool {
        let key = Key::Network(network.clone()).to_string();
        let Some(host) = self.host() else { return true };
        !self.snapshot.takes_part(network)
            || !desired::can_carry(&self.snapshot, &host, network)
            || self.problems.seen_by(Source::Kernel, &key).is_some()
            || desired::is_carried(&self.snapshot, &host, &self.observed, network)
    }

    /// Endpoints on this host that are attached and reachable.
    pub(crate) fn ready_endpoints(&self) -> u64 {
        self.states
            .values()
            .filter(|s| **s == v1::EndpointState::Ready)
            .count() as u64
    }

    /// Endpoints on this host, and endpoints elsewhere that are known here.
    pub(crate) fn endpoint_counts(&self) -> (u64, u64) {
        let (mut local, mut all) = (0, 0);
        for (_, members) in self.snapshot.all_members() {
            local += members.count_on(&self.node.name) as u64;
            all += members.count() as u64;
        }
        (local, all - local)
    }
}
