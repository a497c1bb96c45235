//! Calls on a cluster that stands still: each request is read, checked and held against the records as the agent does it,
//! and then nothing happens. For tests/fuzz; it is no part of the product.

use std::collections::BTreeSet;

use weft_api::{
    ApiError, AuditStream, Call, Control, EndpointFilter, EndpointList, EventHub, EventStream, NodeFilter,
    RemovalStream, Subject,
};
use weft_core::{
    claims::{self, Choosing},
    record::{Entry, Scope},
    snapshot::Snapshot,
};
use weft_proto::v1;
use weft_store_schema::{EndpointId, EndpointRef, Family, NetworkName, NodeName, Prefix};

use super::{
    addresses, endpoints,
    errors::{parse, refusal_error, subject},
    network_spec,
};

/// The records that there are, below the prefix.
const RECORDS: [(&str, &str); 9] = [
    (
        "networks/blue",
        r#"{"subnets":[{"cidr":"10.1.0.0/24","gateway":"10.1.0.1","reserved":["10.1.0.9"]},{"cidr":"fd00:1::/64"}],"vni":7,"cooldown":5}"#,
    ),
    ("networks/full", r#"{"subnets":[{"cidr":"10.2.0.0/30"}],"vni":8}"#),
    ("vnis/7", r#"{"network":"blue"}"#),
    ("vnis/8", r#"{"network":"full"}"#),
    (
        "peers/host1",
        r#"{"vteps":["10.99.0.1"],"mtu":1500,"boot_id":"b","version":1}"#,
    ),
    (
        "endpoints/blue/host1/web",
        r#"{"attachment":{"netns":"/run/netns/web"},"addresses":["10.1.0.2","fd00:1::2"],"mac":"02:42:0a:01:00:02"}"#,
    ),
    ("addresses/blue/10.1.0.2", r#"{"endpoint":"host1/web"}"#),
    ("addresses/blue/fd00:1::2", r#"{"endpoint":"host1/web"}"#),
    ("addresses/full/10.2.0.2", r#"{"endpoint":"host2/db"}"#),
];

/// An agent that does nothing.
pub struct Pretend {
    snapshot: Snapshot,
    node: NodeName,
}

impl Pretend {
    /// On the host `host1`. None if its own records are wrong, which a test rules out.
    pub fn new() -> Option<Self> {
        let node: NodeName = "host1".parse().ok()?;
        let prefix = Prefix::default();
        let mut snapshot = Snapshot::new(prefix.clone(), node.clone());
        let networks = ["blue", "full"].map(str::parse::<NetworkName>);
        let mut scopes = vec![Scope::Networks, Scope::Peers, Scope::Removed, Scope::Vnis];
        for network in networks {
            let network = network.ok()?;
            scopes.push(Scope::Endpoints(network.clone()));
            scopes.push(Scope::Addresses(network.clone()));
            scopes.push(Scope::Released(network));
        }
        for scope in &scopes {
            let directory = weft_core::snapshot::directory(&prefix, &node, scope);
            let all = RECORDS.iter().map(|(key, value)| Entry {
                key: format!("{}{key}", prefix.as_str()).into_bytes(),
                value: value.as_bytes().to_vec(),
                create_revision: 5,
                mod_revision: 5,
            });
            let of_scope: Vec<Entry> = all.filter(|e| e.key.starts_with(directory.as_bytes())).collect();
            snapshot.apply_listing(scope, 1, 9, &of_scope);
        }
        let all_good = snapshot.problems().is_empty() && snapshot.is_complete(&BTreeSet::from_iter(scopes));
        all_good.then_some(Self { snapshot, node })
    }

    fn name(&self, network: &str, node: Option<&str>, id: &str) -> Result<EndpointRef, ApiError> {
        Ok(EndpointRef {
            network: parse("network", network)?,
            node: node.map_or_else(|| Ok(self.node.clone()), |node| parse("node", node))?,
            id: parse("id", id)?,
        })
    }
}

/// What every call comes to that would have changed something.
fn nothing_done<T>() -> Result<T, ApiError> {
    Err(ApiError::Unavailable {
        what: "the store".to_owned(),
        why: "there is none".to_owned(),
    })
}

impl Control for Pretend {
    async fn create_network(
        &self,
        _: Call,
        name: String,
        spec: v1::NetworkSpec,
    ) -> Result<v1::CreateNetworkResponse, ApiError> {
        let name: NetworkName = parse("name", &name)?;
        let document = network_spec::document(spec)?;
        let what = Subject::network(name.as_str());
        claims::create_network(&self.snapshot, &name, &document).map_err(|r| refusal_error(r, &what))?;
        nothing_done()
    }

    async fn list_networks(&self, _: Call) -> Result<Vec<v1::Network>, ApiError> {
        let named = |name: &NetworkName| v1::Network {
            name: name.to_string(),
            ..v1::Network::default()
        };
        Ok(self.snapshot.networks().map(|(name, _)| named(name)).collect())
    }

    async fn get_network(&self, _: Call, name: String) -> Result<v1::Network, ApiError> {
        let name: NetworkName = parse("name", &name)?;
        let what = Subject::network(name.as_str());
        let found = self.snapshot.network(&name).map(|_| v1::Network::default());
        found.ok_or(ApiError::NotFound { what })
    }

    async fn update_network(
        &self,
        _: Call,
        mut request: v1::UpdateNetworkRequest,
    ) -> Result<v1::UpdateNetworkResponse, ApiError> {
        let name: NetworkName = parse("name", &std::mem::take(&mut request.name))?;
        let change = network_spec::change(request)?;
        let what = Subject::network(name.as_str());
        claims::update_network(&self.snapshot, &name, &change)
            .map_err(|r| network_spec::as_field_of_the_request(refusal_error(r, &what)))?;
        nothing_done()
    }

    async fn delete_network(
        &self,
        _: Call,
        name: String,
        _: bool,
    ) -> Result<Vec<v1::HeldEndpoint>, ApiError> {
        let name: NetworkName = parse("name", &name)?;
        let what = Subject::network(name.as_str());
        claims::delete_network(&self.snapshot, &name).map_err(|r| refusal_error(r, &what))?;
        nothing_done()
    }

    async fn attach_endpoint(
        &self,
        _: Call,
        request: v1::AttachEndpointRequest,
    ) -> Result<v1::AttachEndpointResponse, ApiError> {
        let reservation = endpoints::reservation(&request.reservation)?;
        let id = if request.id.is_empty() {
            "made-up"
        } else {
            &request.id
        };
        let name = self.name(&request.network, None, id)?;
        let (document, _) = endpoints::asked_for(request)?;
        let choosing = Choosing::default();
        claims::attach(&self.snapshot, &name, document, reservation.as_ref(), &choosing)
            .map_err(|r| refusal_error(r, &subject(&name)))?;
        nothing_done()
    }

    async fn wait_networks(
        &self,
        _: Call,
        network: Option<String>,
    ) -> Result<Vec<v1::Convergence>, ApiError> {
        if let Some(name) = network {
            let _name: NetworkName = parse("network", &name)?;
        }
        Ok(Vec::new())
    }

    async fn detach_endpoint(
        &self,
        _: Call,
        network: String,
        id: String,
    ) -> Result<v1::DetachEndpointResponse, ApiError> {
        let name = self.name(&network, None, &id)?;
        claims::detach(&self.snapshot, &name).map_err(|r| refusal_error(r, &subject(&name)))?;
        nothing_done()
    }

    async fn list_endpoints(&self, _: Call, filter: EndpointFilter) -> Result<EndpointList, ApiError> {
        if let Some(network) = filter.network {
            let _network: NetworkName = parse("network", &network)?;
        }
        if let NodeFilter::Named(node) = filter.node {
            let _node: NodeName = parse("node", &node)?;
        }
        Ok(EndpointList {
            endpoints: vec![v1::Endpoint::default(); 3],
            unknown: BTreeSet::new(),
        })
    }

    async fn get_endpoint(
        &self,
        _: Call,
        network: String,
        node: Option<String>,
        id: String,
    ) -> Result<v1::Endpoint, ApiError> {
        let name = self.name(&network, node.as_deref(), &id)?;
        let found = self.snapshot.endpoint(&name).map(|_| v1::Endpoint::default());
        found.ok_or_else(|| ApiError::NotFound { what: subject(&name) })
    }

    async fn reserve_addresses(
        &self,
        _: Call,
        request: v1::ReserveRequest,
    ) -> Result<v1::ReserveResponse, ApiError> {
        let network: NetworkName = parse("network", &request.network)?;
        let id = if request.id.is_empty() {
            "made-up"
        } else {
            &request.id
        };
        let id: EndpointId = parse("id", id)?;
        let wished = addresses::wishes(&request.requested_addresses)?;
        let asked: Vec<Family> = addresses::families(&request.families)?.into_iter().collect();
        let _ttl = addresses::time_to_live(request.ttl)?;
        let what = Subject::reservation(network.as_str(), self.node.as_str(), id.as_str());
        let choosing = Choosing::default();
        claims::reserve(&self.snapshot, &network, &id, &wished, &asked, 1, &choosing)
            .map_err(|r| refusal_error(r, &what))?;
        nothing_done()
    }

    async fn unreserve_addresses(
        &self,
        _: Call,
        network: String,
        id: String,
    ) -> Result<v1::UnreserveResponse, ApiError> {
        let (network, id): (NetworkName, EndpointId) = (parse("network", &network)?, parse("id", &id)?);
        let what = Subject::reservation(network.as_str(), self.node.as_str(), id.as_str());
        claims::unreserve(&self.snapshot, &network, &id).map_err(|r| refusal_error(r, &what))?;
        nothing_done()
    }

    async fn list_addresses(&self, _: Call, network: String, _: bool) -> Result<Vec<v1::Address>, ApiError> {
        let _network: NetworkName = parse("network", &network)?;
        Ok(vec![v1::Address::default(); 3])
    }

    async fn list_peers(&self, _: Call) -> Result<Vec<v1::Peer>, ApiError> {
        Ok(vec![v1::Peer::default(); 3])
    }

    async fn holdings(&self, _: Call, node: String) -> Result<v1::HoldingsResponse, ApiError> {
        let _node: NodeName = parse("node", &node)?;
        nothing_done()
    }

    async fn remove_peer(&self, _: Call, request: v1::RemovePeerRequest) -> Result<RemovalStream, ApiError> {
        let _node: NodeName = parse("node", &request.node)?;
        nothing_done()
    }

    async fn status(&self, _: Call) -> Result<v1::AgentStatus, ApiError> {
        Ok(v1::AgentStatus::default())
    }

    async fn accept_deletions(&self, _: Call) -> Result<v1::AcceptDeletionsResponse, ApiError> {
        nothing_done()
    }

    async fn republish(&self, _: Call) -> Result<v1::RepublishResponse, ApiError> {
        nothing_done()
    }

    async fn audit(&self, _: Call, _: bool) -> Result<AuditStream, ApiError> {
        nothing_done()
    }

    fn version(&self) -> v1::VersionResponse {
        v1::VersionResponse::default()
    }

    async fn watch_events(&self, _: Call) -> Result<EventStream, ApiError> {
        Ok(EventHub::new(1).subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_records_are_right() {
        assert!(Pretend::new().is_some());
    }
}
