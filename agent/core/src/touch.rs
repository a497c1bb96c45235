//! What a change concerns beyond the record itself. Each rule here follows from what `desired.rs` and
//! `assess.rs` ask of the snapshot: whatever they read of another record has to be found from that record.

use std::net::IpAddr;

use weft_store_schema::{Endpoint, EndpointRef, Holder, Mac, NetworkName, NodeName};

use crate::{
    dirty::Dirty,
    members::{Member, Members, Slot},
    snapshot::Snapshot,
};

impl Snapshot {
    /// What an endpoint holds by claims: its record need not have said all of it.
    pub(crate) fn touch_claims(&self, endpoint: &EndpointRef, dirty: &mut Dirty) {
        let member = (endpoint.node.clone(), endpoint.id.clone());
        let members = self.members.get(&endpoint.network);
        for address in members.map(|m| m.claimed_by(&member)).unwrap_or_default() {
            dirty.address(&endpoint.network, address);
        }
    }

    pub(crate) fn touch_links_if(&self, changed: bool, dirty: &mut Dirty) {
        if changed {
            dirty.links.extend(self.networks.keys().cloned());
            dirty.links.extend(self.members.keys().cloned());
        }
    }

    pub(crate) fn touch_peer(&self, node: &NodeName, dirty: &mut Dirty) {
        dirty.peers.insert(node.clone());
        for (network, members) in &self.members {
            for (id, slot) in members.endpoints_on(node) {
                let endpoint = EndpointRef {
                    network: network.clone(),
                    node: node.clone(),
                    id: id.clone(),
                };
                self.touch_endpoint(&endpoint, Some(slot), dirty);
            }
        }
    }

    pub(crate) fn touch_endpoint(
        &self,
        endpoint: &EndpointRef,
        slot: Option<&Slot<Endpoint>>,
        dirty: &mut Dirty,
    ) {
        dirty.endpoints.insert(endpoint.clone());
        let Some(value) = slot.and_then(|slot| slot.value.as_ref()) else {
            return;
        };
        if let Some(mac) = value.mac {
            self.touch_mac(&endpoint.network, mac, dirty);
        }
        for address in &value.addresses {
            self.touch_address(&endpoint.network, *address, dirty);
        }
    }

    /// The address has perhaps another owner now. A claim decides about the MAC of whoever names the address
    /// too, and tells whoever wishes for it why it cannot be had.
    pub(crate) fn touch_address(&self, network: &NetworkName, address: IpAddr, dirty: &mut Dirty) {
        dirty.address(network, address);
        let Some(members) = self.members.get(network) else {
            return;
        };
        for member in members.with_address(address) {
            dirty.endpoints.insert(endpoint_of(network, member));
            if let Some(mac) = members.value(member).and_then(|endpoint| endpoint.mac) {
                self.touch_mac(network, mac, dirty);
            }
        }
        for member in members.wishing(address) {
            dirty.endpoints.insert(endpoint_of(network, member));
        }
    }

    /// The MAC has perhaps another owner now; whoever names it may have lost its place, and its neighbours
    /// with it.
    pub(crate) fn touch_mac(&self, network: &NetworkName, mac: Mac, dirty: &mut Dirty) {
        dirty.mac(network, mac);
        let Some(members) = self.members.get(network) else {
            return;
        };
        for member in members.with_mac(mac) {
            dirty.endpoints.insert(endpoint_of(network, member));
            for address in members.value(member).into_iter().flat_map(|e| &e.addresses) {
                dirty.address(network, *address);
            }
        }
    }
    /// Whether a member is a reason to leave alone what no record of its network explains.
    pub(crate) fn doubts(&self, network: &NetworkName, member: &Member) -> bool {
        self.members
            .get(network)
            .is_some_and(|m| m.may_be_undetermined(member) && m.any_undetermined())
    }

    pub(crate) fn doubts_claim(&self, network: &NetworkName, address: IpAddr) -> bool {
        let members = self.members.get(network).filter(|m| !m.are_all_determined());
        let claim = members.and_then(|m| m.claim(address)?.value);
        claim.is_some_and(|claim| {
            claim.holder == Holder::Endpoint && self.doubts(network, &(claim.node.clone(), claim.id.clone()))
        })
    }

    /// With the last such reason gone, what was left alone has to go.
    pub(crate) fn end_doubt(&self, doubted: bool, network: &NetworkName, dirty: &mut Dirty) {
        if doubted && !self.members.get(network).is_some_and(Members::any_undetermined) {
            dirty.networks.insert(network.clone());
        }
    }
}

fn endpoint_of(network: &NetworkName, (node, id): &Member) -> EndpointRef {
    EndpointRef {
        network: network.clone(),
        node: node.clone(),
        id: id.clone(),
    }
}
