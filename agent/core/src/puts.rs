//! What a record that was written changes: it is decoded, judged and indexed. One that cannot be decoded becomes a
//! [`Problem`] and leaves the object as it last was.

use std::collections::BTreeSet;

use weft_store_schema::{
    AddressClaim, BarrierDocument, Endpoint, EndpointRef, Key, Network, NetworkName, NodeName,
    PassedDocument, Peer, RecordError, ReleasedDocument, RemovedDocument, Vni, VniClaim, decode,
};

use crate::{dirty::Dirty, members::Slot, problem::Problem, record::Entry, snapshot::Snapshot};

impl Snapshot {
    /// Takes in a record; `force` also if it is not newer than the one that is known.
    ///
    /// Adds what it makes dirty. What is new in a network that is looked at as a whole anyway is not named: it would be
    /// gathered, sorted and compared by the hundred thousand.
    pub(crate) fn put(&mut self, entry: &Entry, force: bool, dirty: &mut Dirty) {
        let key = match self.prefix.parse(&entry.key) {
            Ok(key) => key,
            Err(error) => {
                let shown = self.shown(&entry.key);
                let message =
                    format!("{error}; the record has no effect: delete it, or write it under a right key");
                self.problems.insert(shown.clone(), Problem::new(shown, message));
                return;
            }
        };
        match &key {
            Key::Network(name) => self.put_network(&key, name, entry, force, dirty),
            Key::Peer(node) => self.put_peer(&key, node, entry, force, dirty),
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
            Key::Endpoint(endpoint) => self.put_endpoint(&key, endpoint, entry, force, dirty),
            Key::Address(network, address) => {
                let doubt = self.doubts_claim(network, *address);
                let members = self.members.entry(network.clone()).or_default();
                let mut slot = members.remove_claim(*address).unwrap_or_default();
                let decoded = slot.accept(entry, force, false, AddressClaim::decode);
                members.put_claim(*address, slot);
                if let Some(decoded) = decoded {
                    self.judge(&key, decoded);
                    if !dirty.networks.contains(network) {
                        self.touch_address(network, *address, dirty);
                    }
                    self.end_doubt(doubt, network, dirty);
                }
            }
            Key::Released(network, address) => {
                let members = self.members.entry(network.clone()).or_default();
                if force
                    || members
                        .released_at(*address)
                        .is_none_or(|at| at < entry.mod_revision)
                {
                    members.put_released(*address, entry.mod_revision);
                    self.judge(&key, ReleasedDocument::decode(&entry.value).map(drop));
                }
            }
            Key::Removed(node) => {
                let mut slot = self.removed.remove(node).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, RemovedDocument::decode) {
                    self.judge(&key, decoded);
                    dirty.peers.insert(node.clone());
                }
                self.removed.insert(node.clone(), slot);
            }
            Key::Barrier(network, barrier) => {
                let at = (network.clone(), barrier.clone());
                let mut slot = self.barriers.remove(&at).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, BarrierDocument::decode) {
                    self.judge(&key, decoded);
                }
                self.barriers.insert(at, slot);
            }
            Key::Passed(barrier, node) => {
                let at = (barrier.clone(), node.clone());
                let mut slot = self.passed.remove(&at).unwrap_or_default();
                if let Some(decoded) = slot.accept(entry, force, false, decode::<PassedDocument>) {
                    self.judge(&key, decoded);
                }
                self.passed.insert(at, slot);
            }
            Key::Alive(_) | Key::Status(_) => {}
        }
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
    pub(crate) fn use_vni(
        &mut self,
        name: &NetworkName,
        before: Option<Vni>,
        after: Option<Vni>,
        dirty: &mut Dirty,
    ) {
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
        let (before, created) = (slot.value.clone(), slot.create_revision);
        let decoded = slot.accept(entry, force, true, Peer::decode);
        let after = slot.value.clone();
        let is_another = created != slot.create_revision;
        self.peers.insert(node.clone(), slot);
        if let Some(decoded) = decoded {
            self.judge(key, decoded);
            dirty.peers.insert(node.clone());
            if before != after {
                self.touch_peer(node, dirty);
            }
            if before != after || is_another {
                self.use_underlay(node, before.as_ref(), after.as_ref(), dirty);
            }
            self.touch_links_if(limits != self.underlay_limits(), dirty);
        }
    }

    /// Keeps the indexes of MTUs and of VTEP addresses; another user of one of these may have won or lost it by the change.
    pub(crate) fn use_underlay(
        &mut self,
        node: &NodeName,
        before: Option<&Peer>,
        after: Option<&Peer>,
        dirty: &mut Dirty,
    ) {
        let limits = |peer: &Peer| (peer.mtu.get(), peer.v4.is_some());
        if let Some(limits) = before.map(limits)
            && let Some(count) = self.underlays.get_mut(&limits)
        {
            *count -= 1;
            if *count == 0 {
                self.underlays.remove(&limits);
            }
        }
        if let Some(limits) = after.map(limits) {
            *self.underlays.entry(limits).or_default() += 1;
        }
        let mut concerned = BTreeSet::new();
        for vtep in before.into_iter().flat_map(Peer::vteps) {
            if let Some(users) = self.vtep_users.get_mut(&vtep) {
                users.remove(node);
                concerned.extend(users.iter().cloned());
                if users.is_empty() {
                    self.vtep_users.remove(&vtep);
                }
            }
        }
        for vtep in after.into_iter().flat_map(Peer::vteps) {
            let users = self.vtep_users.entry(vtep).or_default();
            concerned.extend(users.iter().cloned());
            users.insert(node.clone());
        }
        if !concerned.is_empty() {
            concerned.insert(node.clone());
        }
        for node in &concerned {
            self.touch_peer(node, dirty);
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
            && (before.held || before.create_revision == slot.create_revision)
            && let Some(old) = &before.value
        {
            if new.addresses.is_empty() && new.requested().iter().all(|a| old.addresses.contains(a)) {
                new.addresses.clone_from(&old.addresses);
            }
            if new.addresses == old.addresses {
                new.mac = new.mac.or(old.mac);
            }
        }
        self.judge(key, decoded);
        let was_part = self.takes_part(&endpoint.network);
        if own {
            self.forget_attachment(endpoint, before.as_ref(), dirty);
            if let Some(value) = &slot.value {
                let users = self.attachments.entry(value.attachment()).or_default();
                dirty.endpoints.extend(users.iter().cloned());
                users.insert(endpoint.clone());
            }
        }
        let is_seen_anyway = !own && before.is_none() && dirty.networks.contains(&endpoint.network);
        if !is_seen_anyway {
            self.touch_endpoint(endpoint, before.as_ref(), dirty);
            if before.as_ref().is_none_or(|before| before.value != slot.value) {
                self.touch_claims(endpoint, dirty);
            }
        }
        let members = self.members.entry(endpoint.network.clone()).or_default();
        members.put_endpoint(member, slot);
        if !is_seen_anyway {
            self.touch_endpoint(endpoint, self.endpoint(endpoint), dirty);
        }
        if own && !was_part {
            dirty.networks.insert(endpoint.network.clone());
        }
        self.end_doubt(doubt, &endpoint.network, dirty);
    }

    pub(crate) fn forget_attachment(
        &mut self,
        endpoint: &EndpointRef,
        slot: Option<&Slot<Endpoint>>,
        dirty: &mut Dirty,
    ) {
        if let Some(value) = slot.and_then(|slot| slot.value.as_ref())
            && let attachment = value.attachment()
            && let Some(users) = self.attachments.get_mut(&attachment)
        {
            users.remove(endpoint);
            dirty.endpoints.extend(users.iter().cloned());
            if users.is_empty() {
                self.attachments.remove(&attachment);
            }
        }
    }

    /// Notes or clears that a record cannot be understood.
    fn judge(&mut self, key: &Key, decoded: Result<(), RecordError>) {
        if decoded.is_ok() && self.problems.is_empty() {
            return;
        }
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
