//! What a call asks the store itself, because the view lags behind it or an answer was lost.

use std::{net::IpAddr, time::Duration};

use weft_api::{ApiError, Call};
use weft_core::{
    lost::{Found, Telling},
    record::{Change, Transaction},
};
use weft_store_schema::{Key, NetworkName};

use super::{AgentControl, STORE_PATIENCE, store_error, until};

impl AgentControl {
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
