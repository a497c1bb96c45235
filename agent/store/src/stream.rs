//! One watch stream of etcd, with a watch per scope on it. Reads etcd's answers and says what they mean.
//!
//! Watches are numbered by us, so that an answer is recognised by its number; a number is used once a stream.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use etcd_client::{EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::time::timeout;
use weft_core::record::{Change, Scope};

use crate::{
    error::{Failure, Verdict},
    members::Line,
    read::{end_of, entry_of},
};

/// Watches asked for and not yet confirmed at a time: etcd answers requests through a queue of 16, and stops
/// reading ours while that is full.
const MOST_UNCONFIRMED: usize = 64;

/// What a message from etcd means.
#[derive(Debug)]
pub(crate) enum Message {
    /// The watch of this scope stands.
    Confirmed(Scope),
    /// Changes of a scope.
    Changes(Scope, Vec<Change>),
    /// A scope is known up to this revision.
    UpTo(Scope, i64),
    /// All are known up to this revision, if etcd is to be believed.
    Progress(i64),
    /// etcd ended the watch of a scope: the revisions it needs are compacted up to this one.
    Compacted(Scope, i64),
    /// etcd ended the watch of a scope, or did not begin it, for this reason.
    Cancelled(Scope, String),
    /// Nothing of interest.
    Nothing,
}

pub(crate) struct Stream {
    sender: WatchRequestSender,
    receiver: WatchResponseStream,
    pub(crate) line: Line,
    bound: Duration,
    next_id: i64,
    scopes: BTreeMap<i64, Scope>,
    unconfirmed: VecDeque<i64>,
}

fn options(directory: &str, from: i64, id: i64) -> WatchOptions {
    WatchOptions::new()
        .with_range(end_of(directory))
        .with_start_revision(from)
        .with_watch_id(id)
        .with_progress_notify()
}

impl Stream {
    /// Opens a stream with its first watch.
    pub(crate) async fn open(
        line: Line,
        scope: Scope,
        directory: &str,
        from: i64,
        most_bytes: usize,
        bound: Duration,
    ) -> Result<(Self, i64), Failure> {
        let mut client = line.client.watch_client().max_decoding_message_size(most_bytes);
        // etcd's first answer opens the stream: a silent server would hold us here for ever.
        let opened = timeout(bound, client.watch(directory, Some(options(directory, from, 1)))).await;
        let (sender, receiver) = opened
            .map_err(|_| Failure::timeout(&line.url))?
            .map_err(|error| Failure::read(&line.url, &error))?
            .split();
        let stream = Self {
            sender,
            receiver,
            line,
            bound,
            next_id: 2,
            scopes: [(1, scope)].into(),
            unconfirmed: [1].into(),
        };
        Ok((stream, 1))
    }

    pub(crate) fn can_watch_more(&self) -> bool {
        self.unconfirmed.len() < MOST_UNCONFIRMED
    }

    /// Adds a watch; its number.
    pub(crate) async fn watch(&mut self, scope: Scope, directory: &str, from: i64) -> Result<i64, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        let sent = self.sender.watch(directory, Some(options(directory, from, id)));
        bounded(&self.line, self.bound, sent).await?;
        self.scopes.insert(id, scope);
        self.unconfirmed.push_back(id);
        Ok(id)
    }

    /// Ends a watch: nothing of it is reported any more.
    pub(crate) async fn cancel(&mut self, id: i64) -> Result<(), Failure> {
        self.scopes.remove(&id);
        bounded(&self.line, self.bound, self.sender.cancel(id)).await
    }

    /// Asks up to which revision everything has been sent.
    pub(crate) async fn ask_progress(&mut self) -> Result<(), Failure> {
        bounded(&self.line, self.bound, self.sender.request_progress()).await
    }

    /// The next message; cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Failure> {
        match self.receiver.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Failure::new(
                Verdict::Lost,
                &self.line.url,
                "etcd ended the watch stream",
            )),
            Err(error) => Err(Failure::read(&self.line.url, &error)),
        }
    }

    /// What a message means. One may mean two things: a watch that is refused is confirmed and cancelled at
    /// once; then the end counts.
    pub(crate) fn read(&mut self, message: &WatchResponse) -> Message {
        let mut id = message.watch_id();
        if message.created() {
            let oldest = self.unconfirmed.front().copied();
            // Newer servers refuse a watch without saying which; they answer in the order of our requests.
            if let (-1, Some(oldest)) = (id, oldest) {
                id = oldest;
            }
            self.unconfirmed.retain(|waiting| *waiting != id);
        }
        if id == -1 && !message.canceled() && message.events().is_empty() {
            return Message::Progress(revision(message));
        }
        let Some(scope) = self.scopes.get(&id).cloned() else {
            return Message::Nothing;
        };
        if message.canceled() {
            self.scopes.remove(&id);
            return match message.compact_revision() {
                0 => Message::Cancelled(scope, message.cancel_reason().to_owned()),
                compacted => Message::Compacted(scope, compacted),
            };
        }
        if message.created() {
            return Message::Confirmed(scope);
        }
        if message.events().is_empty() {
            return Message::UpTo(scope, revision(message));
        }
        Message::Changes(scope, message.events().iter().filter_map(change).collect())
    }
}

fn revision(message: &WatchResponse) -> i64 {
    message.header().map_or(0, etcd_client::ResponseHeader::revision)
}

fn change(event: &etcd_client::Event) -> Option<Change> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        EventType::Put => Change::Put(entry_of(kv.clone())),
        EventType::Delete => Change::Deleted {
            key: kv.key().to_vec(),
            mod_revision: kv.mod_revision(),
        },
    })
}

async fn bounded(
    line: &Line,
    bound: Duration,
    sending: impl Future<Output = Result<(), etcd_client::Error>>,
) -> Result<(), Failure> {
    match timeout(bound, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Failure::new(
            Verdict::Lost,
            &line.url,
            "the watch stream has ended",
        )),
        Err(_) => Err(Failure::timeout(&line.url)),
    }
}
