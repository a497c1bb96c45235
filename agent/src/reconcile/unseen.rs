//! What could not be looked at: it stays as it was last known, is not written, and is looked at again after a pause.
//!
//! A look fails when the kernel is out of memory, interrupts itself, or loses an answer. Writing by what was known
//! before would undo, or do twice, what nobody has seen.

use std::path::Path;

use tokio::time::Instant;
use weft_core::{dirty::Dirty, problem::Problem};
use weft_store_schema::NetworkName;

use super::{
    Reconciler, chain,
    passes::{FIRST_RETRY, FailureOf, Look},
};
use crate::problems::Source;

/// What the problem of a host whose networks cannot even be listed is about.
const KERNEL: &str = "(kernel)";

impl Reconciler {
    /// Takes note of what a look did not see. Returns whether it saw which networks there are, if it asked.
    pub(super) fn note_unseen(&mut self, look: &Dirty, seen: &Look) -> bool {
        let mut blind = None;
        for network in &seen.networks {
            if look.everything || look.networks.contains(network) {
                self.unseen.remove(&(network.clone(), None));
            }
            let mut unseen = std::mem::take(&mut self.unseen);
            unseen.retain(|(n, id)| {
                let looked_into = |id| look.looks_into(&self.own_endpoint(n, id));
                n != network || !id.as_ref().is_some_and(looked_into)
            });
            self.unseen = unseen;
        }
        for (subject, error) in &seen.errors {
            let why = format!(
                "cannot see all of the kernel's state: {}; it is tried again",
                chain(error)
            );
            match subject.parse::<NetworkName>() {
                Ok(network) => self.cannot_see((network, None), why),
                Err(_directory) => blind = Some(why),
            }
        }
        let containers: Vec<FailureOf> = seen
            .networks
            .iter()
            .filter_map(|network| Some((network, seen.observed.networks.get(network)?)))
            .flat_map(|(network, there)| there.unseen.iter().map(|id| (network.clone(), id.clone())))
            .filter_map(|(network, id)| {
                let endpoint = self.own_endpoint(&network, &id);
                let slot = self
                    .snapshot
                    .endpoint(&endpoint)
                    .filter(|_| look.looks_into(&endpoint))?;
                let netns = slot.value.as_ref()?.netns();
                // One that is gone is waited for otherwise.
                let is_there = !weft_kernel::is_gone(Path::new(netns));
                is_there.then_some((network, Some(id)))
            })
            .collect();
        for of in containers {
            let why = "cannot look into its container's namespace; it is tried again";
            self.cannot_see(of, why.to_owned());
        }
        if look.everything {
            if blind.is_some() {
                self.next_full = Instant::now() + FIRST_RETRY;
            }
            let problem = blind.as_ref().map(|why| Problem::new(KERNEL, why.clone()));
            self.problems.set(Source::Kernel, KERNEL, problem);
        }
        blind.is_none()
    }

    /// Networks that could not be looked at the last time: what is there of them now is not known.
    pub(super) fn unseen_networks(&self) -> impl Iterator<Item = &NetworkName> {
        let whole = self.unseen.iter().filter(|(_, id)| id.is_none());
        whole.map(|(network, _)| network)
    }

    /// Whether the last look at a network showed what is there of it.
    pub(super) fn has_seen(&self, network: &NetworkName) -> bool {
        !self.unseen.contains(&(network.clone(), None))
    }

    fn cannot_see(&mut self, of: FailureOf, why: String) {
        self.unseen.insert(of.clone());
        let problem = Problem::new(self.key_of(&of), why);
        self.fail(of, Some(problem));
    }
}
