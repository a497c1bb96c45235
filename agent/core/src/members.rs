//! A network's endpoints and claims as records, with the indexes that answer "who has this MAC, who has
//! this address" when several records say so.

mod claims;
mod rows;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::Deref,
    sync::Arc,
};

use slab::Slab;
use weft_store_schema::{Endpoint, EndpointId, Holder, Mac, NodeName};

use crate::address_set::AddressSet;
use claims::Claim;
use rows::{Index, Number};

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
    pub raw: Option<Raw>,
    /// The revision at which the key was created.
    pub create_revision: i64,
    /// The revision at which it was last written.
    pub mod_revision: i64,
}

/// A record's bytes. In most slots there are none, so that has to be small.
#[derive(Debug, Clone)]
pub struct Raw(Arc<Vec<u8>>);

impl From<&[u8]> for Raw {
    fn from(bytes: &[u8]) -> Self {
        Self(Arc::new(bytes.to_vec()))
    }
}

impl Deref for Raw {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
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

/// A member of which something is known: a record, or claims.
#[derive(Debug, Clone)]
struct Row {
    member: Member,
    record: Option<Slot<Endpoint>>,
    /// Where it is among its node's, if it has a record.
    place: u32,
}

/// What is known of a node in this network.
#[derive(Debug, Clone, Default)]
struct There {
    /// Its endpoints, in no order.
    endpoints: Vec<Number>,
    /// How many of its members have a row.
    rows: u32,
}

/// A network's endpoints and claims.
///
/// There may be a hundred thousand of them, so each thing is held once: a member's names, its record and what is claimed for
/// it in a row each, and the indexes hold numbers of rows only.
#[derive(Debug, Clone, Default)]
pub struct Members {
    rows: Slab<Row>,
    by_name: Index<Member>,
    nodes: BTreeMap<NodeName, There>,
    claims: Slab<Claim>,
    claims_at: Index<IpAddr>,
    /// What each row's member holds by claims, whatever its record says.
    claims_of: Index<Number>,
    by_mac: Index<Mac>,
    by_address: Index<IpAddr>,
    by_wish: Index<IpAddr>,
    /// Addresses that were given up, the oldest first, by the revision at which that was.
    released: BTreeSet<(i64, IpAddr)>,
    released_at: HashMap<IpAddr, i64>,
    /// What is claimed or named by a record, and what was.
    used: AddressSet,
    spent: AddressSet,
    /// Endpoints of which it is not known what they have: never valid since this agent started, or not yet
    /// completed by their node's agent.
    undetermined: BTreeSet<Number>,
}

impl Members {
    /// Every endpoint record, valid or not: by node, a node's in no order.
    pub fn endpoints(&self) -> impl Iterator<Item = (&NodeName, &EndpointId, &Slot<Endpoint>)> {
        self.nodes
            .values()
            .flat_map(|there| self.records(&there.endpoints))
            .map(|((node, id), slot)| (node, id, slot))
    }

    fn records<'a>(
        &'a self,
        numbers: &'a [Number],
    ) -> impl Iterator<Item = (&'a Member, &'a Slot<Endpoint>)> + use<'a> {
        let rows = numbers.iter().filter_map(|number| self.row(*number));
        rows.filter_map(|row| Some((&row.member, row.record.as_ref()?)))
    }

    fn row(&self, number: Number) -> Option<&Row> {
        self.rows.get(number as usize)
    }

    /// The number of a member's row.
    fn number(&self, member: &Member) -> Option<Number> {
        let is_its = |number: &Number| self.row(*number).is_some_and(|row| row.member == *member);
        self.by_name.get(member).find(is_its)
    }

    /// An endpoint's record.
    pub fn endpoint(&self, member: &Member) -> Option<&Slot<Endpoint>> {
        self.row(self.number(member)?)?.record.as_ref()
    }

    /// A node's endpoint records, in no order.
    pub fn endpoints_on(&self, node: &NodeName) -> impl Iterator<Item = (&EndpointId, &Slot<Endpoint>)> {
        let numbers = self
            .nodes
            .get(node)
            .map_or([].as_slice(), |there| &there.endpoints);
        self.records(numbers).map(|((_, id), slot)| (id, slot))
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.claims.is_empty() && self.released.is_empty()
    }

    /// The number of endpoint records.
    pub fn count(&self) -> usize {
        self.nodes.values().map(|there| there.endpoints.len()).sum()
    }

    /// The number of a node's endpoint records.
    pub fn count_on(&self, node: &NodeName) -> usize {
        self.nodes.get(node).map_or(0, |there| there.endpoints.len())
    }

    /// The nodes that have endpoints here.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        let nodes = self.nodes.iter().filter(|(_, there)| !there.endpoints.is_empty());
        nodes.map(|(node, _)| node)
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

    /// Whether there are endpoints of which it is not known what they have.
    pub fn any_undetermined(&self) -> bool {
        self.undetermined.iter().any(|number| {
            let slot = self.row(*number).and_then(|row| row.record.as_ref());
            // One that was never understood tells no more when the store has lost it.
            slot.is_some_and(|slot| slot.bad || slot.value.is_none())
                || self.claims_by(*number, Holder::Endpoint).next().is_some()
        })
    }

    /// Whether none of the endpoints may be one of which it is not known what it has. Cheap.
    pub(crate) fn are_all_determined(&self) -> bool {
        self.undetermined.is_empty()
    }

    /// Whether this is one of those that may be undetermined. Cheap.
    pub(crate) fn may_be_undetermined(&self, member: &Member) -> bool {
        !self.are_all_determined()
            && self
                .number(member)
                .is_some_and(|number| self.undetermined.contains(&number))
    }

    /// Whether an address is claimed for an endpoint whose record is there and does not tell what it has, or may
    /// be.
    pub(crate) fn is_held_untold(&self, address: IpAddr) -> bool {
        self.claim_at(address)
            .is_some_and(|(_, claim)| match claim.holder {
                Some(Holder::Reservation) => false,
                Some(Holder::Endpoint) => self.undetermined.contains(&claim.row),
                None => self.any_undetermined(),
            })
    }

    /// Every MAC that a record names, as often as one does.
    pub fn macs(&self) -> impl Iterator<Item = Mac> + use<'_> {
        self.values().filter_map(|endpoint| endpoint.mac)
    }

    /// Every address that a record names, as often as one does.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.values()
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
    }

    fn values(&self) -> impl Iterator<Item = &Endpoint> + use<'_> {
        let rows = self.rows.iter();
        rows.filter_map(|(_, row)| row.record.as_ref()?.value.as_ref())
    }

    /// Every member whose record names the MAC, in no order.
    pub fn with_mac(&self, mac: Mac) -> impl Iterator<Item = &Member> {
        self.naming(self.by_mac.get(&mac), move |endpoint| endpoint.mac == Some(mac))
            .map(|(member, ..)| member)
    }

    /// Every member whose record names the address, in no order.
    pub fn with_address(&self, address: IpAddr) -> impl Iterator<Item = &Member> {
        let names = move |endpoint: &Endpoint| endpoint.addresses.contains(&address);
        self.naming(self.by_address.get(&address), names)
            .map(|(member, ..)| member)
    }

    /// Every member whose record wishes for the address, in no order.
    pub fn wishing(&self, address: IpAddr) -> impl Iterator<Item = &Member> {
        let names = move |endpoint: &Endpoint| endpoint.requested().contains(&address);
        self.naming(self.by_wish.get(&address), names)
            .map(|(member, ..)| member)
    }

    /// Those of the rows whose records really say so.
    fn naming(
        &self,
        rows: impl Iterator<Item = Number>,
        says: impl Fn(&Endpoint) -> bool,
    ) -> impl Iterator<Item = (&Member, &Slot<Endpoint>, &Endpoint)> {
        rows.filter_map(move |number| {
            let row = self.row(number)?;
            let slot = row.record.as_ref()?;
            let endpoint = slot.value.as_ref().filter(|endpoint| says(endpoint))?;
            Some((&row.member, slot, endpoint))
        })
    }

    /// What a member's record says, or said when it was last valid.
    pub fn value(&self, member: &Member) -> Option<&Endpoint> {
        self.endpoint(member)?.value.as_ref()
    }

    /// The one member that has the MAC, the same on every host whatever the order in which records came:
    /// who holds any of its addresses by a claim, then who was there first.
    pub fn owner_of_mac(&self, mac: Mac) -> Option<(&Member, &Endpoint)> {
        let rivals = self.naming(self.by_mac.get(&mac), |endpoint| endpoint.mac == Some(mac));
        best(rivals, |member, endpoint| {
            endpoint.addresses.iter().any(|a| self.is_claimed_by(*a, member))
        })
    }

    /// The one member that has the address: who holds it by a claim; without a claim in sight, who was
    /// there first.
    pub fn owner_of_address(&self, address: IpAddr) -> Option<(&Member, &Endpoint)> {
        let rivals = self.naming(self.by_address.get(&address), |endpoint| {
            endpoint.addresses.contains(&address)
        });
        let claim = self.claim_at(address).map(|(_, claim)| claim);
        let holds = |member: &Member| claim.is_some_and(|claim| self.is_of(claim, member));
        best(rivals, |member, _| holds(member)).filter(|(member, _)| {
            // One that was never valid tells of nobody else.
            claim.is_none_or(|claim| claim.holder.is_none()) || holds(member)
        })
    }

    /// The member's row, made if there is none.
    fn row_of(&mut self, member: Member) -> Number {
        if let Some(number) = self.number(&member) {
            return number;
        }
        let (node, id) = member;
        // Every record that is read has texts of its own: of a node's name one is kept.
        let there = self.nodes.entry(node);
        let node = there.key().clone();
        there.or_default().rows += 1;
        let member = (node, id);
        let row = Row {
            member: member.clone(),
            record: None,
            place: 0,
        };
        let number = self.rows.insert(row) as Number;
        self.by_name.insert(&member, number);
        number
    }

    /// Forgets a row of which nothing is known any more.
    fn let_go(&mut self, number: Number) {
        let Some(row) = self.row(number) else { return };
        let mut claims = [Holder::Endpoint, Holder::Reservation]
            .into_iter()
            .flat_map(|holder| self.claims_by(number, holder));
        if row.record.is_some() || claims.next().is_some() {
            return;
        }
        drop(claims);
        let member = self.rows.remove(number as usize).member;
        self.by_name.remove(&member, number);
        if let Some(there) = self.nodes.get_mut(&member.0) {
            there.rows -= 1;
            if there.rows == 0 {
                self.nodes.remove(&member.0);
            }
        }
    }

    pub(crate) fn put_endpoint(&mut self, member: Member, slot: Slot<Endpoint>) {
        let number = self.row_of(member);
        self.take_record(number);
        match &slot.value {
            Some(endpoint) => {
                if let Some(mac) = endpoint.mac {
                    self.by_mac.insert(&mac, number);
                }
                for address in &endpoint.addresses {
                    self.by_address.insert(address, number);
                    self.used.insert(*address);
                    self.spent.insert(*address);
                }
                for address in endpoint.requested() {
                    self.by_wish.insert(address, number);
                }
                if endpoint.mac.is_none() || endpoint.addresses.is_empty() {
                    self.undetermined.insert(number);
                }
            }
            None => drop(self.undetermined.insert(number)),
        }
        if let Some(row) = self.rows.get_mut(number as usize) {
            if let Some(there) = self.nodes.get_mut(&row.member.0) {
                row.place = there.endpoints.len() as u32;
                there.endpoints.push(number);
            }
            row.record = Some(slot);
        }
    }

    pub(crate) fn remove_endpoint(&mut self, member: &Member) -> Option<Slot<Endpoint>> {
        let number = self.number(member)?;
        let slot = self.take_record(number)?;
        self.let_go(number);
        Some(slot)
    }

    /// Takes a record out of its row and of all indexes.
    fn take_record(&mut self, number: Number) -> Option<Slot<Endpoint>> {
        let row = self.rows.get_mut(number as usize)?;
        let slot = row.record.take()?;
        let place = row.place as usize;
        if let Some(there) = self.nodes.get_mut(&row.member.0) {
            there.endpoints.swap_remove(place);
            let moved = there.endpoints.get(place);
            if let Some(moved) = moved.and_then(|moved| self.rows.get_mut(*moved as usize)) {
                moved.place = place as u32;
            }
        }
        self.undetermined.remove(&number);
        if let Some(endpoint) = &slot.value {
            if let Some(mac) = endpoint.mac {
                self.by_mac.remove(&mac, number);
            }
            for address in endpoint.requested() {
                self.by_wish.remove(address, number);
            }
            for address in &endpoint.addresses {
                self.by_address.remove(address, number);
                self.recount(*address);
            }
        }
        Some(slot)
    }

    /// Notes whether an address is used, and spent, after something of it is gone.
    fn recount(&mut self, address: IpAddr) {
        let used = self.claim_at(address).is_some() || self.with_address(address).next().is_some();
        if !used {
            self.used.remove(address);
            if !self.released_at.contains_key(&address) {
                self.spent.remove(address);
            }
        }
    }

    /// Gives up room for more than there is.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.rows.shrink_to_fit();
        self.claims.shrink_to_fit();
        for there in self.nodes.values_mut() {
            there.endpoints.shrink_to_fit();
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

    pub(crate) fn endpoint_mut(&mut self, member: &Member) -> Option<&mut Slot<Endpoint>> {
        let number = self.number(member)?;
        self.rows.get_mut(number as usize)?.record.as_mut()
    }
}

/// Of several who name the same thing the one that has it: who has claimed it, then who was there first.
fn best<'a>(
    mut rivals: impl Iterator<Item = (&'a Member, &'a Slot<Endpoint>, &'a Endpoint)>,
    claimed: impl Fn(&Member, &Endpoint) -> bool,
) -> Option<(&'a Member, &'a Endpoint)> {
    let first = rivals.next()?;
    // Nearly always.
    let Some(second) = rivals.next() else {
        return Some((first.0, first.2));
    };
    [first, second]
        .into_iter()
        .chain(rivals)
        .min_by_key(|(member, slot, endpoint)| (!claimed(member, endpoint), slot.create_revision, *member))
        .map(|(member, _, endpoint)| (member, endpoint))
}
