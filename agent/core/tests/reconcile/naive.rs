//! What a host should hold, said once more in the plainest way: no index, no increment, no memory. Only for
//! worlds in which every record is valid and complete, for in others history counts.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use weft_core::{
    dataplane::{Bridge, Forward, ForwardRow, Interface, Observed, ObservedNetwork, Port, PortFlags, Tunnel},
    desired::Host,
    ownership,
};
use weft_store_schema::{
    AddressClaim, Endpoint, EndpointRef, Family, Holder, Key, Mac, Mtu, Network, NetworkName, NodeName, Peer,
    Prefix, Vni, VniClaim,
};

use crate::store::Store;

/// Everything that the store holds.
struct Records {
    networks: BTreeMap<NetworkName, (i64, Network)>,
    peers: BTreeMap<NodeName, Peer>,
    vnis: BTreeMap<Vni, VniClaim>,
    endpoints: BTreeMap<EndpointRef, (i64, Endpoint)>,
    claims: BTreeMap<(NetworkName, IpAddr), AddressClaim>,
}

impl Records {
    fn of(store: &Store) -> Self {
        let mut records = Self {
            networks: BTreeMap::new(),
            peers: BTreeMap::new(),
            vnis: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            claims: BTreeMap::new(),
        };
        for entry in store.entries() {
            let (value, created) = (&entry.value, entry.create_revision);
            match Prefix::default().parse(&entry.key).unwrap() {
                Key::Network(name) => {
                    let network = Network::decode(value).unwrap();
                    records.networks.insert(name, (created, network));
                }
                Key::Peer(node) => drop(records.peers.insert(node, Peer::decode(value).unwrap())),
                Key::Vni(vni) => drop(records.vnis.insert(vni, VniClaim::decode(value).unwrap())),
                Key::Endpoint(name) => {
                    let endpoint = Endpoint::decode(value).unwrap();
                    records.endpoints.insert(name, (created, endpoint));
                }
                Key::Address(network, address) => {
                    let claim = AddressClaim::decode(value).unwrap();
                    records.claims.insert((network, address), claim);
                }
                _ => {}
            }
        }
        records
    }

    fn claims(&self, name: &EndpointRef, address: IpAddr) -> bool {
        self.claims
            .get(&(name.network.clone(), address))
            .is_some_and(|claim| {
                claim.holder == Holder::Endpoint && claim.node == name.node && claim.id == name.id
            })
    }

    /// The best of those that fit: a claim counts most, then age.
    fn best(
        &self,
        fits: impl Fn(&EndpointRef, &Endpoint) -> bool,
        claimed: impl Fn(&EndpointRef, &Endpoint) -> bool,
    ) -> Option<&EndpointRef> {
        let fitting = self.endpoints.iter().filter(|(name, (_, e))| fits(name, e));
        let ranked = fitting.map(|(name, (created, e))| (!claimed(name, e), *created, name));
        ranked.min().map(|(.., name)| name)
    }

    fn owner_of_mac(&self, network: &NetworkName, mac: Mac) -> Option<&EndpointRef> {
        self.best(
            |name, e| name.network == *network && e.mac == Some(mac),
            |name, e| e.addresses.iter().any(|a| self.claims(name, *a)),
        )
    }

    fn owner_of_address(&self, network: &NetworkName, address: IpAddr) -> Option<&EndpointRef> {
        let named =
            |name: &EndpointRef, e: &Endpoint| name.network == *network && e.addresses.contains(&address);
        match self.claims.get(&(network.clone(), address)) {
            Some(_) => self.best(|n, e| named(n, e) && self.claims(n, address), |_, _| true),
            None => self.best(named, |_, _| true),
        }
    }
}

/// What the kernel of a host should hold.
pub(crate) fn expected(store: &Store, node: &NodeName, host: &Host) -> Observed {
    let records = Records::of(store);
    let mut observed = Observed::default();
    for (name, (created, network)) in &records.networks {
        let takes_part = records
            .endpoints
            .keys()
            .any(|e| e.network == *name && e.node == *node);
        let vni = network.vni.unwrap();
        let claim = |n: &NetworkName| records.vnis.get(&vni).is_some_and(|claim| claim.network == *n);
        let rivals = records
            .networks
            .iter()
            .filter(|(_, (_, other))| other.vni == Some(vni));
        let first = rivals.map(|(n, (created, _))| (!claim(n), *created, n)).min();
        let owns = first == Some((!claim(name), *created, name));
        if takes_part && owns && (host.v4.is_some() || host.v6.is_some()) {
            let there = Here {
                records: &records,
                node,
                host,
                name,
                network,
            };
            observed.networks.insert(name.clone(), there.carried(vni));
        }
    }
    observed
}

/// One network on one host.
struct Here<'a> {
    records: &'a Records,
    node: &'a NodeName,
    host: &'a Host,
    name: &'a NetworkName,
    network: &'a Network,
}

impl Here<'_> {
    fn mtu(&self) -> u16 {
        let peers = self.records.peers.values();
        let least = peers
            .clone()
            .map(|p| p.mtu.get())
            .min()
            .unwrap_or(u16::MAX)
            .min(self.host.mtu);
        let over_v4 = self.host.v4.is_some() && peers.clone().all(|p| p.v4.is_some());
        let usual = least - if over_v4 { 50 } else { 70 };
        self.network.mtu.map_or(usual, Mtu::get)
    }

    fn carried(&self, vni: Vni) -> ObservedNetwork {
        let mtu = self.mtu();
        let mut there = ObservedNetwork {
            bridge: Some(Bridge {
                mtu,
                up: true,
                multicast_snooping: false,
                ipv6: true,
                link_local: false,
                filtered: false,
            }),
            ..ObservedNetwork::default()
        };
        for (family, local) in [(Family::V4, self.host.v4), (Family::V6, self.host.v6)] {
            if let Some(local) = local {
                let bridge_port = Some(PortFlags::TUNNEL);
                let port = self.host.port;
                let tunnel = Tunnel {
                    vni,
                    port,
                    local,
                    mtu,
                    up: true,
                    learning: false,
                    bridge_port,
                };
                there.tunnels.insert(family, tunnel);
            }
        }
        for (name, (_, endpoint)) in &self.records.endpoints {
            if name.network != *self.name {
                continue;
            }
            let mac = endpoint.mac.unwrap();
            if self.records.owner_of_mac(self.name, mac) != Some(name) {
                continue;
            }
            if name.node == *self.node {
                self.local(name, endpoint, mac, &mut there);
            } else if let Some(vtep) = self.vtep(&name.node) {
                there.forwards.insert(mac, ForwardRow::of(&Forward::Remote(vtep)));
                for address in &endpoint.addresses {
                    if self.records.owner_of_address(self.name, *address) == Some(name) {
                        there.neighbours.insert(*address, mac);
                    }
                }
            }
        }
        there
    }

    fn vtep(&self, node: &NodeName) -> Option<IpAddr> {
        let peer = &self.records.peers[node];
        let v4 = peer.v4.filter(|_| self.host.v4.is_some());
        v4.or(peer.v6.filter(|_| self.host.v6.is_some()))
    }

    fn local(&self, name: &EndpointRef, endpoint: &Endpoint, mac: Mac, there: &mut ObservedNetwork) {
        let place = endpoint.attachment();
        let rivals = self.records.endpoints.iter();
        let rivals = rivals.filter(|(n, (_, e))| n.node == *self.node && e.attachment() == place);
        let first = rivals.map(|(n, (created, _))| (*created, n)).min();
        if first.map(|(_, n)| n) != Some(name) {
            return;
        }
        let held = endpoint
            .addresses
            .iter()
            .filter(|a| self.records.claims(name, **a));
        let in_subnet = held.filter_map(|a| {
            let mut subnets = self.network.subnets.iter();
            let subnet = subnets.find(|s| s.net.contains(a))?;
            IpNet::new(*a, subnet.net.prefix_len()).ok()
        });
        let addresses: std::collections::BTreeSet<IpNet> = in_subnet.collect();
        if addresses.is_empty() {
            return;
        }
        let mut routes = std::collections::BTreeSet::new();
        for subnet in &self.network.subnets {
            let of_family = |a: &&IpNet| a.addr().is_ipv4() == subnet.net.network().is_ipv4();
            let on_link = addresses.iter().any(|a| subnet.net.contains(&a.addr()));
            if addresses.iter().any(|a| of_family(&a)) && !on_link {
                routes.insert(subnet.net);
            }
        }
        let (port_name, alias) = (
            ownership::port_name(name),
            ownership::alias(name, endpoint.name()),
        );
        let (mtu, attachment) = (self.mtu(), place.clone());
        let bridge_port = Some(PortFlags::ENDPOINT);
        there.ports.insert(
            port_name.clone(),
            Port {
                alias: alias.clone(),
                mtu,
                up: true,
                bridge_port,
            },
        );
        let interface = Interface {
            attachment,
            alias,
            mac,
            mtu,
            up: true,
            addresses,
            routes,
        };
        there.interfaces.insert(name.id.clone(), interface);
        there
            .forwards
            .insert(mac, ForwardRow::of(&Forward::Local(port_name)));
    }
}
