//! Removing a node that is gone for good: what it holds is read from the store, its life is ended by one transaction,
//! and then what it held is released.
//!
//! From the first transaction on, nothing that an agent of that life writes can happen: what is listed after it is all
//! there will ever be. What was made later belongs to the node's next life, and is left alone.

use std::{collections::BTreeMap, net::IpAddr};

use futures::{StreamExt as _, stream};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use weft_api::{ApiError, Call, RemovalStream, Subject};
use weft_core::{
    claims::{self, Refusal},
    record::Committed,
    removal::{Held, Holdings},
};
use weft_proto::v1::{self, remove_peer_response::Part};
use weft_store::StoreError;
use weft_store_schema::{EndpointRef, NetworkName, NodeName};

use super::{
    AgentControl, Pin, STORE_PATIENCE,
    networks::{existed, held_endpoint},
    store_error, until,
};

/// Endpoints released at a time.
const AT_ONCE: usize = 16;
/// Between two looks at what is left.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// Parts of the answer that may wait for the client.
const QUEUE: usize = 256;

type Teller = mpsc::Sender<Result<v1::RemovePeerResponse, ApiError>>;

fn told(held: &Held) -> v1::HeldEndpoint {
    held_endpoint(&held.name, held.title.as_deref(), held.addresses.iter().copied())
}

fn what(node: &NodeName) -> Subject {
    Subject::new("peer", node.as_str())
}

impl AgentControl {
    /// See [`weft_api::Control::holdings`].
    pub(super) async fn holdings_of(
        &self,
        call: Call,
        node: NodeName,
    ) -> Result<v1::HoldingsResponse, ApiError> {
        let (holdings, _) = self.read_holdings(&call, &node).await?;
        if holdings.is_unknown() {
            return Err(ApiError::NotFound { what: what(&node) });
        }
        Ok(v1::HoldingsResponse {
            endpoints: holdings.endpoints.iter().map(told).collect(),
            stray_addresses: holdings
                .strays
                .iter()
                .map(|(name, address)| format!("{} {address}", name.network))
                .collect(),
            known: holdings.peer.is_some(),
            alive: holdings.alive,
            local: node == self.node,
        })
    }

    /// What a node holds, and the revision of which that is true.
    async fn read_holdings(&self, call: &Call, node: &NodeName) -> Result<(Holdings, i64), ApiError> {
        if !self.ask(|r| r.is_connected()).await? {
            return Err(self.no_store().await);
        }
        let prefix = self.store.prefix();
        // Endpoints lie by network, and a node may be in any: all is read.
        let patience = call.deadline.saturating_duration_since(Instant::now());
        let listing = self
            .store
            .list(prefix.as_str(), patience)
            .await
            .map_err(|error| store_error(&error))?;
        Ok((Holdings::of(prefix, &listing.entries, node), listing.revision))
    }

    /// See [`weft_api::Control::remove_peer`].
    pub(super) async fn start_removal(
        &self,
        call: Call,
        node: NodeName,
        force: bool,
    ) -> Result<RemovalStream, ApiError> {
        if node == self.node {
            return Err(ApiError::Conflict {
                what: what(&node),
                why: "this is its own agent; ask the agent of another host".to_owned(),
            });
        }
        let (removed, ended_at) = self.end_life(&call, &node, force).await?;
        let (tell, heard) = mpsc::channel(QUEUE);
        let control = self.clone();
        // Goes on if the client leaves: the node is removed, and what it held must not stay.
        tokio::spawn(async move {
            let summary = control.release_all(&call, &node, ended_at, &tell).await;
            let summary = summary.map(|(endpoints, stray_addresses)| v1::RemovePeerResponse {
                part: Some(Part::Summary(v1::RemovalSummary {
                    removed,
                    endpoints,
                    stray_addresses,
                })),
            });
            // Whoever asked may have left.
            let _ = tell.send(summary).await;
        });
        Ok(Box::pin(ReceiverStream::new(heard)))
    }

    /// Ends the node's life, if it has not ended. Whether it had not, and a revision at which it has.
    async fn end_life(&self, call: &Call, node: &NodeName, force: bool) -> Result<(bool, i64), ApiError> {
        let mut sent = false;
        let mut first: Option<(Holdings, i64)> = None;
        loop {
            let (holdings, revision) = self.read_holdings(call, node).await?;
            if holdings.is_unknown() {
                return Err(ApiError::NotFound { what: what(node) });
            }
            if let Some((first, at)) = &first
                && holdings.is_another_life(first, *at)
            {
                // It has ended, and the next one is nobody's to end who asked before that.
                return Ok((sent, holdings.peer_since - 1));
            }
            if holdings.alive && !force {
                return Err(ApiError::Conflict {
                    what: what(node),
                    why: "its agent is alive; stop it there first, or remove the node by force".to_owned(),
                });
            }
            let Some(transaction) = holdings.end(node, &self.node, force) else {
                return Ok((sent, revision));
            };
            let patience = until(call.deadline, STORE_PATIENCE);
            match self.store.commit(&transaction, patience).await {
                Ok(Committed::Yes { revision }) => {
                    tracing::warn!(%node, endpoints = holdings.endpoints.len(), "removed a node from the cluster");
                    return Ok((true, revision));
                }
                // Something has come or changed: look again.
                Ok(Committed::No { .. }) => {}
                Err(StoreError::Unknown { .. }) => sent = true,
                Err(error) => return Err(store_error(&error)),
            }
            first.get_or_insert((holdings, revision));
            self.pause(call, node).await?;
        }
    }

    async fn pause(&self, call: &Call, node: &NodeName) -> Result<(), ApiError> {
        if Instant::now() + PAUSE >= call.deadline {
            return Err(ApiError::DeadlineExceeded {
                what: what(node),
                waited: call.started.elapsed(),
                why: "not all that it held is released; the same request goes on with the rest".to_owned(),
            });
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Releases what the node had made by then, until nothing is left. How many endpoints, and how many claims
    /// without one.
    async fn release_all(
        &self,
        call: &Call,
        node: &NodeName,
        ended_at: i64,
        tell: &Teller,
    ) -> Result<(u64, u64), ApiError> {
        let (mut endpoints, mut strays) = (0, 0);
        let mut pins: BTreeMap<NetworkName, Pin> = BTreeMap::new();
        loop {
            let (mut holdings, _) = self.read_holdings(call, node).await?;
            holdings.endpoints.retain(|held| held.create_revision <= ended_at);
            if holdings.peer.is_some() {
                // It has come back: what is claimed may be on its interfaces, and is its own to give up.
                holdings.strays.clear();
            }
            if holdings.endpoints.is_empty() && holdings.strays.is_empty() {
                return Ok((endpoints, strays));
            }
            let endpoints_of = holdings.endpoints.iter().map(|held| &held.name.network);
            let strays_of = holdings.strays.iter().map(|(name, _)| &name.network);
            for network in endpoints_of.chain(strays_of) {
                if !pins.contains_key(network) {
                    pins.insert(network.clone(), self.view_of(call, network).await?);
                }
            }
            let mut released = stream::iter(holdings.endpoints)
                .map(|held| async move { (self.delete_record(call, &held.name, ended_at).await, held) })
                .buffer_unordered(AT_ONCE);
            while let Some((result, held)) = released.next().await {
                if result? {
                    endpoints += 1;
                    let part = Some(Part::Released(told(&held)));
                    // Whoever asked may have left.
                    let _ = tell.send(Ok(v1::RemovePeerResponse { part })).await;
                }
            }
            for (name, address) in holdings.strays {
                strays += u64::from(self.release_stray(call, name, address).await?);
            }
            self.pause(call, node).await?;
        }
    }

    /// Gives up a claim for an endpoint that does not exist. Whether there was one: whoever has the network in view
    /// gives it up too.
    async fn release_stray(&self, call: &Call, name: EndpointRef, address: IpAddr) -> Result<bool, ApiError> {
        let what = Subject::new("address", format!("{}/{address}", name.network));
        let result = self
            .write(call, &what, move |r, _| {
                let orphan = claims::release_orphan(&r.snapshot, &name.network, address);
                orphan.ok_or_else(|| Refusal::NoEndpoint(name.clone()))
            })
            .await;
        existed(result)
    }
}
