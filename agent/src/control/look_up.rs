//! What a call asks the store itself, because the view lags behind it, does not reach so far, or an answer was lost.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use weft_api::{ApiError, Call};
use weft_core::{
    lost::{Found, Telling},
    members::Members,
    record::{Change, Connection, Scope, Transaction},
};
use weft_store_schema::{EndpointRef, Key, NetworkName, NodeName};

use super::{AgentControl, STORE_PATIENCE, store_error, subject, until};

/// How long is looked for what there is in place of an endpoint that was to be detached: detaching waits for nobody's sake.
const INSTEAD_PATIENCE: Duration = Duration::from_millis(1000);
/// How many names are remembered at least.
const REMEMBERED: usize = 4096;

/// The endpoints that this host was asked to attach or has detached, as far back as is remembered: asked to detach one of them
/// again, nobody means another host's of the same id.
#[derive(Debug, Default)]
pub(crate) struct Own(Mutex<Names>);

/// The older half is forgotten when the newer one is full.
#[derive(Debug, Default)]
struct Names {
    newer: BTreeSet<EndpointRef>,
    older: BTreeSet<EndpointRef>,
}

impl Own {
    /// Remembers one.
    pub(super) fn note(&self, name: &EndpointRef) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.newer.insert(name.clone());
        if names.newer.len() >= REMEMBERED {
            names.older = std::mem::take(&mut names.newer);
        }
    }

    fn has(&self, name: &EndpointRef) -> bool {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.newer.contains(name) || names.older.contains(name)
    }
}

impl AgentControl {
    /// Waits until the records of a scope have been read since the agent started: before that, that there is none in view
    /// says nothing. From then on they are as last known, whatever becomes of the store.
    pub(super) async fn has_read(&self, call: &Call, scope: Scope) -> Result<(), ApiError> {
        let scopes = BTreeSet::from([scope]);
        let patience = call.deadline.min(Instant::now() + STORE_PATIENCE);
        let read = self.wait(patience, move |r| {
            let is_away = matches!(r.connection(), Some(Connection::Down { .. }));
            let is_read = r.snapshot.is_complete(&scopes);
            (is_read || is_away).then_some(is_read)
        });
        match read.await? {
            Some(true) => Ok(()),
            _ => Err(match self.no_store().await {
                ApiError::Unavailable { what, why } => ApiError::Unavailable {
                    what,
                    why: format!(
                        "{why}; this agent has not read the records from etcd since it started, so nothing is known yet"
                    ),
                },
                other => other,
            }),
        }
    }

    /// Whether the claim of an address that the view still has is gone: who has just given it up, on another host, is
    /// not to be named as its holder. A claim that is held though the store has lost it is not gone.
    pub(super) async fn is_given_up(
        &self,
        call: &Call,
        network: NetworkName,
        address: IpAddr,
    ) -> Result<bool, ApiError> {
        let claim = Key::Address(network.clone(), address);
        let fetched = self.store.get(&claim, until(call.deadline, STORE_PATIENCE)).await;
        let fetched = fetched.map_err(|error| store_error(&error))?;
        if fetched.entry.is_some() {
            return Ok(false);
        }
        let gone = Change::Deleted {
            key: self.store.prefix().key(&claim).into_bytes(),
            mod_revision: fetched.revision,
        };
        self.ask(move |r| {
            r.learn(&[gone]);
            let members = r.snapshot.members(&network);
            members.is_none_or(|members| members.claim(address).is_none())
        })
        .await
    }

    /// Whether a transaction whose answer was lost has happened, as far as the store tells now.
    pub(super) async fn has_happened(&self, transaction: &Transaction, patience: Duration) -> Found {
        let Some(telling) = Telling::of(transaction) else {
            return Found::Not;
        };
        match self.store.get(telling.key, patience).await {
            Ok(fetched) => telling.judge(fetched.entry.as_ref(), fetched.lease),
            Err(_) => Found::Not,
        }
    }

    /// What there is in place of an endpoint that was to be detached, and that neither this host nor the store has.
    ///
    /// # Errors
    /// When other hosts have one of that id, and this one was not asked for any.
    pub(super) async fn instead_of(
        &self,
        call: &Call,
        name: &EndpointRef,
    ) -> Result<Option<String>, ApiError> {
        if self.own.has(name) {
            return Ok(None);
        }
        let patience = || until(call.deadline, INSTEAD_PATIENCE);
        let network = name.network.clone();
        let known = self.ask(move |r| r.snapshot.network(&network).is_some()).await?;
        let nodes = self.nodes_with(call, name).await?;
        let Some(nodes) = nodes else {
            return Ok(None);
        };
        let Some(first) = nodes.first() else {
            if known {
                return Ok(None);
            }
            let fetched = self
                .store
                .get(&Key::Network(name.network.clone()), patience())
                .await;
            let absent = fetched.is_ok_and(|fetched| fetched.entry.is_none());
            return Ok(absent.then(|| format!("there is no network {}", name.network)));
        };
        // Only what is certain is worth an error: what is in view may be gone.
        let elsewhere = EndpointRef {
            node: first.clone(),
            ..name.clone()
        };
        let fetched = self
            .store
            .get(&Key::Endpoint(elsewhere.clone()), patience())
            .await;
        if !fetched.is_ok_and(|fetched| fetched.entry.is_some()) {
            return Ok(None);
        }
        let nodes: Vec<&str> = nodes.iter().take(3).map(NodeName::as_str).collect();
        Err(ApiError::Conflict {
            what: subject(&elsewhere),
            why: format!("it is on {}: detach it there", nodes.join(" and ")),
        })
    }

    /// The other hosts that have an endpoint of that id in its network; none if that cannot be told.
    async fn nodes_with(
        &self,
        call: &Call,
        name: &EndpointRef,
    ) -> Result<Option<BTreeSet<NodeName>>, ApiError> {
        let wanted = name.clone();
        let in_view = self
            .ask(move |r| {
                let network = &wanted.network;
                if !(r.snapshot.takes_part(network) && r.snapshot.knows_members(network)) {
                    return None;
                }
                let all = r
                    .snapshot
                    .members(network)
                    .into_iter()
                    .flat_map(Members::endpoints);
                let same = all.filter(|(_, id, _)| **id == wanted.id);
                Some(same.map(|(node, ..)| node.clone()).collect())
            })
            .await?;
        let mut nodes: BTreeSet<NodeName> = match in_view {
            Some(nodes) => nodes,
            None => {
                let directory = self.store.prefix().endpoints_of(&name.network);
                let listing = self
                    .store
                    .list(&directory, until(call.deadline, INSTEAD_PATIENCE));
                let Ok(listing) = listing.await else {
                    return Ok(None);
                };
                let parsed = listing.entries.iter();
                let refs = parsed.filter_map(|entry| match self.store.prefix().parse(&entry.key) {
                    Ok(Key::Endpoint(there)) if there.id == name.id => Some(there.node),
                    _ => None,
                });
                refs.collect()
            }
        };
        nodes.remove(&self.node);
        Ok(Some(nodes))
    }

    /// A network that somebody made a moment ago, on another host, may not have come by the watch yet.
    pub(super) async fn look_up_network(&self, call: &Call, name: &NetworkName) -> Result<(), ApiError> {
        let known = name.clone();
        if self.ask(move |r| r.snapshot.network(&known).is_some()).await? {
            return Ok(());
        }
        let patience = until(call.deadline, STORE_PATIENCE);
        let fetched = self.store.get(&Key::Network(name.clone()), patience).await;
        let entry = fetched.map_err(|error| store_error(&error))?.entry;
        self.ask(move |r| r.learn(&entry.map(Change::Put).into_iter().collect::<Vec<_>>()))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_forgotten_only_when_there_are_many_newer_ones() {
        let own = Own::default();
        let name = |n: usize| -> EndpointRef {
            EndpointRef {
                network: "blue".parse().unwrap(),
                node: "host1".parse().unwrap(),
                id: format!("e{n}").parse().unwrap(),
            }
        };
        for n in 0..3 * REMEMBERED {
            own.note(&name(n));
            assert!(own.has(&name(n.saturating_sub(REMEMBERED - 1))), "{n}");
        }
        assert!(!own.has(&name(0)));
    }
}
