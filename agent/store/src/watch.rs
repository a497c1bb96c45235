//! The watch task: keeps every wanted scope listed and watched, through whatever happens to etcd.
//!
//! One session is one connection to one endpoint. At its start a linearizable read tells where the store
//! stands: if it is the history we know, watches go on after the last revision handed over, and nothing is
//! listed; if it is another one, everything is. Within a session, listings run beside the watch, all that
//! are due at once and at one revision. A session ends with the stream; the next one begins on the next
//! endpoint after a short pause.

mod listing;
mod session;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::debug;
use weft_core::{
    complaint::Complaint,
    record::{Scope, StoreEvent},
};

use self::session::Session;
use crate::{
    Timing,
    backoff::{Backoff, jittered},
    error::{Failure, Verdict},
    follow::Follow,
    interest::{Generation, Interest},
    members::Members,
    outage::Outage,
    outbox::{Outbox, Parcel},
    read::{self, Position},
};

/// Wishes of the handles to the watch task.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    wake: Notify,
    relist: AtomicBool,
    committed: AtomicI64,
    expected: AtomicI64,
}

impl Signals {
    pub(crate) fn relist(&self) {
        self.relist.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(crate) fn committed(&self, revision: i64) {
        self.committed.fetch_max(revision, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(crate) fn expected(&self, revision: i64) {
        self.expected.fetch_max(revision, Ordering::Relaxed);
        self.wake.notify_one();
    }
}

/// Why a session ended.
enum End {
    /// The agent stops, or nobody reads the events any more.
    Stop,
    /// The connection is of no use any more.
    Lost(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Lost(failure)
    }
}

/// How long to wait before the next session.
struct Pauses {
    /// After all endpoints have failed in turn.
    lost: Backoff,
    /// Before the next one of them: spread, as many agents lose the same one at once.
    next: Duration,
    failed: usize,
    endpoints: usize,
    /// A password check costs etcd a tenth of a second of work: it is not asked for one every second.
    refused: Backoff,
}

impl Pauses {
    fn new(timing: &Timing, endpoints: usize) -> Self {
        Self {
            next: timing.retry_first,
            failed: 0,
            endpoints,
            lost: Backoff::new(timing.retry_first, timing.reconnect_most),
            refused: Backoff::new(timing.retry_first, timing.relist_most),
        }
    }

    fn after(&mut self, failure: &Failure) -> Duration {
        if matches!(failure.verdict, Verdict::NotDone | Verdict::Lost) {
            self.refused.reset();
            self.failed += 1;
            if self.failed.is_multiple_of(self.endpoints) {
                self.lost.pause()
            } else {
                self.next.mul_f64(fastrand::f64())
            }
        } else {
            self.refused.pause()
        }
    }

    fn reset(&mut self) {
        self.failed = 0;
        self.lost.reset();
        self.refused.reset();
    }
}

/// What outlives a session.
struct Watcher {
    members: Arc<Members>,
    interest: Arc<Interest>,
    signals: Arc<Signals>,
    changed: watch::Receiver<()>,
    /// What is wanted has changed since `follows` was brought in line.
    interest_changed: bool,
    follows: BTreeMap<Scope, Follow>,
    outbox: Outbox,
    outage: Outage,
    refusal: Complaint,
    /// The newest generation that `follows` reflects.
    newest: Generation,
    /// Where the store stood when last heard of.
    known: Option<Position>,
    /// After a listing that failed.
    list_pause: Backoff,
    list_not_before: Instant,
    /// After a watch that had to be replaced by a listing: it may fail again at once.
    relist_pause: Backoff,
    relist_not_before: Instant,
    relisted: Option<Instant>,
    refresh_at: Option<Instant>,
}

/// Runs until the agent stops.
pub(crate) async fn run(
    members: Arc<Members>,
    interest: Arc<Interest>,
    signals: Arc<Signals>,
    sender: mpsc::Sender<Parcel>,
) {
    let config = members.config();
    let timing = config.timing.clone();
    let mut watcher = Watcher {
        changed: interest.subscribe(),
        interest_changed: true,
        follows: BTreeMap::new(),
        outbox: Outbox::new(sender, config.limits.backlog),
        outage: Outage::new(),
        refusal: Complaint::default(),
        newest: 0,
        known: None,
        list_pause: Backoff::new(timing.retry_first, timing.relist_most),
        list_not_before: Instant::now(),
        relist_pause: Backoff::new(timing.retry_first, timing.relist_most),
        relist_not_before: Instant::now(),
        relisted: None,
        refresh_at: (!timing.relist.is_zero()).then(|| Instant::now() + jittered(timing.relist)),
        members: Arc::clone(&members),
        interest,
        signals,
    };
    let mut pauses = Pauses::new(&timing, members.len());
    let stop = members.stop().clone();
    loop {
        let end = tokio::select! {
            end = watcher.session(&mut pauses) => end,
            () = stop.cancelled() => return,
        };
        let End::Lost(failure) = end else { return };
        if watcher.lost(&failure).await.is_err() {
            return;
        }
        let wait = pauses.after(&failure);
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Watcher {
    /// From connecting to the end of the connection.
    async fn session(&mut self, pauses: &mut Pauses) -> End {
        while self.interest.followed().is_empty() {
            if self.changed.changed().await.is_err() {
                return End::Stop;
            }
        }
        self.follow_interest_offline();
        let member = self.members.preferred();
        let mut session = match self.connect(member).await {
            Ok(session) => session,
            Err(failure) => {
                self.members.leave(member);
                return End::Lost(failure);
            }
        };
        session.expected = self.signals.expected.load(Ordering::Relaxed);
        let end = loop {
            if let Err(end) = self.step(&mut session, pauses).await {
                break end;
            }
        };
        if let End::Lost(_) = end {
            session.give_up(&self.members).await;
            self.members.leave(member);
        }
        end
    }

    /// Connects to an endpoint and finds out where the store stands.
    async fn connect(&mut self, member: usize) -> Result<Session, Failure> {
        let members = Arc::clone(&self.members);
        let timing = &members.config().timing;
        let url = members.url(member);
        members.health.lock().endpoint = url.to_owned();
        let late = |_| Failure::timeout(url);
        let line = timeout(timing.connect, members.line(member))
            .await
            .map_err(late)??;
        let scope = self.follows.keys().next().cloned().unwrap_or(Scope::Networks);
        let mut maintenance = line.client.maintenance_client();
        let asked = async {
            tokio::join!(
                read::position_now(line.client.clone(), &scope, &members),
                maintenance.status()
            )
        };
        let answers = timeout(timing.connect, asked).await;
        let (position, status) = match answers {
            Ok((Ok(position), status)) => (position, status),
            Ok((Err(error), _)) => {
                members.discard(&line).await;
                return Err(Failure::read(url, &error));
            }
            Err(late_answer) => {
                members.discard(&line).await;
                return Err(late(late_answer));
            }
        };
        let version = status.ok().map(|status| status.version().to_owned());
        self.compare_history(position);
        if let Some(news) = self.outage.up(url, position.cluster_id, Instant::now()) {
            self.outbox.push(StoreEvent::Connection(news), self.newest);
            members.back.notify_waiters();
        }
        let mut health = members.health.lock();
        health.server_version.clone_from(&version);
        health.heard = std::time::Instant::now();
        if !health.connected {
            health.connected = true;
            health.since = std::time::Instant::now();
        }
        drop(health);
        Ok(Session::new(
            line,
            position.cluster_id,
            version.as_deref(),
            timing.settle,
        ))
    }

    /// The connection is lost: watches and listings on their way are void, what was handed over is not.
    async fn lost(&mut self, failure: &Failure) -> Result<(), End> {
        for follow in self.follows.values_mut() {
            follow.unwatched();
            follow.failed();
        }
        let why = failure.cause.to_string();
        debug!(why, "session ended");
        self.members.health.failed(why.clone());
        {
            let mut health = self.members.health.lock();
            if health.connected {
                health.connected = false;
                health.disconnects += 1;
                health.since = std::time::Instant::now();
            }
        }
        if let Some(news) = self.outage.down(&why, Instant::now()) {
            self.outbox.push(StoreEvent::Connection(news), self.newest);
        }
        // The reader is told now, not when etcd is back; a slow one is waited for in the next session.
        let grace = self.members.config().timing.retry_first;
        while !self.outbox.is_empty() {
            match timeout(grace, self.outbox.deliver()).await {
                Ok(true) => {}
                Ok(false) => return Err(End::Stop),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Follows what is wanted while there is no stream.
    fn follow_interest_offline(&mut self) {
        // Taken note of before it is read: a change in between is seen once more, not lost.
        self.changed.mark_unchanged();
        self.interest_changed = false;
        let followed = self.interest.followed();
        self.follows
            .retain(|scope, follow| followed.get(scope) == Some(&follow.generation));
        for (scope, generation) in followed {
            self.newest = self.newest.max(generation);
            self.follows
                .entry(scope)
                .or_insert_with(|| Follow::new(generation));
        }
        self.newest = self.newest.max(self.interest.newest());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_each_round_of_the_endpoints_and_not_within() {
        let timing = Timing::default();
        let gone = Failure::timeout("http://a");
        let mut pauses = Pauses::new(&timing, 3);
        for round in 0..10 {
            for _ in 0..2 {
                assert!(
                    pauses.after(&gone) <= timing.retry_first,
                    "the next endpoint may be there"
                );
            }
            let pause = pauses.after(&gone);
            assert!(pause <= timing.reconnect_most && (round < 5 || pause >= timing.reconnect_most / 2));
        }
    }
}
