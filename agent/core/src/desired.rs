//! Records → what this host's kernel should hold. Pure, and the same function for one endpoint as for
//! everything: a scope only says of which objects the result speaks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use weft_store_schema::{
    EndpointId, EndpointRef, Family, Key, Mac, Mtu, Network, NetworkName, NodeName, Vni,
};

use crate::{
    dataplane::{Bridge, Forward, Interface, Local, LookInto, Observed, Port, PortFlags, Tunnel},
    dirty::Dirty,
    headroom::underlay_mtu,
    members::Members,
    ownership,
    problem::Problem,
    snapshot::Snapshot,
};

/// What of this host, beside its records, decides what it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// IPv4 address of the underlay.
    pub v4: Option<IpAddr>,
    /// IPv6 address of the underlay.
    pub v6: Option<IpAddr>,
    /// MTU of the underlay interface.
    pub mtu: u16,
    /// UDP port of all VTEPs.
    pub port: u16,
}

impl Host {
    fn vtep(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What is wanted of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted<T> {
    /// It should be just so.
    Is(T),
    /// It should not be there.
    Absent,
    /// Not known: whatever is there stays as it is.
    Keep,
}

/// What is wanted of a network's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// The bridge.
    pub bridge: Bridge,
    /// A VXLAN device for each underlay family of this host.
    pub tunnels: BTreeMap<Family, Tunnel>,
}

/// What is wanted in a network that this host carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried {
    /// Whether what is not named here should be absent. Otherwise it is simply not spoken of.
    pub complete: bool,
    /// The devices, if spoken of.
    pub devices: Option<Devices>,
    /// Local endpoints.
    pub locals: BTreeMap<EndpointId, Wanted<Box<Local>>>,
    /// Forwarding entries.
    pub forwards: HashMap<Mac, Wanted<Forward>>,
    /// Neighbours.
    pub neighbours: HashMap<IpAddr, Wanted<Mac>>,
    /// Forwarding entries and neighbours that no record explains stay, because some record is not
    /// understood and may be their explanation.
    pub keep_unexplained: bool,
    /// Host ends that no record explains stay, too.
    pub keep_ports: bool,
}

/// What this host's kernel should hold, as far as the scope goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Whether networks that are not named should be absent.
    pub complete: bool,
    /// By network.
    pub networks: BTreeMap<NetworkName, Wanted<Carried>>,
}

/// Problems found on the way: for each object that was judged, its problem or that it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assessment {
    /// Whether every object was judged. Then those that have no problem are not named.
    pub complete: bool,
    /// By key, without the prefix.
    pub by_key: BTreeMap<String, Option<Problem>>,
}

impl Assessment {
    /// Notes what was found of an object.
    pub(crate) fn note(&mut self, key: &Key, problem: Option<Problem>) {
        if problem.is_some() || !self.complete {
            self.by_key.insert(key.to_string(), problem);
        }
    }
}

/// Where to look for the container ends of local endpoints, for a look at this part: all of a network that is looked at, those
/// that are named of any other.
pub fn look_into(snapshot: &Snapshot, part: &Dirty) -> Vec<LookInto> {
    let mut places = Vec::new();
    let touched = part.touched_networks();
    for (network, members) in snapshot.all_members() {
        if !part.everything && !touched.contains(network) {
            continue;
        }
        for (id, slot) in members.endpoints_on(snapshot.node()) {
            let Some(endpoint) = &slot.value else { continue };
            let name = EndpointRef {
                network: network.clone(),
                node: snapshot.node().clone(),
                id: id.clone(),
            };
            if !part.looks_into(&name) {
                continue;
            }
            places.push(LookInto {
                network: network.clone(),
                id: id.clone(),
                port_name: ownership::port_name(&name),
                attachment: endpoint.attachment(),
            });
        }
    }
    places
}

/// What should be there. `observed` serves only to name what else has to be judged in a complete pass.
pub fn desired(
    snapshot: &Snapshot,
    host: &Host,
    observed: &Observed,
    dirty: &Dirty,
) -> (Desired, Assessment) {
    let pass = Pass {
        snapshot,
        host,
        mtu: underlay_mtu(snapshot, host),
    };
    let mut desired = Desired {
        complete: dirty.everything,
        ..Desired::default()
    };
    let mut assessment = Assessment {
        complete: dirty.everything,
        ..Assessment::default()
    };
    let networks: BTreeSet<&NetworkName> = if dirty.everything {
        snapshot
            .networks()
            .map(|(n, _)| n)
            .chain(snapshot.all_members().map(|(n, _)| n))
            .chain(observed.networks.keys())
            .collect()
    } else {
        dirty.touched_networks()
    };
    for network in networks {
        desired
            .networks
            .insert(network.clone(), pass.network(network, dirty));
        pass.assess(network, dirty, &mut assessment);
    }
    if dirty.everything || !dirty.peers.is_empty() {
        pass.assess_peers(dirty, &mut assessment);
    }
    (desired, assessment)
}

/// Whether a network could be carried on this host, as the records and the host are.
pub fn can_carry(snapshot: &Snapshot, host: &Host, name: &NetworkName) -> bool {
    let mtu = underlay_mtu(snapshot, host);
    Pass { snapshot, host, mtu }.carried(name).is_some()
}

/// Whether a network that this host takes part in can be carried, and its devices are in the kernel as they should be.
pub fn is_carried(snapshot: &Snapshot, host: &Host, observed: &Observed, name: &NetworkName) -> bool {
    let mtu = underlay_mtu(snapshot, host);
    let pass = Pass { snapshot, host, mtu };
    let (Some((network, vni)), Some(there)) = (pass.carried(name), observed.networks.get(name)) else {
        return false;
    };
    let wanted = pass.devices(network, vni);
    let mut tunnels = wanted.tunnels.iter();
    there.bridge.as_ref() == Some(&wanted.bridge) && tunnels.all(|(f, t)| there.tunnels.get(f) == Some(t))
}

/// Whether this host knows a way to another one's endpoints.
pub fn has_path(snapshot: &Snapshot, host: &Host, node: &NodeName) -> bool {
    let mtu = underlay_mtu(snapshot, host);
    matches!(Pass { snapshot, host, mtu }.vtep(node), Vtep::At(_))
}

/// One pass: everything that the answers depend on.
pub(crate) struct Pass<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) host: &'a Host,
    /// MTU in bytes of networks that set none.
    pub(crate) mtu: u16,
}

impl<'a> Pass<'a> {
    fn network(&self, name: &NetworkName, dirty: &Dirty) -> Wanted<Carried> {
        if !self.snapshot.knows_members(name) {
            return Wanted::Keep;
        }
        if !self.snapshot.takes_part(name) {
            // A store that may have lost its records is not believed when it says that there are none.
            return if self.snapshot.is_distrusted() {
                Wanted::Keep
            } else {
                Wanted::Absent
            };
        }
        let Some((network, vni)) = self.carried(name) else {
            return Wanted::Keep;
        };
        let Some(members) = self.snapshot.members(name) else {
            return Wanted::Keep;
        };
        let complete = dirty.everything || dirty.networks.contains(name);
        let links = complete || dirty.links.contains(name);
        let mut carried = Carried {
            complete,
            // Where not all is spoken of, nothing is unexplained.
            keep_unexplained: complete && (members.any_undetermined() || self.snapshot.is_distrusted()),
            keep_ports: self.snapshot.is_distrusted(),
            ..Carried::default()
        };
        if links {
            carried.devices = Some(self.devices(network, vni));
        }
        let mut macs: BTreeSet<Mac> = BTreeSet::new();
        // What is named is judged whatever else is: it may be gone, or be what no other record explains.
        let named = dirty.endpoints.iter().filter(|e| e.network == *name);
        let mut locals: BTreeSet<&EndpointId> = named
            .filter(|e| e.node == *self.snapshot.node())
            .map(|e| &e.id)
            .collect();
        if links {
            locals.extend(self.snapshot.own_endpoints(name).map(|(id, _)| id));
        }
        for id in locals {
            let endpoint = self.endpoint_ref(name, self.snapshot.node(), id);
            // A veth that is made anew takes its forwarding entry along.
            macs.extend(
                self.snapshot
                    .endpoint(&endpoint)
                    .and_then(|s| s.value.as_ref())
                    .and_then(|e| e.mac),
            );
            carried
                .locals
                .insert(id.clone(), self.local(network, members, &endpoint));
        }
        macs.extend(dirty.macs.get(name).into_iter().flatten());
        let mut addresses: BTreeSet<IpAddr> =
            dirty.addresses.get(name).into_iter().flatten().copied().collect();
        if complete {
            macs.extend(members.macs());
            addresses.extend(members.addresses());
        }
        carried.neighbours = addresses
            .into_iter()
            .map(|address| (address, self.neighbour(members, address)))
            .collect();
        carried.forwards = macs
            .into_iter()
            .map(|mac| (mac, self.forward(name, network, members, mac)))
            .collect();
        Wanted::Is(carried)
    }

    /// The network as it is to be carried; none if that is not known and what runs stays.
    fn carried(&self, name: &NetworkName) -> Option<(&'a Network, Vni)> {
        let network = self.snapshot.network(name)?.value.as_ref()?;
        let vni = network.vni?;
        let usable =
            self.snapshot.owner_of_vni(vni) == Some(name) && (self.host.v4.or(self.host.v6)).is_some();
        usable.then_some((network, vni))
    }

    pub(crate) fn mtu(&self, network: &Network) -> u16 {
        network.mtu.map_or(self.mtu, Mtu::get)
    }

    fn devices(&self, network: &Network, vni: Vni) -> Devices {
        let mtu = self.mtu(network);
        let tunnel = |local| Tunnel {
            vni,
            port: self.host.port,
            local,
            mtu,
            up: true,
            learning: false,
            bridge_port: Some(PortFlags::TUNNEL),
        };
        Devices {
            bridge: Bridge {
                mtu,
                up: true,
                multicast_snooping: false,
                ipv6: true,
                link_local: false,
                filtered: false,
            },
            tunnels: Family::ALL
                .into_iter()
                .filter_map(|f| Some((f, tunnel(self.host.vtep(f)?))))
                .collect(),
        }
    }

    pub(crate) fn endpoint_ref(
        &self,
        network: &NetworkName,
        node: &NodeName,
        id: &EndpointId,
    ) -> EndpointRef {
        EndpointRef {
            network: network.clone(),
            node: node.clone(),
            id: id.clone(),
        }
    }

    fn local(&self, network: &Network, members: &Members, name: &EndpointRef) -> Wanted<Box<Local>> {
        if self.snapshot.awaits_detach(name) {
            return Wanted::Absent;
        }
        let Some(slot) = self.snapshot.endpoint(name) else {
            return Wanted::Absent;
        };
        let Some(endpoint) = &slot.value else {
            return Wanted::Keep;
        };
        if self.snapshot.owner_of_attachment(&endpoint.attachment()) != Some(name) {
            return Wanted::Absent;
        }
        let member = (name.node.clone(), name.id.clone());
        let Some(mac) = endpoint.mac else {
            return Wanted::Keep;
        };
        if members
            .owner_of_mac(mac)
            .is_some_and(|(owner, _)| *owner != member)
        {
            return Wanted::Absent;
        }
        // An address is put on an interface only when the claim is in sight; a claim that went missing, or
        // cannot be read, takes no address away.
        let untold = |a: &IpAddr| members.claim(*a).is_none_or(|slot| slot.value.is_none());
        if endpoint.addresses.is_empty() || endpoint.addresses.iter().any(untold) {
            return Wanted::Keep;
        }
        let held = endpoint
            .addresses
            .iter()
            .filter(|a| members.is_claimed_by(**a, &member));
        let addresses: BTreeSet<_> = held
            .filter_map(|a| ipnet::IpNet::new(*a, network.subnet_of(*a)?.net.prefix_len()).ok())
            .collect();
        if addresses.is_empty() {
            return Wanted::Absent;
        }
        let routes = network
            .subnets
            .iter()
            .filter(|s| {
                let mut of_family = addresses
                    .iter()
                    .filter(|a| Family::of(a.addr()) == s.family())
                    .peekable();
                of_family.peek().is_some() && of_family.all(|a| !s.net.contains(&a.addr()))
            })
            .map(|s| s.net)
            .collect();
        let mtu = self.mtu(network);
        let alias = ownership::alias(name, endpoint.name());
        Wanted::Is(Box::new(Local {
            port_name: ownership::port_name(name),
            port: Port {
                alias: alias.clone(),
                mtu,
                up: true,
                bridge_port: Some(PortFlags::ENDPOINT),
            },
            interface: Interface {
                attachment: endpoint.attachment(),
                alias,
                mac,
                mtu,
                up: true,
                addresses,
                routes,
            },
        }))
    }

    fn forward(&self, name: &NetworkName, network: &Network, members: &Members, mac: Mac) -> Wanted<Forward> {
        let Some(((node, id), _)) = members.owner_of_mac(mac) else {
            return Wanted::Absent;
        };
        if node == self.snapshot.node() {
            return match self.local(network, members, &self.endpoint_ref(name, node, id)) {
                Wanted::Is(local) => Wanted::Is(Forward::Local(local.port_name)),
                Wanted::Keep => Wanted::Keep,
                Wanted::Absent => Wanted::Absent,
            };
        }
        match self.vtep(node) {
            Vtep::At(vtep) => Wanted::Is(Forward::Remote(vtep)),
            Vtep::Unknown | Vtep::Taken(..) => Wanted::Keep,
            Vtep::Unreachable => Wanted::Absent,
        }
    }

    /// Only remote endpoints are answered for: a local one answers itself, and a stale answer in its place
    /// would be believed.
    fn neighbour(&self, members: &Members, address: IpAddr) -> Wanted<Mac> {
        let Some(((node, id), endpoint)) = members.owner_of_address(address) else {
            // Who holds it by a claim, and has a record that does not tell, may be whom it was made for.
            return if members.is_held_untold(address) {
                Wanted::Keep
            } else {
                Wanted::Absent
            };
        };
        if node == self.snapshot.node() {
            return Wanted::Absent;
        }
        let Some(mac) = endpoint.mac else {
            return Wanted::Keep;
        };
        // The loser of a MAC would be answered for with the winner's place.
        if members
            .owner_of_mac(mac)
            .is_some_and(|((n, i), _)| (n, i) != (node, id))
        {
            return Wanted::Absent;
        }
        match self.vtep(node) {
            Vtep::At(_) => Wanted::Is(mac),
            Vtep::Unknown | Vtep::Taken(..) => Wanted::Keep,
            Vtep::Unreachable => Wanted::Absent,
        }
    }

    pub(crate) fn vtep(&self, node: &NodeName) -> Vtep<'a> {
        let Some(peer) = self.snapshot.peer(node) else {
            return Vtep::Unknown;
        };
        // The order of Family::ALL is the preference, the same on both sides of every pair.
        let common = Family::ALL
            .into_iter()
            .find_map(|f| self.host.vtep(f).and_then(|_| peer.vtep(f)));
        match common {
            Some(vtep) => match self.snapshot.owner_of_vtep(vtep) {
                Some(owner) if owner != node => Vtep::Taken(vtep, owner),
                _ => Vtep::At(vtep),
            },
            None => Vtep::Unreachable,
        }
    }
}

/// Where a node's tunnel ends, seen from this host.
pub(crate) enum Vtep<'a> {
    At(IpAddr),
    /// The address is that of another peer, whose record is older: packets for this one would go there.
    Taken(IpAddr, &'a NodeName),
    /// No record tells.
    Unknown,
    /// The records tell, and there is no common family.
    Unreachable,
}
