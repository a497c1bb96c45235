//! What the store does not take of what is owed to it, told. A write that it refuses for what it is, is a problem of its
//! record. What keeps writes from being taken whatever they are is one problem, however many wait for its end, and is over
//! when the last of them is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use weft_core::{chores::Chore, complaint::Complaint, problem::Problem};
use weft_store::{Cause, StoreError};

use super::{Reconciler, chain};
use crate::problems::Source;

/// The key of the problem that the store refuses whatever is written.
const WRITES: &str = "(store writes)";
/// A write may fail so often, when a member of the store has just died, without that being trouble.
const TRIES_UNTOLD: u32 = 3;

/// What has failed whatever it was.
#[derive(Default)]
pub(super) struct Refused {
    /// How often in a row, as long as that is not told.
    tries: BTreeMap<Chore, u32>,
    /// Those that are told of.
    stuck: BTreeSet<Chore>,
    complaint: Complaint,
}

/// What is at the bottom of an error: in words that are the same whichever member of the store says so, and in full.
fn root(error: &StoreError) -> (String, String) {
    let mut cause: &(dyn Error + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let full = cause.to_string();
    let of_member = cause.downcast_ref::<Cause>();
    (
        of_member.map_or_else(|| full.clone(), |cause| cause.text.clone()),
        full,
    )
}

/// Whether it is this write that the store refuses: others may well be taken.
fn is_of_record(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Denied { .. }
            | StoreError::Refused { .. }
            | StoreError::LeaseGone { .. }
            | StoreError::Transaction { .. }
    )
}

impl Reconciler {
    /// Notes that a write failed, and says so if that is news.
    pub(super) fn not_written(&mut self, chore: &Chore, error: &StoreError) {
        let key = chore.key(&self.node.name).to_string();
        if is_of_record(error) {
            self.no_longer_stuck(chore);
            let message = format!("{}; it is tried again", chain(error));
            self.problems
                .set(Source::Store, &key, Some(Problem::new(&key, message)));
            return;
        }
        // Where the connection is lost, that is told, and nothing is tried until it is back.
        if !self.is_connected() || self.problems.seen_by(Source::Store, &key).is_some() {
            return;
        }
        if !self.refused.stuck.contains(chore) {
            let tries = self.refused.tries.entry(chore.clone()).or_default();
            *tries += 1;
            if *tries < TRIES_UNTOLD {
                return;
            }
            self.refused.tries.remove(chore);
            self.refused.stuck.insert(chore.clone());
        }
        let (why, in_full) = root(error);
        if self.refused.complaint.is_news(&why) {
            let message = format!("the store does not take what this agent writes: {in_full}; tried again");
            self.problems
                .set(Source::Host, WRITES, Some(Problem::new(WRITES, message)));
        }
    }

    /// Notes that a write was taken, or that there is nothing to write any more or for now.
    pub(super) fn not_refused(&mut self, chore: &Chore) {
        self.no_longer_stuck(chore);
        let key = chore.key(&self.node.name).to_string();
        self.problems.set(Source::Store, &key, None);
    }

    fn no_longer_stuck(&mut self, chore: &Chore) {
        self.refused.tries.remove(chore);
        if self.refused.stuck.remove(chore) && self.refused.stuck.is_empty() {
            self.refused.complaint.over();
            self.problems.set(Source::Host, WRITES, None);
        }
    }
}

impl Refused {
    /// The connection is back: what failed before, failed for that.
    pub(super) fn reconnected(&mut self) {
        self.tries.clear();
    }
}
