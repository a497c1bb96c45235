//! One session: the connection stands; watches are opened, listened to and looked after until it breaks.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};
use weft_core::record::{Change, Scope, StoreEvent};
use weft_core::snapshot::directory;

use super::{End, Pauses, Watcher};
use crate::{
    error::{Failure, Verdict},
    follow::{Follow, Listing, Reason},
    interest::Generation,
    members::{Line, Members},
    progress::{Answer, InOrder, Progress},
    read::Lists,
    stream::{Message, Stream},
};

type Running = Pin<Box<dyn Future<Output = Result<Lists, Failure>> + Send>>;

/// What belongs to one session.
pub(super) struct Session {
    pub(super) line: Line,
    pub(super) cluster_id: u64,
    stream: Option<Stream>,
    pub(super) running: Option<Running>,
    progress: Progress,
    heard: Instant,
    ask_at: Instant,
    /// Something happened since progress was asked for last.
    news: bool,
    /// A revision that somebody waits for.
    awaited: i64,
    /// The same, of those who wait for others' changes.
    pub(super) expected: i64,
}

impl Session {
    /// A connection that was just made, to a server of this version.
    pub(super) fn new(line: Line, cluster_id: u64, version: Option<&str>, settle: Duration) -> Self {
        let now = Instant::now();
        Self {
            line,
            cluster_id,
            stream: None,
            running: None,
            progress: Progress::new(version, settle / 2),
            heard: now,
            ask_at: now + settle,
            news: true,
            awaited: 0,
            expected: 0,
        }
    }

    /// Ends it, with its connection. What it was doing goes first: nobody polls its listing any more, and that may have in hand, or
    /// stand in line for, what is waited for here.
    pub(super) async fn give_up(self, members: &Members) {
        let Self { line, running, .. } = self;
        drop(running);
        members.discard(&line).await;
    }
}

impl Watcher {
    /// Does all that can be done now, then waits for the next thing to happen.
    pub(super) async fn step(&mut self, session: &mut Session, pauses: &mut Pauses) -> Result<(), End> {
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
                self.members.health.lock().heard = std::time::Instant::now();
                self.take_message(session, &message)?;
                // A stream that tells something ends the time of pauses. One that only confirms watches does not: so far
                // a proxy behaves like etcd.
                if !message.created() {
                    pauses.reset();
                }
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
        let expected = self.signals.expected.load(Ordering::Relaxed);
        if expected > session.expected {
            session.expected = expected;
            session.awaited = session.awaited.max(expected);
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

    /// Opens watches for all scopes that can go on from a known revision.
    async fn open_watches(&mut self, session: &mut Session) -> Result<(), Failure> {
        let members = Arc::clone(&self.members);
        let config = members.config();
        for (scope, follow) in &mut self.follows {
            if follow.watch.is_some() || !follow.resumable() {
                continue;
            }
            let directory = directory(&config.prefix, &config.node, scope);
            // One that goes on after a break does so from the last revision that was handed over, whose changes are
            // recognised. If history was compacted at the very next one, etcd may have dropped the deletions of that
            // revision and tell a watch from there nothing (etcd-io/etcd#18089); one from before is refused.
            let from = follow.seen + i64::from(!follow.was_watched());
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
        let now = Instant::now();
        let expected = self.tell_expected(session, now);
        let timing = &self.members.config().timing;
        let mut next = self.refresh_at.unwrap_or(now + timing.progress);
        if session.running.is_none() {
            let due = self.follows.values();
            let due = due.filter_map(|f| f.listing.due_at(self.list_not_before, self.relist_not_before));
            next = due.fold(next, Instant::min);
        }
        next = next.min(expected.unwrap_or(next));
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
                // A question that comes while a watch is catching up is passed over.
                let patience = if session.awaited > session.progress.certain() {
                    timing.settle
                } else {
                    timing.progress
                };
                session.ask_at = match session.progress.waits_until(now, patience) {
                    Some(until) => until,
                    None => {
                        stream.ask_progress().await?;
                        session.progress.asked(now);
                        session.news = false;
                        now + timing.progress
                    }
                };
            }
            next = next.min(silent_at);
            if self.outbox.has_room() {
                next = next.min(session.ask_at);
            }
        }
        Ok(next)
    }

    /// Tells that all up to an expected revision has been handed over, if the order of events says so; else when
    /// to look again.
    fn tell_expected(&mut self, session: &mut Session, now: Instant) -> Option<Instant> {
        if !self.all_current() {
            return None;
        }
        match session.progress.in_order(session.expected, now) {
            InOrder::Certain(revision) => {
                self.members.health.lock().progress = revision;
                self.outbox.push(StoreEvent::Progress { revision }, self.newest);
                None
            }
            InOrder::Later(at) => Some(at),
            InOrder::Unknown => None,
        }
    }

    /// Whether the changes of all that is wanted reach us as they happen.
    fn all_current(&self) -> bool {
        self.interest.newest() == self.newest && self.follows.values().all(Follow::is_current)
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
        match message.header().map(etcd_client::ResponseHeader::cluster_id) {
            None => {}
            Some(same) if same == session.cluster_id => {}
            // etcd's gRPC proxy answers so for a watch that it joins to another client's (etcd-io/etcd#21780). It passes no
            // progress requests on either (etcd-io/etcd#19710), so nobody could tell what has been heard.
            Some(0) => {
                return Err(End::Lost(Failure::new(
                    Verdict::Refused,
                    &session.line.url,
                    "an etcd gRPC proxy answers, which weft cannot watch through; give the addresses of etcd's members",
                )));
            }
            Some(_) => {
                return Err(End::Lost(Failure::new(
                    Verdict::Lost,
                    &session.line.url,
                    "another cluster answers",
                )));
            }
        }
        let timing = &self.members.config().timing;
        let now = Instant::now();
        match stream.read(message) {
            Message::Confirmed(scope) => {
                if let Some(follow) = self.follows.get_mut(&scope) {
                    follow.confirmed = true;
                    session.progress.confirmed(now);
                }
            }
            Message::Changes(scope, changes) => {
                if let Some(newest) = changes.iter().map(Change::revision).max() {
                    session.progress.events(newest, now);
                }
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
                debug!(
                    ?scope,
                    compacted = revision,
                    "changes were compacted before they were seen"
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
                self.members.health.failed(format!("{}: {why}", session.line.url));
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
                if self.all_current() {
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

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, task::Poll};

    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;
    use weft_store_schema::Prefix;

    use super::*;
    use crate::{Config, Secret, User};

    /// A session that ends while its listing has the endpoint's client in hand: logging in at a server that never answers.
    #[tokio::test]
    async fn a_session_that_is_given_up_does_not_wait_for_its_own_listing() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let members = async |user: Option<User>| {
            let config = Config {
                user,
                ..Config::new(vec![url.clone()], Prefix::default(), "host1".parse().unwrap())
            };
            Arc::new(Members::new(config, CancellationToken::new()).await.unwrap())
        };
        let line = members(None).await.line(0).await.ok().unwrap();
        let of_user = members(Some(User {
            name: "weft".to_owned(),
            password: Secret::new("secret".to_owned()),
        }))
        .await;
        let mut session = Session::new(line, 1, None, Duration::from_secs(1));
        let listing = Arc::clone(&of_user);
        let mut running: Running = Box::pin(async move {
            listing.line(0).await?;
            Err(Failure::timeout("after the login"))
        });
        assert!(matches!(futures::poll!(&mut running), Poll::Pending));
        session.running = Some(running);
        let given_up = timeout(Duration::from_secs(20), session.give_up(&of_user)).await;
        assert!(given_up.is_ok(), "it waits for what nobody polls");
    }
}
