//! Passes: look at the kernel where something happened, plan, have the plan applied, remember what came of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use weft_core::{
    barrier::Mark,
    dataplane::Observed,
    desired::{Assessment, look_into},
    diff,
    dirty::Dirty,
    plan::{Op, Outcome, Plan},
    problem::Problem,
};
use weft_kernel::KernelError;
use weft_store_schema::{EndpointId, EndpointRef, Key, NetworkName, NodeName};

use super::{Reconciler, chain};
use crate::{
    drift,
    look::{self, Entries},
    metrics::During,
    problems::Source,
};

/// The first pause before something that the kernel refused is tried again.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// Something that the kernel refused, to be tried again.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) retry_at: Instant,
    pub(super) pause: Duration,
}

/// What a failure is about.
pub(super) type FailureOf = (NetworkName, Option<EndpointId>);

/// What the kernel's thread is doing for us.
pub(super) enum Busy {
    Looking {
        look: Dirty,
        because: Because,
        answer: oneshot::Receiver<Look>,
    },
    Applying {
        dirty: Dirty,
        /// See [`Reconciler::plan`].
        expected: Option<Plan>,
        /// See [`Reconciler::plan`].
        covers: Option<Covered>,
        /// How many there are.
        operations: usize,
        answer: oneshot::Receiver<Applied>,
    },
}

/// The records that a plan was made from, as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Covered {
    records: Mark,
    /// The store events that had been taken in.
    arrivals: u64,
}

/// Why a pass is made: decides whether what it finds is somebody else's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Because {
    /// Records changed, or something is tried again.
    Wanted,
    /// It is time to look at everything.
    Routine,
    /// The kernel said that something changed.
    Noticed,
}

/// What the kernel's thread saw.
pub(crate) struct Look {
    /// Networks that are there.
    pub(crate) observed: Observed,
    /// Networks that were looked at, there or not.
    pub(crate) networks: BTreeSet<NetworkName>,
    /// Single entries that were looked at.
    pub(crate) entries: Vec<Entries>,
    /// What could not be seen, with its subject.
    pub(crate) errors: Vec<(String, KernelError)>,
}

pub(super) struct Applied {
    pub(super) plan: Plan,
    pub(super) outcome: Outcome<KernelError>,
}

/// What the kernel's thread has to tell.
pub(super) enum Answer {
    Looked(Look),
    Applied(Applied),
    /// The kernel's thread is gone, which only a bug in it can do.
    Lost,
}

/// Waits for the kernel's thread; for ever while it has nothing to do.
pub(super) async fn answered(busy: &mut Option<Busy>) -> Answer {
    match busy {
        Some(Busy::Looking { answer, .. }) => answer.await.map_or(Answer::Lost, Answer::Looked),
        Some(Busy::Applying { answer, .. }) => answer.await.map_or(Answer::Lost, Answer::Applied),
        None => std::future::pending().await,
    }
}

impl Reconciler {
    /// Gives the kernel's thread the next thing to do, if it has none and there is one.
    pub(super) fn step(&mut self) {
        if self.busy.is_some() {
            return;
        }
        // Asked first: the moment that it may, there is everything to look at.
        let may_write = self.may_write();
        // In turns: neither what others do to the kernel nor what happens to the records may starve the other.
        let records_turn = self.look_was_last && may_write && !self.dirty.is_empty();
        if !self.look.is_empty() && (!self.looked || may_write) && !records_turn {
            self.look_was_last = true;
            let look = std::mem::take(&mut self.look);
            let because = std::mem::replace(&mut self.look_because, Because::Wanted);
            let places = look_into(&self.snapshot, &look);
            let part = look.clone();
            let known: Vec<NetworkName> = self.observed.networks.keys().cloned().collect();
            let answer = self
                .kernel
                .run(move |kernel| look::look(kernel, &part, &places, &known));
            self.busy_since = Instant::now();
            self.busy = Some(Busy::Looking {
                look,
                because,
                answer,
            });
        } else if may_write && !self.dirty.is_empty() {
            self.look_was_last = false;
            let dirty = std::mem::take(&mut self.dirty);
            let covers = self.mark();
            self.plan(dirty, None, Some(covers));
        }
        if self.adopted && self.busy.is_none() && self.dirty.is_empty() {
            // Nothing in the records is left to be done.
            self.cover(self.mark());
        }
    }

    fn mark(&self) -> Covered {
        Covered {
            records: self.reached.mark(self.snapshot.revision()),
            arrivals: self.arrivals.mark(),
        }
    }

    /// The kernel has these records.
    fn cover(&mut self, covered: Covered) {
        self.reached.apply(covered.records);
        for time in self.arrivals.settle(covered.arrivals, Instant::now()) {
            self.metrics.converged(time);
        }
    }

    /// The kernel is written only when all that is wanted has been listed, all that is there has been seen, and
    /// this host is known to be the node.
    fn may_write(&mut self) -> bool {
        let all_known = self.looked && self.underlay.is_some() && self.is_informed();
        if !self.adopted && all_known && self.is_the_node() && self.is_compared() {
            // Container ends could not be looked for before the records told where they are. The tables were seen, and
            // what has changed in them since was told of: a second dump of them would be most of a restart.
            self.adopted = true;
            let seen = self.observed.networks.keys().cloned();
            let named = look_into(&self.snapshot, &Dirty::everything())
                .into_iter()
                .map(|place| place.network);
            self.look.links.extend(seen.chain(named));
            self.dirty.everything = true;
            self.look_was_last = false;
            self.look_because = Because::Wanted;
        }
        self.adopted
    }

    /// Makes and hands over a plan. `expected` is what it would have been before the kernel was looked at;
    /// whatever it holds beyond that repairs what somebody else changed. `covers` is the state of the records that
    /// is in the kernel when it is applied, if it is made for all that they made dirty.
    fn plan(&mut self, dirty: Dirty, expected: Option<Plan>, covers: Option<Covered>) {
        let Some(host) = self.host() else {
            self.dirty.merge(dirty);
            return;
        };
        let (mut plan, assessment) = diff::plan(&self.snapshot, &host, &self.observed, &dirty);
        plan.networks.retain(|network, ops| {
            if !self.has_seen(network) {
                return false;
            }
            if self.owes_addresses(network) {
                ops.retain(|op| *op != Op::DeleteNamespace);
            }
            !ops.is_empty()
        });
        self.assess(assessment);
        self.metrics.passed(dirty.everything);
        if plan.is_empty() {
            let applied = Applied {
                plan,
                outcome: Outcome::default(),
            };
            self.on_applied(&dirty, expected.as_ref(), covers, applied);
            return;
        }
        let operations = plan.len();
        tracing::debug!(operations, "applying");
        let announcements = self.announcer.announcements(&plan, &self.observed);
        let answer = self.kernel.run(move |kernel| {
            // Before, since an agent that is killed in between finds everything in place when it is back, and nothing to
            // tell. After, for whoever has asked meanwhile.
            kernel.announce(&announcements);
            let outcome = kernel.apply(&plan);
            kernel.announce(&announcements);
            Applied { plan, outcome }
        });
        self.busy_since = Instant::now();
        self.busy = Some(Busy::Applying {
            dirty,
            expected,
            covers,
            operations,
            answer,
        });
    }

    pub(super) fn on_answer(&mut self, answer: Answer) {
        match (self.busy.take(), answer) {
            (Some(Busy::Looking { look, because, .. }), Answer::Looked(seen)) => {
                self.on_looked(look, because, seen);
            }
            (
                Some(Busy::Applying {
                    dirty,
                    expected,
                    covers,
                    ..
                }),
                Answer::Applied(applied),
            ) => {
                self.on_applied(&dirty, expected.as_ref(), covers, applied);
            }
            _ => {
                tracing::error!(
                    "the kernel's thread has ended; restarting the agent is all that helps, forwarding stays"
                );
                std::process::abort();
            }
        }
    }

    fn on_looked(&mut self, look: Dirty, because: Because, seen: Look) {
        for (_, error) in &seen.errors {
            self.metrics.failed(During::Look, error);
        }
        let tables = seen.observed.networks.values();
        self.took_much(tables.map(|there| there.forwards.len()).sum());
        let knows_networks = self.note_unseen(&look, &seen);
        // What was to be done before the look is no repair: the records want it, whoever touched the kernel.
        let expected = match self.host() {
            Some(host) if self.adopted && because != Because::Wanted => {
                let before = || diff::plan(&self.snapshot, &host, &self.observed, &look).0;
                Some(self.expected.take().unwrap_or_else(before))
            }
            _ => None,
        };
        self.interest_is_stale |= look.everything || !look.networks.is_empty() || !seen.errors.is_empty();
        let again = look::merge(&mut self.observed, &look, seen);
        self.judge_notices();
        if !again.is_empty() {
            self.expected = expected;
            self.look_was_last = false;
            self.look_because = self.look_because.max(because);
            self.look.networks.extend(again);
            self.look.merge(look);
            return;
        }
        let first = !self.looked && knows_networks;
        self.looked |= knows_networks;
        if first {
            self.update_interest();
        }
        if self.adopted {
            let mut look = look;
            if self.ready.is_some() {
                // The first pass is one.
                look.merge(std::mem::take(&mut self.dirty));
            }
            let covers = (look.everything || self.dirty.is_empty()).then(|| self.mark());
            self.plan(look, expected, covers);
        }
    }

    fn on_applied(
        &mut self,
        dirty: &Dirty,
        expected: Option<&Plan>,
        covers: Option<Covered>,
        applied: Applied,
    ) {
        let Applied { plan, outcome } = applied;
        self.took_much(plan.len());
        // Ten thousand may have failed, or be repairs.
        let undone = outcome.undone();
        for (network, ops) in &plan.networks {
            let expected: Option<HashSet<&Op>> =
                expected.map(|expected| expected.networks.get(network).into_iter().flatten().collect());
            for op in ops {
                if undone.is_empty() || !undone.contains(&(network, op)) {
                    self.announcer.note(network, op, ops, &self.observed);
                    if expected.as_ref().is_some_and(|expected| !expected.contains(op)) {
                        // What is known is still what was found.
                        let repair = drift::repair(self.observed.networks.get(network), op);
                        self.repaired(network, op, repair);
                    }
                    self.observed.record(network, op);
                    self.metrics.changed(drift::kind(op));
                    tracing::debug!(%network, ?op, "done");
                }
            }
        }
        self.judge_notices();
        self.metrics.wrote(outcome.writes);
        for (_, _, error) in &outcome.failed {
            self.metrics.failed(During::Apply, error);
        }
        self.note_failures(dirty, outcome.failed, expected.is_some());
        if let Some(covered) = covers {
            self.cover(covered);
        }
        self.update_states(dirty);
        if plan
            .networks
            .values()
            .flatten()
            .any(|op| matches!(op, Op::CreateNamespace | Op::DeleteNamespace))
        {
            self.update_interest();
        }
        if let Some(ready) = self.ready.take_if(|_| self.adopted) {
            tracing::info!(
                networks = self.observed.networks.len(),
                writes = self.metrics.writes(),
                revision = self.reached.newest_applied(),
                "first pass done"
            );
            // Whoever waits for it may have gone: then the agent is stopping.
            let _ = ready.send(());
        }
        self.note_position(false);
        self.report();
        self.run_withheld_chores();
        self.bump();
    }

    /// How long the kernel's thread has been at what it is doing; none when it has nothing to do.
    pub(crate) fn busy_for(&self) -> Option<Duration> {
        self.busy.as_ref().map(|_| self.busy_since.elapsed())
    }

    /// Whether a plan is under way.
    pub(super) fn is_applying(&self) -> bool {
        matches!(self.busy, Some(Busy::Applying { .. }))
    }

    /// Remembers what the kernel refused, forgets what it refuses no more.
    fn note_failures(&mut self, dirty: &Dirty, failed: Vec<(NetworkName, Op, KernelError)>, repairing: bool) {
        let mut now_failing: BTreeMap<FailureOf, Option<Problem>> = BTreeMap::new();
        for (network, op, error) in failed {
            let of = (network, drift::endpoint_of(&op).cloned());
            if let (network, Some(id)) = &of
                && self.snapshot.endpoint(&self.own_endpoint(network, id)).is_none()
            {
                // Deleted while the plan was under way: what is left of it goes with the next one.
                continue;
            }
            let again = self.failures.contains_key(&of);
            // Only the first time at once: whatever loses every answer would keep this host busy. What refuses a repair is
            // as a rule something else that was changed, and that nobody told of.
            if (error.needs_look() || repairing) && !again {
                self.look.networks.insert(of.0.clone());
                if repairing {
                    self.look_because = Because::Noticed;
                }
            }
            // Somebody took away what was there a moment ago: the look will tell, and it is no refusal.
            let is_news = again || !error.is_gone();
            let problem = is_news.then(|| Problem {
                key: self.key_of(&of),
                field: matches!(error, KernelError::InterfaceExists { .. })
                    .then(|| "attachment.ifname".to_owned()),
                message: format!("{}; it is tried again", chain(&error)),
            });
            now_failing.entry(of).or_insert(problem);
        }
        let covered: Vec<FailureOf> = self
            .failures
            .keys()
            .filter(|of| tries_again(dirty, of, &self.node.name))
            .filter(|of| !now_failing.contains_key(*of) && !self.unseen.contains(*of))
            .cloned()
            .collect();
        for of in covered {
            self.failures.remove(&of);
            self.problems.set(Source::Kernel, &self.key_of(&of), None);
        }
        for (of, problem) in now_failing {
            self.fail(of, problem);
        }
    }

    /// Remembers a failure, to be tried again after a pause, and the problem that it is.
    pub(super) fn fail(&mut self, of: FailureOf, problem: Option<Problem>) {
        let key = self.key_of(&of);
        let pause = self
            .failures
            .get(&of)
            .map_or(FIRST_RETRY, |f| (f.pause * 2).min(LONGEST_RETRY));
        let retry_at = Instant::now() + pause;
        self.failures.insert(of, Failure { retry_at, pause });
        if problem.is_some() {
            self.problems.set(Source::Kernel, &key, problem);
        }
    }

    /// The full name of an endpoint of this host.
    pub(super) fn own_endpoint(&self, network: &NetworkName, id: &EndpointId) -> EndpointRef {
        EndpointRef {
            network: network.clone(),
            node: self.node.name.clone(),
            id: id.clone(),
        }
    }

    pub(super) fn key_of(&self, (network, id): &FailureOf) -> String {
        match id {
            Some(id) => Key::Endpoint(self.own_endpoint(network, id)),
            None => Key::Network(network.clone()),
        }
        .to_string()
    }

    fn assess(&mut self, assessment: Assessment) {
        if assessment.complete {
            self.problems
                .replace(Source::Assessment, assessment.by_key.values().flatten());
        } else {
            for (key, problem) in assessment.by_key {
                self.problems.set(Source::Assessment, &key, problem);
            }
        }
    }
}

/// Whether a pass over this much does again whatever has failed. One that merely has something to do in the network
/// does not: what failed may be another entry.
fn tries_again(dirty: &Dirty, (network, id): &FailureOf, node: &NodeName) -> bool {
    let of_endpoint = |id: &EndpointId| {
        let (network, node, id) = (network.clone(), node.clone(), id.clone());
        dirty.links.contains(&network) || dirty.endpoints.contains(&EndpointRef { network, node, id })
    };
    dirty.everything || dirty.networks.contains(network) || id.as_ref().is_some_and(of_endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_over_only_when_what_failed_was_tried_again() {
        let (blue, node): (NetworkName, NodeName) = ("blue".parse().unwrap(), "host1".parse().unwrap());
        let (network, endpoint) = ((blue.clone(), None), (blue.clone(), Some("web".parse().unwrap())));
        let again = |dirty: &Dirty| [&network, &endpoint].map(|of| tries_again(dirty, of, &node));
        assert_eq!(again(&Dirty::everything()), [true, true]);
        let mut whole = Dirty::default();
        whole.networks.insert(blue.clone());
        assert_eq!(again(&whole), [true, true]);
        let mut links = Dirty::default();
        links.links.insert(blue.clone());
        assert_eq!(again(&links), [false, true]);
        // Another entry of the network was refused, this one was not.
        let mut entry = Dirty::default();
        entry.mac(&blue, weft_store_schema::Mac::new([2, 0, 0, 0, 0, 1]).unwrap());
        assert_eq!(again(&entry), [false, false]);
        let mut mine = Dirty::default();
        for (name, node) in [("web", "host2"), ("db", "host1")] {
            mine.endpoints.insert(EndpointRef {
                network: blue.clone(),
                node: node.parse().unwrap(),
                id: name.parse().unwrap(),
            });
        }
        assert_eq!(again(&mine), [false, false]);
        mine.endpoints.insert(EndpointRef {
            network: blue.clone(),
            node: node.clone(),
            id: "web".parse().unwrap(),
        });
        assert_eq!(again(&mine), [false, true]);
    }
}
