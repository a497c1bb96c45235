//! The limit: the same etcd asked without weft, by as many clients at a time.
//!
//! A bare put writes a value as large as an endpoint's record. A bare transaction is a claim's own: as many
//! guards, writes and reads of the failing branch, keys and values just as long; but on keys of its own, so
//! that it never fails and nobody watches it unless watchers are asked for: then as many as there are clients,
//! each with a watch on either directory that a claim writes to, as an agent has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, KvClient, ResponseHeader, Txn, TxnOp,
    WatchOptions,
};
use tokio::task::JoinSet;
use weft_core::record::{Guard, Transaction, Write};
use weft_store_schema::Prefix;

use crate::{Pace, Paced};

/// Where the bare keys lie: as long as weft's own prefix.
pub const BARE: &str = "/bare/v1/";

/// Clients of etcd, one for each that may be asked to work at a time.
pub struct Bare {
    clients: Vec<Client>,
    counter: Arc<AtomicU64>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Request {
    /// A put of a value of this many bytes under a key of that many.
    Put {
        /// Length of the key.
        key: usize,
        /// Length of the value.
        value: usize,
    },
    /// A transaction of the form of this one.
    Transaction(Arc<Shape>),
}

impl Request {
    /// Where it writes, as many directories as a claim does.
    fn directories(&self) -> Vec<String> {
        match self {
            Self::Put { .. } => vec![BARE.to_owned()],
            Self::Transaction(shape) => {
                let written = shape
                    .fresh
                    .iter()
                    .enumerate()
                    .filter(|(_, (_, value))| value.is_some());
                written.map(|(i, _)| format!("{BARE}{i}/")).collect()
            }
        }
    }
}

/// The form of a transaction: lengths only.
#[derive(Debug)]
pub struct Shape {
    /// Keys that must be absent, with the length of the value they get, if they are written.
    fresh: Vec<(usize, Option<usize>)>,
    /// Keys that must be unchanged.
    unchanged: Vec<usize>,
    /// Keys that are deleted, should they be there.
    deleted: Vec<usize>,
}

impl Shape {
    /// The form of a claim's transaction.
    ///
    /// # Errors
    /// When it holds something that a claim in an empty network does not.
    pub fn of(transaction: &Transaction, prefix: &Prefix) -> Result<Self> {
        let mut shape = Self {
            fresh: Vec::new(),
            unchanged: Vec::new(),
            deleted: Vec::new(),
        };
        let mut written = 0;
        for guard in &transaction.guards {
            match guard {
                Guard::Absent(key) => {
                    let value = transaction.writes.iter().find_map(|write| match write {
                        Write::Put(k, value) if k == key => Some(value.len()),
                        _ => None,
                    });
                    written += usize::from(value.is_some());
                    shape.fresh.push((prefix.key(key).len(), value));
                }
                Guard::Unchanged(key, _) => shape.unchanged.push(prefix.key(key).len()),
                other => bail!("a claim is not guarded by {other:?}"),
            }
        }
        for write in &transaction.writes {
            if let Write::Delete(key) = write {
                shape.deleted.push(prefix.key(key).len());
            }
        }
        ensure!(
            written + shape.deleted.len() == transaction.writes.len(),
            "a claim writes what it does not guard: {transaction:?}"
        );
        Ok(shape)
    }

    /// In words.
    pub fn text(&self) -> String {
        let puts: Vec<_> = self.fresh.iter().filter_map(|(_, value)| *value).collect();
        let guards = self.fresh.len() + self.unchanged.len();
        format!(
            "{guards} compares, {} puts ({} bytes of values), {} deletions of keys that are not there, {} reads if it fails",
            puts.len(),
            puts.iter().sum::<usize>(),
            self.deleted.len(),
            guards + self.deleted.len(),
        )
    }

    /// Length of the longest key and value that are written.
    pub fn largest(&self) -> (usize, usize) {
        let written = self
            .fresh
            .iter()
            .filter_map(|(key, value)| Some((*key, (*value)?)));
        written.max_by_key(|(_, value)| *value).unwrap_or((64, 64))
    }

    fn build(&self, number: u64, constants: &[(String, i64)]) -> Txn {
        let mut compares = Vec::new();
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        for (i, (length, value)) in self.fresh.iter().enumerate() {
            let key = key_of(&format!("{i}/{number}"), *length);
            compares.push(Compare::create_revision(key.clone(), CompareOp::Equal, 0));
            if let Some(value) = value {
                writes.push(TxnOp::put(key.clone(), vec![b'x'; *value], None));
            }
            reads.push(TxnOp::get(key, None));
        }
        for (i, length) in self.deleted.iter().enumerate() {
            let key = key_of(&format!("none{i}/{number}"), *length);
            writes.push(TxnOp::delete(key.clone(), None));
            reads.push(TxnOp::get(key, None));
        }
        for (key, revision) in constants {
            compares.push(Compare::mod_revision(key.clone(), CompareOp::Equal, *revision));
            reads.push(TxnOp::get(key.clone(), None));
        }
        Txn::new().when(compares).and_then(writes).or_else(reads)
    }
}

/// A bare key of at least this length that begins with `name`.
fn key_of(name: &str, length: usize) -> String {
    let mut key = format!("{BARE}{name}/");
    while key.len() < length {
        key.push('k');
    }
    key
}

impl Bare {
    /// Connects.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn connect(url: &str, clients: usize) -> Result<Self> {
        let mut all = Vec::new();
        for _ in 0..clients {
            let client = Client::connect([url], None).await.context("connecting to etcd")?;
            client
                .kv_client()
                .get("ready", None)
                .await
                .context("asking etcd")?;
            all.push(client);
        }
        Ok(Self {
            clients: all,
            counter: Arc::new(AtomicU64::new(0)),
        })
    }

    /// One of the clients, for preparations.
    pub fn kv(&self) -> KvClient {
        self.clients[0].kv_client().max_decoding_message_size(1 << 30)
    }

    /// Sends requests one after another from each of `at_a_time` clients; with `watched`, while as many
    /// watchers follow what is written.
    ///
    /// # Errors
    /// When one fails, or a transaction is refused.
    pub async fn run(&self, request: &Request, at_a_time: usize, watched: bool, pace: Pace) -> Result<Paced> {
        let mut kv = self.kv();
        let constants = match request {
            Request::Put { .. } => Vec::new(),
            Request::Transaction(shape) => {
                let mut constants = Vec::new();
                for (i, length) in shape.unchanged.iter().enumerate() {
                    let key = key_of(&format!("constant{i}"), *length);
                    let answer = kv
                        .put(key.clone(), "x", None)
                        .await
                        .context("putting a constant key")?;
                    constants.push((key, answer.header().map_or(0, ResponseHeader::revision)));
                }
                constants
            }
        };
        let constants = Arc::new(constants);
        let mut watchers = JoinSet::new();
        if watched {
            for client in &self.clients[..at_a_time] {
                let mut stream = None;
                for directory in request.directories() {
                    let options = WatchOptions::new().with_prefix();
                    match &mut stream {
                        None => {
                            let made = client.watch_client().watch(directory, Some(options)).await;
                            stream = Some(made.context("watching")?);
                        }
                        Some(stream) => stream.watch(directory, Some(options)).await.context("watching")?,
                    }
                    // Answered once the watch exists.
                    let stream = stream.as_mut().context("no watch")?;
                    stream.message().await.context("watching")?;
                }
                if let Some(mut stream) = stream {
                    watchers.spawn(async move { while let Ok(Some(_)) = stream.message().await {} });
                }
            }
        }
        let mut workers = JoinSet::new();
        let started = Instant::now();
        for client in &self.clients[..at_a_time] {
            let mut kv = client.kv_client();
            let (request, counter, constants) =
                (request.clone(), Arc::clone(&self.counter), Arc::clone(&constants));
            workers.spawn(async move {
                let mut done = 0;
                while pace.goes_on(started, done) {
                    let number = counter.fetch_add(1, Ordering::Relaxed);
                    match &request {
                        Request::Put { key, value } => {
                            let key = key_of(&format!("{number}"), *key);
                            kv.put(key, vec![b'x'; *value], None)
                                .await
                                .context("a bare put")?;
                        }
                        Request::Transaction(shape) => {
                            let answer = kv
                                .txn(shape.build(number, &constants))
                                .await
                                .context("a bare transaction")?;
                            ensure!(answer.succeeded(), "a bare transaction was refused");
                        }
                    }
                    done += 1;
                }
                anyhow::Ok(done)
            });
        }
        let mut done = 0;
        while let Some(worker) = workers.join_next().await {
            done += worker??;
        }
        let took = started.elapsed();
        watchers.shutdown().await;
        Ok(Paced {
            done,
            attempts: done,
            took,
        })
    }

    /// Deletes what was written.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn clear(&self) -> Result<()> {
        let options = DeleteOptions::new().with_prefix();
        self.kv()
            .delete(BARE, Some(options))
            .await
            .context("deleting the bare keys")?;
        Ok(())
    }

    /// Has etcd forget its history, so that its database stays small; returns once it has.
    ///
    /// # Errors
    /// When etcd does not answer, or takes longer than a minute.
    pub async fn forget_history(&self) -> Result<()> {
        let mut kv = self.kv();
        let answer = kv.get(BARE, None).await.context("asking for the revision")?;
        let revision = answer.header().map_or(0, ResponseHeader::revision);
        let compacted = kv.compact(revision, Some(CompactionOptions::new().with_physical()));
        tokio::time::timeout(Duration::from_secs(60), compacted)
            .await
            .context("compacting takes longer than a minute")?
            .context("compacting")?;
        Ok(())
    }
}
