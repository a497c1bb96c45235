//! A claimer: the path by which an agent claims, without kernel and API. A store client with its own
//! connection and watch, a view fed by its events, a choice from that view, one transaction, and what its
//! answer tells taken into the view before the next choice.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weft_core::{
    answer,
    claims::{self, Choosing},
    fence::fenced,
    record::{Committed, StoreEvent, Transaction},
    snapshot::Snapshot,
};
use weft_store::{Config, Store};
use weft_store_schema::{
    AttachmentDocument, EndpointDocument, EndpointId, EndpointRef, NetworkName, NodeName, Prefix,
};

/// An agent waits this long before it tries again after a lost race, doubled each time up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);

/// One agent's claiming half.
pub(crate) struct Claimer {
    store: Store,
    view: Arc<Mutex<Snapshot>>,
    seen: watch::Receiver<u64>,
    pump: JoinHandle<()>,
    stop: CancellationToken,
    network: NetworkName,
    node: NodeName,
    next: u64,
}

/// A claim that succeeded.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// Transactions sent for it.
    pub(crate) attempts: u64,
    /// The transaction that did it.
    pub(crate) transaction: Transaction,
}

fn lock(view: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claimer {
    /// Connects and begins to follow the network's records.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub(crate) async fn open(url: &str, node: NodeName, network: NetworkName) -> Result<Self> {
        let prefix = Prefix::default();
        let stop = CancellationToken::new();
        let config = Config::new(vec![url.to_owned()], prefix.clone(), node.clone());
        let (store, mut events) = Store::open(config, stop.clone()).await?;
        let snapshot = Snapshot::new(prefix, node.clone());
        store.want(snapshot.interest(&BTreeSet::new(), &BTreeSet::from([network.clone()])));
        let view = Arc::new(Mutex::new(snapshot));
        let (tell, seen) = watch::channel(0);
        let fed = Arc::clone(&view);
        let pump = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                take_in(&mut lock(&fed), event);
                tell.send_modify(|count| *count += 1);
            }
        });
        Ok(Self {
            store,
            view,
            seen,
            pump,
            stop,
            network,
            node,
            next: 0,
        })
    }

    /// Waits until the view is complete and holds this many endpoints and claims of the network, and this many
    /// peers: a node's place among them decides where in the network it chooses.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub(crate) async fn informed(&mut self, count: usize, peers: usize) -> Result<()> {
        let (network, view) = (self.network.clone(), Arc::clone(&self.view));
        let is_informed = |_: &u64| {
            let view = lock(&view);
            let scopes = view.interest(&BTreeSet::new(), &BTreeSet::from([network.clone()]));
            let members = view.members(&network);
            let there = members.map_or((0, 0), |m| (m.count(), m.claims().count()));
            view.is_complete(&scopes) && there == (count, count) && view.peers().count() == peers
        };
        let informed = tokio::time::timeout(Duration::from_secs(60), self.seen.wait_for(is_informed)).await;
        match informed {
            Ok(informed) => informed.map(drop).context("the store's client has ended"),
            Err(_) => {
                let view = lock(&self.view);
                let members = view.members(&self.network);
                let there = members.map_or((0, 0), |m| (m.count(), m.claims().count()));
                bail!(
                    "{} sees {there:?} endpoints and claims instead of {count}, and {} peers instead of {peers}",
                    self.node,
                    view.peers().count()
                )
            }
        }
    }

    /// The transaction of the next claim, without sending it. `lost` is how often another was faster.
    ///
    /// # Errors
    /// When the view shows that it cannot be.
    pub(crate) fn choose(&self, lost: u32) -> Result<Transaction> {
        let name = EndpointRef {
            network: self.network.clone(),
            node: self.node.clone(),
            id: EndpointId::new(&format!("e{:07}", self.next))?,
        };
        let choosing = Choosing {
            lost,
            ..Choosing::default()
        };
        let view = lock(&self.view);
        let chosen = claims::attach(&view, &name, endpoint(self.next), None, &choosing);
        let transaction = chosen.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        Ok(fenced(&view, transaction))
    }

    /// Claims an address for a new endpoint, however many attempts it takes.
    ///
    /// # Errors
    /// When the network is full, or etcd does not answer.
    pub(crate) async fn claim(&mut self) -> Result<Claimed> {
        let mut lost = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let transaction = self.choose(lost)?;
            match self.store.commit(&transaction, COMMIT_DEADLINE).await? {
                Committed::Yes { revision } => {
                    let mut view = lock(&self.view);
                    let changes = answer::own_changes(&view, &transaction, revision);
                    view.learn(&changes);
                    self.next += 1;
                    return Ok(Claimed {
                        attempts: u64::from(lost) + 1,
                        transaction,
                    });
                }
                Committed::No { now, .. } => {
                    lock(&self.view).learn(&answer::news(&transaction, now));
                }
            }
            lost += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// How long making a transaction from the view as it is now takes, the fastest of many: what else runs only
    /// makes it slower.
    ///
    /// # Errors
    /// When nothing can be chosen.
    pub(crate) fn time_to_choose(&self) -> Result<Duration> {
        let mut fastest = Duration::MAX;
        for _ in 0..100 {
            let started = Instant::now();
            self.choose(0)?;
            fastest = fastest.min(started.elapsed());
        }
        Ok(fastest)
    }

    /// Ends the connection and all tasks.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        self.store.closed().await;
        // It ends with its store.
        let _ = self.pump.await;
    }
}

fn take_in(view: &mut Snapshot, event: StoreEvent) {
    match event {
        StoreEvent::Listed {
            scope,
            revision,
            cluster_id,
            entries,
        } => {
            view.apply_listing(&scope, cluster_id, revision, &entries);
        }
        StoreEvent::Changed { changes, .. } => {
            view.apply_changes(&changes);
        }
        StoreEvent::Progress { revision } => view.saw(revision),
        StoreEvent::Connection(_) => {}
    }
}

/// An endpoint's record as the API makes it.
pub(crate) fn endpoint(number: u64) -> EndpointDocument {
    EndpointDocument {
        version: None,
        name: Some(format!("web-{number}")),
        attachment: AttachmentDocument {
            netns: format!("/run/netns/container-{number:07}"),
            ifname: None,
        },
        requested_addresses: Vec::new(),
        addresses: Vec::new(),
        mac: None,
        labels: [].into(),
    }
}
