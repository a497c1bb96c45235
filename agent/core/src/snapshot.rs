//! All records that matter to this host, as the store last had them.
//!
//! The snapshot is state, not history. How records get into it is in `changes.rs`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use weft_store_schema::{
    Attachment, BarrierDocument, BarrierRef, Endpoint, EndpointId, EndpointRef, Key, Kind, Network,
    NetworkName, NodeName, PassedDocument, Peer, Prefix, RemovedDocument, Vni, VniClaim,
};

use crate::{
    dirty::Dirty,
    members::{Members, Slot},
    problem::Problem,
    record::Scope,
    suspicion::Suspicion,
};

/// All records that matter to this host.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) prefix: Prefix,
    pub(crate) node: NodeName,
    pub(crate) networks: BTreeMap<NetworkName, Slot<Network>>,
    pub(crate) peers: BTreeMap<NodeName, Slot<Peer>>,
    pub(crate) vnis: BTreeMap<Vni, Slot<VniClaim>>,
    pub(crate) removed: BTreeMap<NodeName, Slot<RemovedDocument>>,
    pub(crate) members: BTreeMap<NetworkName, Members>,
    pub(crate) barriers: BTreeMap<(NetworkName, BarrierRef), Slot<BarrierDocument>>,
    pub(crate) passed: BTreeMap<(BarrierRef, NodeName), Slot<PassedDocument>>,
    /// Which networks name a VNI.
    pub(crate) vni_users: HashMap<Vni, BTreeSet<NetworkName>>,
    /// Which peers name a VTEP address.
    pub(crate) vtep_users: HashMap<IpAddr, BTreeSet<NodeName>>,
    /// How many peers have an underlay of this MTU, and an IPv4 address there or none.
    pub(crate) underlays: BTreeMap<(u16, bool), usize>,
    /// Which of this node's endpoints name an attachment.
    pub(crate) attachments: HashMap<Attachment, BTreeSet<EndpointRef>>,
    /// Records and keys that cannot be understood.
    pub(crate) problems: BTreeMap<String, Problem>,
    pub(crate) listed: BTreeSet<Scope>,
    /// Up to which revision of which cluster each scope is known, by listings and by its watch.
    pub(crate) positions: BTreeMap<Scope, (u64, i64)>,
    /// Keys that transactions of our own have deleted, until the watch has come to that revision.
    pub(crate) undone: HashMap<Vec<u8>, i64>,
    /// Identity and revision of the store, once it was heard of.
    pub(crate) store: Option<(u64, i64)>,
    /// Up to which revision everything was known at some time, of all scopes.
    pub(crate) seen_to: i64,
    pub(crate) held_because: Option<String>,
    /// Deletions of which it is not known yet whether they are meant, by revision.
    pub(crate) suspicions: BTreeMap<i64, Suspicion>,
    /// The trouble was there when this agent started: what the kernel has beyond the records stays.
    pub(crate) distrusted: bool,
    /// Endpoints of this node that are detached here, whether or not the store knows it yet.
    /// With the revision at which the record was created, or at which there was none; 0 while neither is known, and the
    /// store is to be asked. One that is created later is another life.
    pub(crate) detaching: BTreeMap<EndpointRef, i64>,
}

impl Snapshot {
    /// An empty snapshot of a node.
    pub fn new(prefix: Prefix, node: NodeName) -> Self {
        Self {
            prefix,
            node,
            networks: BTreeMap::new(),
            peers: BTreeMap::new(),
            vnis: BTreeMap::new(),
            removed: BTreeMap::new(),
            members: BTreeMap::new(),
            barriers: BTreeMap::new(),
            passed: BTreeMap::new(),
            vni_users: HashMap::new(),
            vtep_users: HashMap::new(),
            underlays: BTreeMap::new(),
            attachments: HashMap::new(),
            problems: BTreeMap::new(),
            listed: BTreeSet::new(),
            positions: BTreeMap::new(),
            undone: HashMap::new(),
            store: None,
            seen_to: 0,
            held_because: None,
            suspicions: BTreeMap::new(),
            distrusted: false,
            detaching: BTreeMap::new(),
        }
    }

    /// The prefix of every key.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// This node.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The networks' records.
    pub fn networks(&self) -> impl Iterator<Item = (&NetworkName, &Slot<Network>)> {
        self.networks.iter()
    }

    /// A network's record.
    pub fn network(&self, name: &NetworkName) -> Option<&Slot<Network>> {
        self.networks.get(name)
    }

    /// The peers' records.
    pub fn peers(&self) -> impl Iterator<Item = (&NodeName, &Slot<Peer>)> {
        self.peers.iter()
    }

    /// How many there are.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// A peer as it last was.
    pub fn peer(&self, node: &NodeName) -> Option<&Peer> {
        self.peers.get(node)?.value.as_ref()
    }

    /// A peer's record.
    pub fn peer_slot(&self, node: &NodeName) -> Option<&Slot<Peer>> {
        self.peers.get(node)
    }

    /// The mark of a removed node.
    pub fn removed(&self, node: &NodeName) -> Option<&Slot<RemovedDocument>> {
        self.removed.get(node)
    }

    /// The questions to all who take part in a network, of the networks in view.
    pub fn barriers(&self) -> impl Iterator<Item = (&(NetworkName, BarrierRef), &Slot<BarrierDocument>)> {
        self.barriers.iter()
    }

    /// A question to all who take part in a network.
    pub fn barrier(&self, network: &NetworkName, barrier: &BarrierRef) -> Option<&Slot<BarrierDocument>> {
        self.barriers.get(&(network.clone(), barrier.clone()))
    }

    /// The nodes that have answered one of this node's questions.
    pub fn passed(&self, barrier: &BarrierRef) -> impl Iterator<Item = &NodeName> {
        self.passed
            .keys()
            .filter(move |(asked, _)| asked == barrier)
            .map(|(_, node)| node)
    }

    /// The claims of VNIs.
    pub fn vnis(&self) -> impl Iterator<Item = (&Vni, &Slot<VniClaim>)> {
        self.vnis.iter()
    }

    /// The claim of a VNI.
    pub fn vni_claim(&self, vni: Vni) -> Option<&Slot<VniClaim>> {
        self.vnis.get(&vni)
    }

    /// A network's endpoints and claims; none if nothing is known of any.
    pub fn members(&self, network: &NetworkName) -> Option<&Members> {
        self.members.get(network)
    }

    /// Every network that has members known here.
    pub fn all_members(&self) -> impl Iterator<Item = (&NetworkName, &Members)> {
        self.members.iter()
    }

    /// An endpoint's record.
    pub fn endpoint(&self, endpoint: &EndpointRef) -> Option<&Slot<Endpoint>> {
        self.members
            .get(&endpoint.network)?
            .endpoint(&(endpoint.node.clone(), endpoint.id.clone()))
    }

    /// This node's endpoint records in a network.
    pub fn own_endpoints(
        &self,
        network: &NetworkName,
    ) -> impl Iterator<Item = (&EndpointId, &Slot<Endpoint>)> {
        self.members
            .get(network)
            .into_iter()
            .flat_map(|m| m.endpoints_on(&self.node))
    }

    /// Whether this node has endpoint records in a network.
    pub fn takes_part(&self, network: &NetworkName) -> bool {
        self.own_endpoints(network).next().is_some()
    }

    /// The network that may use a VNI when several records name it: who holds the claim, then who was there
    /// first. The same on every host.
    pub fn owner_of_vni(&self, vni: Vni) -> Option<&NetworkName> {
        let claim = self.vnis.get(&vni).and_then(|slot| slot.value.as_ref());
        self.vni_users.get(&vni)?.iter().min_by_key(|name| {
            let created = self
                .networks
                .get(*name)
                .map_or(i64::MAX, |slot| slot.create_revision);
            (claim.is_none_or(|claim| claim.network != **name), created, *name)
        })
    }

    /// The peer whose VTEP address this is when several records name it: who was there first. The same on every host.
    pub fn owner_of_vtep(&self, vtep: IpAddr) -> Option<&NodeName> {
        let users = self.vtep_users.get(&vtep)?.iter();
        users.min_by_key(|node| {
            let created = self
                .peers
                .get(*node)
                .map_or(i64::MAX, |slot| slot.create_revision);
            (created, *node)
        })
    }

    /// The peers whose records name a VTEP address.
    pub fn users_of_vtep(&self, vtep: IpAddr) -> impl Iterator<Item = &NodeName> {
        self.vtep_users.get(&vtep).into_iter().flatten()
    }

    /// This node's endpoint that may use an attachment when several records name it: who was there first.
    pub fn owner_of_attachment(&self, attachment: &Attachment) -> Option<&EndpointRef> {
        let users = self.attachments.get(attachment)?.iter();
        let users = users.filter(|endpoint| !self.is_done_for(endpoint));
        users.min_by_key(|endpoint| {
            let created = self
                .endpoint(endpoint)
                .map_or(i64::MAX, |slot| slot.create_revision);
            (created, *endpoint)
        })
    }

    /// Whether an endpoint is detached here and has no record in the store either: it is known only in case that the store
    /// has it again.
    pub fn is_done_for(&self, endpoint: &EndpointRef) -> bool {
        self.awaits_detach(endpoint) && self.endpoint(endpoint).is_some_and(|slot| slot.held)
    }

    /// Records and keys that cannot be understood, by key.
    pub fn problems(&self) -> &BTreeMap<String, Problem> {
        &self.problems
    }

    /// Identity and revision of the store as it was last heard of.
    pub fn position(&self) -> Option<(u64, i64)> {
        self.store
    }

    /// Takes the store for being in trouble: until an operator confirms ([`Self::release_held`]), whatever the
    /// kernel has beyond the records stays.
    pub fn distrust(&mut self, because: String) {
        self.held_because = Some(because);
        self.distrusted = true;
    }

    /// Whether what the kernel has beyond the records stays.
    pub fn is_distrusted(&self) -> bool {
        self.distrusted
    }

    /// Why objects are kept that the store no longer has, if they are.
    pub fn held_because(&self) -> Option<&str> {
        self.held_because.as_deref()
    }

    /// The newest revision heard of, 0 before the first.
    pub fn revision(&self) -> i64 {
        self.store.map_or(0, |(_, revision)| revision)
    }

    /// Which scopes have to be watched: every network's own endpoints, and everything about the networks
    /// that this node takes part in, is about to (`pinned`), or still has something of in its kernel: what
    /// an endpoint that was deleted while nobody looked has left behind is cleared away from there.
    pub fn interest(
        &self,
        in_kernel: &BTreeSet<NetworkName>,
        pinned: &BTreeSet<NetworkName>,
    ) -> BTreeSet<Scope> {
        let mut scopes = BTreeSet::from([
            Scope::Networks,
            Scope::Peers,
            Scope::Removed,
            Scope::Vnis,
            Scope::Passed,
        ]);
        let known: BTreeSet<&NetworkName> = self
            .networks
            .keys()
            .chain(in_kernel)
            .chain(pinned)
            .chain(self.members.keys())
            .collect();
        for network in known {
            if pinned.contains(network) || in_kernel.contains(network) || self.takes_part(network) {
                scopes.insert(Scope::Endpoints(network.clone()));
                scopes.insert(Scope::Addresses(network.clone()));
                scopes.insert(Scope::Released(network.clone()));
                scopes.insert(Scope::Barriers(network.clone()));
            } else if self.networks.contains_key(network) {
                scopes.insert(Scope::OwnEndpoints(network.clone()));
            }
        }
        scopes
    }

    /// Whether all of these scopes have been listed, so that absence means something.
    pub fn is_complete(&self, scopes: &BTreeSet<Scope>) -> bool {
        self.listed.is_superset(scopes)
    }

    /// Whether a network's members are known well enough here for absence to mean something.
    pub fn knows_members(&self, network: &NetworkName) -> bool {
        let listed = |scope: fn(NetworkName) -> Scope| self.listed.contains(&scope(network.clone()));
        let all = listed(Scope::Endpoints) && listed(Scope::Addresses);
        all || (!self.takes_part(network) && (listed(Scope::OwnEndpoints) || listed(Scope::Endpoints)))
    }

    /// Whether a network's endpoints, claims and traces of former ones are all in view.
    pub fn knows_claims(&self, network: &NetworkName) -> bool {
        [Scope::Endpoints, Scope::Addresses, Scope::Released]
            .iter()
            .all(|scope| self.listed.contains(&scope(network.clone())))
    }

    /// This node's endpoints that are detached here, whether or not the store knows it yet.
    pub fn detaching(&self) -> &BTreeMap<EndpointRef, i64> {
        &self.detaching
    }

    /// The revision up to which a scope is known; 0 if it is not.
    pub(crate) fn seen_of(&self, scope: &Scope) -> i64 {
        self.positions.get(scope).map_or(0, |(_, revision)| *revision)
    }

    /// Whether the record that an endpoint has in the store is one that is detached here.
    pub fn awaits_detach(&self, endpoint: &EndpointRef) -> bool {
        let life = self.detaching.get(endpoint);
        life.is_some_and(|life| {
            self.endpoint(endpoint)
                .is_some_and(|slot| *life == 0 || slot.create_revision <= *life)
        })
    }

    /// Whether the store is known to have no record of an endpoint that was detached here: none of that life, and not
    /// only because its network's endpoints are not listed yet, or an attach may have happened of which nobody has told.
    pub fn has_left(&self, endpoint: &EndpointRef) -> bool {
        let is_known = self.detaching.get(endpoint).map(|life| *life > 0);
        is_known.is_none_or(|known| {
            known && self.knows_members(&endpoint.network) && !self.awaits_detach(endpoint)
        })
    }

    /// Forgets what lies outside the scopes that are still wanted. What was forgotten is to be looked at once
    /// more: what was wrong with it is nobody's problem here any longer.
    pub fn retain(&mut self, scopes: &BTreeSet<Scope>) -> Dirty {
        self.listed.retain(|scope| scopes.contains(scope));
        // Of a network that is still followed, what was known by one scope is found again by the other.
        self.positions.retain(|scope, _| {
            scopes.contains(scope)
                || matches!(scope, Scope::OwnEndpoints(n) if scopes.contains(&Scope::Endpoints(n.clone())))
                || matches!(scope, Scope::Endpoints(n) if scopes.contains(&Scope::OwnEndpoints(n.clone())))
        });
        let mut undone = std::mem::take(&mut self.undone);
        undone.retain(|key, _| self.scopes_of(key).any(|scope| scopes.contains(&scope)));
        self.undone = undone;
        let mut forgotten = Vec::new();
        for (network, members) in &mut self.members {
            if scopes.contains(&Scope::Endpoints(network.clone())) {
                continue;
            }
            let claims = members.claims().map(|(a, _)| Key::Address(network.clone(), a));
            let released = members.released().map(|(_, a)| Key::Released(network.clone(), a));
            let others = members.endpoints().filter(|(node, ..)| **node != self.node);
            let others = others.map(|(node, id, _)| {
                Key::Endpoint(EndpointRef {
                    network: network.clone(),
                    node: node.clone(),
                    id: id.clone(),
                })
            });
            forgotten.extend(claims.chain(released).chain(others));
        }
        let barriers = self.barriers.keys();
        forgotten.extend(
            barriers
                .filter(|(network, _)| !scopes.contains(&Scope::Barriers(network.clone())))
                .map(|(network, barrier)| Key::Barrier(network.clone(), barrier.clone())),
        );
        self.drop_strays_outside(scopes);
        let mut dirty = Dirty::default();
        for key in &forgotten {
            dirty.merge(self.forget(key));
        }
        self.members.retain(|network, members| {
            scopes.contains(&Scope::Endpoints(network.clone())) || !members.is_empty()
        });
        dirty
    }

    /// Gives up room for more records than there are: what many of them are taken into grows by doubling. To be called when
    /// it has come to rest.
    pub fn shrink_to_fit(&mut self) {
        self.members.values_mut().for_each(Members::shrink_to_fit);
    }

    /// What the MTU of every network depends on: the smallest underlay MTU among the peers, and whether all
    /// of them can be reached over IPv4.
    pub fn underlay_limits(&self) -> Option<(u16, bool)> {
        // Also those that are held: what is forwarded to as before has the MTU that it had before.
        let ((smallest, _), _) = self.underlays.first_key_value()?;
        Some((*smallest, self.underlays.keys().all(|(_, has_v4)| *has_v4)))
    }
}

/// The directory of a scope, with a slash at the end.
pub fn directory(prefix: &Prefix, node: &NodeName, scope: &Scope) -> String {
    match scope {
        Scope::Networks => prefix.all(Kind::Networks),
        Scope::Peers => prefix.all(Kind::Peers),
        Scope::Removed => prefix.all(Kind::Removed),
        Scope::Vnis => prefix.all(Kind::Vnis),
        Scope::OwnEndpoints(network) => prefix.endpoints_on(network, node),
        Scope::Endpoints(network) => prefix.endpoints_of(network),
        Scope::Addresses(network) => prefix.addresses_of(network),
        Scope::Released(network) => prefix.released_of(network),
        Scope::Barriers(network) => prefix.barriers_of(network),
        Scope::Passed => prefix.passed_to(node),
        Scope::PassedTo(barrier) => prefix.passed_of(barrier),
    }
}
