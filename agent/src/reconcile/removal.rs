//! What this host does when it finds that an operator has removed it from the cluster: it takes notice, starts
//! another life, and says what the last one has lost. The data plane needs nothing of its own for that: endpoints
//! whose records are gone are taken off the host by the ordinary pass.

use std::collections::BTreeSet;

use weft_core::{dirty::Dirty, problem::Problem, record::Scope};
use weft_store_schema::{EndpointRef, Key};

use crate::{history::Removed, problems::Source, reconcile::Reconciler, state_file::Written};

impl Reconciler {
    /// Which life of this node this is.
    pub(crate) fn incarnation(&self) -> &str {
        self.history.incarnation()
    }

    /// Takes notice of the mark of a removal that ended this life. The mark goes in the transaction that publishes
    /// the next one.
    pub(super) fn heed_removal(&mut self) {
        let own = self.snapshot.node();
        let Some(slot) = self.snapshot.removed(own) else {
            return;
        };
        let at = slot.mod_revision;
        if self.history.heeded() == at {
            return;
        }
        let mark = slot.value.clone().unwrap_or_default();
        // Before the peers are known, that there is none of this node means nothing.
        let is_gone = self.snapshot.is_complete(&BTreeSet::from([Scope::Peers]))
            && self.snapshot.peer_slot(own).is_none_or(|slot| slot.held);
        if mark.incarnation.as_deref() != Some(self.history.incarnation()) && !is_gone {
            // Of an earlier life than this one, which has a record: left over.
            return;
        }
        tracing::warn!(
            by = mark.by,
            endpoints = mark.endpoints,
            held = ?mark.held,
            "this node was removed from the cluster; what it held is not its own any more"
        );
        let last = Removed {
            by: mark.by,
            endpoints: mark.endpoints,
            held: mark.held,
        };
        self.new_life = Some(self.history.begin_anew(at, last));
        self.question_identity();
    }

    /// The file of this life has been written, or cannot be, which is told: the life begins either way.
    pub(super) fn on_new_life(&mut self) {
        self.new_life = None;
        self.add_chores(&Dirty::everything());
        self.run_chores();
    }

    /// What this host remembers of the store and of itself, on its way to the disk.
    pub(crate) fn history_written(&mut self) -> Written {
        self.history.written()
    }

    /// Says what the last life has lost, until that is there again or somebody has taken notice.
    pub(super) fn tell_removal(&mut self) {
        let key = Key::Removed(self.node.name.clone()).to_string();
        let problem = self.history.removed().and_then(|removed| {
            let lost: Vec<String> = removed
                .held
                .iter()
                .filter(|held| !self.is_here_again(held))
                .map(|held| shown(held))
                .collect();
            let untold = removed.endpoints.saturating_sub(removed.held.len() as u64);
            if lost.is_empty() && untold == 0 && removed.endpoints > 0 {
                return None;
            }
            Some(Problem::new(&key, told(removed, &lost, untold)))
        });
        self.problems.set(Source::Host, &key, problem);
    }

    /// Somebody has taken notice of what the last life has lost; whether there was something to take notice of.
    pub(crate) fn acknowledge_removal(&mut self) -> bool {
        if self.history.removed().is_none() {
            return false;
        }
        self.history.acknowledge();
        self.tell_removal();
        true
    }

    fn is_here_again(&self, held: &str) -> bool {
        let name = held.split(' ').next().and_then(|name| name.split_once('/'));
        let endpoint = name.and_then(|(network, id)| {
            Some(EndpointRef {
                network: network.parse().ok()?,
                node: self.node.name.clone(),
                id: id.parse().ok()?,
            })
        });
        endpoint.is_some_and(|endpoint| self.snapshot.endpoint(&endpoint).is_some_and(|slot| !slot.held))
    }
}

/// "blue/web 10.1.0.5 fd00::5" as people read it.
fn shown(held: &str) -> String {
    match held.split_once(' ') {
        Some((name, addresses)) => format!("{name} ({})", addresses.replace(' ', ", ")),
        None => held.to_owned(),
    }
}

fn told(removed: &Removed, lost: &[String], untold: u64) -> String {
    let by = removed.by.as_ref().map(|by| format!(" by {by}"));
    let mut text = format!(
        "this node was removed from the cluster{}; it is back as a new one",
        by.unwrap_or_default()
    );
    if !lost.is_empty() {
        text.push_str(" and no longer holds ");
        text.push_str(&lost.join(", "));
        if untold > 0 {
            text.push_str(&format!(" and {untold} more endpoints"));
        }
        text.push_str(": attach anew what is needed");
    }
    text.push_str("; 'weft resync --accept' ends this notice");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_in_full() {
        let removed = Removed {
            by: Some("host2".to_owned()),
            endpoints: 3,
            held: vec!["blue/web 10.1.0.5 fd00::5".to_owned(), "blue/new".to_owned()],
        };
        let lost: Vec<String> = removed.held.iter().map(|held| shown(held)).collect();
        assert_eq!(
            told(&removed, &lost, 1),
            "this node was removed from the cluster by host2; it is back as a new one and no longer holds \
             blue/web (10.1.0.5, fd00::5), blue/new and 1 more endpoints: attach anew what is needed; \
             'weft resync --accept' ends this notice"
        );
        assert!(!told(&Removed::default(), &[], 0).contains("holds"));
    }
}
