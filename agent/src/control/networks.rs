//! Deleting a network, by force with its endpoints.

use weft_api::{ApiError, Call, Subject};
use weft_core::claims::{self, Refusal};
use weft_proto::v1;
use weft_store_schema::{EndpointRef, NetworkName};

use super::{AgentControl, errors::although_forced, subject};
use crate::reconcile::Reconciler;

/// How often endpoints that came meanwhile are detached too.
const MOST_ROUNDS: usize = 20;

impl AgentControl {
    /// See [`weft_api::Control::delete_network`].
    pub(super) async fn remove_network(
        &self,
        call: Call,
        name: NetworkName,
        force: bool,
    ) -> Result<Vec<v1::HeldEndpoint>, ApiError> {
        let what = Subject::network(name.as_str());
        let known = name.clone();
        if !self.ask(move |r| r.snapshot.network(&known).is_some()).await? {
            return Err(if self.ask(|r| r.is_connected() && r.is_informed()).await? {
                ApiError::NotFound { what }
            } else {
                self.no_store().await
            });
        }
        let _pin = self.view_of(&call, &name).await?;
        let mut detached = Vec::new();
        for round in 1.. {
            if force {
                detached.extend(self.detach_all(&call, &name).await?);
            }
            let deleted = name.clone();
            let result = self
                .write(&call, &what, move |r, _| {
                    claims::delete_network(&r.snapshot, &deleted)
                })
                .await;
            match result {
                // The deletion rests on there being no endpoint: one has come since.
                Err(ApiError::Conflict { .. } | ApiError::Blocked { .. }) if force && round < MOST_ROUNDS => {
                }
                Err(error) if force => return Err(although_forced(error)),
                result => return result.map(|_| detached),
            }
        }
        Ok(detached)
    }

    /// Detaches all endpoints of a network that are in view, wherever they are.
    async fn detach_all(
        &self,
        call: &Call,
        network: &NetworkName,
    ) -> Result<Vec<v1::HeldEndpoint>, ApiError> {
        let of = network.clone();
        let endpoints = self.ask(move |r| held(r, &of)).await?;
        let mut detached = Vec::new();
        for (name, told) in endpoints {
            if self.delete_record(call, &name, i64::MAX).await? {
                detached.push(told);
            }
        }
        Ok(detached)
    }

    /// Deletes an endpoint's record, and what nobody else gives up of its claims, if the record was made at this revision
    /// or before. Whether there was such a record. The network has to be in view.
    pub(super) async fn delete_record(
        &self,
        call: &Call,
        name: &EndpointRef,
        made_by: i64,
    ) -> Result<bool, ApiError> {
        let gone = name.clone();
        let result = self
            .write(call, &subject(name), move |r, _| {
                let slot = r.snapshot.endpoint(&gone);
                if slot.is_none_or(|slot| slot.create_revision > made_by) {
                    return Err(Refusal::NoEndpoint(gone.clone()));
                }
                claims::delete_endpoint(&r.snapshot, &gone)
            })
            .await;
        existed(result)
    }
}

/// Whether there was something to write about.
pub(super) fn existed<T>(result: Result<T, ApiError>) -> Result<bool, ApiError> {
    match result {
        Ok(_) => Ok(true),
        Err(ApiError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn held(r: &Reconciler, network: &NetworkName) -> Vec<(EndpointRef, v1::HeldEndpoint)> {
    let Some(members) = r.snapshot.members(network) else {
        return Vec::new();
    };
    let tell = |(node, id, slot): (&_, &_, &weft_core::members::Slot<weft_store_schema::Endpoint>)| {
        let name = EndpointRef {
            network: network.clone(),
            node: Clone::clone(node),
            id: Clone::clone(id),
        };
        let mut addresses = members.claimed_by(&(name.node.clone(), name.id.clone()));
        addresses.extend(slot.value.iter().flat_map(|endpoint| &endpoint.addresses));
        let title = slot.value.as_ref().and_then(|endpoint| endpoint.name());
        let told = held_endpoint(&name, title, addresses);
        (name, told)
    };
    members.endpoints().map(tell).collect()
}

/// An endpoint that goes, as the API tells of it.
pub(super) fn held_endpoint(
    name: &EndpointRef,
    title: Option<&str>,
    addresses: impl IntoIterator<Item = std::net::IpAddr>,
) -> v1::HeldEndpoint {
    v1::HeldEndpoint {
        network: name.network.to_string(),
        node: name.node.to_string(),
        id: name.id.to_string(),
        name: title.unwrap_or_default().to_owned(),
        addresses: addresses.into_iter().map(|address| address.to_string()).collect(),
    }
}
