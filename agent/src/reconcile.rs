//! The one loop: takes in what the store and the kernel say, and makes the second agree with the first.
//!
//! In: store events, notices of the kernel, questions of the API, time. Out: plans handed to the kernel's
//! thread, transactions handed to the store, status. A pass is one round of look (only if something happened
//! in the kernel) → plan → apply; while it runs, events go on being taken in, and the next pass has them all.

mod barriers;
mod dead;
mod evidence;
mod identity;
mod notices;
mod owed;
mod passes;
mod records;
mod refused;
mod removal;
mod repairs;
mod states;
mod taken_claims;
#[cfg(test)]
mod tests;
mod trust;
mod underlay;
mod unseen;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use weft_api::EventHub;
use weft_core::{
    announce::Announcer,
    barrier::Reached,
    dataplane::Observed,
    dirty::Dirty,
    plan::Plan,
    record::{Connection, Scope},
    snapshot::Snapshot,
};
use weft_kernel::{KernelError, Notice, Notifications, memory};
use weft_proto::v1;
use weft_store::{Events, Store};
use weft_store_schema::{EndpointRef, NetworkName};

use crate::{
    chore_book::ChoreBook,
    cooldown::Cooldowns,
    dead::DeadBook,
    detachments::Detachments,
    history::History,
    kernel_thread::KernelThread,
    metrics::{Arrivals, Metrics},
    node::{Node, Underlay},
    own_records::OwnRecords,
    problems::Problems,
    repeats::Repeats,
    state_file::Written,
};
use barriers::Answers;
use dead::Gone;
use identity::Identity;
use owed::ChoreDone;
pub(crate) use passes::Look;
use passes::{Because, Busy, Failure, FailureOf, answered};
use refused::Refused;
use repairs::{Cause, REPAIRS_TOLD};
use taken_claims::TakenClaims;
use trust::Trust;
pub(crate) use weft_core::problem::chain;

/// How long a plan that is under way is waited for at the end.
const LAST_PLAN: Duration = Duration::from_secs(5);

/// How long the disk is waited for then.
const LAST_WRITES: Duration = Duration::from_secs(5);

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
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// What was told of lately.
    repeats: Repeats<Cause>,
    /// Store events that are not in the kernel yet.
    arrivals: Arrivals,
    /// How far the records are known, and the kernel follows them.
    pub(crate) reached: Reached,
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
    trust: Trust,
    dead: DeadBook,
    connection: Option<Connection>,
    pinned: BTreeMap<NetworkName, usize>,
    /// This node's peer record was of another run of the kernel.
    rebooted: bool,
    /// Networks in view because the host was rebooted, once it is known whether it was.
    swept: Option<BTreeSet<NetworkName>>,
    scopes: BTreeSet<Scope>,
    /// Something changed that the scopes depend on.
    interest_is_stale: bool,
    /// All that was wanted was known at some time since the start.
    has_read: bool,
    /// The networks' cool-downs.
    cooldowns_in_use: BTreeSet<Duration>,
    dirty: Dirty,
    look: Dirty,
    look_because: Because,
    /// Which addresses the containers here may know by another MAC.
    announcer: Announcer,
    /// What the kernel has told while its thread was at work: judged by what came of that.
    told: Vec<Notice>,
    /// What could not be looked at, and has a failure for that. A network here is not written.
    unseen: BTreeSet<FailureOf>,
    /// What was to be done before a look that has to go on.
    expected: Option<Plan>,
    /// When to look for the underlay again: a while after the host's links or routes changed.
    underlay_due: Option<Instant>,
    /// Since when an underlay address of a family in use is away.
    family_away: Option<Instant>,
    underlay_search: Option<oneshot::Receiver<Result<weft_kernel::Underlay, KernelError>>>,
    dead_search: Option<JoinHandle<Vec<Gone>>>,
    busy: Option<Busy>,
    /// Since when.
    busy_since: Instant,
    looked: bool,
    /// The last pass was made for what happened in the kernel.
    look_was_last: bool,
    adopted: bool,
    /// When to give back memory that is not needed any more.
    give_back_at: Option<Instant>,
    failures: BTreeMap<FailureOf, Failure>,
    states: BTreeMap<EndpointRef, v1::EndpointState>,
    next_full: Instant,
    changed: watch::Sender<u64>,
    chores_done: mpsc::UnboundedSender<ChoreDone>,
    refused: Refused,
    taken: TakenClaims,
    answers: Answers,
    identity: Identity,
    /// Another life of this node, until it is written.
    new_life: Option<Written>,
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
    /// Copies of this host's records.
    pub(crate) records: OwnRecords,
    /// Where events are published.
    pub(crate) events: EventHub,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// Told when the first pass is done.
    pub(crate) ready: oneshot::Sender<()>,
}

/// Runs the loop until the token is cancelled. Forwarding stays as it is. A kernel that nobody else writes needs no
/// notifications.
pub(crate) async fn run(
    parts: Parts,
    mut store_events: Events,
    mut notifications: Option<Notifications>,
    mut asks: mpsc::Receiver<Ask>,
    changed: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let (chores_done, mut chore_results) = mpsc::unbounded_channel();
    let (answers, mut answer_results) = Answers::new();
    let (trust, mut evidence) = Trust::new(parts.records.clone());
    let (identity, mut others_seen) = Identity::new();
    let mut reconciler = Reconciler::new(parts, changed, chores_done, answers, trust, identity);
    reconciler.find_underlay();
    reconciler.update_interest();
    loop {
        reconciler.step();
        reconciler.answer_questions();
        let wake = reconciler.next_wake();
        tokio::select! {
            () = stop.cancelled() => break,
            Some(event) = store_events.recv() => {
                let first = (event, store_events.arrived());
                reconciler.on_store_events(first, || Some((store_events.try_recv()?, store_events.arrived())));
            }
            Some(done) = chore_results.recv() => reconciler.on_chore_done(done),
            Some(answered) = answer_results.recv() => reconciler.on_answered(answered),
            Some(evidence) = evidence.recv() => reconciler.on_evidence(evidence),
            Some(seen) = others_seen.recv() => reconciler.on_alive_seen(seen),
            notices = told(&mut notifications) => reconciler.on_notices(notices),
            Some(ask) = asks.recv() => ask(&mut reconciler),
            result = answered(&mut reconciler.busy) => reconciler.on_answer(result),
            Some(found) = arrived(&mut reconciler.underlay_search) => reconciler.on_underlay(found),
            gone = arrived(&mut reconciler.dead_search) => reconciler.on_dead(gone),
            copied = arrived(&mut reconciler.trust.copying) => {
                reconciler.on_copied(matches!(copied, Some(Ok(()))));
            }
            _ = arrived(&mut reconciler.new_life) => reconciler.on_new_life(),
            () = tokio::time::sleep_until(wake) => reconciler.on_time(),
        }
    }
    reconciler.finish().await;
}

/// What the kernel says next; nothing ever where nobody listens.
async fn told(notifications: &mut Option<Notifications>) -> Vec<Notice> {
    match notifications {
        Some(notifications) => notifications.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for what was asked for; for ever while nothing was. None if the answer will never come.
async fn arrived<T, E>(pending: &mut Option<impl Future<Output = Result<T, E>> + Unpin>) -> Option<T> {
    match pending {
        Some(answer) => {
            let answer = answer.await.ok();
            *pending = None;
            answer
        }
        None => std::future::pending().await,
    }
}

impl Reconciler {
    fn new(
        parts: Parts,
        changed: watch::Sender<u64>,
        chores_done: mpsc::UnboundedSender<ChoreDone>,
        answers: Answers,
        trust: Trust,
        identity: Identity,
    ) -> Self {
        let Parts {
            node,
            store,
            kernel,
            detachments,
            history,
            records: _,
            events,
            metrics,
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
            metrics,
            repeats: Repeats::telling(REPAIRS_TOLD),
            arrivals: Arrivals::default(),
            reached: Reached::default(),
            book: ChoreBook::default(),
            cooldowns: Cooldowns::default(),
            events,
            store,
            kernel,
            detachments,
            history,
            trust,
            dead: DeadBook::new(node.dead_grace, Instant::now()),
            connection: None,
            pinned: BTreeMap::new(),
            rebooted: false,
            swept: None,
            scopes: BTreeSet::new(),
            interest_is_stale: true,
            has_read: false,
            cooldowns_in_use: BTreeSet::new(),
            dirty: Dirty::default(),
            look: Dirty::everything(),
            look_because: Because::Wanted,
            announcer: Announcer::new(node.name.clone()),
            told: Vec::new(),
            unseen: BTreeSet::new(),
            expected: None,
            underlay_due: None,
            family_away: None,
            underlay_search: None,
            dead_search: None,
            busy: None,
            busy_since: Instant::now(),
            looked: false,
            look_was_last: false,
            adopted: false,
            give_back_at: None,
            failures: BTreeMap::new(),
            states: BTreeMap::new(),
            next_full,
            changed,
            chores_done,
            refused: Refused::default(),
            taken: TakenClaims::default(),
            answers,
            identity,
            new_life: None,
            ready: Some(ready),
            node,
        }
    }

    // ---- what comes in -------------------------------------------------------------------------------

    fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.next_full {
            self.next_full = now + self.node.resync;
            self.interest_is_stale = true;
            self.look.everything = true;
            self.look_because = self.look_because.max(Because::Routine);
            self.underlay_due = Some(now);
        }
        if self.give_back_at.is_some_and(|at| at <= now) {
            self.give_back_at = None;
            self.snapshot.shrink_to_fit();
            // There, so that nobody who asks the loop waits for it. Nothing depends on when it is done.
            drop(self.kernel.run(|_| memory::give_back()));
        }
        let due: Vec<FailureOf> = self
            .failures
            .iter()
            .filter(|(_, f)| f.retry_at <= now)
            .map(|(of, _)| of.clone())
            .collect();
        for (network, id) in due {
            let of = (network.clone(), id.clone());
            if let Some(failure) = self.failures.get_mut(&of) {
                failure.retry_at = now + failure.pause;
            }
            if self.unseen.contains(&of) {
                // What happened there meanwhile is not for the records' sake.
                self.look_because = Because::Noticed;
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
        if self.underlay_search.is_none() && self.underlay_due.is_some_and(|due| due <= now) {
            self.find_underlay();
        }
        self.look_for_dead(now);
        self.tend_trust();
        self.look_for_others();
        self.run_chores();
        self.tell_rest(now);
    }

    fn next_wake(&self) -> Instant {
        let failures = self.failures.values().map(|f| f.retry_at).min();
        let chores = self.book.next_due().filter(|_| self.is_connected());
        let answers = self.answers.next_due().filter(|_| self.is_connected());
        // What is under way is told when it is done.
        let underlay = self.underlay_due.filter(|_| self.underlay_search.is_none());
        let dead = Some(self.dead.next_look()).filter(|_| self.dead_search.is_none());
        let others = self.identity.next_look().filter(|_| self.is_connected());
        [
            Some(self.next_full),
            failures,
            underlay,
            chores,
            answers,
            dead,
            self.trust_due(),
            others,
            self.give_back_at,
            self.repeats.next_due(),
            self.problems.next_due(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.next_full)
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
        self.note_position(true);
        let last = self.write_last();
        if tokio::time::timeout(LAST_WRITES, last).await.is_err() {
            tracing::warn!("the state directory's disk does not answer");
        }
        tracing::info!("stopping; forwarding stays as it is");
    }
}
