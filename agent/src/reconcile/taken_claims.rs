//! Claims that somebody takes out of the store while what they stand for goes on: they are claimed again, by a chore as any
//! other. Here it is told, once that is done, since nobody else would know that somebody had a hand in it.
//!
//! What a mistake deletes of many is held, and told of otherwise.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use weft_core::{
    chores::Chore,
    record::{Change, Transaction, Write},
};
use weft_store_schema::{Holder, Key};

use super::{Reconciler, repairs::Cause};
use crate::drift::{Kind, Repair};

/// Claims that were taken away, by the chore that claims them again; forgotten with it.
pub(super) type TakenClaims = BTreeMap<Chore, BTreeSet<Key>>;

impl Reconciler {
    /// The claims among what was deleted that stand for something of this host's or of all, with the chores that would claim
    /// them again. To be asked before the changes are taken in.
    pub(super) fn claims_among(&self, changes: &[Change]) -> Vec<(Chore, Key)> {
        let deleted = changes.iter().filter_map(|change| match change {
            Change::Deleted { key, .. } => self.snapshot.prefix().parse(key).ok(),
            Change::Put(_) => None,
        });
        let chore_of = |key: Key| {
            let chore = match &key {
                Key::Address(network, address) => {
                    let slot = self.snapshot.members(network)?.claim(*address)?;
                    let claim = slot.value.filter(|claim| claim.holder == Holder::Endpoint)?;
                    let is_own = claim.node == self.node.name;
                    is_own.then(|| Chore::CompleteEndpoint(self.own_endpoint(network, &claim.id)))
                }
                Key::Vni(vni) => {
                    let claim = self.snapshot.vni_claim(*vni)?.value.as_ref()?;
                    Some(Chore::CompleteNetwork(claim.network.clone()))
                }
                _ => None,
            };
            chore.map(|chore| (chore, key))
        };
        deleted.filter_map(chore_of).collect()
    }

    /// Remembers those of them that are to be claimed again, once the changes are taken in.
    pub(super) fn await_claims(&mut self, among: Vec<(Chore, Key)>) {
        for (chore, key) in among {
            // One that is held is there as far as this host is concerned.
            let is_gone = match &key {
                Key::Address(network, address) => {
                    let members = self.snapshot.members(network);
                    members.is_none_or(|members| members.claim(*address).is_none())
                }
                Key::Vni(vni) => self.snapshot.vni_claim(*vni).is_none(),
                _ => false,
            };
            if is_gone && self.book.contains(&chore) {
                self.taken.entry(chore).or_default().insert(key);
            }
        }
    }

    /// A chore's transaction has happened: tells what it has claimed again.
    pub(super) fn claimed_again(&mut self, chore: &Chore, transaction: &Transaction) {
        let taken = self.taken.remove(chore).unwrap_or_default();
        let (network, holder) = match chore {
            Chore::CompleteEndpoint(endpoint) => (&endpoint.network, format!("endpoint {endpoint}")),
            Chore::CompleteNetwork(network) => (network, format!("network {network}")),
            _ => return,
        };
        for key in taken {
            let is_put = |write: &Write| matches!(write, Write::Put(put, _) if *put == key);
            if !transaction.writes.iter().any(is_put) {
                continue;
            }
            let object = key.to_string();
            let cause = Cause::Claim(network.clone());
            if self.repeats.happens(&cause, Instant::now()) {
                tracing::warn!(
                    network = %network,
                    key = object,
                    %holder,
                    "claimed again: somebody had deleted the claim from the store"
                );
            }
            let message = format!("claimed {object} again for {holder}: the claim had been deleted");
            let repair = Repair {
                found: String::new(),
                wanted: holder.clone(),
            };
            self.announce_repair(network, Kind::Claim, object, repair, message);
        }
    }
}
