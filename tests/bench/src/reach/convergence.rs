//! From a put of an endpoint's record until all hosts' kernels have its entries, and from its deletion until they are
//! rid of them, beside what bare watchers of the same etcd need to see as much.

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, KvClient};
use serde_json::json;
use tokio::runtime::Runtime;
use weft_bench::{Against, BARE, Ears, Entries, Figure, Form, Goal, Progress, Row, quantile, rotated};
use weft_lab::{Lab, eventually};

use crate::watchers::Watchers;

/// The sizes of clusters.
pub(crate) const HOSTS: [usize; 2] = [3, 20];
const PATIENCE: Duration = Duration::from_secs(10);
const ENDPOINTS: &str = "/weft/v1/endpoints/blue/";

/// What is timed in turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// One bare watcher, nobody else.
    One,
    /// As many bare watchers as there are hosts.
    AsMany,
    /// The agents, and one bare watcher of the same put.
    Agents,
}

const TURNS: [Turn; 3] = [Turn::One, Turn::AsMany, Turn::Agents];

/// Milliseconds from sending a change, each sample of one change.
#[derive(Debug, Default)]
struct Samples {
    agents: Vec<f64>,
    same: Vec<f64>,
    one: Vec<f64>,
    as_many: Vec<f64>,
}

/// The quantiles of each round.
#[derive(Debug, Default)]
struct Quantiles {
    agents: Figure,
    same: Figure,
    one: Figure,
    as_many: Figure,
}

impl Quantiles {
    fn push(&mut self, samples: &Samples, share: f64) {
        self.agents.push(quantile(&samples.agents, share));
        self.same.push(quantile(&samples.same, share));
        self.one.push(quantile(&samples.one, share));
        self.as_many.push(quantile(&samples.as_many, share));
    }
}

/// Puts (0) and deletions (1), each by median (0) and 99th percentile (1).
#[derive(Debug)]
pub(crate) struct Found {
    hosts: usize,
    rounds: usize,
    changes: usize,
    figures: [[Quantiles; 2]; 2],
}

const KINDS: [&str; 2] = ["put", "deletion"];
const SHARES: [(&str, f64, f64); 2] = [("p50", 0.5, 1.5), ("p99", 0.99, 2.0)];

struct Run<'a> {
    runtime: &'a Runtime,
    kv: KvClient,
    one: Watchers,
    as_many: Watchers,
    same: Watchers,
    ears: Ears,
    pause: Duration,
    next: u32,
}

/// Measures a cluster of this many hosts.
///
/// # Errors
/// When something does not come about, or the kernels do not hold what they should in the end.
pub(crate) fn measure(hosts: usize, base: &Path, form: Form, progress: Progress) -> Result<Found> {
    progress.say(format!("convergence: {hosts} hosts"));
    let lab = Lab::builder().hosts(hosts).data_base(base).build()?;
    lab.put(
        "/weft/v1/networks/blue",
        r#"{"subnets":[{"cidr":"10.1.0.0/16"}]}"#,
    )?;
    lab.put(
        "/weft/v1/peers/far",
        &json!({"vteps": ["10.99.0.200"], "mtu": 1500, "kind": "external"}).to_string(),
    )?;
    lab.start_all()?;
    for host in lab.hosts() {
        let container = lab.container(&host.node())?;
        let key = format!("{ENDPOINTS}{}/c", host.node());
        lab.put(&key, &container.endpoint_record(&[]))?;
    }
    let namespaces: Vec<_> = lab.hosts().iter().map(|host| host.netns_of("blue")).collect();
    let settled = || {
        eventually(
            PATIENCE,
            "each host forwards to all others, and to nobody else",
            || {
                for namespace in &namespaces {
                    let there = namespace.ip_json(&["neigh", "show", "dev", "br0"])?;
                    let there = there.as_array().map_or(0, Vec::len);
                    // Containers of one host ask each other.
                    ensure!(
                        there == hosts - 1,
                        "{there} neighbours in {}",
                        namespace.path().display()
                    );
                }
                Ok(())
            },
        )
    };
    settled()?;
    let ears = Ears::open(&namespaces)?;
    // Watchers and the client stand on the first host.
    let url = lab.etcd_endpoints().swap_remove(0);
    let netns = lab.host(1).netns();
    let figures = netns.within(|| turns(&url, hosts, ears, form, progress))??;
    settled().context("after the last change")?;
    lab.close()?;
    Ok(Found {
        hosts,
        rounds: rounds(form),
        changes: changes(form),
        figures,
    })
}

fn rounds(form: Form) -> usize {
    form.pick(3, 7)
}

/// Of each kind in each round.
fn changes(form: Form) -> usize {
    form.pick(100, 300)
}

fn turns(url: &str, hosts: usize, ears: Ears, form: Form, progress: Progress) -> Result<[[Quantiles; 2]; 2]> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let (kv, one, as_many, same) = runtime.block_on(async {
        let one = Watchers::open(url, &format!("{BARE}one/"), 1).await?;
        let as_many = Watchers::open(url, &format!("{BARE}many/"), hosts).await?;
        let same = Watchers::open(url, ENDPOINTS, 1).await?;
        let client = Client::connect([url], None).await.context("connecting to etcd")?;
        anyhow::Ok((client.kv_client(), one, as_many, same))
    })?;
    let mut run = Run {
        runtime: &runtime,
        kv,
        one,
        as_many,
        same,
        ears,
        pause: Duration::from_millis(if hosts > 5 { 20 } else { 10 }),
        next: 0,
    };
    let mut figures = <[[Quantiles; 2]; 2]>::default();
    // What happens for the first time is not what happens every time.
    run.round(10)?;
    for round in 1..=rounds(form) {
        progress.say(format!(
            "convergence: {hosts} hosts, round {round} of {}",
            rounds(form)
        ));
        let samples = run.round(changes(form))?;
        for (figures, samples) in figures.iter_mut().zip(&samples) {
            for (figure, (_, share, _)) in figures.iter_mut().zip(SHARES) {
                figure.push(samples, share);
            }
        }
    }
    drop(run);
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(figures)
}

impl Run<'_> {
    /// So many puts, each followed by its deletion, one at a time.
    fn round(&mut self, changes: usize) -> Result<[Samples; 2]> {
        let mut samples = <[Samples; 2]>::default();
        for change in 0..changes {
            for turn in rotated(TURNS.len(), change).map(|i| TURNS[i]) {
                self.next += 1;
                for (deleted, samples) in samples.iter_mut().enumerate() {
                    self.change(turn, deleted == 1, samples)
                        .with_context(|| format!("{turn:?}, {} {}", KINDS[deleted], self.next))?;
                    // One at a time: what the last one left to be done is done.
                    std::thread::sleep(self.pause);
                }
            }
        }
        Ok(samples)
    }

    fn change(&mut self, turn: Turn, deletes: bool, samples: &mut Samples) -> Result<()> {
        let [_, _, high, low] = (self.next % 20_000 + 10_000).to_be_bytes();
        let address = Ipv4Addr::new(10, 1, high, low);
        let mac = [2, 0x42, 10, 1, high, low];
        let directory = match turn {
            Turn::One => format!("{BARE}one/"),
            Turn::AsMany => format!("{BARE}many/"),
            Turn::Agents => ENDPOINTS.to_owned(),
        };
        let key = format!("{directory}far/e{:06}", self.next);
        let record = json!({
            "name": format!("web-{:06}", self.next),
            "attachment": {"netns": "/run/netns/elsewhere"},
            "addresses": [address.to_string()],
            "mac": mac.map(|byte| format!("{byte:02x}")).join(":"),
        });
        match turn {
            Turn::One => self.one.expect(),
            Turn::AsMany => self.as_many.expect(),
            Turn::Agents => {
                self.same.expect();
                let gone = deletes;
                self.ears.expect(Entries { mac, address, gone });
            }
        }
        let record = record.to_string();
        let sent = Instant::now();
        self.runtime.block_on(async {
            if deletes {
                self.kv.delete(key, None).await.map(drop)
            } else {
                self.kv.put(key, record, None).await.map(drop)
            }
        })?;
        let took = |at: Instant| at.duration_since(sent).as_secs_f64() * 1e3;
        match turn {
            Turn::One => samples.one.push(took(self.one.last(PATIENCE)?)),
            Turn::AsMany => samples.as_many.push(took(self.as_many.last(PATIENCE)?)),
            Turn::Agents => {
                samples.agents.push(took(self.ears.last(PATIENCE)?));
                samples.same.push(took(self.same.last(PATIENCE)?));
            }
        }
        Ok(())
    }
}

impl Found {
    /// The rows.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (kind, figures) in KINDS.into_iter().zip(&self.figures) {
            for ((name, _, bound), figure) in SHARES.into_iter().zip(figures) {
                let many = format!("the last of {} bare watchers", self.hosts);
                let peers = [
                    ("a bare watcher of the same change", &figure.same, true),
                    (many.as_str(), &figure.as_many, true),
                    ("a bare watcher, no agents busy", &figure.one, false),
                ];
                for (what, peer, judged) in peers {
                    let against = Against { what, figure: peer };
                    rows.push(Row::new(
                        format!("convergence, {} hosts, {kind}, {name}", self.hosts),
                        "ms",
                        &figure.agents,
                        Some(against),
                        judged.then_some(Goal::RatioAtMost(bound)),
                    ));
                }
            }
        }
        rows
    }

    /// How it was measured.
    pub(crate) fn method(&self) -> String {
        format!(
            "Convergence, {} hosts: {} rounds of {} records put and deleted one at a time by a bare client, each timed from \
             sending the request until the kernel of the last host has announced all three entries (the tunnel's, the \
             bridge's, the neighbour) to a netlink socket in the network's namespace. One bare watcher on the first host \
             sees the same changes. In turns with that, changes elsewhere that nobody but one bare watcher watches, or as \
             many as there are hosts (all in one process: the floor for agents that share two processors). After the last \
             one every kernel held the entries that it should.",
            self.hosts, self.rounds, self.changes
        )
    }
}
