//! A network's endpoints and claims as records, with the indexes that answer "who has this MAC, who has
//! this address" when several records say so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
};

use weft_store_schema::{AddressClaim, Endpoint, EndpointId, Holder, Mac, NodeName};

use crate::address_set::AddressSet;

/// An endpoint within its network.
pub type Member = (NodeName, EndpointId);

/// A record as the store has it, or had it when it was last right.
#[derive(Debug, Clone)]
pub struct Slot<T> {
    /// The last valid value; none if there was never one.
    pub value: Option<T>,
    /// The stored record is not valid now; `value` is from before.
    pub bad: bool,
    /// The store does not have the record any more, and its effect is kept until somebody confirms.
    pub held: bool,
    /// The bytes, kept only where this node may have to rewrite the record.
    pub raw: Option<Box<[u8]>>,
    /// The revision at which the key was created.
    pub create_revision: i64,
    /// The revision at which it was last written.
    pub mod_revision: i64,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            value: None,
            bad: false,
            held: false,
            raw: None,
            create_revision: 0,
            mod_revision: 0,
        }
    }
}

/// Some things: nearly always one, which takes no memory of its own then.
#[derive(Debug, Clone)]
enum Few<T> {
    One(T),
    Many(BTreeSet<T>),
}

impl<T: Clone + Ord> Few<T> {
    fn insert(&mut self, item: &T) {
        match self {
            Self::One(one) if one == item => {}
            Self::One(one) => *self = Self::Many(BTreeSet::from([one.clone(), item.clone()])),
            Self::Many(many) => drop(many.insert(item.clone())),
        }
    }

    /// Answers whether anything is left.
    fn remove(&mut self, item: &T) -> bool {
        match self {
            Self::One(one) => one != item,
            Self::Many(many) => {
                many.remove(item);
                !many.is_empty()
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> + use<'_, T> {
        let (one, many) = match self {
            Self::One(one) => (Some(one), None),
            Self::Many(many) => (None, Some(many)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// What each key leads to.
#[derive(Debug, Clone)]
struct Index<K, V = Member>(HashMap<K, Few<V>>);

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: Clone + Ord> Index<K, V> {
    fn insert(&mut self, key: K, item: &V) {
        match self.0.entry(key) {
            std::collections::hash_map::Entry::Vacant(slot) => drop(slot.insert(Few::One(item.clone()))),
            std::collections::hash_map::Entry::Occupied(mut slot) => slot.get_mut().insert(item),
        }
    }

    fn remove(&mut self, key: &K, item: &V) {
        if let Some(few) = self.0.get_mut(key)
            && !few.remove(item)
        {
            self.0.remove(key);
        }
    }

    fn get(&self, key: &K) -> impl Iterator<Item = &V> + use<'_, K, V> {
        self.0.get(key).into_iter().flat_map(Few::iter)
    }
}

/// A network's endpoints and claims.
#[derive(Debug, Clone, Default)]
pub struct Members {
    endpoints: BTreeMap<NodeName, BTreeMap<EndpointId, Slot<Endpoint>>>,
    claims: HashMap<IpAddr, Slot<AddressClaim>>,
    /// What each member holds by claims, whatever its record says.
    claimed: Index<Member, IpAddr>,
    by_mac: Index<Mac>,
    by_address: Index<IpAddr>,
    by_wish: Index<IpAddr>,
    /// What reservations hold.
    reserved: Index<Member, IpAddr>,
    /// Addresses that were given up, the oldest first, by the revision at which that was.
    released: BTreeSet<(i64, IpAddr)>,
    released_at: HashMap<IpAddr, i64>,
    /// What is claimed or named by a record, and what was.
    used: AddressSet,
    spent: AddressSet,
    /// Endpoints of which it is not known what they have: never valid since this agent started, or not yet
    /// completed by their node's agent.
    undetermined: BTreeSet<Member>,
}

impl Members {
    /// Every endpoint record, valid or not.
    pub fn endpoints(&self) -> impl Iterator<Item = (&NodeName, &EndpointId, &Slot<Endpoint>)> {
        self.endpoints
            .iter()
            .flat_map(|(node, there)| there.iter().map(move |(id, slot)| (node, id, slot)))
    }

    /// An endpoint's record.
    pub fn endpoint(&self, (node, id): &Member) -> Option<&Slot<Endpoint>> {
        self.endpoints.get(node)?.get(id)
    }

    /// A node's endpoint records.
    pub fn endpoints_on(&self, node: &NodeName) -> impl Iterator<Item = (&EndpointId, &Slot<Endpoint>)> {
        self.endpoints.get(node).into_iter().flatten()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.claims.is_empty() && self.released.is_empty()
    }

    /// The number of endpoint records.
    pub fn count(&self) -> usize {
        self.endpoints.values().map(BTreeMap::len).sum()
    }

    /// The number of a node's endpoint records.
    pub fn count_on(&self, node: &NodeName) -> usize {
        self.endpoints.get(node).map_or(0, BTreeMap::len)
    }

    /// The nodes that have endpoints here.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.endpoints.keys()
    }

    /// Every claim.
    pub fn claims(&self) -> impl Iterator<Item = (&IpAddr, &Slot<AddressClaim>)> {
        self.claims.iter()
    }

    /// The claim of an address.
    pub fn claim(&self, address: IpAddr) -> Option<&Slot<AddressClaim>> {
        self.claims.get(&address)
    }

    /// Whether a claim says that this member holds the address.
    pub fn is_claimed_by(&self, address: IpAddr, member: &Member) -> bool {
        self.claim(address)
            .and_then(|slot| slot.value.as_ref())
            .is_some_and(|claim| is_of(claim, Holder::Endpoint, member))
    }

    /// Who else holds the address by its claim.
    pub fn claimed_by_other(&self, address: IpAddr, member: &Member) -> Option<&AddressClaim> {
        self.claim(address)
            .and_then(|slot| slot.value.as_ref())
            .filter(|claim| !is_of(claim, Holder::Endpoint, member))
    }

    /// What a reservation holds.
    pub fn reserved_by(&self, reservation: &Member) -> BTreeSet<IpAddr> {
        self.reserved.get(reservation).copied().collect()
    }

    /// The addresses that were given up, each with the revision at which that was, the oldest first.
    pub fn released(&self) -> impl ExactSizeIterator<Item = (i64, IpAddr)> {
        self.released.iter().copied()
    }

    /// The revision at which an address was given up, if a trace of that is left.
    pub fn released_at(&self, address: IpAddr) -> Option<i64> {
        self.released_at.get(&address).copied()
    }

    /// The addresses that are claimed, or named by a record.
    pub fn used(&self) -> &AddressSet {
        &self.used
    }

    /// The addresses that are used, or of which there is a trace that they were.
    pub fn spent(&self) -> &AddressSet {
        &self.spent
    }

    /// What a member holds by claims, whatever its record says.
    pub fn claimed_by(&self, member: &Member) -> BTreeSet<IpAddr> {
        self.claimed.get(member).copied().collect()
    }

    /// Whether there are endpoints of which it is not known what they have.
    pub fn any_undetermined(&self) -> bool {
        self.undetermined.iter().any(|member| {
            let slot = self.endpoint(member);
            // One that was never understood tells no more when the store has lost it.
            slot.is_some_and(|slot| slot.bad || slot.value.is_none()) || self.claimed.0.contains_key(member)
        })
    }

    /// Whether this is one of those that may be undetermined. Cheap.
    pub(crate) fn may_be_undetermined(&self, member: &Member) -> bool {
        self.undetermined.contains(member)
    }

    /// Whether an address is claimed for an endpoint whose record is there and does not tell what it has, or may
    /// be.
    pub(crate) fn is_held_untold(&self, address: IpAddr) -> bool {
        self.claim(address).is_some_and(|slot| match &slot.value {
            Some(claim) if claim.holder == Holder::Reservation => false,
            Some(claim) => self.may_be_undetermined(&(claim.node.clone(), claim.id.clone())),
            None => self.any_undetermined(),
        })
    }

    /// Every MAC that a record names.
    pub fn macs(&self) -> impl Iterator<Item = &Mac> {
        self.by_mac.0.keys()
    }

    /// Every address that a record names.
    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.by_address.0.keys()
    }

    /// Every member whose record names the MAC.
    pub fn with_mac(&self, mac: Mac) -> impl Iterator<Item = &Member> {
        self.by_mac.get(&mac)
    }

    /// Every member whose record names the address.
    pub fn with_address(&self, address: IpAddr) -> impl Iterator<Item = &Member> {
        self.by_address.get(&address)
    }

    /// Every member whose record wishes for the address.
    pub fn wishing(&self, address: IpAddr) -> impl Iterator<Item = &Member> {
        self.by_wish.get(&address)
    }

    /// What a member's record says, or said when it was last valid.
    pub fn value(&self, member: &Member) -> Option<&Endpoint> {
        self.endpoint(member)?.value.as_ref()
    }

    /// The one member that has the MAC, the same on every host whatever the order in which records came:
    /// who holds any of its addresses by a claim, then who was there first.
    pub fn owner_of_mac(&self, mac: Mac) -> Option<(&Member, &Endpoint)> {
        self.best(self.with_mac(mac), |member, endpoint| {
            endpoint.addresses.iter().any(|a| self.is_claimed_by(*a, member))
        })
    }

    /// The one member that has the address: who holds it by a claim; without a claim in sight, who was
    /// there first.
    pub fn owner_of_address(&self, address: IpAddr) -> Option<(&Member, &Endpoint)> {
        self.best(self.with_address(address), |member, _| {
            self.is_claimed_by(address, member)
        })
        .filter(|(member, _)| self.claimed_by_other(address, member).is_none())
    }

    fn best<'a>(
        &'a self,
        mut members: impl Iterator<Item = &'a Member>,
        claimed: impl Fn(&Member, &Endpoint) -> bool,
    ) -> Option<(&'a Member, &'a Endpoint)> {
        let with_slot = |member: &'a Member| {
            let slot = self.endpoint(member)?;
            Some((member, slot, slot.value.as_ref()?))
        };
        let first = members.next().and_then(with_slot);
        let mut rest = members.filter_map(with_slot).peekable();
        if rest.peek().is_none() {
            return first.map(|(member, _, endpoint)| (member, endpoint));
        }
        first
            .into_iter()
            .chain(rest)
            .min_by_key(|(member, slot, endpoint)| {
                (!claimed(member, endpoint), slot.create_revision, *member)
            })
            .map(|(member, _, endpoint)| (member, endpoint))
    }

    pub(crate) fn put_endpoint(&mut self, member: Member, slot: Slot<Endpoint>) {
        self.unindex(&member);
        let member = self.shared(member);
        match &slot.value {
            Some(endpoint) => {
                if let Some(mac) = endpoint.mac {
                    self.by_mac.insert(mac, &member);
                }
                for address in &endpoint.addresses {
                    self.by_address.insert(*address, &member);
                    self.used.insert(*address);
                    self.spent.insert(*address);
                }
                for address in &endpoint.requested {
                    self.by_wish.insert(*address, &member);
                }
                if endpoint.mac.is_none() || endpoint.addresses.is_empty() {
                    self.undetermined.insert(member.clone());
                }
            }
            None => drop(self.undetermined.insert(member.clone())),
        }
        let (node, id) = member;
        self.endpoints.entry(node).or_default().insert(id, slot);
    }

    pub(crate) fn remove_endpoint(&mut self, member: &Member) -> Option<Slot<Endpoint>> {
        self.unindex(member);
        let there = self.endpoints.get_mut(&member.0)?;
        let slot = there.remove(&member.1);
        if there.is_empty() {
            self.endpoints.remove(&member.0);
        }
        slot
    }

    fn unindex(&mut self, member: &Member) {
        self.undetermined.remove(member);
        let slot = self
            .endpoints
            .get(&member.0)
            .and_then(|there| there.get(&member.1));
        let Some(endpoint) = slot.and_then(|slot| slot.value.as_ref()) else {
            return;
        };
        if let Some(mac) = endpoint.mac {
            self.by_mac.remove(&mac, member);
        }
        for address in &endpoint.requested {
            self.by_wish.remove(address, member);
        }
        let addresses = endpoint.addresses.clone();
        for address in addresses {
            self.by_address.remove(&address, member);
            self.recount(address);
        }
    }

    /// Notes whether an address is used, and spent, after something of it is gone.
    fn recount(&mut self, address: IpAddr) {
        let used = self.claims.contains_key(&address) || self.with_address(address).next().is_some();
        if !used {
            self.used.remove(address);
            if !self.released_at.contains_key(&address) {
                self.spent.remove(address);
            }
        }
    }

    pub(crate) fn put_released(&mut self, address: IpAddr, at: i64) {
        self.remove_released(address);
        self.released.insert((at, address));
        self.released_at.insert(address, at);
        self.spent.insert(address);
    }

    pub(crate) fn remove_released(&mut self, address: IpAddr) {
        if let Some(at) = self.released_at.remove(&address) {
            self.released.remove(&(at, address));
            self.recount(address);
        }
    }

    pub(crate) fn endpoint_mut(&mut self, (node, id): &Member) -> Option<&mut Slot<Endpoint>> {
        self.endpoints.get_mut(node)?.get_mut(id)
    }

    pub(crate) fn put_claim(&mut self, address: IpAddr, mut slot: Slot<AddressClaim>) {
        self.remove_claim(address);
        if let Some(claim) = &mut slot.value {
            let member = self.shared((claim.node.clone(), claim.id.clone()));
            self.held_by(claim.holder).insert(member.clone(), &address);
            (claim.node, claim.id) = member;
        }
        self.claims.insert(address, slot);
        self.used.insert(address);
        self.spent.insert(address);
    }

    pub(crate) fn remove_claim(&mut self, address: IpAddr) -> Option<Slot<AddressClaim>> {
        let slot = self.claims.remove(&address)?;
        if let Some(claim) = &slot.value {
            let member = (claim.node.clone(), claim.id.clone());
            self.held_by(claim.holder).remove(&member, &address);
        }
        self.recount(address);
        Some(slot)
    }

    fn held_by(&mut self, holder: Holder) -> &mut Index<Member, IpAddr> {
        match holder {
            Holder::Endpoint => &mut self.claimed,
            Holder::Reservation => &mut self.reserved,
        }
    }

    /// The same names, with the texts that are there already: every record that is read has texts of its own.
    fn shared(&self, (node, id): Member) -> Member {
        let Some((known, there)) = self.endpoints.get_key_value(&node) else {
            return (node, id);
        };
        let id = there.get_key_value(&id).map_or(id, |(known, _)| known.clone());
        (known.clone(), id)
    }
}

fn is_of(claim: &AddressClaim, holder: Holder, (node, id): &Member) -> bool {
    claim.holder == holder && claim.node == *node && claim.id == *id
}
