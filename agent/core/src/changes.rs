//! How records change the snapshot, and what each change makes dirty.
//!
//! Applying the same records in any order, once or many times, gives the same snapshot. A record that
//! cannot be decoded becomes a [`Problem`] and leaves the object as it last was.

use std::{collections::HashSet, net::IpAddr};

use weft_store_schema::{
    AddressClaim, Endpoint, EndpointId, EndpointRef, Key, Mac, Network, NetworkName, NodeName, Peer,
    RecordError, Vni, VniClaim,
};

use crate::{
    dirty::Dirty,
    members::{Member, Members, Slot},
    problem::Problem,
    record::{Change, Entry, Scope},
    snapshot::Snapshot,
};

impl Snapshot {
    /// Takes in a complete listing of a scope.
    ///
    /// What the listing lacks is deleted, if the listing continues the history that was known. If it does
    /// not (another cluster, or a revision that went back), the missing objects are held: the store is in
    /// trouble, and that never removes forwarding.
    pub fn apply_listing(
        &mut self,
        scope: &Scope,
        cluster_id: u64,
        revision: i64,
        entries: &[Entry],
    ) -> Dirty {
        let mut dirty = Dirty::default();
        let continuous = match self.store {
            Some((known_cluster, known_revision)) if known_cluster != cluster_id => {
                self.held_because = Some(format!(
                    "the store answers as another cluster ({cluster_id:x}, before {known_cluster:x}, revision {known_revision})"
                ));
                false
            }
            Some((_, known)) if revision < known => {
                // Scopes are listed one by one: a listing that overlapped with events of another scope is
                // older than these by moments only, and says nothing of a rollback if this scope is new.
                if self.listed.contains(scope) {
                    self.held_because = Some(format!(
                        "the store went back from revision {known} to {revision}, as if restored from a backup"
                    ));
                }
                !self.listed.contains(scope)
            }
            _ => true,
        };
        let missing = self.keys_of(scope, entries);
        for entry in entries {
            dirty.merge(self.put(entry, !continuous));
        }
        for (key, known_at) in missing {
            if !continuous {
                self.hold(&key);
            } else if known_at <= revision {
                dirty.merge(self.delete(&key, revision));
            }
        }
        if self.listed.insert(scope.clone()) {
            match scope {
                Scope::Networks | Scope::Peers | Scope::Vnis => dirty.everything = true,
                Scope::OwnEndpoints(network) | Scope::Endpoints(network) | Scope::Addresses(network) => {
                    dirty.networks.insert(network.clone());
                }
            }
        }
        self.store = Some(match self.store {
            Some((_, known)) if continuous => (cluster_id, known.max(revision)),
            _ => (cluster_id, revision),
        });
        dirty
    }

    /// Takes in changes that a watch delivered.
    pub fn apply_changes(&mut self, changes: &[Change]) -> Dirty {
        let mut dirty = Dirty::default();
        for change in changes {
            match change {
                Change::Put(entry) => {
                    self.saw(entry.mod_revision);
                    dirty.merge(self.put(entry, false));
                }
                Change::Deleted { key, mod_revision } => {
                    self.saw(*mod_revision);
                    match self.prefix.parse(key) {
                        Ok(key) => dirty.merge(self.delete(&key, *mod_revision)),
                        Err(_) => drop(self.problems.remove(&self.shown(key))),
                    }
                }
            }
        }
        dirty
    }

    /// Notes that an endpoint of this node is detached here. It counts as absent on this host from now on;
    /// the record and its claims go when the store can be reached.
    /// `life` is the revision at which the record was created, 0 if that is not known: then the next record
    /// that is seen is meant.
    pub fn detach(&mut self, endpoint: &EndpointRef, life: i64) -> Dirty {
        self.detaching.insert(endpoint.clone(), life);
        self.touched(endpoint)
    }

    /// Takes a detachment back, or forgets it once the store agrees.
    pub fn end_detach(&mut self, endpoint: &EndpointRef) -> Dirty {
        self.detaching.remove(endpoint);
        self.touched(endpoint)
    }

    fn touched(&self, endpoint: &EndpointRef) -> Dirty {
        let mut dirty = Dirty::default();
        self.touch_endpoint(endpoint, self.endpoint(endpoint), &mut dirty);
        dirty
    }

    /// Notes that everything up to this revision has been seen.
    pub fn saw(&mut self, revision: i64) {
        if let Some((_, known)) = &mut self.store {
            *known = revision.max(*known);
        }
    }

    /// The objects that are kept although the store no longer has them.
    pub fn held_keys(&self) -> Vec<Key> {
        let mut held: Vec<Key> = Vec::new();
        held.extend(
            self.networks
                .iter()
                .filter(|(_, s)| s.held)
                .map(|(n, _)| Key::Network(n.clone())),
        );
        held.extend(
            self.peers
                .iter()
                .filter(|(_, s)| s.held)
                .map(|(n, _)| Key::Peer(n.clone())),
        );
        for (network, members) in &self.members {
            held.extend(members.endpoints().filter(|(.., s)| s.held).map(|(node, id, _)| {
                Key::Endpoint(EndpointRef {
                    network: network.clone(),
                    node: node.clone(),
                    id: id.clone(),
                })
            }));
            held.extend(
                members
                    .claims()
                    .filter(|(_, s)| s.held)
                    .map(|(a, _)| Key::Address(network.clone(), *a)),
            );
        }
        held
    }

    /// Lets go of everything that is held, on an operator's word.
    pub fn release_held(&mut self) -> Dirty {
        self.held_because = None;
        for key in self.held_keys() {
            self.forget(&key);
        }
        Dirty::everything()
    }

    /// Keys of a scope that are known here and not among the entries, with the revision they are known from.
    fn keys_of(&self, scope: &Scope, entries: &[Entry]) -> Vec<(Key, i64)> {
        let present: HashSet<&[u8]> = entries.iter().map(|e| e.key.as_slice()).collect();
        let mut known: Vec<(Key, i64)> = Vec::new();
        let endpoint = |network: &NetworkName, node: &NodeName, id: &EndpointId| {
            Key::Endpoint(EndpointRef {
                network: network.clone(),
                node: node.clone(),
                id: id.clone(),
            })
        };
        match scope {
            Scope::Networks => {
                known.extend(
                    self.networks
                        .iter()
                        .map(|(n, s)| (Key::Network(n.clone()), s.mod_revision)),
                );
            }
            Scope::Peers => known.extend(
                self.peers
                    .iter()
                    .map(|(n, s)| (Key::Peer(n.clone()), s.mod_revision)),
            ),
            Scope::Vnis => known.extend(self.vnis.iter().map(|(v, s)| (Key::Vni(*v), s.mod_revision))),
            Scope::OwnEndpoints(network) => {
                known.extend(
                    self.own_endpoints(network)
                        .map(|(id, s)| (endpoint(network, &self.node, id), s.mod_revision)),
                );
            }
            Scope::Endpoints(network) => {
                let members = self.members.get(network).into_iter().flat_map(Members::endpoints);
                known.extend(members.map(|(node, id, s)| (endpoint(network, node, id), s.mod_revision)));
            }
            Scope::Addresses(network) => {
                let claims = self.members.get(network).into_iter().flat_map(Members::claims);
                known.extend(claims.map(|(a, s)| (Key::Address(network.clone(), *a), s.mod_revision)));
            }
        }
        known.retain(|(key, _)| !present.contains(self.prefix.key(key).as_bytes()));
        known
    }

    fn shown(&self, key: &[u8]) -> String {
        let text = String::from_utf8_lossy(key.strip_prefix(self.prefix.as_str().as_bytes()).unwrap_or(key));
        text.chars()
            .take(200)
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect()
    }

    fn put(&mut self, entry: &Entry, force: bool) -> Dirty {
        let key = match self.prefix.parse(&entry.key) {
            Ok(key) => key,
            Err(error) => {
                let shown = self.shown(&entry.key);
                let message =
                    format!("{error}; the record has no effect: delete it, or write it under a right key");
                self.problems.insert(shown.clone(), Problem::new(shown, message));
                return Dirty::default();
            }
        };
        let mut dirty = Dirty::default();
        match &key {
            Key::Network(name) => self.put_network(&key, name, entry, force, &mut dirty),
            Key::Peer(node) => self.put_peer(&key, node, entry, force, &mut dirty),
            Key::Vni(vni) => {
                let mut slot = self.vnis.remove(vni).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, VniClaim::decode) {
                    self.judge(&key, decoded);
                    dirty
                        .networks
                        .extend(self.vni_users.get(vni).into_iter().flatten().cloned());
                    dirty
                        .networks
                        .extend(slot.value.as_ref().map(|claim| claim.network.clone()));
                }
                self.vnis.insert(*vni, slot);
            }
            Key::Endpoint(endpoint) => self.put_endpoint(&key, endpoint, entry, force, &mut dirty),
            Key::Address(network, address) => {
                let doubt = self.doubts_claim(network, *address);
                let members = self.members.entry(network.clone()).or_default();
                let mut slot = members.remove_claim(*address).unwrap_or_default();
                let decoded = slot.accept(entry, force, false, AddressClaim::decode);
                members.put_claim(*address, slot);
                if let Some(decoded) = decoded {
                    self.judge(&key, decoded);
                    self.touch_address(network, *address, &mut dirty);
                    self.end_doubt(doubt, network, &mut dirty);
                }
            }
            Key::Alive(_) | Key::Status(_) => {}
        }
        dirty
    }

    fn put_network(&mut self, key: &Key, name: &NetworkName, entry: &Entry, force: bool, dirty: &mut Dirty) {
        let mut slot = self.networks.remove(name).unwrap_or_default();
        let before = slot.value.as_ref().and_then(|n| n.vni);
        if let Some(decoded) = slot.accept(entry, force, true, Network::decode) {
            self.judge(key, decoded);
            let after = slot.value.as_ref().and_then(|n| n.vni);
            self.use_vni(name, before, after, dirty);
            dirty.networks.insert(name.clone());
        }
        self.networks.insert(name.clone(), slot);
    }

    /// Keeps the index of VNIs; another user of either VNI may have won or lost by the change.
    fn use_vni(&mut self, name: &NetworkName, before: Option<Vni>, after: Option<Vni>, dirty: &mut Dirty) {
        if let Some(vni) = before
            && let Some(users) = self.vni_users.get_mut(&vni)
        {
            users.remove(name);
            dirty.networks.extend(users.iter().cloned());
            if users.is_empty() {
                self.vni_users.remove(&vni);
            }
        }
        if let Some(vni) = after {
            let users = self.vni_users.entry(vni).or_default();
            dirty.networks.extend(users.iter().cloned());
            users.insert(name.clone());
        }
    }

    fn put_peer(&mut self, key: &Key, node: &NodeName, entry: &Entry, force: bool, dirty: &mut Dirty) {
        let limits = self.underlay_limits();
        let mut slot = self.peers.remove(node).unwrap_or_default();
        let before = slot.value.clone();
        let decoded = slot.accept(entry, force, *node == self.node, Peer::decode);
        let after = slot.value.clone();
        self.peers.insert(node.clone(), slot);
        if let Some(decoded) = decoded {
            self.judge(key, decoded);
            dirty.peers.insert(node.clone());
            if before != after {
                self.touch_peer(node, dirty);
            }
            self.touch_links_if(limits != self.underlay_limits(), dirty);
        }
    }

    fn put_endpoint(
        &mut self,
        key: &Key,
        endpoint: &EndpointRef,
        entry: &Entry,
        force: bool,
        dirty: &mut Dirty,
    ) {
        let own = endpoint.node == self.node;
        let member = (endpoint.node.clone(), endpoint.id.clone());
        let doubt = self.doubts(&endpoint.network, &member);
        let members = self.members.entry(endpoint.network.clone()).or_default();
        let before = members.endpoint(&member).cloned();
        let mut slot = before.clone().unwrap_or_default();
        let Some(decoded) = slot.accept(entry, force, own, Endpoint::decode) else {
            return;
        };
        // A record written again without what its agent had filled in is about to be filled in again: until
        // then the endpoint is what it was.
        if let (Ok(()), Some(before), Some(new)) = (&decoded, &before, &mut slot.value)
            && before.create_revision == slot.create_revision
            && let Some(old) = &before.value
        {
            if new.addresses.is_empty() && new.requested.iter().all(|a| old.addresses.contains(a)) {
                new.addresses.clone_from(&old.addresses);
            }
            if new.addresses == old.addresses {
                new.mac = new.mac.or(old.mac);
            }
        }
        self.judge(key, decoded);
        let was_part = self.takes_part(&endpoint.network);
        self.forget_attachment(endpoint, before.as_ref(), dirty);
        if own && let Some(value) = &slot.value {
            let users = self.attachments.entry(value.attachment.clone()).or_default();
            dirty.endpoints.extend(users.iter().cloned());
            users.insert(endpoint.clone());
        }
        self.touch_endpoint(endpoint, before.as_ref(), dirty);
        if own && before.as_ref().is_some_and(|before| before.value != slot.value) {
            self.touch_claims(endpoint, dirty);
        }
        let members = self.members.entry(endpoint.network.clone()).or_default();
        members.put_endpoint(member, slot.clone());
        self.touch_endpoint(endpoint, Some(&slot), dirty);
        if own && !was_part {
            dirty.networks.insert(endpoint.network.clone());
        }
        self.end_doubt(doubt, &endpoint.network, dirty);
    }

    /// Whether a member is a reason to leave alone what no record of its network explains.
    fn doubts(&self, network: &NetworkName, member: &Member) -> bool {
        self.members
            .get(network)
            .is_some_and(|m| m.may_be_undetermined(member) && m.any_undetermined())
    }

    fn doubts_claim(&self, network: &NetworkName, address: IpAddr) -> bool {
        let claim = self
            .members
            .get(network)
            .and_then(|m| m.claim(address)?.value.as_ref());
        claim.is_some_and(|claim| self.doubts(network, &(claim.node.clone(), claim.id.clone())))
    }

    /// With the last such reason gone, what was left alone has to go.
    fn end_doubt(&self, doubted: bool, network: &NetworkName, dirty: &mut Dirty) {
        if doubted && !self.members.get(network).is_some_and(Members::any_undetermined) {
            dirty.networks.insert(network.clone());
        }
    }

    fn forget_attachment(
        &mut self,
        endpoint: &EndpointRef,
        slot: Option<&Slot<Endpoint>>,
        dirty: &mut Dirty,
    ) {
        if let Some(value) = slot.and_then(|slot| slot.value.as_ref())
            && let Some(users) = self.attachments.get_mut(&value.attachment)
        {
            users.remove(endpoint);
            dirty.endpoints.extend(users.iter().cloned());
            if users.is_empty() {
                self.attachments.remove(&value.attachment);
            }
        }
    }

    /// Notes or clears that a record cannot be understood.
    fn judge(&mut self, key: &Key, decoded: Result<(), RecordError>) {
        let shown = key.to_string();
        match decoded {
            Ok(()) => drop(self.problems.remove(&shown)),
            Err(error) => {
                let problem = Problem {
                    key: shown.clone(),
                    field: error.field_path().map(str::to_owned),
                    message: format!(
                        "{}; what runs stays as it was until the record is right",
                        error.why()
                    ),
                };
                self.problems.insert(shown, problem);
            }
        }
    }

    fn delete(&mut self, key: &Key, mod_revision: i64) -> Dirty {
        let known = match key {
            Key::Network(name) => self.networks.get(name).map(|s| s.mod_revision),
            Key::Peer(node) => self.peers.get(node).map(|s| s.mod_revision),
            Key::Vni(vni) => self.vnis.get(vni).map(|s| s.mod_revision),
            Key::Endpoint(endpoint) => self.endpoint(endpoint).map(|s| s.mod_revision),
            Key::Address(network, address) => self
                .members
                .get(network)
                .and_then(|m| m.claim(*address))
                .map(|s| s.mod_revision),
            Key::Alive(_) | Key::Status(_) => None,
        };
        match known {
            // Written again since: the deletion is old news.
            Some(known) if known > mod_revision => Dirty::default(),
            Some(_) if self.is_in_use(key) => {
                self.hold(key);
                let mut dirty = Dirty::default();
                match key {
                    Key::Network(name) => drop(dirty.networks.insert(name.clone())),
                    Key::Peer(node) => {
                        self.touch_peer(node, &mut dirty);
                        self.touch_links_if(true, &mut dirty);
                    }
                    _ => {}
                }
                dirty
            }
            Some(_) => self.forget(key),
            None => {
                self.problems.remove(&key.to_string());
                Dirty::default()
            }
        }
    }

    /// Whether endpoints depend on a network's or peer's record: then its deletion alone does not take
    /// traffic away from them.
    fn is_in_use(&self, key: &Key) -> bool {
        match key {
            Key::Network(name) => self.takes_part(name),
            Key::Peer(node) => self
                .members
                .values()
                .any(|m| m.endpoints_on(node).next().is_some()),
            _ => false,
        }
    }

    /// Keeps an object that the store no longer has.
    fn hold(&mut self, key: &Key) {
        match key {
            Key::Network(name) => {
                if let Some(slot) = self.networks.get_mut(name) {
                    slot.held = true;
                }
            }
            Key::Peer(node) => {
                if let Some(slot) = self.peers.get_mut(node) {
                    slot.held = true;
                }
            }
            Key::Vni(vni) => drop(self.vnis.remove(vni)),
            Key::Endpoint(endpoint) => {
                let member = (endpoint.node.clone(), endpoint.id.clone());
                if let Some(slot) = self
                    .members
                    .get_mut(&endpoint.network)
                    .and_then(|m| m.endpoint_mut(&member))
                {
                    slot.held = true;
                }
            }
            Key::Address(network, address) => {
                if let Some(members) = self.members.get_mut(network)
                    && let Some(mut slot) = members.remove_claim(*address)
                {
                    slot.held = true;
                    members.put_claim(*address, slot);
                }
            }
            Key::Alive(_) | Key::Status(_) => {}
        }
    }

    /// Removes an object.
    pub(crate) fn forget(&mut self, key: &Key) -> Dirty {
        let mut dirty = Dirty::default();
        self.problems.remove(&key.to_string());
        match key {
            Key::Network(name) => {
                if let Some(slot) = self.networks.remove(name) {
                    self.use_vni(name, slot.value.and_then(|n| n.vni), None, &mut dirty);
                }
                dirty.networks.insert(name.clone());
            }
            Key::Peer(node) => {
                let limits = self.underlay_limits();
                self.peers.remove(node);
                self.touch_peer(node, &mut dirty);
                self.touch_links_if(limits != self.underlay_limits(), &mut dirty);
            }
            Key::Vni(vni) => {
                let slot = self.vnis.remove(vni);
                dirty
                    .networks
                    .extend(self.vni_users.get(vni).into_iter().flatten().cloned());
                dirty
                    .networks
                    .extend(slot.and_then(|s| s.value).map(|claim| claim.network));
            }
            Key::Endpoint(endpoint) => self.forget_endpoint(endpoint, &mut dirty),
            Key::Address(network, address) => {
                let doubt = self.doubts_claim(network, *address);
                self.members.get_mut(network).map(|m| m.remove_claim(*address));
                self.touch_address(network, *address, &mut dirty);
                self.end_doubt(doubt, network, &mut dirty);
            }
            Key::Alive(_) | Key::Status(_) => {}
        }
        dirty
    }

    fn forget_endpoint(&mut self, endpoint: &EndpointRef, dirty: &mut Dirty) {
        let member = (endpoint.node.clone(), endpoint.id.clone());
        let doubt = self.doubts(&endpoint.network, &member);
        let slot = self
            .members
            .get_mut(&endpoint.network)
            .and_then(|m| m.remove_endpoint(&member));
        self.touch_endpoint(endpoint, slot.as_ref(), dirty);
        self.end_doubt(doubt, &endpoint.network, dirty);
        if endpoint.node == self.node {
            self.forget_attachment(endpoint, slot.as_ref(), dirty);
            self.touch_claims(endpoint, dirty);
            if !self.takes_part(&endpoint.network) {
                dirty.networks.insert(endpoint.network.clone());
                if self
                    .networks
                    .get(&endpoint.network)
                    .is_some_and(|s| s.held && self.held_because.is_none())
                {
                    dirty.merge(self.forget(&Key::Network(endpoint.network.clone())));
                }
            }
        } else if self
            .peers
            .get(&endpoint.node)
            .is_some_and(|s| s.held && self.held_because.is_none())
            && !self.is_in_use(&Key::Peer(endpoint.node.clone()))
        {
            dirty.merge(self.forget(&Key::Peer(endpoint.node.clone())));
        }
    }

    /// What an endpoint of this node holds by claims: its record need not have said all of it.
    fn touch_claims(&self, endpoint: &EndpointRef, dirty: &mut Dirty) {
        let member = (endpoint.node.clone(), endpoint.id.clone());
        let members = self.members.get(&endpoint.network);
        for address in members.map(|m| m.claimed_by(&member)).unwrap_or_default() {
            dirty.address(&endpoint.network, address);
        }
    }

    fn touch_links_if(&self, changed: bool, dirty: &mut Dirty) {
        if changed {
            dirty.links.extend(self.networks.keys().cloned());
            dirty.links.extend(self.members.keys().cloned());
        }
    }

    fn touch_peer(&self, node: &NodeName, dirty: &mut Dirty) {
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

    fn touch_endpoint(&self, endpoint: &EndpointRef, slot: Option<&Slot<Endpoint>>, dirty: &mut Dirty) {
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
    fn touch_address(&self, network: &NetworkName, address: IpAddr, dirty: &mut Dirty) {
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
    fn touch_mac(&self, network: &NetworkName, mac: Mac, dirty: &mut Dirty) {
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
}

fn endpoint_of(network: &NetworkName, (node, id): &Member) -> EndpointRef {
    EndpointRef {
        network: network.clone(),
        node: node.clone(),
        id: id.clone(),
    }
}

impl<T> Slot<T> {
    /// Takes in a stored entry: nothing if it is no news, else whether it could be understood.
    fn accept(
        &mut self,
        entry: &Entry,
        force: bool,
        keep_raw: bool,
        decode: impl FnOnce(&[u8]) -> Result<T, RecordError>,
    ) -> Option<Result<(), RecordError>> {
        if !force && !self.held && entry.mod_revision <= self.mod_revision {
            return None;
        }
        self.held = false;
        self.create_revision = entry.create_revision;
        self.mod_revision = entry.mod_revision;
        self.raw = keep_raw.then(|| entry.value.as_slice().into());
        Some(match decode(&entry.value) {
            Ok(value) => {
                self.value = Some(value);
                self.bad = false;
                Ok(())
            }
            Err(error) => {
                self.bad = true;
                Err(error)
            }
        })
    }
}
