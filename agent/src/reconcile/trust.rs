//! Whether the store is believed: asks it how much was deleted with what is gone, compares it at the start with what a
//! former agent knew, tells what is kept although the store has lost it, and for how long.
//!
//! What is to be held, and when it may go, is decided in `weft_core` (`suspicion`, `listing`, `recall`).

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, time::Instant};
use weft_core::{
    dirty::Dirty,
    problem::Problem,
    record::{Entry, Scope},
    suspicion::Suspicion,
};
use weft_store::StoreError;
use weft_store_schema::{Key, NetworkName};

use super::{
    Reconciler, chain,
    evidence::{AtStart, Evidence, Question, Start},
};
use crate::{own_records::OwnRecords, problems::Source, state_file::Written};

/// Before it is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// So many times in a row it may give none before that is told.
const CENSUS_UNTOLD: u32 = 4;
/// Under which that is told.
const CENSUS: &str = "(store census)";
/// The copies of this host's records are written at most this often.
const COPY_PAUSE: Duration = Duration::from_secs(1);
/// How far the store is known is remembered this often, where its changes concern this host.
const POSITION_PAUSE: Duration = Duration::from_secs(10);
/// Whether the store may be believed again is looked at this often, and more seldom if it takes long.
const TRIAL_PAUSE: Duration = Duration::from_secs(1);
/// Of the time, one part in so many is spent on that at most.
const TRIAL_SHARE: u32 = 20;

/// Whether the store has been compared with what is known from before this agent started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    No,
    Asked,
    Yes,
}

/// What is known about the store's trustworthiness.
pub(super) struct Trust {
    compared: Compared,
    /// Whether this node's record was there when the peers were first listed, or the mark of its removal.
    found_itself: Option<bool>,
    /// The suspicions that are being asked about, by revision.
    asking: BTreeSet<i64>,
    ask_at: Instant,
    /// How often in a row the store gave no answer to what was asked of the whole prefix.
    unanswered: u32,
    answers: mpsc::UnboundedSender<Evidence>,
    records: OwnRecords,
    /// What a former agent wrote down, and the networks that are in view for it, until the store has been compared with it.
    recalled: Option<(Vec<Entry>, BTreeSet<NetworkName>)>,
    /// When the copies of this host's records are to be written.
    pub(super) copy_at: Option<Instant>,
    /// They are being written.
    pub(super) copying: Option<Written>,
    /// When it was last remembered how far the store is known.
    noted: Instant,
    trial_at: Instant,
}

impl Trust {
    pub(super) fn new(records: OwnRecords) -> (Self, mpsc::UnboundedReceiver<Evidence>) {
        let (answers, results) = mpsc::unbounded_channel();
        let trust = Self {
            compared: Compared::No,
            found_itself: None,
            asking: BTreeSet::new(),
            ask_at: Instant::now(),
            unanswered: 0,
            answers,
            records,
            recalled: None,
            copy_at: None,
            copying: None,
            noted: Instant::now(),
            trial_at: Instant::now(),
        };
        (trust, results)
    }
}

impl Reconciler {
    // ---- what was deleted ----------------------------------------------------------------------------

    /// After any change of the records: asks about what is suspicious, and tells what is held.
    pub(super) fn look_after_trust(&mut self) {
        let known = BTreeSet::from([Scope::Peers, Scope::Removed]);
        if self.trust.found_itself.is_none() && self.snapshot.is_complete(&known) {
            let own = self.snapshot.peer_slot(&self.node.name);
            let removed = self.snapshot.removed(&self.node.name).is_some();
            self.trust.found_itself = Some(removed || own.is_some_and(|slot| !slot.held));
        }
        self.ask_about_deletions();
        self.tell_held();
    }

    fn ask_about_deletions(&mut self) {
        if !self.is_connected() || Instant::now() < self.trust.ask_at {
            return;
        }
        let open: Vec<Suspicion> = self.snapshot.suspicions().cloned().collect();
        for suspicion in open {
            if self.trust.asking.insert(suspicion.revision) {
                self.ask_store(Question::Suspicion(suspicion));
            }
        }
    }

    fn ask_store(&self, question: Question) {
        let (store, answers) = (self.store.clone(), self.trust.answers.clone());
        tokio::spawn(async move {
            // The loop may have ended meanwhile.
            let _ = answers.send(question.ask(&store).await);
        });
    }

    pub(super) fn on_evidence(&mut self, evidence: Evidence) {
        match evidence {
            Evidence::Suspicion(suspicion, result) => {
                self.tell_census(result.as_ref().err());
                self.trust.asking.remove(&suspicion.revision);
                match result {
                    Ok((before, after)) => {
                        let dirty = self.snapshot.settle(&suspicion, before.as_ref(), &after);
                        self.take_in(dirty);
                        self.after_records();
                    }
                    Err(error) => {
                        tracing::debug!(error = %chain(&error), "not known yet whether deletions are meant");
                        self.trust.ask_at = Instant::now() + PAUSE;
                    }
                }
            }
            Evidence::Start(Ok(AtStart { because, now })) => {
                self.tell_census(None);
                let emptied = now.and_then(|mut now| {
                    // By now this agent has written its record itself. One that has never run had none.
                    now.own_peer = self.trust.found_itself.unwrap_or(true) || self.history.is_empty();
                    now.emptied(self.known_networks())
                });
                self.end_comparison(because.or(emptied));
            }
            Evidence::Start(Err(error)) => {
                self.tell_census(Some(&error));
                self.trust.compared = Compared::No;
                self.trust.ask_at = Instant::now() + PAUSE;
            }
        }
    }

    /// How many networks this host knows of: from the records, its kernel, and what a former agent wrote down.
    fn known_networks(&self) -> usize {
        let networks = self.snapshot.networks().map(|(name, _)| name);
        let recalled = self.trust.recalled.iter().flat_map(|(_, networks)| networks);
        let known: BTreeSet<_> = networks
            .chain(self.observed.networks.keys())
            .chain(self.unseen_networks())
            .chain(recalled)
            .collect();
        known.len()
    }

    /// Says that the store does not tell what is in it, if it goes on like that: what was deleted is kept until then, or,
    /// at the start, nothing is written.
    pub(super) fn tell_census(&mut self, error: Option<&StoreError>) {
        let Some(error) = error else {
            self.trust.unanswered = 0;
            self.problems.set(Source::Host, CENSUS, None);
            return;
        };
        self.trust.unanswered += 1;
        // Where the connection is lost, that is told.
        if self.trust.unanswered >= CENSUS_UNTOLD && self.is_connected() {
            let message = format!(
                "whether deletions are meant cannot be found out, so what they would remove stays, and an agent that starts \
                 waits: {}; it is asked again (the agent's user in etcd needs to read the whole prefix)",
                chain(error)
            );
            self.problems
                .set(Source::Host, CENSUS, Some(Problem::new(CENSUS, message)));
        }
    }

    // ---- at the start --------------------------------------------------------------------------------

    /// Whether the store has been compared with what was known from before this agent started. What the kernel has and
    /// the records do not is swept only if the store goes on from there.
    pub(super) fn is_compared(&mut self) -> bool {
        if self.trust.compared == Compared::No && Instant::now() >= self.trust.ask_at {
            self.compare_history();
        }
        self.trust.compared == Compared::Yes && self.is_informed()
    }

    fn compare_history(&mut self) {
        let Some(position) = self.snapshot.position() else {
            self.trust.compared = Compared::Yes;
            return;
        };
        if self.trust.recalled.is_none() {
            self.look_into_recalled();
            if !self.is_informed() {
                return;
            }
        }
        let carries: BTreeSet<&NetworkName> = self
            .observed
            .networks
            .keys()
            .chain(self.unseen_networks())
            .collect();
        let no_networks = || {
            let none = self.history.is_empty() && self.snapshot.networks().next().is_none();
            let suspicious = none && !carries.is_empty();
            suspicious.then(|| "the store has no network at all, and this host carries some".to_owned())
        };
        let held = self.history.held().map(|held| held.because.clone());
        let because = held
            .or_else(|| self.history.contradicts(position))
            .or_else(no_networks);
        let recalled = self.trust.recalled.iter().flat_map(|(_, networks)| networks);
        let mut concerned = carries.iter().copied().chain(recalled);
        let lacks_some = concerned.any(|network| !self.snapshot.takes_part(network));
        let copies = self.trust.recalled.iter();
        let missing: Vec<_> = copies
            .flat_map(|(entries, _)| self.snapshot.recalled_missing(entries))
            .collect();
        if because.is_none() && (lacks_some || !missing.is_empty()) {
            let recalled = self.trust.recalled.iter().flat_map(|(_, networks)| networks);
            let recalled: BTreeSet<_> = recalled.collect();
            let mut unknown = carries.iter().filter(|network| !recalled.contains(*network));
            let start = Start {
                missing,
                known: self.history.revision(),
                unexplained: unknown.any(|network| !self.snapshot.takes_part(network)),
                now: self.snapshot.revision(),
                networks: self.known_networks(),
            };
            self.trust.compared = Compared::Asked;
            self.ask_store(Question::Start(start));
        } else {
            self.end_comparison(because);
        }
    }

    /// Brings into view what a former agent has written down about. Without a network's record, and with nothing of it in the
    /// kernel, as after a reboot, nothing else would lead to the endpoints that are left of it.
    fn look_into_recalled(&mut self) {
        let entries = self.trust.records.read();
        let networks = self.snapshot.recalled_networks(&entries);
        for network in &networks {
            *self.pinned.entry(network.clone()).or_default() += 1;
        }
        self.update_interest();
        self.trust.recalled = Some((entries, networks));
    }

    /// Keeps what the kernel has and what a former agent wrote down if the store is not believed, else what of that the
    /// records in the store depend on.
    fn end_comparison(&mut self, because: Option<String>) {
        self.trust.compared = Compared::Yes;
        let (entries, networks) = self.trust.recalled.take().unwrap_or_default();
        let dirty = match because {
            Some(because) => {
                let dirty = self.snapshot.recall(&entries);
                let carries_some =
                    !self.observed.networks.is_empty() || self.unseen_networks().next().is_some();
                if carries_some || !self.snapshot.held_keys().is_empty() {
                    self.snapshot.distrust(because);
                }
                dirty
            }
            None => self.snapshot.recall_in_use(&entries),
        };
        self.take_in(dirty);
        self.after_records();
        for network in &networks {
            self.unpin(network);
        }
    }

    // ---- what is held --------------------------------------------------------------------------------

    /// The records that are kept although the store does not have them, and why. Not those of which that is only being
    /// found out.
    pub(crate) fn held_deletions(&self) -> Option<(Vec<Key>, String, Option<SystemTime>)> {
        let mut keys = self.snapshot.held_keys();
        keys.retain(|key| !self.snapshot.is_suspect(key));
        match self.snapshot.held_because() {
            Some(because) => {
                let since = self.history.held().map(|held| held.since);
                Some((keys, because.to_owned(), since))
            }
            None if keys.is_empty() => None,
            None => {
                let because = "records were deleted that endpoints depend on; see the problems";
                Some((keys, because.to_owned(), None))
            }
        }
    }

    /// The same, once an agent that is started would know that they are kept.
    pub(crate) fn surely_held(&self) -> Option<(Vec<Key>, String, Option<SystemTime>)> {
        self.held_deletions().filter(|_| !self.history.is_under_way())
    }

    fn tell_held(&mut self) {
        // Before that, what a former agent held is not known yet.
        if self.trust.compared != Compared::Yes {
            return;
        }
        let because = self.snapshot.held_because().map(str::to_owned);
        self.history.hold(because.as_deref());
        let held = because.map(|because| {
            let message = format!(
                "{because}; what it no longer has is kept here: put the records back ('weft resync --republish' on each host), \
                 or confirm with 'weft resync --accept'"
            );
            Problem::new("(store)", message)
        });
        self.problems.set(Source::Host, "(store)", held);
    }

    /// Lets go of what is held, on an operator's word: how much that was, or that nothing was.
    pub(crate) fn accept_deletions(&mut self) -> Option<usize> {
        self.snapshot.held_because()?;
        let count = self.snapshot.held_keys().len();
        let dirty = self.snapshot.release_held();
        tracing::warn!(count, "held deletions were confirmed");
        self.take_in(dirty);
        self.after_records();
        // What was deleted up to here is believed, whatever copies of it are left.
        self.note_position(true);
        Some(count)
    }

    /// Whether the store has been compared with what was known from before this agent started: until then it is not
    /// known whether anything is held.
    pub(crate) fn has_compared(&self) -> bool {
        self.trust.compared == Compared::Yes
    }

    /// Remembers how far the store is known, if it is believed: now, or if it is time or far enough.
    pub(super) fn note_position(&mut self, now: bool) {
        let is_believed =
            self.snapshot.held_because().is_none() && self.snapshot.suspicions().next().is_none();
        let position = self.snapshot.position();
        if let Some(position) = position.filter(|_| self.adopted && is_believed) {
            let now = now || self.trust.noted.elapsed() >= POSITION_PAUSE;
            self.history.note(position, now);
            if now {
                self.trust.noted = Instant::now();
            }
        }
    }

    // ---- time ----------------------------------------------------------------------------------------

    /// Notes that the copies of this host's records are out of date, if these changes make them so.
    pub(super) fn copies_are_old(&mut self, dirty: &Dirty) {
        let old = dirty.everything
            || !dirty.networks.is_empty()
            || !dirty.peers.is_empty()
            || dirty.endpoints.iter().any(|e| e.node == self.node.name);
        if old && self.trust.copy_at.is_none() {
            self.trust.copy_at = Some(Instant::now() + COPY_PAUSE);
        }
    }

    /// Has what this host needs back if the store loses it written down.
    fn copy_records(&mut self) {
        // Before the store is known and believed, there is less in view than was written down.
        if self.trust.copy_at.is_some() && self.trust.copying.is_none() && self.adopted {
            self.trust.copy_at = None;
            self.trust.copying = Some(self.trust.records.write(self.snapshot.memorable()));
            // What they are compared with when an agent starts.
            self.note_position(true);
        }
    }

    /// They are written, or cannot be, which is told.
    pub(super) fn on_copied(&mut self, written: bool) {
        if !written {
            self.trust.copy_at.get_or_insert(Instant::now() + COPY_PAUSE * 10);
        }
    }

    /// Waits until all is on the disk that an agent which ends leaves to the next.
    pub(super) async fn write_last(&mut self) {
        if let Some(copying) = self.trust.copying.take() {
            // If it could not be written, that was told.
            let _ = copying.await;
        }
        self.copy_records();
        let others = [self.history.written(), self.detachments.written()];
        for written in self.trust.copying.take().into_iter().chain(others) {
            let _ = written.await;
        }
    }

    /// Does what is due.
    pub(super) fn tend_trust(&mut self) {
        let now = Instant::now();
        if self.trust.copy_at.is_some_and(|at| at <= now) {
            self.copy_records();
        }
        self.ask_about_deletions();
        if self.snapshot.is_distrusted() && self.trust.trial_at <= now {
            let host = self.host().filter(|_| self.adopted && !self.is_applying());
            if host.is_some_and(|host| self.snapshot.end_distrust(&host, &self.observed)) {
                tracing::info!("the store has all again that this host carries");
                self.take_in(Dirty::everything());
                self.after_records();
            }
            self.trust.trial_at = Instant::now() + TRIAL_PAUSE + now.elapsed() * TRIAL_SHARE;
        }
    }

    /// When something is due.
    pub(super) fn trust_due(&self) -> Option<Instant> {
        let may_copy = self.adopted && self.trust.copying.is_none();
        let copy = self.trust.copy_at.filter(|_| may_copy);
        let trial = self.snapshot.is_distrusted().then_some(self.trust.trial_at);
        // What waits for the connection is asked when that is there again.
        let ask = Some(self.trust.ask_at).filter(|at| *at > Instant::now());
        [copy, trial, ask].into_iter().flatten().min()
    }
}
