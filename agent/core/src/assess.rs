//! What is wrong with the records of a scope, taken together: what a record's own validation cannot see.

use weft_store_schema::{Endpoint, EndpointRef, Family, Key, Mtu, NetworkName};

use crate::{
    desired::{Assessment, Pass, Vtep},
    dirty::Dirty,
    members::{Member, Members, Slot},
    problem::Problem,
};

impl Pass<'_> {
    pub(crate) fn assess(&self, name: &NetworkName, dirty: &Dirty, assessment: &mut Assessment) {
        let complete = dirty.everything || dirty.networks.contains(name);
        // What is wrong with a network may lie in its links' MTU.
        if complete || dirty.links.contains(name) {
            let key = Key::Network(name.clone());
            assessment.note(&key, self.network_problem(name, &key));
        }
        let mut judge = |endpoint: EndpointRef| {
            let key = Key::Endpoint(endpoint.clone());
            assessment.note(&key, self.endpoint_problem(&endpoint, &key));
        };
        if complete {
            for (node, id, _) in self
                .snapshot
                .members(name)
                .into_iter()
                .flat_map(Members::endpoints)
            {
                judge(self.endpoint_ref(name, node, id));
            }
        }
        // Also one that is gone: its problem goes with it.
        dirty
            .endpoints
            .iter()
            .filter(|e| e.network == *name)
            .cloned()
            .for_each(judge);
    }

    fn network_problem(&self, name: &NetworkName, key: &Key) -> Option<Problem> {
        let Some(slot) = self.snapshot.network(name) else {
            return self.snapshot.takes_part(name).then(|| {
                Problem::new(
                    key,
                    "there is no such network, but endpoints of this node name it: put the record, or delete them",
                )
            });
        };
        let network = slot.value.as_ref()?;
        if slot.held {
            return Some(Problem::new(
                key,
                "the record was deleted while endpoints exist; the network is carried on: put the record back ('weft resync \
                 --republish'), or detach the endpoints",
            ));
        }
        if let Some(vni) = network.vni
            && let Some(owner) = self.snapshot.owner_of_vni(vni)
            && owner != name
        {
            let message =
                format!("VNI {vni} belongs to network {owner}; give another one, or none to have one chosen");
            return Some(Problem::field(key, "vni", message));
        }
        if self.snapshot.takes_part(name) && self.host.v4.or(self.host.v6).is_none() {
            return Some(Problem::new(
                key,
                "this host has no address on the underlay to end tunnels at; see weft status",
            ));
        }
        if network.multicast {
            return Some(Problem::field(
                key,
                "multicast",
                "broadcast and multicast are not carried between hosts yet; unicast is",
            ));
        }
        let mtu = self.mtu(network);
        if mtu > self.mtu {
            let message = format!(
                "{mtu} is more than the {} that fit into the underlay's MTU; large packets will be lost or fragmented",
                self.mtu
            );
            return Some(Problem::field(key, "mtu", message));
        }
        if mtu < Mtu::MIN_IPV6 && network.families().any(|f| f == Family::V6) {
            let message = format!(
                "the underlay leaves an MTU of {mtu}; IPv6 needs {}: raise the underlay's MTU",
                Mtu::MIN_IPV6
            );
            return Some(Problem::field(key, "mtu", message));
        }
        None
    }

    fn endpoint_problem(&self, name: &EndpointRef, key: &Key) -> Option<Problem> {
        let slot: &Slot<Endpoint> = self.snapshot.endpoint(name)?;
        let endpoint = slot.value.as_ref()?;
        let members = self.snapshot.members(&name.network)?;
        let member: Member = (name.node.clone(), name.id.clone());
        let own = name.node == *self.snapshot.node();
        if own
            && let Some(owner) = self.snapshot.owner_of_attachment(&endpoint.attachment())
            && owner != name
        {
            let place = endpoint.attachment();
            let message = format!(
                "{} in {} belongs to endpoint {owner}; choose another ifname, or delete one of the two",
                place.ifname, place.netns
            );
            return Some(Problem::field(key, "attachment", message));
        }
        let network = self
            .snapshot
            .network(&name.network)
            .and_then(|s| s.value.as_ref());
        for (field, addresses) in [
            ("requested_addresses", endpoint.requested()),
            ("addresses", &*endpoint.addresses),
        ] {
            for (i, address) in addresses.iter().enumerate() {
                let at = || format!("{field}[{i}]");
                if let Some(network) = network
                    && network.subnet_of(*address).is_none()
                {
                    let subnets: Vec<_> = network.subnets.iter().map(|s| s.net.to_string()).collect();
                    let message = format!(
                        "{address} is in none of the subnets of {}: {}",
                        name.network,
                        subnets.join(", ")
                    );
                    return Some(Problem::field(key, at(), message));
                }
                if let Some(claim) = members.claimed_by_other(*address, &member) {
                    let message = format!(
                        "{address} is held by endpoint {}/{}/{}; ask for another",
                        name.network, claim.node, claim.id
                    );
                    return Some(Problem::field(key, at(), message));
                }
            }
        }
        if let Some(mac) = endpoint.mac
            && let Some((owner, _)) = members.owner_of_mac(mac)
            && *owner != member
        {
            let message = format!(
                "{mac} is the MAC of endpoint {}/{}/{} already; give another one",
                name.network, owner.0, owner.1
            );
            return Some(Problem::field(key, "mac", message));
        }
        if !own {
            match self.vtep(&name.node) {
                Vtep::At(_) => {}
                Vtep::Unknown => {
                    let message = format!(
                        "no valid record peers/{} says where its node is; does an agent run there, and is that its name?",
                        name.node
                    );
                    return Some(Problem::new(key, message));
                }
                // There is nothing yet that would be forwarded.
                _ if endpoint.addresses.is_empty() => {}
                Vtep::Taken(vtep, owner) => {
                    let message = format!(
                        "the VTEP address {vtep} of its node {} is that of node {owner}; forwarding stays as it was",
                        name.node
                    );
                    return Some(Problem::new(key, message));
                }
                Vtep::Unreachable => {
                    let message = format!(
                        "node {} has no VTEP address of a family that this host has too",
                        name.node
                    );
                    return Some(Problem::new(key, message));
                }
            }
        }
        None
    }

    /// All of them, whichever changed: two that share an address are each other's problem.
    pub(crate) fn assess_peers(&self, dirty: &Dirty, assessment: &mut Assessment) {
        for gone in &dirty.peers {
            assessment.note(&Key::Peer(gone.clone()), None);
        }
        for (node, slot) in self.snapshot.peers() {
            let key = Key::Peer(node.clone());
            let mut problem = slot.held.then(|| {
                Problem::new(
                    &key,
                    "the record was deleted while endpoints name the node; it is forwarded to as before",
                )
            });
            for vtep in slot.value.iter().flat_map(weft_store_schema::Peer::vteps) {
                let mut others = self.snapshot.users_of_vtep(vtep).filter(|other| *other != node);
                let message = match self.snapshot.owner_of_vtep(vtep) {
                    Some(owner) if owner != node => format!(
                        "{vtep} is the VTEP address of node {owner}, whose record is older; nothing more is forwarded to \
                         {node} until it has another (underlay.addresses there)"
                    ),
                    _ => match others.next() {
                        Some(other) => format!(
                            "node {other} names the VTEP address {vtep} too; this record is older and keeps it"
                        ),
                        None => continue,
                    },
                };
                problem = Some(Problem::field(&key, "vteps", message));
            }
            assessment.note(&key, problem);
        }
    }
}
