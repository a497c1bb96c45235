//! What a call asks the store itself, because the view lags behind it, does not reach so far, or an answer was lost.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::Instant;
use weft_api::{ApiError, Call};
use weft_core::{
    lost::{Found, Telling},
    members::Members,
    record::{Change, Connection, Scope, Transaction},
};
use weft_store_schema::{EndpointRef, Key, NetworkName};

use super::{AgentControl, STORE_PATIENCE, store_error, until};
use crate::reconcile::Reconciler;

impl AgentControl {
    /// Waits until the records of a scope have been read since the agent started: before that, that there is none in view
    /// says nothing. From then on they are as last known, whatever becomes of the store.
    pub(super) async fn has_read(&self, call: &Call, scope: Scope) -> Result<(), ApiError> {
        let scopes = BTreeSet::from([scope]);
        let why = "this agent has not read the records from etcd since it started, so nothing is known yet";
        self.knows(call, why, move |r| r.snapshot.is_complete(&scopes))
            .await
    }

    /// Waits until the agent has found out whether the store has what it should have: before that, that nothing is held says
    /// nothing.
    pub(super) async fn has_compared(&self, call: &Call) -> Result<(), ApiError> {
        let why = "this agent has not found out since it started whether anything is held; see weft status";
        self.knows(call, why, Reconciler::has_compared).await
    }

    async fn knows(
        &self,
        call: &Call,
        unknown: &str,
        known: impl Fn(&Reconciler) -> bool + Clone + Send + 'static,
    ) -> Result<(), ApiError> {
        let patience = call.deadline.min(Instant::now() + STORE_PATIENCE);
        let found_out = self.wait(patience, move |r| {
            let is_away = matches!(r.connection(), Some(Connection::Down { .. }));
            let is_known = known(r);
            (is_known || is_away).then_some(is_known)
        });
        match found_out.await? {
            Some(true) => Ok(()),
            _ => Err(match self.no_store().await {
                ApiError::Unavailable { what, why } => ApiError::Unavailable {
                    what,
                    why: format!("{why}; {unknown}"),
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

    /// What there is, as far as is in view, in place of an endpoint that was to be detached and is not there: most often
    /// a mistaken name. No error, because detaching twice is none, and another host's may have the same id.
    pub(super) async fn instead_of(
        &self,
        call: &Call,
        name: &EndpointRef,
    ) -> Result<Option<String>, ApiError> {
        if self.look_up_network(call, &name.network).await.is_err() {
            return Ok(None);
        }
        let name = name.clone();
        self.ask(move |r| {
            let (snapshot, network) = (&r.snapshot, &name.network);
            if snapshot.network(network).is_none() {
                return Some(format!("there is no network {network}"));
            }
            let all = snapshot.members(network).into_iter().flat_map(Members::endpoints);
            let elsewhere =
                all.filter(|(node, id, slot)| **id == name.id && **node != name.node && !slot.held);
            let nodes: Vec<&str> = elsewhere.map(|(node, ..)| node.as_str()).take(3).collect();
            (!nodes.is_empty()).then(|| format!("it is on {}: detach it there", nodes.join(" and ")))
        })
        .await
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
