//! Puts the parts together: what is opened in which order, who hears of whom, and how all of it stops.

use std::{fs, sync::Arc};

use anyhow::{Context as _, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;
use weft_api::{EventHub, Limits, Listener, ListenerConfig};
use weft_kernel::{Kernel, Notifications};
use weft_store::{Secret, Store, Tls, User};

use crate::{
    config::{Config, Etcd},
    control::AgentControl,
    detachments::Detachments,
    health,
    history::History,
    kernel_thread::KernelThread,
    metrics::{self, Metrics, Page},
    node::{Node, VERSION},
    own_records::OwnRecords,
    reconcile::{self, Asker, Parts, chain},
    sole::Sole,
    state_file::Writer,
};

/// Events kept for a watcher that is behind.
const EVENT_BACKLOG: usize = 4096;
/// Questions to the loop that may wait.
const ASK_QUEUE: usize = 256;

/// Runs the agent until it is told to stop.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let node = Node::new(&config).context("cannot read the kernel's boot id")?;
    // The socket first: whoever serves it already is an agent for this host, and this one has no business here.
    let listener = Listener::bind(&ListenerConfig {
        path: config.socket.clone(),
        group: config.socket_group.clone(),
    })?;
    let _sole = Sole::claim(&config)?;
    let writer = Writer::default();
    let detachments = Detachments::open(&config.state_dir, &writer)?;
    let history = History::open(&config.state_dir, &writer)
        .with_context(|| format!("cannot read store.json in {}", config.state_dir.display()))?;
    let kernel = Kernel::open(kernel_config(&config))?;
    let notifications = Notifications::open(&kernel)?;
    let kernel = KernelThread::start(kernel).context("cannot start the kernel's thread")?;
    let (store, store_events) = Store::open(store_config(&config)?, stop.clone()).await?;

    let events = EventHub::new(EVENT_BACKLOG);
    let (asks, ask_queue) = mpsc::channel(ASK_QUEUE);
    let (changed_sender, changed) = watch::channel(0);
    let (ready, is_ready) = oneshot::channel();
    let control = Arc::new(AgentControl {
        asker: Asker { asks, changed },
        store: store.clone(),
        kernel: kernel.clone(),
        events: events.clone(),
        node: node.name.clone(),
        netns_dir: config.netns_dir.clone(),
        questions: Arc::default(),
        auditing: Arc::default(),
        turns: Arc::default(),
    });
    let asker = control.asker.clone();
    let api = tokio::spawn(weft_api::serve(
        listener,
        Limits::default(),
        control,
        health::watch(asker.clone()),
        stop.clone(),
    ));
    let counted = Metrics::new();
    if let Some(listen) = config.metrics {
        let page = Page {
            metrics: counted.clone(),
            asker: asker.clone(),
            store: store.clone(),
            node: node.clone(),
        };
        tokio::spawn(metrics::serve(listen, page, asker, stop.clone()));
    }
    tokio::spawn(tell_systemd(is_ready));
    tracing::info!(node = %node.name, version = VERSION, socket = %config.socket.display(), "started");

    let parts = Parts {
        node,
        store: store.clone(),
        kernel,
        detachments,
        history,
        records: OwnRecords::new(&config.state_dir, &writer),
        events,
        metrics: counted,
        ready,
    };
    reconcile::run(
        parts,
        store_events,
        Some(notifications),
        ask_queue,
        changed_sender,
        stop.clone(),
    )
    .await;
    // However the loop ended, nothing may go on without it.
    stop.cancel();
    store.closed().await;
    api.await.context("the API's task panicked")??;
    Ok(())
}

/// Removes everything that is weft's on this host.
pub(crate) fn teardown(config: &Config) -> anyhow::Result<()> {
    // A running agent would make everything again.
    let _listener = Listener::bind(&ListenerConfig {
        path: config.socket.clone(),
        group: None,
    })
    .context("stop weftd before a teardown")?;
    let _sole = Sole::claim(config).context("stop weftd before a teardown")?;
    let mut kernel = Kernel::open(kernel_config(config))?;
    let results = kernel.teardown();
    let mut failed = 0;
    for (subject, result) in &results {
        match result {
            Ok(()) => println!("removed {subject}"),
            Err(error) => {
                failed += 1;
                eprintln!("cannot remove {subject}: {}", chain(error));
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} objects could not be removed; see above",
            results.len()
        );
    }
    if results.is_empty() {
        println!("nothing of weft's is on this host");
    }
    Ok(())
}

fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signal = signal(kind).context("cannot listen for signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signal.recv().await;
            stop.cancel();
        });
    }
    Ok(())
}

async fn tell_systemd(is_ready: oneshot::Receiver<()>) {
    // Stopping before the first pass is no readiness.
    if is_ready.await.is_ok()
        && let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready])
    {
        tracing::warn!(%error, "cannot tell the service manager that the agent is ready");
    }
}

fn kernel_config(config: &Config) -> weft_kernel::Config {
    weft_kernel::Config {
        netns_dir: config.netns_dir.clone(),
        attachment_dirs: config.attachment_dirs.clone(),
    }
}

fn store_config(config: &Config) -> anyhow::Result<weft_store::Config> {
    let Etcd {
        endpoints,
        ca,
        identity,
        user,
    } = config.etcd.clone();
    let mut store = weft_store::Config::new(endpoints, config.prefix.clone(), config.node.clone());
    if ca.is_some() || identity.is_some() {
        store.tls = Some(Tls {
            ca,
            identity,
            domain: None,
        });
    }
    if let Some((name, file)) = user {
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read the etcd password file {}", file.display()))?;
        let password = Secret::new(text.lines().next().unwrap_or_default());
        store.user = Some(User { name, password });
    }
    Ok(store)
}
