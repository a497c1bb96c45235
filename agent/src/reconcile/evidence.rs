//! What the store says about deletions: how much went with them, and what has become of what a former agent knew.
//!
//! Asked off the loop, and judged by `weft_core::suspicion`; `trust` decides what is asked and what follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use weft_core::suspicion::{Census, Suspicion};
use weft_store::{Ending, Store, StoreError};
use weft_store_schema::{Key, NetworkName};

/// How long the store has for one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Endpoints that are asked about at a time.
const AT_ONCE: usize = 8;
/// Any endpoint counts as one that was there before: what was there is not known, or not in question.
pub(super) const ANY: i64 = i64::MAX;

/// What the store is asked.
pub(super) enum Question {
    /// Whether deletions are meant.
    Suspicion(Suspicion),
    /// Whether the store that an agent starts with has lost what it should have.
    Start(Start),
}

impl Question {
    /// Asks it.
    pub(super) async fn ask(self, store: &Store) -> Evidence {
        match self {
            Self::Suspicion(suspicion) => {
                let result = ask_suspicion(store, &suspicion).await;
                Evidence::Suspicion(suspicion, result)
            }
            Self::Start(start) => Evidence::Start(ask_at_start(store, start).await),
        }
    }
}

/// What the store has said.
pub(super) enum Evidence {
    /// How much there was before a deletion, if that can be told, and after it.
    Suspicion(Suspicion, Result<(Option<Census>, Census), StoreError>),
    /// What there is when an agent starts.
    Start(Result<AtStart, StoreError>),
}

/// What an agent that starts is told of the store.
pub(super) struct AtStart {
    /// Why what has become of this node's endpoints meanwhile is nothing that anybody means, if it is not.
    pub(super) because: Option<String>,
    /// What there is now, if that is not enough of an explanation of what is gone.
    pub(super) now: Option<Census>,
}

/// What an agent that starts asks the store.
pub(super) struct Start {
    /// This node's endpoints that the store has lost, and since when at the earliest.
    pub(super) missing: Vec<(Key, i64)>,
    /// The revision up to which the store was known, and believed.
    pub(super) known: Option<i64>,
    /// Something is gone of which it is not known what it was.
    pub(super) unexplained: bool,
    /// That of what is in view.
    pub(super) now: i64,
    /// How many networks this host knows of.
    pub(super) networks: usize,
}

/// Goes after what this node's endpoints have become that the store has lost, so that it is judged as if an agent had been
/// there: by the revisions that deleted them. Where the history does not reach back so far, by what is left of before.
async fn ask_at_start(store: &Store, start: Start) -> Result<AtStart, StoreError> {
    let Start {
        missing,
        known,
        unexplained,
        now,
        networks,
    } = start;
    if !missing.is_empty() {
        tracing::info!(
            endpoints = missing.len(),
            "finding out how endpoints of this host went"
        );
    }
    let endings: Vec<(Key, i64, Ending)> = stream::iter(missing)
        .map(async |(key, since)| {
            let ending = store.end_of_life(&key, since, now, PATIENCE).await?;
            Ok::<_, StoreError>((key, since, ending))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let mut deletions: BTreeMap<i64, BTreeSet<Key>> = BTreeMap::new();
    let (mut since, mut because) = (unexplained.then_some(ANY), None);
    for (key, seen, ending) in endings {
        match ending {
            // The agent before this one has seen that, and believed it, or somebody has confirmed it.
            Ending::Deleted(revision) if known.is_some_and(|known| revision <= known) => {}
            Ending::Deleted(revision) => {
                deletions.entry(revision).or_default().insert(key);
            }
            Ending::Forgotten => since = Some(known.unwrap_or(ANY)),
            Ending::NeverBegan => {
                because = Some(format!(
                    "the store's history does not have {key}, which was there at revision {seen}, as if it was restored from a backup"
                ));
            }
        }
    }
    for (revision, keys) in deletions {
        if because.is_some() {
            break;
        }
        let suspicion = Suspicion {
            revision,
            missed: false,
            since: ANY,
            keys,
        };
        let (before, after) = ask_suspicion(store, &suspicion).await?;
        because = suspicion.verdict(before.as_ref(), &after, networks);
    }
    let now = match since {
        Some(since) => Some(at(store, None, since, now).await?),
        None => None,
    };
    Ok(AtStart { because, now })
}

async fn ask_suspicion(store: &Store, suspicion: &Suspicion) -> Result<(Option<Census>, Census), StoreError> {
    let network = suspicion.network();
    let before = async {
        if suspicion.missed {
            return Ok(None);
        }
        store.census(network, ANY, suspicion.revision - 1, PATIENCE).await
    };
    let since = if suspicion.missed { suspicion.since } else { ANY };
    let after = at(store, network, since, suspicion.revision);
    tokio::try_join!(before, after)
}

/// A census at a revision, or now, if that is compacted away.
async fn at(
    store: &Store,
    network: Option<&NetworkName>,
    since: i64,
    revision: i64,
) -> Result<Census, StoreError> {
    let mut revision = revision;
    loop {
        if let Some(census) = store.census(network, since, revision, PATIENCE).await? {
            return Ok(census);
        }
        revision = 0;
    }
}
