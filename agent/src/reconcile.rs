//! The one loop: takes in what the store and the kernel say, and makes the second agree with the first.
//!
//! In: store events, notices of the kernel, questions of the API, time. Out: plans handed to the kernel's
//! thread, transactions handed to the store, status. A pass is one round of look (only if something happened
//! in the kernel) → plan → apply; while it runs, events go on being taken in, and the next pass has them all.

mod owed;
mod states;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use weft_api::EventHub;
use weft_core::{
    dataplane::Observed,
    desired::{Assessment, Host, look_into},
    diff,
    dirty::Dirty,
    plan::{Op, Outcome, Plan},
    problem::Problem,
    record::{Change, Connection, Scope, StoreEvent},
    snapshot::Snapshot,
};
use weft_kernel::{KernelError, Notice, Notifications};
use weft_proto::v1::{self, EventKind};
use weft_store::{Events, Store};
use weft_store_schema::{EndpointId, EndpointRef, Key, NetworkName};

use crate::{
    chore_book::ChoreBook,
    cooldown::Cooldowns,
    detachments::Detachments,
    drift,
    history::History,
    kernel_thread::KernelThread,
    look::{self, Entries},
    node::{Node, Underlay},
    problems::{Problems, Source},
};
use owed::ChoreDone;
pub(crate) use owed::{news, own_changes};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// Changes of the host's links and routes come in crowds.
const UNDERLAY_PAUSE: Duration = Duration::from_millis(100);
/// Without an underlay, it is looked for this often.
const UNDERLAY_RETRY: Duration = Duration::from_secs(1);
/// How long a plan that is under way is waited for at the end.
const LAST_PLAN: Duration = Duration::from_secs(5);

/// A question or request to the loop, answered by whatever the closure does.
pub(crate) type Ask = Box<dyn FnOnce(&mut Reconciler) + Send>;

/// Hands questions to the loop.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) asks: mpsc::Sender<Ask>,
    /// Counts passes and other changes of state: what waits for a condition looks again when it moves.
    pub(crate) changed: watch::Receiver<u64>,
}

impl Asker {
    /// Has a function called in the loop; none if the loop has ended.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Reconciler) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, receiver) = oneshot::channel();
        let ask: Ask = Box::new(move |reconciler| {
            // Whoever asked may have left.
            let _ = answer.send(f(reconciler));
        });
        self.asks.send(ask).await.ok()?;
        receiver.await.ok()
    }
}

/// Figures for status.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    /// Passes that looked or planned.
    pub(crate) passes: u64,
    /// Passes over everything.
    pub(crate) full_passes: u64,
    /// Netlink messages sent that change something, and namespaces made or removed.
    pub(crate) writes: u64,
    /// Operations done, by kind.
    pub(crate) operations: BTreeMap<&'static str, u64>,
    /// Repairs of what somebody else changed, by kind.
    pub(crate) drift: BTreeMap<&'static str, u64>,
}

/// Something that the kernel refused, to be tried again.
#[derive(Debug)]
struct Failure {
    retry_at: Instant,
    pause: Duration,
}

/// What a failure is about.
type FailureOf = (NetworkName, Option<EndpointId>);

/// What the kernel's thread is doing for us.
enum Busy {
    Looking {
        look: Dirty,
        because: Because,
        answer: oneshot::Receiver<Look>,
    },
    Applying {
        dirty: Dirty,
        /// See [`Reconciler::plan`].
        expected: Option<Plan>,
        revision: i64,
        answer: oneshot::Receiver<Applied>,
    },
}

/// Why a pass is made: decides whether what it finds is somebody else's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Because {
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

struct Applied {
    plan: Plan,
    outcome: Outcome<KernelError>,
}

/// The loop's state.
pub(crate) struct Reconciler {
    /// This node.
    pub(crate) node: Node,
    /// The records.
    pub(crate) snapshot: Snapshot,
    /// The kernel, as last seen and since written.
    pub(crate) observed: Observed,
    /// The underlay, once found.
    pub(crate) underlay: Option<Underlay>,
    /// What is wrong.
    pub(crate) problems: Problems,
    /// Figures.
    pub(crate) counters: Counters,
    /// Every record up to this revision is in the kernel, or its failure is among the problems.
    pub(crate) applied_revision: i64,
    /// What is being claimed and owed.
    pub(crate) book: ChoreBook,
    /// Which releases of addresses have cooled down.
    cooldowns: Cooldowns,
    /// Where events are published.
    pub(crate) events: EventHub,
    /// The store.
    pub(crate) store: Store,
    kernel: KernelThread,
    detachments: Detachments,
    history: History,
    connection: Option<Connection>,
    pinned: BTreeMap<NetworkName, usize>,
    scopes: BTreeSet<Scope>,
    dirty: Dirty,
    look: Dirty,
    look_because: Because,
    /// What was to be done before a look that has to go on.
    expected: Option<Plan>,
    /// When to look for the underlay again: a while after the host's links or routes changed.
    underlay_due: Option<Instant>,
    busy: Option<Busy>,
    looked: bool,
    adopted: bool,
    failures: BTreeMap<FailureOf, Failure>,
    states: BTreeMap<EndpointRef, v1::EndpointState>,
    next_full: Instant,
    changed: watch::Sender<u64>,
    chores_done: mpsc::UnboundedSender<ChoreDone>,
    ready: Option<oneshot::Sender<()>>,
}

/// What the loop is made of.
pub(crate) struct Parts {
    /// This node.
    pub(crate) node: Node,
    /// The records' store.
    pub(crate) store: Store,
    /// The kernel.
    pub(crate) kernel: KernelThread,
    /// What was detached and is still in the store.
    pub(crate) detachments: Detachments,
    /// Which store was known before.
    pub(crate) history: History,
    /// Where events are published.
    pub(crate) events: EventHub,
    /// Told when the first pass is done.
    pub(crate) ready: oneshot::Sender<()>,
}

/// Runs the loop until the token is cancelled. Forwarding stays as it is.
pub(crate) async fn run(
    parts: Parts,
    mut store_events: Events,
    mut notifications: Notifications,
    mut asks: mpsc::Receiver<Ask>,
    changed: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let (chores_done, mut chore_results) = mpsc::unbounded_channel();
    let mut reconciler = Reconciler::new(parts, changed, chores_done);
    reconciler.find_underlay().await;
    reconciler.update_interest();
    loop {
        reconciler.step();
        let wake = reconciler.next_wake();
        tokio::select! {
            () = stop.cancelled() => break,
            Some(event) = store_events.recv() => {
                reconciler.on_store_event(event);
                // What came together is taken in together: the pass that follows costs the same.
                while let Some(event) = store_events.try_recv() {
                    reconciler.on_store_event(event);
                }
                reconciler.after_records();
            }
            Some(done) = chore_results.recv() => reconciler.on_chore_done(done),
            notices = notifications.next() => reconciler.on_notices(notices),
            Some(ask) = asks.recv() => ask(&mut reconciler),
            result = answered(&mut reconciler.busy) => reconciler.on_answer(result),
            () = tokio::time::sleep_until(wake) => reconciler.on_time().await,
        }
    }
    reconciler.finish().await;
}

enum Answer {
    Looked(Look),
    Applied(Applied),
    /// The kernel's thread is gone, which only a bug in it can do.
    Lost,
}

async fn answered(busy: &mut Option<Busy>) -> Answer {
    match busy {
        Some(Busy::Looking { answer, .. }) => answer.await.map_or(Answer::Lost, Answer::Looked),
        Some(Busy::Applying { answer, .. }) => answer.await.map_or(Answer::Lost, Answer::Applied),
        None => std::future::pending().await,
    }
}

impl Reconciler {
    fn new(parts: Parts, changed: watch::Sender<u64>, chores_done: mpsc::UnboundedSender<ChoreDone>) -> Self {
        let Parts {
            node,
            store,
            kernel,
            detachments,
            history,
            events,
            ready,
        } = parts;
        let mut snapshot = Snapshot::new(store.prefix().clone(), node.name.clone());
        for (endpoint, life) in detachments.iter() {
            snapshot.detach(endpoint, *life);
        }
        let next_full = Instant::now() + node.resync;
        Self {
            snapshot,
            observed: Observed::default(),
            underlay: None,
            problems: Problems::new(events.clone()),
            counters: Counters::default(),
            applied_revision: 0,
            book: ChoreBook::default(),
            cooldowns: Cooldowns::default(),
            events,
            store,
            kernel,
            detachments,
            history,
            connection: None,
            pinned: BTreeMap::new(),
            scopes: BTreeSet::new(),
            dirty: Dirty::default(),
            look: Dirty::everything(),
            look_because: Because::Wanted,
            expected: None,
            underlay_due: None,
            busy: None,
            looked: false,
            adopted: false,
            failures: BTreeMap::new(),
            states: BTreeMap::new(),
            next_full,
            changed,
            chores_done,
            ready: Some(ready),
            node,
        }
    }

    // ---- what comes in -------------------------------------------------------------------------------

    fn on_store_event(&mut self, event: StoreEvent) {
        let dirty = match event {
            StoreEvent::Listed {
                scope,
                revision,
                cluster_id,
                entries,
            } => {
                if !self.scopes.contains(&scope) {
                    return;
                }
                let dirty = self
                    .snapshot
                    .apply_listing(&scope, cluster_id, revision, &entries);
                self.bump();
                dirty
            }
            StoreEvent::Changed { scope, changes } => {
                if !self.scopes.contains(&scope) {
                    return;
                }
                self.announce(&changes);
                self.snapshot.apply_changes(&changes)
            }
            StoreEvent::Progress { revision } => {
                self.snapshot.saw(revision);
                if self.busy.is_none() && self.dirty.is_empty() && self.adopted {
                    self.applied_revision = self.applied_revision.max(revision);
                }
                return;
            }
            StoreEvent::Connection(connection) => {
                let (kind, message) = match &connection {
                    Connection::Up { cluster_id } => (
                        EventKind::StoreConnected,
                        format!("connected to etcd cluster {cluster_id:x}"),
                    ),
                    Connection::Down { why } => (EventKind::StoreLost, why.clone()),
                };
                self.events.publish(v1::Event {
                    kind: kind.into(),
                    message,
                    ..v1::Event::default()
                });
                self.connection = Some(connection);
                self.bump();
                return;
            }
        };
        self.take_in(dirty);
    }

    /// What is to be done after any change of the snapshot.
    fn after_records(&mut self) {
        self.problems
            .replace(Source::Record, self.snapshot.problems().values());
        let networks = self.snapshot.networks();
        let in_use = networks.filter_map(|(_, slot)| Some(slot.value.as_ref()?.cooldown));
        self.cooldowns
            .note(&in_use.collect(), self.snapshot.revision(), Instant::now());
        self.end_detachments();
        self.run_chores();
        self.update_interest();
        self.bump();
    }

    /// Applies changes that did not come by the watch: our own transactions, and what they were refused for.
    pub(crate) fn learn(&mut self, changes: &[Change]) {
        let dirty = self.snapshot.learn(changes);
        self.take_in(dirty);
        self.after_records();
    }

    /// Notes what a change of the snapshot made dirty, and what it makes owed.
    fn take_in(&mut self, dirty: Dirty) {
        self.add_chores(&dirty);
        for endpoint in &dirty.endpoints {
            let network = self.observed.networks.get(&endpoint.network);
            if endpoint.node == self.node.name && network.is_some_and(|n| n.unseen.contains(&endpoint.id)) {
                // Its record may say only now where its container is.
                self.look.endpoints.insert(endpoint.clone());
            }
        }
        self.dirty.merge(dirty);
    }

    fn on_notices(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            match notice {
                Notice::Overrun => {
                    tracing::warn!(
                        "the kernel's notifications came faster than they could be read; looking at everything"
                    );
                    self.look.everything = true;
                    self.look_because = Because::Noticed;
                }
                Notice::Underlay => {
                    self.underlay_due
                        .get_or_insert_with(|| Instant::now() + UNDERLAY_PAUSE);
                }
                Notice::Attachments(path) => self.on_attachment_dir(&path),
                notice => {
                    if !notice.agrees_with(&self.observed) {
                        notice.mark(&mut self.look, &self.node.name);
                        self.look_because = Because::Noticed;
                    }
                }
            }
        }
    }

    /// A namespace came or went: whoever waits for it is tried at once, whoever lost it is looked at.
    fn on_attachment_dir(&mut self, path: &std::path::Path) {
        let concerned: Vec<EndpointRef> = look_into(&self.snapshot, None)
            .into_iter()
            .filter(|place| {
                std::path::Path::new(&*place.attachment.netns) == path
                    || path.file_name() == std::path::Path::new(&*place.attachment.netns).file_name()
            })
            .map(|place| EndpointRef {
                network: place.network,
                node: self.node.name.clone(),
                id: place.id,
            })
            .collect();
        for endpoint in concerned {
            // Not forgotten: the pass that succeeds takes its problem back. Only the pause starts anew.
            let of = (endpoint.network.clone(), Some(endpoint.id.clone()));
            if let Some(failure) = self.failures.get_mut(&of) {
                failure.pause = FIRST_RETRY;
            }
            self.look.endpoints.insert(endpoint);
        }
        if let Some(network) = path
            .file_name()
            .and_then(|name| weft_core::ownership::network_of_namespace(name.to_str()?))
            && self.observed.networks.contains_key(&network)
            && path.parent() == Some(&self.node.netns_dir)
        {
            self.look.networks.insert(network);
            self.look_because = Because::Noticed;
        }
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.next_full {
            self.next_full = now + self.node.resync;
            self.look.everything = true;
            self.look_because = self.look_because.max(Because::Routine);
            self.underlay_due = Some(now);
        }
        let due: Vec<FailureOf> = self
            .failures
            .iter()
            .filter(|(_, f)| f.retry_at <= now)
            .map(|(of, _)| of.clone())
            .collect();
        for (network, id) in due {
            if let Some(failure) = self.failures.get_mut(&(network.clone(), id.clone())) {
                failure.retry_at = now + failure.pause;
            }
            match id {
                Some(id) => {
                    self.look.endpoints.insert(EndpointRef {
                        network,
                        node: self.node.name.clone(),
                        id,
                    });
                }
                None => drop(self.look.networks.insert(network)),
            }
        }
        if self.underlay_due.is_some_and(|due| due <= now) {
            self.find_underlay().await;
        }
        self.run_chores();
    }

    fn next_wake(&self) -> Instant {
        let failures = self.failures.values().map(|f| f.retry_at).min();
        let chores = self.book.next_due().filter(|_| self.is_connected());
        [Some(self.next_full), failures, self.underlay_due, chores]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.next_full)
    }

    // ---- passes --------------------------------------------------------------------------------------

    fn step(&mut self) {
        if self.busy.is_some() {
            return;
        }
        // Asked first: the moment that it may, there is everything to look at.
        let may_write = self.may_write();
        if !self.look.is_empty() && (!self.looked || may_write) {
            let look = std::mem::take(&mut self.look);
            let because = std::mem::replace(&mut self.look_because, Because::Wanted);
            let places = look::places(&self.snapshot, &look);
            let part = look.clone();
            let known: Vec<NetworkName> = self.observed.networks.keys().cloned().collect();
            let answer = self
                .kernel
                .run(move |kernel| look::look(kernel, &part, &places, &known));
            self.busy = Some(Busy::Looking {
                look,
                because,
                answer,
            });
        } else if may_write && !self.dirty.is_empty() {
            let dirty = std::mem::take(&mut self.dirty);
            self.plan(dirty, None);
        }
    }

    /// The kernel is written only when all that is wanted has been listed and all that is there has been
    /// seen.
    fn may_write(&mut self) -> bool {
        if !self.adopted && self.looked && self.underlay.is_some() && self.snapshot.is_complete(&self.scopes)
        {
            // Container ends could not be looked for before the records told where they are.
            self.adopted = true;
            self.look.everything = true;
            self.dirty = Dirty::default();
            self.compare_history();
        }
        self.adopted
    }

    /// What the kernel has and the records do not is swept only if the store goes on from what was known before
    /// this agent started.
    fn compare_history(&mut self) {
        let Some(position) = self
            .snapshot
            .position()
            .filter(|_| !self.observed.networks.is_empty())
        else {
            return;
        };
        let no_networks = || {
            let suspicious = self.history.is_empty() && self.snapshot.networks().next().is_none();
            suspicious.then(|| "the store has no network at all, and this host carries some".to_owned())
        };
        if let Some(because) = self.history.contradicts(position).or_else(no_networks) {
            self.snapshot.distrust(because);
        }
    }

    /// Lets go of what is held, on an operator's word: how much that was, or that nothing was.
    pub(crate) fn accept_deletions(&mut self) -> Option<usize> {
        self.snapshot.held_because()?;
        let count = self.snapshot.held_keys().len();
        let dirty = self.snapshot.release_held();
        tracing::warn!(count, "held deletions were confirmed");
        self.take_in(dirty);
        self.after_records();
        Some(count)
    }

    /// Makes and hands over a plan. `expected` is what it would have been before the kernel was looked at;
    /// whatever it holds beyond that repairs what somebody else changed.
    fn plan(&mut self, dirty: Dirty, expected: Option<Plan>) {
        let Some(host) = self.host() else {
            self.dirty.merge(dirty);
            return;
        };
        let revision = self.snapshot.revision();
        let (plan, assessment) = diff::plan(&self.snapshot, &host, &self.observed, &dirty);
        self.assess(assessment);
        self.counters.passes += 1;
        self.counters.full_passes += u64::from(dirty.everything);
        if plan.is_empty() {
            let applied = Applied {
                plan,
                outcome: Outcome::default(),
            };
            self.on_applied(&dirty, expected.as_ref(), revision, applied);
            return;
        }
        tracing::debug!(operations = plan.len(), "applying");
        let answer = self.kernel.run(move |kernel| {
            let outcome = kernel.apply(&plan);
            Applied { plan, outcome }
        });
        self.busy = Some(Busy::Applying {
            dirty,
            expected,
            revision,
            answer,
        });
    }

    fn on_answer(&mut self, answer: Answer) {
        match (self.busy.take(), answer) {
            (Some(Busy::Looking { look, because, .. }), Answer::Looked(seen)) => {
                self.on_looked(look, because, seen);
            }
            (
                Some(Busy::Applying {
                    dirty,
                    expected,
                    revision,
                    ..
                }),
                Answer::Applied(applied),
            ) => {
                self.on_applied(&dirty, expected.as_ref(), revision, applied);
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
        for (subject, error) in &seen.errors {
            tracing::warn!(subject, error = %chain(error), "cannot see all of the kernel's state");
        }
        // What was to be done before the look is no repair: the records want it, whoever touched the kernel.
        let expected = match self.host() {
            Some(host) if self.adopted && because != Because::Wanted => {
                let before = || diff::plan(&self.snapshot, &host, &self.observed, &look).0;
                Some(self.expected.take().unwrap_or_else(before))
            }
            _ => None,
        };
        let again = look::merge(&mut self.observed, &look, seen);
        if !again.is_empty() {
            self.expected = expected;
            self.look_because = self.look_because.max(because);
            self.look.networks.extend(again);
            self.look.merge(look);
            return;
        }
        let first = !self.looked;
        self.looked = true;
        if first {
            self.update_interest();
        }
        if self.adopted {
            self.plan(look, expected);
        }
    }

    fn on_applied(&mut self, dirty: &Dirty, expected: Option<&Plan>, revision: i64, applied: Applied) {
        let Applied { plan, outcome } = applied;
        let undone = |network: &NetworkName, op: &Op| {
            outcome.failed.iter().any(|(n, o, _)| n == network && o == op)
                || outcome.held_back.iter().any(|(n, o)| n == network && o == op)
        };
        let all_done = outcome.failed.is_empty() && outcome.held_back.is_empty();
        for (network, ops) in &plan.networks {
            for op in ops {
                if all_done || !undone(network, op) {
                    self.observed.record(network, op);
                    *self.counters.operations.entry(drift::kind(op)).or_default() += 1;
                    let is_repair =
                        |expected: &Plan| !expected.networks.get(network).is_some_and(|ops| ops.contains(op));
                    if expected.is_some_and(is_repair) {
                        self.repaired(network, op);
                    }
                }
            }
        }
        self.counters.writes += outcome.writes;
        self.note_failures(dirty, &plan, outcome.failed);
        if self.dirty.is_empty() {
            self.applied_revision = self.applied_revision.max(revision);
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
                writes = self.counters.writes,
                revision = self.applied_revision,
                "first pass done"
            );
            // Whoever waits for it may have gone: then the agent is stopping.
            let _ = ready.send(());
        }
        let held = self.snapshot.held_because().map(|because| {
            let message = format!("{because}; what it no longer has is kept here: put the records back, or confirm with 'weft resync --accept'");
            Problem::new("(store)", message)
        });
        self.problems.set(Source::Host, "(store)", held);
        if let Some(position) = self
            .snapshot
            .position()
            .filter(|_| self.snapshot.held_because().is_none())
        {
            self.history.note(position, false);
        }
        self.report();
        self.run_withheld_chores();
        self.bump();
    }

    fn is_applying(&self) -> bool {
        matches!(self.busy, Some(Busy::Applying { .. }))
    }

    fn repaired(&mut self, network: &NetworkName, op: &Op) {
        let kind = drift::kind(op);
        let object = drift::object(network, op);
        tracing::warn!(network = %network, kind, object, "repaired what was changed behind weft's back");
        *self.counters.drift.entry(kind).or_default() += 1;
        self.events.publish(v1::Event {
            kind: EventKind::DriftRepaired.into(),
            network: network.to_string(),
            node: self.node.name.to_string(),
            message: format!("repaired {object}"),
            subject: Some(v1::event::Subject::Drift(v1::Drift {
                kind: kind.to_owned(),
                object,
                found: String::new(),
            })),
            ..v1::Event::default()
        });
    }

    /// Remembers what the kernel refused, forgets what it refuses no more.
    fn note_failures(&mut self, dirty: &Dirty, plan: &Plan, failed: Vec<(NetworkName, Op, KernelError)>) {
        let mut now_failing: BTreeMap<FailureOf, String> = BTreeMap::new();
        for (network, op, error) in failed {
            let of = (network, drift::endpoint_of(&op).cloned());
            if let (network, Some(id)) = &of
                && self.snapshot.endpoint(&self.own_endpoint(network, id)).is_none()
            {
                // Deleted while the plan was under way: what is left of it goes with the next one.
                continue;
            }
            let text = format!("{}; it is tried again", chain(&error));
            if error.needs_look() {
                self.look.networks.insert(of.0.clone());
            }
            now_failing.entry(of).or_insert(text);
        }
        let covered: Vec<FailureOf> = self
            .failures
            .keys()
            .filter(|(network, id)| {
                dirty.everything
                    || dirty.networks.contains(network)
                    || plan.networks.contains_key(network) && id.is_none()
                    || id.as_ref().is_some_and(|id| {
                        dirty.links.contains(network)
                            || dirty
                                .endpoints
                                .iter()
                                .any(|e| e.network == *network && e.id == *id && e.node == self.node.name)
                    })
            })
            .filter(|of| !now_failing.contains_key(*of))
            .cloned()
            .collect();
        for of in covered {
            self.failures.remove(&of);
            self.problems.set(Source::Kernel, &self.key_of(&of), None);
        }
        let now = Instant::now();
        for (of, message) in now_failing {
            let key = self.key_of(&of);
            let pause = self
                .failures
                .get(&of)
                .map_or(FIRST_RETRY, |f| (f.pause * 2).min(LONGEST_RETRY));
            self.failures.insert(
                of,
                Failure {
                    retry_at: now + pause,
                    pause,
                },
            );
            self.problems
                .set(Source::Kernel, &key, Some(Problem::new(&key, message)));
        }
    }

    fn own_endpoint(&self, network: &NetworkName, id: &EndpointId) -> EndpointRef {
        EndpointRef {
            network: network.clone(),
            node: self.node.name.clone(),
            id: id.clone(),
        }
    }

    fn key_of(&self, (network, id): &FailureOf) -> String {
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

    // ---- this host -----------------------------------------------------------------------------------

    fn host(&self) -> Option<Host> {
        let underlay = self.underlay.as_ref()?;
        Some(Host {
            v4: underlay.v4,
            v6: underlay.v6,
            mtu: underlay.mtu,
            port: self.node.port,
        })
    }

    async fn find_underlay(&mut self) {
        let selection = self.node.underlay.clone();
        let found = self.kernel.run(move |kernel| kernel.underlay(&selection)).await;
        self.underlay_due = None;
        let key = Key::Peer(self.node.name.clone()).to_string();
        match found {
            Ok(Ok(found)) => {
                self.problems.set(Source::Host, &key, None);
                let underlay = Underlay::new(found, &self.node);
                if self.underlay.as_ref() != Some(&underlay) {
                    tracing::info!(%underlay, "underlay");
                    self.underlay = Some(underlay);
                    self.dirty.everything = true;
                    self.add_chores(&Dirty::default());
                    self.run_chores();
                }
            }
            Ok(Err(error)) => {
                // What was found before is kept: an interface that is away for a moment takes nothing down.
                self.underlay_due = Some(Instant::now() + UNDERLAY_RETRY);
                let message = format!("{}; give underlay.interface or underlay.addresses", chain(&error));
                self.problems
                    .set(Source::Host, &key, Some(Problem::new(&key, message)));
            }
            Err(_) => {}
        }
    }

    fn bump(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Lets a plan that is under way come to its end, so that no operation is half done.
    async fn finish(&mut self) {
        if let Some(Busy::Applying { answer, .. }) = self.busy.take() {
            // The thread finishes it either way; waiting only keeps the process there for it.
            let _ = tokio::time::timeout(LAST_PLAN, answer).await;
        }
        if let Some(position) = self
            .snapshot
            .position()
            .filter(|_| self.adopted && self.snapshot.held_because().is_none())
        {
            self.history.note(position, true);
        }
        tracing::info!("stopping; forwarding stays as it is");
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
