//! Many agents beside one etcd: each is weftd's own loop with its own connection, watches, leases and state, and a kernel
//! that only writes down what it is told. All of them share this process.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use weft_core::plan::{Op, Plan};
use weft_store_schema::{Mac, NetworkName};
use weftd::{Simulated, simulate};

use crate::{crowd::PATIENCE, records};

/// Who takes part in what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interest {
    /// Agents.
    pub(crate) agents: usize,
    /// Networks.
    pub(crate) networks: usize,
    /// Whether each follows all networks, not only its two.
    pub(crate) everything: bool,
}

impl Interest {
    /// The two networks of an agent.
    pub(crate) fn of(self, agent: usize) -> [usize; 2] {
        let far = 1 + (agent / self.networks) % (self.networks - 1);
        [agent % self.networks, (agent + far) % self.networks]
    }

    /// How many agents take part in a network.
    pub(crate) fn in_network(self, network: usize) -> usize {
        (0..self.agents)
            .filter(|agent| self.of(*agent).contains(&network))
            .count()
    }
}

/// The node of an agent.
pub(crate) fn node(agent: usize) -> String {
    format!("agent-{agent:04}")
}

fn vtep(agent: usize) -> IpAddr {
    let number = u32::try_from(agent).unwrap_or(u32::MAX);
    Ipv4Addr::from((10 << 24) + (97 << 16) + 256 + number).into()
}

/// A change that has reached all whom it concerns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    /// From the put until the first had it.
    pub(crate) first: Duration,
    /// Until the last had it.
    pub(crate) last: Duration,
}

#[derive(Debug)]
struct Awaited {
    since: Instant,
    left: usize,
    first: Option<Duration>,
}

/// Which changes are on their way, by the MAC that they bring.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    awaited: Arc<Mutex<HashMap<Mac, Awaited>>>,
    arrived: mpsc::UnboundedSender<Arrived>,
}

impl Board {
    /// An empty one, and where it is told what has arrived.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Arrived>) {
        let (arrived, receiver) = mpsc::unbounded_channel();
        let board = Self {
            awaited: Arc::default(),
            arrived,
        };
        (board, receiver)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Mac, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change from now on, to come to this many.
    pub(crate) fn expect(&self, mac: Mac, interested: usize, since: Instant) {
        let awaited = Awaited {
            since,
            left: interested,
            first: None,
        };
        self.lock().insert(mac, awaited);
    }

    /// Changes that have not come to all; forgets them.
    pub(crate) fn give_up(&self) -> usize {
        std::mem::take(&mut *self.lock()).len()
    }

    fn recorder(&self) -> impl FnMut(&Plan) + Send + use<> {
        let board = self.clone();
        move |plan| {
            let now = Instant::now();
            for op in plan.networks.values().flatten() {
                if let Op::PutNeighbour(_, mac) = op {
                    board.has(*mac, now);
                }
            }
        }
    }

    fn has(&self, mac: Mac, now: Instant) {
        let mut all = self.lock();
        let Some(awaited) = all.get_mut(&mac) else { return };
        let delay = now.saturating_duration_since(awaited.since);
        awaited.left -= 1;
        let first = *awaited.first.get_or_insert(delay);
        if awaited.left == 0 {
            all.remove(&mac);
            // Whoever measures may have enough.
            let _ = self.arrived.send(Arrived { first, last: delay });
        }
    }
}

/// The running agents.
#[derive(Debug)]
pub(crate) struct Fleet {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Result<()>>>,
    /// From the start of all until each was ready, sorted.
    pub(crate) ready: Vec<Duration>,
}

impl Fleet {
    /// Starts all at once and waits until each has finished its first pass. `url` is where they find etcd.
    ///
    /// # Errors
    /// When one ends, or is not ready within [`PATIENCE`].
    pub(crate) async fn start(interest: Interest, url: &str, states: &Path, board: &Board) -> Result<Self> {
        let stop = CancellationToken::new();
        let everything = (0..interest.networks).map(|n| records::network(n).parse());
        let everything: BTreeSet<NetworkName> = everything.collect::<Result<_, _>>()?;
        let begun = Instant::now();
        let (mut tasks, mut waiting) = (Vec::new(), Vec::new());
        for agent in 0..interest.agents {
            let state_dir = states.join(node(agent));
            std::fs::create_dir_all(&state_dir).with_context(|| state_dir.display().to_string())?;
            let (ready, is_ready) = oneshot::channel();
            let host = Simulated {
                etcd: vec![url.to_owned()],
                node: node(agent).parse()?,
                vtep: vtep(agent),
                state_dir,
                followed: if interest.everything {
                    everything.clone()
                } else {
                    BTreeSet::new()
                },
                recorder: Box::new(board.recorder()),
                ready,
            };
            tasks.push(tokio::spawn(simulate(host, stop.clone())));
            waiting.push(tokio::spawn(async move {
                let ready = is_ready.await;
                ready.map(|()| begun.elapsed())
            }));
        }
        let mut ready = Vec::new();
        for (agent, waiting) in waiting.into_iter().enumerate() {
            let patience = PATIENCE.saturating_sub(begun.elapsed());
            let is_ready = tokio::time::timeout(patience, waiting).await;
            let is_ready =
                is_ready.with_context(|| format!("agent {agent} was not ready within {PATIENCE:?}"))?;
            ready.push(is_ready?.with_context(|| format!("agent {agent} has ended"))?);
        }
        ready.sort_unstable();
        Ok(Self { stop, tasks, ready })
    }

    /// Ends them all.
    ///
    /// # Errors
    /// When one had ended with an error.
    pub(crate) async fn end(self) -> Result<()> {
        self.stop.cancel();
        for (agent, task) in self.tasks.into_iter().enumerate() {
            task.await?.with_context(|| format!("agent {agent}"))?;
        }
        Ok(())
    }

    /// Whether all run.
    ///
    /// # Errors
    /// When one has ended.
    pub(crate) fn all_run(&self) -> Result<()> {
        let ended = self.tasks.iter().filter(|task| task.is_finished()).count();
        ensure!(ended == 0, "{ended} agents have ended");
        Ok(())
    }
}
