//! Everything arrives, everybody does what is owed, until nothing more comes of it; and what must be true then.

use std::{collections::BTreeMap, net::IpAddr};

use weft_core::{
    chores::{self, Chore},
    claims::Refusal,
    dirty::Dirty,
};
use weft_store_schema::EndpointRef;

use crate::{
    oracle::check_view,
    reference::{Verdict, must},
    world::World,
};

/// Rounds that anything takes to come to rest.
const ROUNDS: usize = 80;
/// Seconds after which all leases have ended and all addresses have cooled down.
const LONG: u64 = 1000;

impl World {
    /// Lets everything come to its end, and all that has a time run out.
    pub(crate) fn come_to_rest(&mut self) -> Verdict {
        self.frozen.clear();
        for _ in 0..ROUNDS {
            self.settle()?;
            let before = self.etcd.revision;
            self.pass(LONG)?;
            self.settle()?;
            if self.etcd.revision == before {
                return Ok(());
            }
        }
        Err("it comes to no end with time".to_owned())
    }

    fn settle(&mut self) -> Verdict {
        for _ in 0..ROUNDS {
            let mut any = false;
            for n in 0..self.agents.len() {
                any |= self.agents[n].all_news(&self.etcd, self.clock);
                any |= self.agents[n].confirm_deletions();
                for k in (0..self.agents[n].under_way.len()).rev() {
                    any = true;
                    self.step(n, k)?;
                }
                let idle: Vec<Chore> = self.agents[n]
                    .owed
                    .iter()
                    .filter(|(_, task)| !task.running)
                    .map(|(chore, _)| chore.clone())
                    .collect();
                for chore in idle {
                    any |= !self.must_wait(&chore) && !matches!(self.work_out(n, &chore)?, Some(Err(_)));
                }
            }
            if !any {
                return Ok(());
            }
        }
        let left = self.agents.iter().map(|agent| (&agent.under_way, &agent.owed));
        Err(format!("it comes to no end: {:#?}", left.collect::<Vec<_>>()))
    }

    /// Whether what a chore is about depends on somebody who does nothing about it any more: the claims in a network that
    /// its node does not look at keep the network's VNI, and so does a reservation until it ends.
    fn must_wait(&self, chore: &Chore) -> bool {
        let Chore::FreeVni(vni) = chore else { return false };
        let network = self.reference.network_of(*vni);
        network.is_some_and(|network| self.reference.is_claimed_of(network))
    }

    /// What must be true at rest.
    pub(crate) fn check_at_rest(&mut self) -> Verdict {
        let mut refused = BTreeMap::new();
        for n in 0..self.agents.len() {
            let agent = &self.agents[n];
            let node = agent.node().clone();
            must!(
                !agent.is_claiming(),
                "{node} still counts addresses as being claimed"
            );
            let detaching = agent.snapshot.detaching();
            must!(detaching.is_empty(), "{node} still detaches {detaching:?}");
            for network in &self.names.networks {
                check_view(agent, network, &self.reference)?;
            }
            let owed = chores::chores(&agent.snapshot, &agent.peer, &Dirty::everything());
            for chore in &owed {
                must!(
                    agent.owed.contains_key(chore),
                    "{node} owes {chore:?} and does not know"
                );
            }
            for chore in owed {
                if self.must_wait(&chore) {
                    continue;
                }
                match (self.work_out(n, &chore)?, chore) {
                    (None, _) => {}
                    (Some(Err(refusal)), Chore::CompleteEndpoint(name)) => {
                        self.check_still_refused(&refusal)?;
                        refused.insert(name, refusal);
                    }
                    (other, chore) => return Err(format!("{node} still owes {chore:?}: {other:?}")),
                }
            }
        }
        let in_view = |name: &EndpointRef| {
            let agent = self.agents.iter().find(|agent| *agent.node() == name.node);
            agent.is_some_and(|agent| agent.snapshot.knows_claims(&name.network))
        };
        let waits = |name: &EndpointRef| refused.contains_key(name);
        self.reference.check_at_rest(waits, in_view)?;
        for (name, record) in &self.reference.records {
            let complete = !record.addresses.is_empty();
            let granted = record.requested.iter().all(|a| record.addresses.contains(a));
            must!(
                complete && granted || refused.contains_key(name),
                "{name} is left without what it asks for: {record:?}"
            );
        }
        for (name, life) in &self.promised {
            must!(
                !self.lives(name, *life),
                "{name} (of revision {life}) was said to be detached, and is there"
            );
        }
        Ok(())
    }

    /// At rest, what cannot be had cannot be had.
    fn check_still_refused(&self, refusal: &Refusal) -> Verdict {
        let true_now = match refusal {
            Refusal::Full { network, subnets, .. } => {
                let is_ipv4 = subnets.first().is_some_and(|subnet| subnet.net.addr().is_ipv4());
                let space = self.reference.spaces.get(network);
                let pools = space.into_iter().flat_map(|space| space.pools.iter().flatten());
                let of_family: Vec<&IpAddr> = pools.filter(|a| a.is_ipv4() == is_ipv4).collect();
                of_family
                    .iter()
                    .all(|a| self.reference.holder(network, **a).is_some())
            }
            Refusal::Taken { address, network, .. } => self.reference.holder(network, *address).is_some(),
            Refusal::Outside { address, network, .. } => {
                let space = self.reference.spaces.get(network);
                space.is_none_or(|space| !space.admitted.contains(address))
            }
            Refusal::Reserved { .. } | Refusal::MacTaken { .. } => true,
            other => return Err(format!("at rest: {other}")),
        };
        must!(true_now, "at rest: {refusal}, which is not so");
        Ok(())
    }
}
