//! Endpoints listed: those in view as last known, those of networks that this host does not follow from the store.

use std::collections::BTreeSet;

use weft_api::{ApiError, Call, EndpointFilter, EndpointList, NodeFilter, Subject};
use weft_core::record::{Entry, Scope};
use weft_proto::v1;
use weft_store::StoreError;
use weft_store_schema::{Endpoint, EndpointRef, Key, NetworkName, NodeName};

use super::{
    AgentControl, STORE_PATIENCE,
    errors::{parse, store_error},
    until,
};
use crate::{reconcile::Reconciler, view};

/// Which endpoints are asked for.
#[derive(Clone)]
struct Wanted {
    network: Option<NetworkName>,
    node: Option<NodeName>,
}

impl Wanted {
    /// Those of them that are in view, and the networks of which not all are.
    fn in_view(&self, r: &Reconciler) -> (Vec<v1::Endpoint>, BTreeSet<NetworkName>) {
        let own_only = self.node.as_ref() == Some(&r.node.name);
        let networks = r.snapshot.networks().map(|(name, _)| name);
        let not_followed = networks.filter(|name| {
            let (part, known) = (r.snapshot.takes_part(name), r.snapshot.knows_members(name));
            let in_view = if own_only { part || known } else { part && known };
            !in_view && self.network.as_ref().is_none_or(|network| network == *name)
        });
        let not_followed = not_followed.cloned().collect();
        let seen = view::endpoints(r, self.network.as_ref(), self.node.as_ref(), &not_followed);
        (seen, not_followed)
    }
}

/// Why the endpoints of a network are not known.
fn unreadable(error: &StoreError, network: &NetworkName) -> ApiError {
    match store_error(error) {
        ApiError::Unavailable { what, why } => ApiError::Unavailable {
            what,
            why: format!(
                "{why}; this host has no part in network {network}, so its endpoints are not known here"
            ),
        },
        other => other,
    }
}

impl AgentControl {
    /// See [`weft_api::Control::list_endpoints`].
    pub(super) async fn endpoints(
        &self,
        call: Call,
        filter: EndpointFilter,
    ) -> Result<EndpointList, ApiError> {
        let network = filter.network.as_deref();
        let wanted = Wanted {
            network: network.map(|n| parse("network", n)).transpose()?,
            node: match filter.node {
                NodeFilter::Any => None,
                NodeFilter::Local => Some(self.node.clone()),
                NodeFilter::Named(node) => Some(parse("node", &node)?),
            },
        };
        self.has_read(&call, Scope::Networks).await?;
        let asked = wanted.clone();
        let (mut endpoints, not_followed) = self.ask(move |r| asked.in_view(r)).await?;
        if let Some(network) = &wanted.network
            && endpoints.is_empty()
            && not_followed.is_empty()
        {
            let asked = network.clone();
            if !self.ask(move |r| r.snapshot.network(&asked).is_some()).await? {
                return Err(ApiError::NotFound {
                    what: Subject::network(network.as_str()),
                });
            }
        }
        let mut unknown = BTreeSet::new();
        let mut is_away = wanted.network.is_none() && !self.ask(|r| r.is_connected()).await?;
        for network in not_followed {
            let read = match is_away {
                true => None,
                false => match self.read_endpoints(&call, &network).await {
                    Ok(read) => Some(read),
                    // One that does not answer is not asked once more for each network.
                    Err(error) if error.is_temporary() && wanted.network.is_none() => {
                        is_away = true;
                        None
                    }
                    Err(error) => return Err(unreadable(&error, &network)),
                },
            };
            match read {
                Some(read) => endpoints.extend(self.shown(read, wanted.node.clone()).await?),
                None => {
                    // Of a network that is only about to be followed, something may be in view.
                    let rest = Wanted {
                        network: Some(network.clone()),
                        node: wanted.node.clone(),
                    };
                    let seen = self.ask(move |r| {
                        view::endpoints(r, rest.network.as_ref(), rest.node.as_ref(), &BTreeSet::new())
                    });
                    endpoints.extend(seen.await?);
                    unknown.insert(network.to_string());
                }
            }
        }
        Ok(EndpointList { endpoints, unknown })
    }

    /// Records as the API shows them, those of one node or all.
    async fn shown(
        &self,
        read: Vec<(EndpointRef, Endpoint, i64)>,
        node: Option<NodeName>,
    ) -> Result<Vec<v1::Endpoint>, ApiError> {
        self.ask(move |r| {
            read.iter()
                .filter(|(name, ..)| node.as_ref().is_none_or(|n| *n == name.node))
                .map(|(name, endpoint, revision)| view::endpoint(r, name, endpoint, *revision))
                .collect()
        })
        .await
    }

    /// Endpoint records of networks that this host does not take part in are not in view: they are read.
    async fn read_endpoints(
        &self,
        call: &Call,
        network: &NetworkName,
    ) -> Result<Vec<(EndpointRef, Endpoint, i64)>, StoreError> {
        let directory = self.store.prefix().endpoints_of(network);
        let listing = self
            .store
            .list(&directory, until(call.deadline, STORE_PATIENCE))
            .await?;
        let parse = |entry: Entry| {
            let Ok(Key::Endpoint(name)) = self.store.prefix().parse(&entry.key) else {
                return None;
            };
            Some((name, Endpoint::decode(&entry.value).ok()?, entry.mod_revision))
        };
        Ok(listing.entries.into_iter().filter_map(parse).collect())
    }
}
