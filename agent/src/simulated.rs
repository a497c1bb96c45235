//! The agent's loop beside a kernel that only remembers: everything between etcd and the plan is the product's own, and a
//! plan is done when it is written down. For tests/bench, which runs a thousand of them; it is no part of the product.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use weft_api::EventHub;
use weft_core::{
    announce::Announcements,
    dataplane::{ForwardRow, LookInto, Observed, ObservedNetwork},
    plan::{Outcome, Plan},
};
use weft_kernel::{KernelError, Underlay, UnderlaySelection};
use weft_store::Store;
use weft_store_schema::{Attachment, Mac, NetworkName, NodeName, Prefix};

use crate::{
    detachments::Detachments,
    history::History,
    kernel_thread::{HostKernel, KernelThread},
    metrics::Metrics,
    node::Node,
    own_records::OwnRecords,
    reconcile::{self, Ask, Parts},
    state_file::Writer,
};

/// Nobody has containers here that could be gone.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// One host that is to be simulated.
pub struct Simulated {
    /// Client URLs of etcd.
    pub etcd: Vec<String>,
    /// Its node's name.
    pub node: NodeName,
    /// Its VTEP address.
    pub vtep: IpAddr,
    /// Where it keeps its state: a directory of its own.
    pub state_dir: PathBuf,
    /// Networks that it follows whole even without an endpoint in them.
    pub followed: BTreeSet<NetworkName>,
    /// Hears every plan, in order, as soon as it is written down.
    pub recorder: Box<dyn FnMut(&Plan) + Send>,
    /// Told when the first pass is done.
    pub ready: oneshot::Sender<()>,
}

/// Runs its loop until the token is cancelled.
///
/// # Errors
/// When its state cannot be read, or the URLs cannot be used.
pub async fn simulate(host: Simulated, stop: CancellationToken) -> anyhow::Result<()> {
    let node = Node {
        name: host.node.clone(),
        boot_id: host.node.to_string(),
        started: std::time::SystemTime::now(),
        begun: std::time::Instant::now(),
        port: 4789,
        underlay: UnderlaySelection {
            interface: None,
            addresses: Vec::new(),
        },
        mtu: None,
        netns_dir: host.state_dir.clone(),
        resync: NEVER,
        dead_grace: NEVER,
        release_dead: false,
    };
    let kernel = KernelThread::start(Recorder {
        vtep: host.vtep,
        observed: Observed::default(),
        tell: host.recorder,
    })
    .context("cannot start the kernel's thread")?;
    let config = weft_store::Config::new(host.etcd, Prefix::default(), host.node);
    let (store, store_events) = Store::open(config, stop.clone()).await?;
    let writer = Writer::default();
    let parts = Parts {
        node,
        store: store.clone(),
        kernel,
        detachments: Detachments::open(&host.state_dir, &writer)?,
        history: History::open(&host.state_dir, &writer)?,
        records: OwnRecords::new(&host.state_dir, &writer),
        events: EventHub::new(16),
        metrics: Metrics::new(),
        ready: host.ready,
    };
    let (asks, ask_queue) = mpsc::channel::<Ask>(1);
    let followed = host.followed;
    let follow: Ask = Box::new(move |r| followed.iter().for_each(|network| r.pin(network)));
    // The queue is empty and its other end is here: it takes one.
    let _ = asks.try_send(follow);
    let (changed, _) = watch::channel(0);
    reconcile::run(parts, store_events, None, ask_queue, changed, stop).await;
    store.closed().await;
    Ok(())
}

/// A kernel that does at once whatever it is told, and has no other writer.
struct Recorder {
    vtep: IpAddr,
    observed: Observed,
    tell: Box<dyn FnMut(&Plan) + Send>,
}

impl Recorder {
    fn network(&self, network: &NetworkName) -> Option<ObservedNetwork> {
        self.observed.networks.get(network).cloned()
    }
}

impl HostKernel for Recorder {
    fn underlay(&mut self, _: &UnderlaySelection) -> Result<Underlay, KernelError> {
        Ok(Underlay {
            ifname: "eth0".to_owned(),
            v4: Some(self.vtep).filter(IpAddr::is_ipv4),
            v6: Some(self.vtep).filter(IpAddr::is_ipv6),
            mtu: 1500,
        })
    }

    fn check_attachment(&mut self, _: &Attachment) -> Result<(), KernelError> {
        Ok(())
    }

    fn observe(&mut self, _: &[LookInto]) -> (Observed, Vec<(String, KernelError)>) {
        (self.observed.clone(), Vec::new())
    }

    fn observe_network(
        &mut self,
        network: &NetworkName,
        _: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError> {
        Ok(self.network(network))
    }

    fn observe_links(
        &mut self,
        network: &NetworkName,
        _: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError> {
        Ok(self.network(network))
    }

    fn observe_forward(
        &mut self,
        network: &NetworkName,
        macs: &[Mac],
    ) -> Result<Vec<(Mac, Option<ForwardRow>)>, KernelError> {
        let there = self.observed.networks.get(network);
        let row = |mac: &Mac| there.and_then(|n| n.forwards.get(mac)).cloned();
        Ok(macs.iter().map(|mac| (*mac, row(mac))).collect())
    }

    fn observe_neighbours(
        &mut self,
        network: &NetworkName,
        addresses: &[IpAddr],
    ) -> Result<Vec<(IpAddr, Option<Mac>)>, KernelError> {
        let there = self.observed.networks.get(network);
        let mac = |address: &IpAddr| there.and_then(|n| n.neighbours.get(address)).copied();
        Ok(addresses.iter().map(|address| (*address, mac(address))).collect())
    }

    fn apply(&mut self, plan: &Plan) -> Outcome<KernelError> {
        for (network, ops) in &plan.networks {
            for op in ops {
                self.observed.record(network, op);
            }
        }
        (self.tell)(plan);
        Outcome {
            done: plan.len(),
            writes: plan.len() as u64,
            ..Outcome::default()
        }
    }

    fn announce(&mut self, _: &Announcements) {}
}
