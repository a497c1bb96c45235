//! The nodes, networks, endpoints and addresses that a schedule is about, by number.

use std::net::IpAddr;

use weft_core::claims::NetworkChange;
use weft_store_schema::{
    AttachmentDocument, EndpointDocument, EndpointId, EndpointRef, NetworkDocument, NetworkName, NodeName,
    PeerDocument, SubnetDocument,
};

use crate::deed::{IDS, NETWORKS, NODES};

/// Seconds that an address cools down in the second network.
pub(crate) const COOLDOWN: u64 = 5;

/// Names, made once.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) nodes: Vec<NodeName>,
    pub(crate) networks: Vec<NetworkName>,
    pub(crate) ids: Vec<EndpointId>,
}

const WISHES: [&str; 8] = [
    "10.1.0.2",
    "10.1.0.3",
    "10.1.0.5",
    "fd00:1::3",
    "10.2.0.2",
    "10.3.0.3",
    // Outside of the range, and reserved.
    "10.3.0.6",
    "10.1.0.4",
];

impl Default for Names {
    fn default() -> Self {
        let parse = |texts: &[&str]| texts.iter().filter_map(|t| t.parse().ok()).collect();
        Self {
            nodes: parse(&["host1", "host2", "host3"]),
            networks: ["blue", "green"].iter().filter_map(|t| t.parse().ok()).collect(),
            ids: ["a", "b", "c"].iter().filter_map(|t| t.parse().ok()).collect(),
        }
    }
}

impl Names {
    pub(crate) fn node(&self, n: u8) -> &NodeName {
        &self.nodes[usize::from(n % NODES)]
    }

    pub(crate) fn network(&self, n: u8) -> &NetworkName {
        &self.networks[usize::from(n % NETWORKS)]
    }

    pub(crate) fn id(&self, n: u8) -> &EndpointId {
        &self.ids[usize::from(n % IDS)]
    }

    pub(crate) fn endpoint(&self, node: u8, network: u8, id: u8) -> EndpointRef {
        EndpointRef {
            network: self.network(network).clone(),
            node: self.node(node).clone(),
            id: self.id(id).clone(),
        }
    }
}

/// The address that is wished for, as text.
pub(crate) fn wish(n: u8) -> Vec<String> {
    let n = usize::from(n) % (WISHES.len() + 1);
    let wish = n.checked_sub(1).map(|n| WISHES[n].to_owned());
    wish.into_iter().collect()
}

/// The address that is wished for.
pub(crate) fn wished(n: u8) -> Vec<IpAddr> {
    wish(n).iter().filter_map(|text| text.parse().ok()).collect()
}

/// The least that is an endpoint.
pub(crate) fn endpoint(n: u8, id: &EndpointId) -> EndpointDocument {
    EndpointDocument {
        attachment: AttachmentDocument {
            netns: format!("/run/netns/{id}"),
            ifname: None,
        },
        requested_addresses: wish(n),
        ..EndpointDocument::default()
    }
}

fn subnet(cidr: &str, range: Option<&str>, reserved: &[&str]) -> SubnetDocument {
    SubnetDocument {
        cidr: cidr.to_owned(),
        range: range.map(str::to_owned),
        reserved: reserved.iter().map(ToString::to_string).collect(),
        ..SubnetDocument::default()
    }
}

/// A network, of one of the forms.
pub(crate) fn network(form: u8, vni: u8) -> NetworkDocument {
    let v6 = subnet("fd00:1::/125", Some("fd00:1::2-fd00:1::5"), &[]);
    let (subnets, cooldown) = match form % 4 {
        // Four IPv4 and four IPv6 addresses.
        0 => (vec![subnet("10.1.0.0/29", None, &["10.1.0.4"]), v6], None),
        // One, then three; with a cool-down.
        1 => {
            let second = subnet("10.3.0.0/29", Some("10.3.0.2-10.3.0.4"), &[]);
            (vec![subnet("10.2.0.0/30", None, &[]), second], Some(COOLDOWN))
        }
        2 => (vec![subnet("10.1.0.0/30", None, &[])], None),
        _ => (vec![v6], None),
    };
    NetworkDocument {
        subnets,
        cooldown,
        vni: match vni % 3 {
            0 => None,
            n => Some(99 + u64::from(n)),
        },
        ..NetworkDocument::default()
    }
}

/// A change of a network.
pub(crate) fn change(n: u8) -> NetworkChange {
    let net = |text: &str| text.parse().into_iter().collect();
    let mut change = NetworkChange::default();
    match n % 8 {
        0 => change.add_subnets = vec![subnet("10.4.0.0/30", None, &[])],
        1 => change.remove_subnets = net("10.4.0.0/30"),
        2 => change.remove_subnets = net("10.1.0.0/29"),
        3 => change.remove_subnets = net("fd00:1::/125"),
        4 => change.remove_subnets = net("10.3.0.0/29"),
        5 => change.cooldown = Some(COOLDOWN),
        6 => {
            // The same space with less that is open, by another subnet.
            change.remove_subnets = net("10.1.0.0/29");
            change.add_subnets = vec![subnet("10.1.0.0/29", None, &["10.1.0.2-10.1.0.3"])];
        }
        _ => change.cooldown = Some(0),
    }
    change
}

/// What a node's own record says.
pub(crate) fn peer(n: usize) -> PeerDocument {
    PeerDocument {
        vteps: vec![format!("10.99.0.{}", n + 1)],
        mtu: Some(1500),
        incarnation: Some("life1".to_owned()),
        ..PeerDocument::default()
    }
}
