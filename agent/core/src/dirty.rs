//! Where to look again: the objects whose desired or observed state may have changed since the last pass.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use weft_store_schema::{EndpointRef, Mac, NetworkName, NodeName};

/// A set of objects to look at again. Empty means that nothing is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Look at everything.
    pub everything: bool,
    /// Networks to look at as a whole.
    pub networks: BTreeSet<NetworkName>,
    /// Networks whose devices and local endpoints' links are to be looked at, not their forwarding entries.
    pub links: BTreeSet<NetworkName>,
    /// Endpoints: a local one's veth, any one's problems.
    pub endpoints: BTreeSet<EndpointRef>,
    /// Peers: their own problems. What depends on them is named by itself.
    pub peers: BTreeSet<NodeName>,
    /// Forwarding entries.
    pub macs: BTreeMap<NetworkName, HashSet<Mac>>,
    /// Neighbours.
    pub addresses: BTreeMap<NetworkName, HashSet<IpAddr>>,
}

impl Dirty {
    /// Everything.
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another set holds.
    pub fn merge(&mut self, other: Self) {
        self.everything |= other.everything;
        self.networks.extend(other.networks);
        self.links.extend(other.links);
        self.endpoints.extend(other.endpoints);
        self.peers.extend(other.peers);
        for (network, macs) in other.macs {
            self.macs.entry(network).or_default().extend(macs);
        }
        for (network, addresses) in other.addresses {
            self.addresses.entry(network).or_default().extend(addresses);
        }
    }

    /// Adds a forwarding entry.
    pub fn mac(&mut self, network: &NetworkName, mac: Mac) {
        self.macs.entry(network.clone()).or_default().insert(mac);
    }

    /// Adds a neighbour.
    pub fn address(&mut self, network: &NetworkName, address: IpAddr) {
        self.addresses.entry(network.clone()).or_default().insert(address);
    }

    /// Whether a local endpoint's container is to be looked into.
    pub fn looks_into(&self, endpoint: &EndpointRef) -> bool {
        let network = &endpoint.network;
        self.everything
            || self.networks.contains(network)
            || self.links.contains(network)
            || self.endpoints.contains(endpoint)
    }

    /// Every network that anything of is to be looked at, when not everything is.
    pub fn touched_networks(&self) -> BTreeSet<&NetworkName> {
        self.networks
            .iter()
            .chain(&self.links)
            .chain(self.endpoints.iter().map(|e| &e.network))
            .chain(self.macs.keys())
            .chain(self.addresses.keys())
            .collect()
    }
}
