//! Writing again what the store has lost and this host still has: what may be written, and what is in the way, is decided
//! in `weft_core::claims`.

use futures::{StreamExt as _, stream};
use tokio::time::Instant;
use weft_api::{ApiError, Call, Subject};
use weft_core::claims::{self, Refusal};
use weft_proto::v1::{self, RepublishOutcome};
use weft_store_schema::Key;

use super::{AgentControl, STORE_PATIENCE, subject};

/// Endpoints written at a time.
const AT_ONCE: usize = 16;

fn told(key: &Key, outcome: RepublishOutcome, message: String) -> v1::Republished {
    v1::Republished {
        key: key.to_string(),
        outcome: outcome.into(),
        message,
    }
}

fn subject_of(key: &Key) -> Subject {
    match key {
        Key::Network(name) => Subject::network(name.as_str()),
        Key::Endpoint(endpoint) => subject(endpoint),
        other => Subject::new("record", other.to_string()),
    }
}

impl AgentControl {
    /// See [`weft_api::Control::republish`].
    pub(super) async fn republish_lost(&self, call: Call) -> Result<v1::RepublishResponse, ApiError> {
        self.informed(&call).await?;
        // What is only suspected to be lost may be gone by somebody's wish; the store is being asked.
        let patience = call.deadline.min(Instant::now() + STORE_PATIENCE);
        let sure = self
            .wait(patience, |r| {
                r.snapshot.suspicions().next().is_none().then_some(())
            })
            .await?;
        if sure.is_none() {
            return Err(self.no_store().await);
        }
        let lost = self.ask(|r| claims::republishable(&r.snapshot)).await?;
        // What endpoints depend on comes first, and one after the other.
        let (endpoints, others): (Vec<Key>, Vec<Key>) =
            lost.into_iter().partition(|key| matches!(key, Key::Endpoint(_)));
        let mut records = Vec::new();
        for key in others {
            records.push(self.republish_one(&call, key).await?);
        }
        let mut written = stream::iter(endpoints)
            .map(|key| self.republish_one(&call, key))
            .buffered(AT_ONCE);
        while let Some(record) = written.next().await {
            records.push(record?);
        }
        let left = self.ask(|r| r.held_deletions()).await?;
        let mut nodes: Vec<String> = left
            .into_iter()
            .flat_map(|(keys, ..)| keys)
            .filter_map(|key| match key {
                Key::Endpoint(endpoint) => Some(endpoint.node),
                Key::Peer(node) => Some(node),
                _ => None,
            })
            .filter(|node| *node != self.node)
            .map(|node| node.to_string())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        Ok(v1::RepublishResponse { records, nodes })
    }

    async fn republish_one(&self, call: &Call, key: Key) -> Result<v1::Republished, ApiError> {
        let judged = key.clone();
        let refused = self
            .ask(move |r| claims::republish(&r.snapshot, &judged).err())
            .await?;
        match refused {
            Some(Refusal::NotLost(_)) => return Ok(told(&key, RepublishOutcome::Present, String::new())),
            Some(why) => return Ok(told(&key, RepublishOutcome::Conflict, why.to_string())),
            None => {}
        }
        let lost = key.clone();
        let make = move |r: &crate::reconcile::Reconciler, _| claims::republish(&r.snapshot, &lost);
        match self.write(call, &subject_of(&key), make).await {
            Ok(_) => {
                tracing::info!(%key, "written again: the store had lost it");
                Ok(told(&key, RepublishOutcome::Written, String::new()))
            }
            Err(ApiError::AlreadyExists { .. }) => Ok(told(&key, RepublishOutcome::Present, String::new())),
            Err(error @ (ApiError::Unavailable { .. } | ApiError::DeadlineExceeded { .. })) => Err(error),
            Err(why) => Ok(told(&key, RepublishOutcome::Conflict, why.to_string())),
        }
    }
}
