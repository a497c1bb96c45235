//! The claims of a network's addresses, by address and by who holds them.

use std::{collections::BTreeSet, net::IpAddr};

use weft_store_schema::{AddressClaim, Holder, NodeName};

use super::{Member, Members, Slot, rows::Number};

/// A claim, with its holder by number: its name is in the row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) address: IpAddr,
    /// None if the claim was never valid.
    pub(super) holder: Option<Holder>,
    pub(super) row: Number,
    bad: bool,
    held: bool,
    create_revision: i64,
    mod_revision: i64,
}

impl Members {
    /// Every claim, in no order.
    pub fn claims(&self) -> impl Iterator<Item = (IpAddr, Slot<AddressClaim>)> + use<'_> {
        self.claims
            .iter()
            .map(|(_, claim)| (claim.address, self.told(claim)))
    }

    /// The addresses that are claimed for members of some of the nodes, in no order.
    pub fn claimed_on(&self, wanted: impl Fn(&NodeName) -> bool) -> Vec<IpAddr> {
        // Asked once for each node, not for each claim.
        let nodes: BTreeSet<&NodeName> = self.nodes.keys().filter(|node| wanted(node)).collect();
        if nodes.is_empty() {
            return Vec::new();
        }
        let is_on = |claim: &&Claim| {
            self.row(claim.row)
                .is_some_and(|row| nodes.contains(&row.member.0))
        };
        let claims = self.claims.iter().map(|(_, claim)| claim);
        claims.filter(is_on).map(|claim| claim.address).collect()
    }

    /// The claim of an address.
    pub fn claim(&self, address: IpAddr) -> Option<Slot<AddressClaim>> {
        self.claim_at(address).map(|(_, claim)| self.told(claim))
    }

    pub(super) fn claim_at(&self, address: IpAddr) -> Option<(Number, &Claim)> {
        let numbers = self.claims_at.get(&address);
        let mut claims = numbers.filter_map(|number| Some((number, self.claims.get(number as usize)?)));
        claims.find(|(_, claim)| claim.address == address)
    }

    /// A claim with its holder's name.
    fn told(&self, claim: &Claim) -> Slot<AddressClaim> {
        let value = claim.holder.zip(self.row(claim.row)).map(|(holder, row)| {
            let (node, id) = row.member.clone();
            AddressClaim { holder, node, id }
        });
        Slot {
            value,
            bad: claim.bad,
            held: claim.held,
            raw: None,
            create_revision: claim.create_revision,
            mod_revision: claim.mod_revision,
        }
    }

    /// Whether a claim says that this member holds the address.
    pub fn is_claimed_by(&self, address: IpAddr, member: &Member) -> bool {
        self.claim_at(address)
            .is_some_and(|(_, claim)| self.is_of(claim, member))
    }

    /// Who else holds the address by its claim.
    pub fn claimed_by_other(&self, address: IpAddr, member: &Member) -> Option<AddressClaim> {
        let (_, claim) = self.claim_at(address)?;
        if self.is_of(claim, member) {
            return None;
        }
        self.told(claim).value
    }

    pub(super) fn is_of(&self, claim: &Claim, member: &Member) -> bool {
        claim.holder == Some(Holder::Endpoint) && self.row(claim.row).is_some_and(|row| row.member == *member)
    }

    /// What a reservation holds.
    pub fn reserved_by(&self, reservation: &Member) -> BTreeSet<IpAddr> {
        self.addresses_of(reservation, Holder::Reservation)
    }

    fn addresses_of(&self, member: &Member, holder: Holder) -> BTreeSet<IpAddr> {
        let number = self.number(member).into_iter();
        number
            .flat_map(|row| self.claims_by(row, holder))
            .map(|claim| claim.address)
            .collect()
    }

    pub(super) fn claims_by(&self, row: Number, holder: Holder) -> impl Iterator<Item = &Claim> + use<'_> {
        let numbers = self.claims_of.get(&row);
        let claims = numbers.filter_map(|number| self.claims.get(number as usize));
        claims.filter(move |claim| claim.row == row && claim.holder == Some(holder))
    }

    /// What a member holds by claims, whatever its record says.
    pub fn claimed_by(&self, member: &Member) -> BTreeSet<IpAddr> {
        self.addresses_of(member, Holder::Endpoint)
    }

    pub(crate) fn put_claim(&mut self, address: IpAddr, slot: Slot<AddressClaim>) {
        self.remove_claim(address);
        let value = slot.value.map(|claim| (claim.holder, (claim.node, claim.id)));
        let (holder, row) = match value {
            Some((holder, member)) => (Some(holder), self.row_of(member)),
            None => (None, Number::MAX),
        };
        let claim = Claim {
            address,
            holder,
            row,
            bad: slot.bad,
            held: slot.held,
            create_revision: slot.create_revision,
            mod_revision: slot.mod_revision,
        };
        let number = self.claims.insert(claim) as Number;
        self.claims_at.insert(&address, number);
        if holder.is_some() {
            self.claims_of.insert(&row, number);
        }
        self.used.insert(address);
        self.spent.insert(address);
    }

    pub(crate) fn remove_claim(&mut self, address: IpAddr) -> Option<Slot<AddressClaim>> {
        let (number, claim) = self.claim_at(address)?;
        let slot = self.told(claim);
        let claim = self.claims.remove(number as usize);
        self.claims_at.remove(&address, number);
        if claim.holder.is_some() {
            self.claims_of.remove(&claim.row, number);
            self.let_go(claim.row);
        }
        self.recount(address);
        Some(slot)
    }
}
