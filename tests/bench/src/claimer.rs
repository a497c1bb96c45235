//! A host that claims: the path by which an agent claims, without kernel and API. A store client with its own
//! connection and watch, a view fed by its events, a choice from that view, one transaction, and what its
//! answer tells taken into the view before the next choice. Several claims may be under way at a time.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weft_core::{
    answer,
    claims::{self, Choosing},
    fence::fenced,
    members::Members,
    record::{Committed, StoreEvent, Transaction, Write},
    snapshot::Snapshot,
};
use weft_store::{Config, Store};
use weft_store_schema::{
    AttachmentDocument, EndpointDocument, EndpointId, EndpointRef, Key, NetworkName, NodeName, Prefix,
};

/// An agent waits this long before it tries again after a lost race, doubled each time up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);

/// One agent's claiming half.
pub struct Claimer {
    store: Store,
    view: Arc<Mutex<Snapshot>>,
    seen: watch::Receiver<u64>,
    pump: JoinHandle<()>,
    stop: CancellationToken,
    network: NetworkName,
    node: NodeName,
    /// What is being claimed just now, as an agent's book has it.
    claiming: Mutex<BTreeSet<IpAddr>>,
    next: AtomicU64,
}

/// A claim that succeeded.
#[derive(Debug)]
pub struct Claimed {
    /// Transactions sent for it.
    pub attempts: u64,
    /// The transaction that did it.
    pub transaction: Transaction,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Endpoints, claims and traces.
fn known(members: &Members) -> (usize, usize, usize) {
    (
        members.count(),
        members.claims().count(),
        members.released().count(),
    )
}

impl Claimer {
    /// Connects and begins to follow the network's records.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub async fn open(url: &str, node: NodeName, network: NetworkName) -> Result<Self> {
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
            claiming: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// Waits until the view is complete and holds this many endpoints and claims of the network, this many traces
    /// of addresses given up, and this many peers: a node's place among them decides where in the network it chooses.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn informed(&self, count: usize, released: usize, peers: usize) -> Result<()> {
        let (network, view) = (self.network.clone(), Arc::clone(&self.view));
        let is_informed = |_: &u64| {
            let view = lock(&view);
            let scopes = view.interest(&BTreeSet::new(), &BTreeSet::from([network.clone()]));
            let members = view.members(&network);
            let there = members.map_or((0, 0, 0), known);
            view.is_complete(&scopes) && there == (count, count, released) && view.peers().count() == peers
        };
        let mut seen = self.seen.clone();
        let informed = tokio::time::timeout(Duration::from_secs(60), seen.wait_for(is_informed)).await;
        match informed {
            Ok(informed) => informed.map(drop).context("the store's client has ended"),
            Err(_) => {
                let view = lock(&self.view);
                let members = view.members(&self.network);
                let there = members.map_or((0, 0, 0), known);
                bail!(
                    "{} sees {there:?} endpoints, claims and traces instead of {count}, {count} and {released}, and {} \
                     peers instead of {peers}",
                    self.node,
                    view.peers().count()
                )
            }
        }
    }

    /// The transaction of the next claim, without sending it.
    ///
    /// # Errors
    /// When the view shows that it cannot be.
    pub fn example(&self) -> Result<Transaction> {
        self.choose(self.next.load(Ordering::Relaxed), 0)
    }

    /// `lost` is how often another was faster.
    fn choose(&self, number: u64, lost: u32) -> Result<Transaction> {
        let name = EndpointRef {
            network: self.network.clone(),
            node: self.node.clone(),
            id: EndpointId::new(&format!("e{number:07}"))?,
        };
        let choosing = Choosing {
            claiming: lock(&self.claiming).clone(),
            lost,
            ..Choosing::default()
        };
        let view = lock(&self.view);
        let chosen = claims::attach(&view, &name, endpoint(number), None, &choosing);
        let transaction = chosen.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        Ok(fenced(&view, transaction))
    }

    /// Claims an address for a new endpoint, however many attempts it takes.
    ///
    /// # Errors
    /// When the network is full, or etcd does not answer.
    pub async fn claim(&self) -> Result<Claimed> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut lost = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let transaction = self.choose(number, lost)?;
            let addresses = addresses_of(&transaction);
            lock(&self.claiming).extend(&addresses);
            let committed = self.store.commit(&transaction, COMMIT_DEADLINE).await;
            if self.end(&transaction, &addresses, committed?) {
                return Ok(Claimed {
                    attempts: u64::from(lost) + 1,
                    transaction,
                });
            }
            lost += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes in what became of a claim: whether it happened.
    fn end(&self, transaction: &Transaction, addresses: &[IpAddr], committed: Committed) -> bool {
        // Whoever chooses next finds the address in the view or being claimed, never neither.
        let mut view = lock(&self.view);
        lock(&self.claiming).retain(|a| !addresses.contains(a));
        let (happened, changes) = match committed {
            Committed::Yes { revision } => (true, answer::own_changes(&view, transaction, revision)),
            Committed::No { now, .. } => (false, answer::news(transaction, now)),
        };
        view.learn(&changes);
        happened
    }

    /// How long making a transaction from the view as it is now takes, the fastest of many: what else runs only
    /// makes it slower.
    ///
    /// # Errors
    /// When nothing can be chosen.
    pub fn time_to_choose(&self) -> Result<Duration> {
        let mut fastest = Duration::MAX;
        for _ in 0..100 {
            let started = Instant::now();
            self.example()?;
            fastest = fastest.min(started.elapsed());
        }
        Ok(fastest)
    }

    /// Ends the connection and all tasks.
    pub async fn close(self) {
        self.stop.cancel();
        self.store.closed().await;
        // It ends with its store.
        let _ = self.pump.await;
    }
}

fn addresses_of(transaction: &Transaction) -> Vec<IpAddr> {
    let claims = transaction.writes.iter().filter_map(|write| match write {
        Write::Put(Key::Address(_, address), _) => Some(*address),
        _ => None,
    });
    claims.collect()
}

fn take_in(view: &mut Snapshot, event: StoreEvent) {
    match event {
        StoreEvent::Listed {
            scope,
            revision,
            cluster_id,
            entries,
            ..
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
pub fn endpoint(number: u64) -> EndpointDocument {
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
