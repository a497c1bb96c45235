//! Claims per second and attempts per claim, round by round beside the bare rates.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use weft_bench::{
    Against, Bare, Claimer, Figure, Form, Goal, Machine, Pace, Paced, Progress, Request, Row, Shape, Usage,
    rotated,
};
use weft_core::record::Transaction;
use weft_store_schema::Prefix;

use crate::network::{self, Layout, Network, SIZE};

/// On how many hosts how many claim at a time, the fewest hosts first: each host watches what all of them write.
const STAGES: [Stand; 5] = [
    Stand {
        hosts: 1,
        at_a_time: 1,
    },
    Stand {
        hosts: 2,
        at_a_time: 16,
    },
    Stand {
        hosts: 4,
        at_a_time: 4,
    },
    Stand {
        hosts: 16,
        at_a_time: 16,
    },
    Stand {
        hosts: 64,
        at_a_time: 64,
    },
];
/// The number of claimers that the goals are for.
const JUDGED: usize = 16;
const LAYOUTS: [Layout; 4] = [Layout::Empty, Layout::Random, Layout::Sequential, Layout::Used];
/// How full the full ones are, percent.
const FULL: usize = 95;

/// How many claim, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stand {
    hosts: usize,
    at_a_time: usize,
}

impl Stand {
    /// As it is written after `ONLY=`.
    fn name(self) -> String {
        if self.hosts == self.at_a_time {
            self.at_a_time.to_string()
        } else {
            format!("{}on{}", self.at_a_time, self.hosts)
        }
    }

    fn text(self) -> String {
        match (self.at_a_time, self.hosts) {
            (1, _) => "1 claimer".to_owned(),
            (n, hosts) if n == hosts => format!("{n} claimers on a host each"),
            (n, hosts) => format!("{n} claimers on {hosts} hosts"),
        }
    }
}

/// What is measured in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    Put,
    Transaction,
    Watched,
    Claims,
}

impl Peer {
    fn text(self) -> &'static str {
        match self {
            Self::Put => "bare put",
            Self::Transaction => "bare txn",
            Self::Watched => "bare txn, watched by as many",
            Self::Claims => "claims",
        }
    }
}

/// What one peer did over the rounds.
#[derive(Debug, Default)]
struct Series {
    rate: Figure,
    attempts: Figure,
    /// CPU time for one request, microseconds: this process, etcd.
    own: Figure,
    etcd: Figure,
    /// Share of all processors' time that both used.
    busy: Figure,
}

impl Series {
    fn add(&mut self, paced: &Paced, used: Usage, cores: f64) {
        let done = paced.done as f64;
        self.rate.push(paced.rate());
        self.attempts.push(paced.attempts as f64 / done);
        self.own.push(used.own.as_secs_f64() * 1e6 / done);
        self.etcd.push(used.other.as_secs_f64() * 1e6 / done);
        self.busy
            .push((used.own + used.other).as_secs_f64() / (paced.took.as_secs_f64() * cores));
    }
}

/// One layout at one concurrency.
#[derive(Debug)]
struct Stage {
    layout: Layout,
    text: &'static str,
    stand: Stand,
    series: BTreeMap<Peer, Series>,
    choosing: Duration,
}

/// All figures.
#[derive(Debug)]
pub(crate) struct Found {
    stages: Vec<Stage>,
    shape: String,
    rounds: usize,
    time: Duration,
    verified: usize,
}

/// Reads which layout at which concurrency is wanted, such as `empty/16`; all of them without a text.
///
/// # Errors
/// When the text names none.
pub(crate) fn only(text: Option<&str>) -> Result<Option<(Layout, Stand)>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let all = LAYOUTS
        .into_iter()
        .flat_map(|layout| STAGES.map(|stand| (layout, stand)));
    let mut found = all
        .clone()
        .filter(|(layout, stand)| text == format!("{}/{}", layout.name(), stand.name()));
    let names: Vec<_> = all
        .clone()
        .map(|(layout, stand)| format!("{}/{}", layout.name(), stand.name()))
        .collect();
    let one = found
        .next()
        .with_context(|| format!("ONLY={text} is none of {}", names.join(", ")))?;
    Ok(Some(one))
}

/// What stays the same during a run.
struct Run<'a> {
    url: &'a str,
    etcd: u32,
    bare: Bare,
    shape: Option<Arc<Shape>>,
    rounds: usize,
    time: Duration,
    progress: Progress,
    form: Form,
    only: Option<(Layout, Stand)>,
    verified: usize,
}

/// Measures everything.
///
/// # Errors
/// When etcd fails, or what it holds in the end is not what was claimed.
pub(crate) async fn measure(
    url: &str,
    etcd: u32,
    form: Form,
    only: Option<(Layout, Stand)>,
    progress: Progress,
) -> Result<Found> {
    let most = STAGES.iter().map(|stand| stand.at_a_time).max().unwrap_or(1);
    let mut run = Run {
        url,
        etcd,
        bare: Bare::connect(url, most).await?,
        shape: None,
        rounds: form.pick(3, 7),
        time: form.pick(Duration::from_millis(500), Duration::from_secs(2)),
        progress,
        form,
        only,
        verified: 0,
    };
    let mut stages = Vec::new();
    for layout in LAYOUTS
        .into_iter()
        .filter(|layout| only.is_none_or(|(l, _)| l == *layout))
    {
        stages.extend(run.layout(layout).await?);
    }
    Ok(Found {
        stages,
        shape: run.shape.as_ref().map(|shape| shape.text()).unwrap_or_default(),
        rounds: run.rounds,
        time: run.time,
        verified: run.verified,
    })
}

impl Run<'_> {
    async fn layout(&mut self, layout: Layout) -> Result<Vec<Stage>> {
        let mut kv = self.bare.kv();
        let network = Network::make(&mut kv, layout, FULL).await?;
        self.progress.say(format!("{}: made", network.text()));
        let mut claimers: Vec<Arc<Claimer>> = Vec::new();
        let mut stages = Vec::new();
        for stand in STAGES {
            let wanted = match (self.only, layout, self.form) {
                (Some((_, only)), ..) => only == stand,
                // Time goes mostly into so many views of so many addresses.
                (None, Layout::Sequential | Layout::Used, Form::Short) => stand.at_a_time == JUDGED,
                _ => true,
            };
            if !wanted {
                continue;
            }
            network::put_peers(&mut kv, claimers.len()..stand.hosts).await?;
            // A few at a time: a listing that waits behind many others runs out of time.
            while claimers.len() < stand.hosts {
                let first = claimers.len();
                for number in first..stand.hosts.min(first + 8) {
                    let node = network::node(number)?;
                    let claimer = Claimer::open(self.url, node, network.name.clone()).await?;
                    claimers.push(Arc::new(claimer));
                }
                for claimer in &claimers[first..] {
                    claimer
                        .informed(network.filled, network.released, stand.hosts)
                        .await?;
                }
            }
            for claimer in &claimers {
                claimer
                    .informed(network.filled, network.released, stand.hosts)
                    .await?;
            }
            self.progress.say(format!("{}: {}", network.text(), stand.text()));
            stages.push(self.stage(&network, stand, &claimers).await?);
        }
        for claimer in claimers {
            Arc::into_inner(claimer)
                .context("somebody claims still")?
                .close()
                .await;
        }
        network.delete(&mut kv).await?;
        self.bare.forget_history().await?;
        Ok(stages)
    }

    async fn stage(&mut self, network: &Network, stand: Stand, claimers: &[Arc<Claimer>]) -> Result<Stage> {
        let at_a_time = stand.at_a_time;
        let first = claimers.first().context("nobody claims")?;
        let choosing = first.time_to_choose()?;
        let shape = match &self.shape {
            Some(shape) => Arc::clone(shape),
            None => {
                let shape = Arc::new(Shape::of(&first.example()?, &Prefix::default())?);
                self.shape = Some(Arc::clone(&shape));
                shape
            }
        };
        let (key, value) = shape.largest();
        // In a full network, no more than two of the five per cent that are left.
        let most = if network.layout == Layout::Empty {
            SIZE / 4
        } else {
            SIZE / 50
        };
        let pace = Pace {
            time: self.time,
            each: (most / at_a_time) as u64,
        };
        let peers: &[Peer] = match (network.layout, self.form) {
            (Layout::Empty, _) | (_, Form::Long) => {
                &[Peer::Put, Peer::Transaction, Peer::Watched, Peer::Claims]
            }
            _ => &[Peer::Transaction, Peer::Claims],
        };
        let mut series: BTreeMap<Peer, Series> = BTreeMap::new();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        for round in 0..self.rounds {
            for peer in rotated(peers.len(), round).map(|i| peers[i]) {
                let before = Usage::now(self.etcd)?;
                let (paced, claimed) = match peer {
                    Peer::Put => (
                        self.bare
                            .run(&Request::Put { key, value }, at_a_time, false, pace)
                            .await?,
                        Vec::new(),
                    ),
                    Peer::Transaction | Peer::Watched => {
                        let request = Request::Transaction(Arc::clone(&shape));
                        let watched = peer == Peer::Watched;
                        (
                            self.bare.run(&request, at_a_time, watched, pace).await?,
                            Vec::new(),
                        )
                    }
                    Peer::Claims => claim(claimers, at_a_time, pace).await?,
                };
                let used = Usage::now(self.etcd)?.since(before);
                series.entry(peer).or_default().add(&paced, used, cores);
                let is_last = round + 1 == self.rounds;
                self.tidy(network, claimers, &claimed, is_last).await?;
            }
        }
        if self.form == Form::Long {
            self.bare.forget_history().await?;
        }
        Ok(Stage {
            layout: network.layout,
            text: network.text(),
            stand,
            series,
            choosing,
        })
    }

    /// Checks what was claimed, and makes everything as it was before.
    async fn tidy(
        &mut self,
        network: &Network,
        claimers: &[Arc<Claimer>],
        claimed: &[Transaction],
        thoroughly: bool,
    ) -> Result<()> {
        if claimed.is_empty() {
            return self.bare.clear().await;
        }
        let mut kv = self.bare.kv();
        network.verify(&mut kv, claimed, thoroughly).await?;
        self.verified += claimed.len();
        network.undo(&mut kv, claimed).await?;
        let peers = claimers.len();
        for claimer in claimers {
            claimer.informed(network.filled, network.released, peers).await?;
        }
        Ok(())
    }
}

/// Has so many claim at the same time, on all hosts alike.
async fn claim(claimers: &[Arc<Claimer>], at_a_time: usize, pace: Pace) -> Result<(Paced, Vec<Transaction>)> {
    let mut working = JoinSet::new();
    let started = Instant::now();
    for claimer in claimers.iter().cycle().take(at_a_time) {
        let claimer = Arc::clone(claimer);
        working.spawn(async move {
            let mut claimed = Vec::new();
            let mut attempts = 0;
            while pace.goes_on(started, claimed.len() as u64) {
                let one = claimer.claim().await?;
                attempts += one.attempts;
                claimed.push(one.transaction);
            }
            anyhow::Ok((attempts, claimed))
        });
    }
    let mut all = Vec::new();
    let mut attempts = 0;
    while let Some(worker) = working.join_next().await {
        let (sent, claimed) = worker??;
        attempts += sent;
        all.extend(claimed);
    }
    let took = started.elapsed();
    let done = all.len() as u64;
    Ok((Paced { done, attempts, took }, all))
}

impl Found {
    fn of(&self, layout: Layout, stand: Stand) -> Option<&Stage> {
        self.stages
            .iter()
            .find(|stage| stage.layout == layout && stage.stand == stand)
    }

    /// The rows.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for stage in &self.stages {
            let at_sixteen = stage.stand.at_a_time == JUDGED;
            let what = format!("{}, {}", stage.stand.text(), stage.text);
            let bound = if stage.layout == Layout::Empty { 0.8 } else { 0.6 };
            let Some(claims) = stage.series.get(&Peer::Claims) else {
                continue;
            };
            for peer in [Peer::Transaction, Peer::Put, Peer::Watched] {
                let Some(other) = stage.series.get(&peer) else {
                    continue;
                };
                let against = Against {
                    what: peer.text(),
                    figure: &other.rate,
                };
                let goal = (at_sixteen && peer == Peer::Transaction).then_some(Goal::RatioAtLeast(bound));
                rows.push(Row::new(
                    format!("claims, {what}"),
                    "1/s",
                    &claims.rate,
                    Some(against),
                    goal,
                ));
            }
            let goal = (at_sixteen && stage.layout == Layout::Empty).then_some(Goal::AtMost(1.05));
            rows.push(Row::new(
                format!("attempts per claim, {what}"),
                "",
                &claims.attempts,
                None,
                goal,
            ));
        }
        rows
    }

    /// The rows that need Docker's figure: containers that enter a network a second.
    pub(crate) fn beside_docker(&self, connects: &Figure) -> Vec<Row> {
        let two_hosts = STAGES.into_iter().find(|stand| stand.hosts == 2);
        let stage = two_hosts.and_then(|stand| self.of(Layout::Empty, stand));
        let claims = stage.and_then(|stage| stage.series.get(&Peer::Claims));
        let row = claims.map(|claims| {
            let against = Against {
                what: "Docker 20.10: network connect, two hosts (device included)",
                figure: connects,
            };
            Row::new(
                "claims, 16 claimers on 2 hosts, empty /16",
                "1/s",
                &claims.rate,
                Some(against),
                None,
            )
        });
        row.into_iter().collect()
    }

    /// How it was measured.
    pub(crate) fn method(&self, disk: &str) -> Vec<String> {
        vec![
            format!(
                "One real etcd with default fsync, its data on {disk}, reached over a veth pair; {} rounds of {} ms for each \
                 figure, taking turns.",
                self.rounds,
                self.time.as_millis()
            ),
            "A claimer is an agent's path without kernel: a store client with connection and watch, a view, the choice, one \
             transaction, and learning from the answer. Each stands on a host of its own, that is, has client and view to \
             itself, unless the row says on how many hosts they stand. All of them share one process."
                .to_owned(),
            format!(
                "The bare transaction is a claim's own on keys that nobody else touches: {}. The bare put writes a value as \
                 large as the endpoint's record. As many clients, each with its own connection.",
                self.shape
            ),
            format!(
                "After every round etcd held as many claims and endpoints of the network as it should, and no two of the {} \
                 claims had got one address; after the last round of each kind every key was read: what was claimed is there \
                 as it was written, no address is held twice, claims and endpoints agree.",
                self.verified
            ),
        ]
    }

    /// What the figures are made of.
    pub(crate) fn details(&self, machine: &Machine) -> String {
        let mut text = format!(
            "CPU time of one request in microseconds, here and in etcd, and the share of the {} processors' time that both \
             used:\n\n| | claiming | 1/s | here | etcd | busy |\n|---|---|---|---|---|---|\n",
            machine.cores
        );
        for stage in &self.stages {
            for (peer, series) in &stage.series {
                let _ = writeln!(
                    text,
                    "| {}, {} | {} | {:.0} | {:.0} | {:.0} | {:.0} % |",
                    peer.text(),
                    stage.text,
                    stage.stand.name(),
                    series.rate.median(),
                    series.own.median(),
                    series.etcd.median(),
                    series.busy.median() * 100.0
                );
            }
        }
        let took: Vec<_> = LAYOUTS
            .into_iter()
            .filter_map(|layout| self.stages.iter().find(|stage| stage.layout == layout))
            .map(|stage| format!("{:.1} µs ({})", stage.choosing.as_secs_f64() * 1e6, stage.text))
            .collect();
        let _ = writeln!(
            text,
            "\nMaking the transaction from the view, at its fastest: {}.",
            took.join(", ")
        );
        text
    }
}
