//! The watch task: keeps every wanted scope listed and watched, through whatever happens to etcd.
//!
//! One session is one connection to one endpoint. At its start a linearizable read tells where the store
//! stands: if it is the history we know, watches go on after the last revision handed over, and nothing is
//! listed; if it is another one, everything is. Within a session, listings run beside the watch, all that
//! are due at once and at one revision. A session ends with the stream; the next one begins on the next
//! endpoint after a short pause.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};
use weft_core::record::{Scope, StoreEvent};

use crate::{
    backoff::{Backoff, jittered},
    error::{Failure, Verdict},
    follow::{Follow, Listing, Reason},
    interest::{Generation, Interest},
    members::{Line, Members},
    outage::{Complaint, Outage},
    outbox::{Outbox, Parcel},
    progress::{Answer, Progress},
    read::{self, Lists, Position},
    stream::{Message, Stream},
};

/// Wishes of the handles to the watch task.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    wake: Notify,
    relist: AtomicBool,
    committed: AtomicI64,
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
}

type Running = Pin<Box<dyn Future<Output = Result<Lists, Failure>> + Send>>;

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
    refresh_at: Option<Instant>,
}

/// What belongs to one session.
struct Session {
    line: Line,
    cluster_id: u64,
    stream: Option<Stream>,
    running: Option<Running>,
    progress: Progress,
    heard: Instant,
    ask_at: Instant,
    /// Something happened since progress was asked for last.
    news: bool,
    /// A revision that somebody waits for.
    awaited: i64,
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
        refresh_at: (!timing.relist.is_zero()).then(|| Instant::now() + jittered(timing.relist)),
        members: Arc::clone(&members),
        interest,
        signals,
    };
    let mut pause = Backoff::new(timing.retry_first, timing.reconnect_most);
    // A password check costs etcd a tenth of a second of work: it is not asked for one every second.
    let mut refused_pause = Backoff::new(timing.retry_first, timing.relist_most);
    let stop = members.stop().clone();
    loop {
        let end = tokio::select! {
            end = watcher.session(&mut pause) => end,
            () = stop.cancelled() => return,
        };
        let End::Lost(failure) = end else { return };
        if watcher.lost(&failure).await.is_err() {
            return;
        }
        let wait = if matches!(failure.verdict, Verdict::NotDone | Verdict::Lost) {
            refused_pause.reset();
            pause.pause()
        } else {
            refused_pause.pause()
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Watcher {
    /// From connecting to the end of the connection.
    async fn session(&mut self, pause: &mut Backoff) -> End {
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
        let end = loop {
            if let Err(end) = self.step(&mut session, pause).await {
                break end;
            }
        };
        if let End::Lost(_) = end {
            self.members.discard(&session.line).await;
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
        let late = |_| Failure::timeout(url, timing.connect);
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
        if let Some(news) = self.outage.up(url, position.cluster_id) {
            self.outbox.push(StoreEvent::Connection(news), self.newest);
        }
        let mut health = members.health.lock();
        health.server_version.clone_from(&version);
        if !health.connected {
            health.connected = true;
            health.since = std::time::Instant::now();
        }
        drop(health);
        let now = Instant::now();
        Ok(Session {
            line,
            cluster_id: position.cluster_id,
            stream: None,
            running: None,
            progress: Progress::new(version.as_deref(), timing.settle / 2),
            heard: now,
            ask_at: now + timing.settle,
            news: true,
            awaited: 0,
        })
    }

    /// Lists everything anew if the store is another one, or has gone back.
    fn compare_history(&mut self, position: Position) {
        let seen = self.follows.values().map(|follow| follow.seen).max().unwrap_or(0);
        if let Some(known) = self.known {
            let why = if known.cluster_id != position.cluster_id {
                Some("it is another cluster")
            } else if position.revision < seen {
                Some("its revision went back")
            } else if position.term < known.term {
                Some("its raft term went back")
            } else {
                None
            };
            if let Some(why) = why {
                warn!(
                    why,
                    endpoint = self.members.health.lock().endpoint,
                    known_revision = seen,
                    revision = position.revision,
                    known_cluster = %format_args!("{:x}", known.cluster_id),
                    cluster = %format_args!("{:x}", position.cluster_id),
                    "the store has another history than before; everything is listed anew"
                );
                for follow in self.follows.values_mut() {
                    follow.list(Reason::History);
                }
            }
        }
        self.known = Some(position);
    }

    /// The connection is lost: watches and listings on their way are void, what was handed over is not.
    async fn lost(&mut self, failure: &Failure) -> Result<(), End> {
        for follow in self.follows.values_mut() {
            follow.unwatched();
            follow.failed();
        }
        let why = failure.cause.to_string();
        debug!(why, "session ended");
        {
            let mut health = self.members.health.lock();
            health.last_error = Some(why.clone());
            if health.connected {
                health.connected = false;
                health.disconnects += 1;
                health.since = std::time::Instant::now();
            }
        }
        if let Some(news) = self.outage.down(&why) {
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

    /// Does all that can be done now, then waits for the next thing to happen.
    async fn step(&mut self, session: &mut Session, pause: &mut Backoff) -> Result<(), End> {
        self.follow_interest(session).await?;
        self.start_listing(session);
        self.open_watches(session).await?;
        let next = self.tend_clock(session).await?;

        let reading = session.stream.is_some() && self.outbox.has_room();
        if !reading {
            // etcd cannot be heard while nobody listens.
            session.heard = Instant::now();
        }
        tokio::select! {
            delivered = self.outbox.deliver(), if !self.outbox.is_empty() => {
                if !delivered {
                    return Err(End::Stop);
                }
            }
            changed = self.changed.changed() => {
                if changed.is_err() {
                    return Err(End::Stop);
                }
                self.interest_changed = true;
            }
            () = self.signals.wake.notified() => self.heed_signals(session),
            result = running(&mut session.running) => {
                session.running = None;
                self.take_listing(session, result)?;
            }
            message = next_message(&mut session.stream), if reading => {
                let message = message?;
                session.heard = Instant::now();
                // A stream that speaks ends the time of short pauses.
                pause.reset();
                self.take_message(session, &message)?;
            }
            () = sleep_until(next) => {}
        }
        Ok(())
    }

    fn heed_signals(&mut self, session: &mut Session) {
        let timing = &self.members.config().timing;
        if self.signals.relist.swap(false, Ordering::Relaxed) {
            for follow in self.follows.values_mut() {
                follow.list(Reason::Refresh);
            }
        }
        let committed = self.signals.committed.load(Ordering::Relaxed);
        if committed > session.awaited {
            session.awaited = committed;
            // Somebody waits for it; many commits at a time are served by one question.
            session.ask_at = session.ask_at.min(Instant::now() + timing.settle / 20);
        }
    }

    /// Begins and ends following as the wanted scopes change.
    async fn follow_interest(&mut self, session: &mut Session) -> Result<(), Failure> {
        if !self.interest_changed {
            return Ok(());
        }
        let before: BTreeMap<Scope, (Generation, Option<i64>)> = self
            .follows
            .iter()
            .map(|(scope, follow)| (scope.clone(), (follow.generation, follow.watch)))
            .collect();
        self.follow_interest_offline();
        for (scope, (generation, watch)) in before {
            let gone = self
                .follows
                .get(&scope)
                .is_none_or(|follow| follow.generation != generation);
            if let (true, Some(id), Some(stream)) = (gone, watch, &mut session.stream) {
                stream.cancel(id).await?;
            }
        }
        if self.follows.is_empty() {
            // etcd does not answer questions about no watches: silence would be taken for death.
            session.stream = None;
        }
        Ok(())
    }

    /// Lists all that is due, unless a listing runs or the last one failed just now.
    fn start_listing(&mut self, session: &mut Session) {
        let now = Instant::now();
        if let Some(at) = self.refresh_at
            && now >= at
        {
            self.refresh_at = Some(now + jittered(self.members.config().timing.relist));
            for follow in self.follows.values_mut() {
                follow.list(Reason::Refresh);
            }
        }
        if session.running.is_some() || now < self.list_not_before {
            return;
        }
        let mut due = Vec::new();
        let mut again = 0;
        for (scope, follow) in &mut self.follows {
            let Listing::Due(reason) = follow.listing else {
                continue;
            };
            if reason.follows_a_failed_watch() && now < self.relist_not_before {
                continue;
            }
            follow.asked();
            due.push(scope.clone());
            again += u64::from(!matches!(reason, Reason::New | Reason::Refresh));
        }
        if due.is_empty() {
            return;
        }
        let mut health = self.members.health.lock();
        health.lists += 1;
        health.relists += again;
        drop(health);
        if again > 0 {
            info!(scopes = again, "listing anew what the watch cannot go on with");
        } else {
            debug!(scopes = due.len(), "listing");
        }
        let members = Arc::clone(&self.members);
        let bound = members.config().timing.list;
        session.running = Some(Box::pin(
            async move { read::list_scopes(&members, &due, bound).await },
        ));
    }

    fn take_listing(&mut self, session: &mut Session, result: Result<Lists, Failure>) -> Result<(), End> {
        let lists = match result {
            Ok(lists) => lists,
            Err(failure) => {
                for follow in self.follows.values_mut() {
                    follow.failed();
                }
                self.list_not_before = Instant::now() + self.list_pause.pause();
                if failure.verdict == Verdict::Compacted {
                    // Between two pages.
                    return Ok(());
                }
                self.members.health.lock().last_error = Some(failure.cause.to_string());
                if matches!(failure.verdict, Verdict::NotDone | Verdict::Lost) {
                    return Err(End::Lost(failure));
                }
                if self.refusal.is_news(&failure.cause.text) {
                    warn!(why = %failure.cause, "etcd refuses a listing; trying again with growing pauses");
                }
                return Ok(());
            }
        };
        self.list_pause.reset();
        let position = Position {
            revision: lists.revision,
            cluster_id: lists.cluster_id,
            term: lists.term,
        };
        let went_back = self.follows.values().any(|follow| {
            follow.listing == Listing::Running(Reason::Refresh) && lists.revision < follow.seen_when_asked()
        });
        if lists.cluster_id != session.cluster_id || went_back {
            // Under our feet: begin again, and look where the store stands.
            self.compare_history(position);
            return Err(End::Lost(Failure::new(
                Verdict::Lost,
                &session.line.url,
                "the store's history changed during a listing",
            )));
        }
        if self.refusal.over() {
            info!("etcd permits listing again");
        }
        let mut had_to = false;
        for (scope, entries) in lists.entries {
            let Some(follow) = self.follows.get_mut(&scope) else {
                continue;
            };
            let Listing::Running(reason) = follow.listing else {
                continue;
            };
            had_to |= reason.follows_a_failed_watch();
            let (entries, revision) = follow.listed(entries, lists.revision);
            let event = StoreEvent::Listed {
                scope,
                revision,
                cluster_id: lists.cluster_id,
                entries,
            };
            self.outbox.push(event, follow.generation);
        }
        if had_to {
            let now = Instant::now();
            if now > self.relist_not_before + self.members.config().timing.relist_most {
                // The last time was long ago.
                self.relist_pause.reset();
            }
            self.relist_not_before = now + self.relist_pause.pause();
        }
        Ok(())
    }

    /// Opens watches for all scopes that can go on from a known revision.
    async fn open_watches(&mut self, session: &mut Session) -> Result<(), Failure> {
        let members = Arc::clone(&self.members);
        let config = members.config();
        for (scope, follow) in &mut self.follows {
            if follow.watch.is_some() || !follow.resumable() {
                continue;
            }
            let directory = read::directory(scope, &config.prefix, &config.node);
            let from = follow.seen + 1;
            let id = match &mut session.stream {
                Some(stream) if !stream.can_watch_more() => return Ok(()),
                Some(stream) => stream.watch(scope.clone(), &directory, from).await?,
                none => {
                    let (line, bound) = (session.line.clone(), config.timing.connect);
                    let most = config.limits.message;
                    let (stream, id) =
                        Stream::open(line, scope.clone(), &directory, from, most, bound).await?;
                    *none = Some(stream);
                    session.heard = Instant::now();
                    let mut health = members.health.lock();
                    health.streams += 1;
                    if follow.listing == Listing::Done && follow.was_watched() {
                        health.resumes += 1;
                    }
                    id
                }
            };
            follow.watched(id);
            session.progress.created();
            session.news = true;
            session.ask_at = Instant::now() + config.timing.settle;
        }
        Ok(())
    }

    /// Asks for progress when it is time, and gives up a silent stream. When to look again.
    async fn tend_clock(&mut self, session: &mut Session) -> Result<Instant, Failure> {
        let timing = &self.members.config().timing;
        let now = Instant::now();
        let mut next = self.refresh_at.unwrap_or(now + timing.progress);
        if session.running.is_none()
            && self
                .follows
                .values()
                .any(|f| matches!(f.listing, Listing::Due(_)))
        {
            next = next.min(self.list_not_before);
        }
        if let Some(stream) = &mut session.stream {
            let silent_at = session.heard + timing.silence;
            if now >= silent_at {
                self.members.health.lock().silences += 1;
                let why = format!(
                    "the watch gave no sign of life for {} ms",
                    timing.silence.as_millis()
                );
                return Err(Failure::new(Verdict::Lost, &session.line.url, why));
            }
            if now >= session.ask_at && self.outbox.has_room() {
                session.ask_at = match session.progress.waits_until(now, timing.progress) {
                    Some(until) => until,
                    None => {
                        stream.ask_progress().await?;
                        session.progress.asked(now);
                        session.news = false;
                        now + timing.progress
                    }
                };
            }
            next = next.min(silent_at).min(session.ask_at);
        }
        Ok(next)
    }

    fn take_message(
        &mut self,
        session: &mut Session,
        message: &etcd_client::WatchResponse,
    ) -> Result<(), End> {
        self.members.health.seen(message.header());
        let Some(stream) = &mut session.stream else {
            return Ok(());
        };
        if let Some(header) = message.header()
            && header.cluster_id() != session.cluster_id
        {
            return Err(End::Lost(Failure::new(
                Verdict::Lost,
                &session.line.url,
                "another cluster answers",
            )));
        }
        let timing = &self.members.config().timing;
        let now = Instant::now();
        match stream.read(message) {
            Message::Confirmed(scope) => {
                if let Some(follow) = self.follows.get_mut(&scope) {
                    follow.confirmed = true;
                }
            }
            Message::Changes(scope, changes) => {
                session.progress.events();
                session.news = true;
                session.ask_at = session.ask_at.min(now + timing.settle);
                if let Some(follow) = self.follows.get_mut(&scope) {
                    let changes = follow.changed(changes);
                    if !changes.is_empty() {
                        self.outbox
                            .push(StoreEvent::Changed { scope, changes }, follow.generation);
                    }
                }
            }
            Message::UpTo(scope, revision) => {
                if let Some(follow) = self.follows.get_mut(&scope) {
                    follow.up_to(revision);
                }
            }
            Message::Progress(revision) => self.take_progress(session, revision, now),
            Message::Compacted(scope, revision) => {
                info!(
                    ?scope,
                    compacted = revision,
                    "changes were compacted before they were seen; listing"
                );
                self.end_watch(&scope, Reason::Compacted);
            }
            Message::Cancelled(scope, why) => {
                if why.contains("auth token") {
                    // The login has expired: it is made anew with the next session.
                    return Err(End::Lost(Failure::new(
                        Verdict::Credentials,
                        &session.line.url,
                        why,
                    )));
                }
                if self.refusal.is_news(&why) {
                    warn!(?scope, why, "etcd ended a watch; listing");
                }
                self.members.health.lock().last_error = Some(format!("{}: {why}", session.line.url));
                self.end_watch(&scope, Reason::Cancelled);
            }
            Message::Nothing => {}
        }
        Ok(())
    }

    fn end_watch(&mut self, scope: &Scope, reason: Reason) {
        if let Some(follow) = self.follows.get_mut(scope) {
            follow.unwatched();
            follow.list(reason);
        }
    }

    fn take_progress(&mut self, session: &mut Session, revision: i64, now: Instant) {
        let settle = self.members.config().timing.settle;
        match session.progress.answered(revision, now) {
            Answer::Nothing => {}
            Answer::AskAgain(at) => session.ask_at = session.ask_at.min(at),
            Answer::Certain(revision) => {
                if session.awaited > revision {
                    session.news = true;
                }
                if self.interest.newest() == self.newest && self.follows.values().all(Follow::is_current) {
                    if session.progress.trusted() {
                        for follow in self.follows.values_mut() {
                            follow.up_to(revision);
                        }
                    }
                    self.members.health.lock().progress = revision;
                    self.outbox.push(StoreEvent::Progress { revision }, self.newest);
                }
            }
        }
        if session.news {
            session.ask_at = session.ask_at.min(now + settle);
        }
    }
}

/// The listing's result, if one runs; otherwise never.
async fn running(running: &mut Option<Running>) -> Result<Lists, Failure> {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

async fn next_message(stream: &mut Option<Stream>) -> Result<etcd_client::WatchResponse, Failure> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}
