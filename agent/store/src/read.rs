//! Linearizable reads: one key, or everything below a directory at one revision, in pages.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_client::{Client, GetOptions, GetResponse, KeyValue};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;
use weft_core::{
    record::{Entry, Scope},
    snapshot::directory,
    suspicion::Census,
};
use weft_store_schema::{Key, Kind, NetworkName};

use crate::{
    StoreError,
    error::{Failure, Verdict},
    members::Members,
};

/// A page that somebody waits for has to come within this, however long all of them may take: a store that has fallen
/// silent is told from one that holds much.
const PAGE_PATIENCE: Duration = Duration::from_secs(5);
/// Listings in flight at a time: over a slow line, many small scopes would otherwise add up.
const AT_ONCE: usize = 8;
/// Keys in a page where one that will do is looked for.
const FEW: i64 = 500;

/// One key at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What the key holds; none if it does not exist.
    pub entry: Option<Entry>,
    /// The lease that the key lies under; 0 if it lies under none or does not exist.
    pub lease: i64,
    /// The store's revision at the time.
    pub revision: i64,
    /// Identity of the cluster.
    pub cluster_id: u64,
}

/// All keys below a directory at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
    /// The keys among them that lie under a lease.
    pub leased: BTreeSet<Vec<u8>>,
    /// The revision they were read at.
    pub revision: i64,
    /// Identity of the cluster.
    pub cluster_id: u64,
}

/// What has become of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// This revision deleted it. If it was put again and deleted again, the last one that did, unless its last life was short
    /// and long ago.
    Deleted(i64),
    /// It was deleted before what the store's history still has.
    Forgotten,
    /// It was not there when it was known to be: this is not the history in which it was.
    NeverBegan,
}

/// Several scopes at one revision.
#[derive(Debug)]
pub(crate) struct Lists {
    pub(crate) entries: BTreeMap<Scope, Vec<Entry>>,
    pub(crate) revision: i64,
    pub(crate) cluster_id: u64,
    pub(crate) term: u64,
}

/// Where an answer stands in the store's history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    pub(crate) revision: i64,
    pub(crate) cluster_id: u64,
    pub(crate) term: u64,
}

pub(crate) fn entry_of(kv: KeyValue) -> Entry {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (key, value) = kv.into_key_value();
    Entry {
        key,
        value,
        create_revision,
        mod_revision,
    }
}

/// The first key after all that start with a directory; directories end with a slash.
pub(crate) fn end_of(directory: &str) -> Vec<u8> {
    let mut end = directory.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

pub(crate) async fn get(members: &Members, key: &Key, deadline: Duration) -> Result<Fetched, StoreError> {
    let what = format!("reading {key}");
    let full = members.config().prefix.key(key);
    let mut answer = ask(members, deadline, &what, |client| {
        range(client, full.clone(), GetOptions::new(), 0)
    })
    .await?;
    let header = position(&answer);
    Ok(Fetched {
        lease: answer.kvs().first().map_or(0, KeyValue::lease),
        entry: answer.take_kvs().into_iter().next().map(entry_of),
        revision: header.revision,
        cluster_id: header.cluster_id,
    })
}

pub(crate) async fn list(
    members: &Members,
    directory: &str,
    deadline: Duration,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Listing, StoreError> {
    let what = format!("listing {directory}");
    let end = Instant::now() + deadline;
    loop {
        let mut leased = BTreeSet::new();
        let mut count = 0;
        let mut page = |kvs: &[KeyValue]| {
            let under_lease = kvs.iter().filter(|kv| kv.lease() != 0);
            leased.extend(under_lease.map(|kv| kv.key().to_vec()));
            count += kvs.len();
            progress(count);
        };
        match pages(members, directory, 0, end, PAGE_PATIENCE, &mut page).await {
            Ok((entries, at)) => {
                return Ok(Listing {
                    entries,
                    leased,
                    revision: at.revision,
                    cluster_id: at.cluster_id,
                });
            }
            // Compacted between two pages: from the beginning, at a newer revision.
            Err(failure) if failure.verdict == Verdict::Compacted && Instant::now() < end => {}
            Err(failure) => {
                return Err(as_read_error(failure, what, members, deadline.min(PAGE_PATIENCE)));
            }
        }
    }
}

/// What has become of a key that was there at `since` and is not at `until`: the last time that it was there, as far as steps
/// back that double find it, then by halving what lies between.
pub(crate) async fn end_of_life(
    members: &Members,
    key: &Key,
    since: i64,
    until: i64,
    deadline: Duration,
) -> Result<Ending, StoreError> {
    let full = members.config().prefix.key(key);
    let is_there = async |revision: i64| {
        let options = GetOptions::new().with_count_only().with_revision(revision);
        let ask = |client| range(client, full.clone(), options.clone(), 0);
        match members.ask(deadline, true, ask).await.result {
            Ok(answer) => Ok(Some(answer.count() > 0)),
            Err(failure) if failure.verdict == Verdict::Compacted => Ok(None),
            Err(failure) => {
                let what = format!("finding out when {key} was deleted");
                Err(as_read_error(failure, what, members, deadline))
            }
        }
    };
    let (mut gone, mut step) = (until, 1);
    let (mut there, mut was_there) = loop {
        // Known at a revision that the store has not come to, or back to where it was known, and never there.
        if gone <= since {
            return Ok(Ending::NeverBegan);
        }
        let before = since.max(until - step);
        match is_there(before).await? {
            Some(false) => (gone, step) = (before, step * 2),
            answer => break (before, answer),
        }
    };
    while gone - there > 1 {
        let between = there + (gone - there) / 2;
        match is_there(between).await? {
            Some(false) => gone = between,
            // Before that, nobody knows; it may have been deleted there.
            answer => (there, was_there) = (between, answer),
        }
    }
    Ok(match was_there {
        Some(_) => Ending::Deleted(gone),
        None => Ending::Forgotten,
    })
}

/// Counts the records of some kinds at a revision; none if it is compacted away. Survivors are endpoints that were created
/// at `since` or before.
pub(crate) async fn census(
    members: &Members,
    network: Option<&NetworkName>,
    since: i64,
    revision: i64,
    deadline: Duration,
) -> Result<Option<Census>, StoreError> {
    let what = format!("counting the records of revision {revision}");
    let (prefix, node) = (&members.config().prefix, &members.config().node);
    let count = |from: String, end: Option<Vec<u8>>| {
        let options = GetOptions::new().with_count_only().with_revision(revision);
        let options = match end {
            Some(end) => options.with_range(end),
            None => options,
        };
        // Boxed: so many of them together are large, and moved about.
        Box::pin(async move {
            let ask = |client| range(client, from.clone(), options.clone(), 0);
            let outcome = members.ask(deadline, true, ask).await;
            outcome.result.map(|answer| answer.count().unsigned_abs())
        })
    };
    let below = |directory: String| {
        let end = end_of(&directory);
        count(directory, Some(end))
    };
    let is_there = |key: Key| count(prefix.key(&key), None);
    let all = prefix.all(Kind::Endpoints);
    let of_network = async {
        match network {
            Some(network) => below(prefix.endpoints_of(network)).await,
            None => Ok(0),
        }
    };
    let counts = tokio::try_join!(
        below(all.clone()),
        of_network,
        below(prefix.all(Kind::Networks)),
        below(prefix.all(Kind::Peers)),
        is_there(Key::Peer(node.clone())),
        is_there(Key::Removed(node.clone())),
        Box::pin(any_since(members, &all, since, revision, deadline)),
    );
    match counts {
        Ok((endpoints, of_network, networks, peers, own_peer, removed, survivors)) => Ok(Some(Census {
            endpoints,
            of_network,
            survivors,
            networks,
            peers,
            own_peer: own_peer > 0,
            removed: removed > 0,
        })),
        Err(failure) if failure.verdict == Verdict::Compacted => Ok(None),
        Err(failure) => Err(as_read_error(failure, what, members, deadline)),
    }
}

/// Whether a key below a directory was created at `since` or before and is there at a revision, the newest if it is 0.
/// etcd has no index for that: the keys are read in small pages until there is one, as a rule in the first.
async fn any_since(
    members: &Members,
    directory: &str,
    since: i64,
    revision: i64,
    deadline: Duration,
) -> Result<bool, Failure> {
    let (mut from, mut revision) = (directory.as_bytes().to_vec(), revision);
    loop {
        let options = GetOptions::new()
            .with_range(end_of(directory))
            .with_keys_only()
            .with_limit(if since == i64::MAX { 1 } else { FEW })
            .with_revision(revision);
        let ask = |client| range(client, from.clone(), options.clone(), 0);
        let answer = members.ask(deadline, true, ask).await.result?;
        if answer.kvs().iter().any(|kv| kv.create_revision() <= since) {
            return Ok(true);
        }
        match answer.kvs().last() {
            Some(last) if answer.more() => {
                from = last.key().to_vec();
                from.push(0);
            }
            _ => return Ok(false),
        }
        if revision == 0 {
            revision = position(&answer).revision;
        }
    }
}

/// Lists scopes, all at one revision.
pub(crate) async fn list_scopes(
    members: &Members,
    scopes: &[Scope],
    deadline: Duration,
) -> Result<Lists, Failure> {
    let end = Instant::now() + deadline;
    let config = members.config();
    let place = |scope: &Scope| directory(&config.prefix, &config.node, scope);
    let Some((first, rest)) = scopes.split_first() else {
        return Err(Failure::new(Verdict::Refused, "", "nothing to list"));
    };
    let directory = place(first);
    let (entries, at) = pages(members, &directory, 0, end, deadline, &mut |_| {})
        .await
        .map_err(|failure| name(failure, &directory))?;
    let mut all: BTreeMap<Scope, Vec<Entry>> = stream::iter(rest.iter().cloned())
        .map(|scope| {
            let directory = place(&scope);
            async move {
                let (entries, _) = pages(members, &directory, at.revision, end, deadline, &mut |_| {})
                    .await
                    .map_err(|failure| name(failure, &directory))?;
                Ok::<_, Failure>((scope, entries))
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    all.insert(first.clone(), entries);
    Ok(Lists {
        entries: all,
        revision: at.revision,
        cluster_id: at.cluster_id,
        term: at.term,
    })
}

fn name(mut failure: Failure, directory: &str) -> Failure {
    failure.cause.text = format!("listing {directory}: {}", failure.cause.text);
    failure
}

/// Where the store stands now, by a linearizable read of next to nothing.
pub(crate) async fn position_now(
    client: Client,
    scope: &Scope,
    members: &Members,
) -> Result<Position, etcd_client::Error> {
    let config = members.config();
    let directory = directory(&config.prefix, &config.node, scope);
    let options = GetOptions::new()
        .with_range(end_of(&directory))
        .with_limit(1)
        .with_keys_only();
    let answer = client.kv_client().get(directory, Some(options)).await?;
    members.health.seen(answer.header());
    Ok(position(&answer))
}

/// All pages of a directory, at the given revision, or at the newest if it is 0. None may take longer than `patience`.
async fn pages(
    members: &Members,
    directory: &str,
    revision: i64,
    end: Instant,
    patience: Duration,
    page: &mut (dyn FnMut(&[KeyValue]) + Send),
) -> Result<(Vec<Entry>, Position), Failure> {
    let limits = &members.config().limits;
    let mut entries = Vec::new();
    let mut from = directory.as_bytes().to_vec();
    let mut at = None;
    loop {
        let revision = at.map_or(revision, |at: Position| at.revision);
        let options = GetOptions::new()
            .with_range(end_of(directory))
            .with_limit(limits.page)
            .with_revision(revision);
        let left = end.saturating_duration_since(Instant::now()).min(patience);
        let mut answer = members
            .ask(left, true, |client| {
                range(client, from.clone(), options.clone(), limits.message)
            })
            .await
            .result?;
        let header = position(&answer);
        // The header of a read at an old revision carries the newest one.
        let here = at.get_or_insert(Position {
            revision: if revision > 0 { revision } else { header.revision },
            ..header
        });
        let more = answer.more();
        page(answer.kvs());
        entries.extend(answer.take_kvs().into_iter().map(entry_of));
        match entries.last() {
            Some(last) if more => {
                from = last.key.clone();
                from.push(0);
            }
            _ => return Ok((entries, *here)),
        }
    }
}

async fn range(
    client: Client,
    from: impl Into<Vec<u8>>,
    options: GetOptions,
    message: usize,
) -> Result<GetResponse, etcd_client::Error> {
    let mut kv = client.kv_client();
    if message > 0 {
        kv = kv.max_decoding_message_size(message);
    }
    kv.get(from, Some(options)).await
}

fn position(answer: &GetResponse) -> Position {
    answer.header().map_or(
        Position {
            revision: 0,
            cluster_id: 0,
            term: 0,
        },
        |header| Position {
            revision: header.revision(),
            cluster_id: header.cluster_id(),
            term: header.raft_term(),
        },
    )
}

async fn ask<F>(
    members: &Members,
    deadline: Duration,
    what: &str,
    request: impl FnMut(Client) -> F,
) -> Result<GetResponse, StoreError>
where
    F: Future<Output = Result<GetResponse, etcd_client::Error>>,
{
    if members.stop().is_cancelled() {
        return Err(StoreError::Stopping {
            what: what.to_owned(),
        });
    }
    let outcome = members.ask(deadline, true, request).await;
    outcome
        .result
        .map_err(|failure| as_read_error(failure, what.to_owned(), members, deadline))
}

/// A read whose answer was lost changed nothing.
fn as_read_error(failure: Failure, what: String, members: &Members, deadline: Duration) -> StoreError {
    let verdict = match failure.verdict {
        Verdict::Lost => Verdict::NotDone,
        other => other,
    };
    Failure { verdict, ..failure }.into_error(what, members.user(), deadline)
}
