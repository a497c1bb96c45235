//! One container after another attached: how long the call takes, and whether the first ping from another host after its
//! return is answered, beside Docker's and beside the bare transaction.

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use weft_bench::{
    Against, Bare, Docker, Figure, Form, Goal, Pace, Progress, Request, Row, quantile, rotated,
};
use weft_lab::{Container, Pinger};

use crate::{
    agent::Attached,
    hosts::{Hosts, NETWORK},
};

/// A ping that is not answered by now never is.
const PATIENCE: Duration = Duration::from_secs(3);
/// A ping whose question for the address was lost is answered after a second: a good deal more than this.
const AT_ONCE: f64 = 500.0;
/// Docker's containers that are in the network all the time: host and number. The first pings.
const RESIDENTS: [(usize, usize); 2] = [(2, 0), (1, 1)];
/// Requests to etcd that somebody waits for.
const REQUESTS: [&str; 6] = ["Txn", "Range", "Put", "DeleteRange", "LeaseGrant", "LeaseRevoke"];

/// What is attached by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Call,
    WaitingCall,
    Command,
    Docker,
    /// Nothing is: the transaction alone.
    Bare,
}

/// Milliseconds of each, all rounds together.
#[derive(Debug, Default)]
struct Series {
    call: Vec<f64>,
    ping: Vec<f64>,
    detach: Vec<f64>,
    median_call: Figure,
    median_ping: Figure,
    median_detach: Figure,
}

impl Series {
    fn end_round(&mut self, since: [usize; 3]) {
        let [call, ping, detach] = since;
        self.median_call.push(quantile(&self.call[call..], 0.5));
        self.median_ping.push(quantile(&self.ping[ping..], 0.5));
        self.median_detach.push(quantile(&self.detach[detach..], 0.5));
    }
}

/// All figures.
#[derive(Debug)]
pub(crate) struct Found {
    series: BTreeMap<By, Series>,
    transactions: Figure,
    requests: Figure,
    shape: String,
    notes: Vec<String>,
}

struct Run<'a> {
    runtime: &'a Runtime,
    hosts: &'a mut Hosts,
    containers: Vec<Container>,
    pinger: Pinger,
    docker: Option<(&'a Docker, Pinger)>,
    bare: Bare,
    transaction: Request,
    /// Reads of our own while requests were counted.
    own_reads: Cell<u64>,
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Measures it. Docker is given with two containers on the first host and one on the second.
///
/// # Errors
/// When anything fails, or the kernels do not hold what they should in the end.
pub(crate) fn measure(
    runtime: &Runtime,
    hosts: &mut Hosts,
    docker: Option<&Docker>,
    form: Form,
    progress: Progress,
) -> Result<Found> {
    let (rounds, each) = (form.pick(5, 10), form.pick(12, 30));
    let containers = hosts.containers("a", each)?;
    let any = IpAddr::from([10, 1, 0, 1]);
    let pinger = hosts.residents[1].0.netns().pinger(any)?;
    let mut notes = Vec::new();
    let docker = match docker.map(residents).transpose() {
        Ok(docker) => docker,
        Err(why) => {
            notes.push(format!("Docker 20.10 was left out of attaching: {why:#}."));
            None
        }
    };
    let shape = runtime.block_on(hosts.shape())?;
    let text = shape.text();
    let url = hosts.lab.etcd_endpoints().swap_remove(0);
    let bare = runtime.block_on(Bare::connect(&url, 1))?;
    let mut run = Run {
        runtime,
        hosts,
        containers,
        pinger,
        docker,
        bare,
        transaction: Request::Transaction(shape.into()),
        own_reads: Cell::new(0),
    };
    let mut turns = vec![By::Call, By::WaitingCall, By::Command, By::Bare];
    if run.docker.is_some() {
        turns.push(By::Docker);
    }
    let mut found = Found {
        series: turns.iter().map(|by| (*by, Series::default())).collect(),
        transactions: Figure::default(),
        requests: Figure::default(),
        shape: text,
        notes: Vec::new(),
    };
    for round in 0..rounds {
        progress.say(format!("attach: round {} of {rounds}", round + 1));
        for by in rotated(turns.len(), round).map(|i| turns[i]) {
            let series = found.series.entry(by).or_default();
            let since = [series.call.len(), series.ping.len(), series.detach.len()];
            match by {
                By::Bare => run.bare(series, each)?,
                By::Docker => {
                    if let Err(why) = run.docker(series, form.pick(2, 5)) {
                        // It sometimes fails at its own bookkeeping. What it did before counts.
                        notes.push(format!("Docker 20.10 failed in round {}: {why:#}.", round + 1));
                        run.docker = None;
                    }
                    if since == [series.call.len(), series.ping.len(), series.detach.len()] {
                        continue;
                    }
                }
                _ => {
                    let asked = run.attach(by, series)?;
                    if by == By::Call {
                        let each = run.containers.len() as f64;
                        found.transactions.push(asked["Txn"] as f64 / each);
                        found.requests.push(asked.values().sum::<u64>() as f64 / each);
                    }
                }
            }
            series.end_round(since);
        }
    }
    run.hosts.settled(&[]).context("after the last detach")?;
    if let Some((docker, _)) = run.docker {
        // The storm begins with an empty network.
        for (host, container) in RESIDENTS {
            if let Err(why) = docker.disconnect(host, container) {
                notes.push(format!("Docker 20.10 kept a container: {why:#}."));
            }
        }
    }
    found.notes = notes;
    Ok(found)
}

/// Docker with a container in the network on each host, and what pings from the second: a host's first is another matter.
fn residents(docker: &Docker) -> Result<(&Docker, Pinger)> {
    for (host, container) in RESIDENTS {
        docker.connect(host, container)?;
    }
    let pinger = docker.netns(2, 0)?.pinger(IpAddr::from([10, 50, 0, 1]))?;
    Ok((docker, pinger))
}

impl Run<'_> {
    /// All containers one after another, each pinged; then all are detached. How many requests of each kind etcd got
    /// while they were attached.
    fn attach(&mut self, by: By, series: &mut Series) -> Result<BTreeMap<&'static str, u64>> {
        let before = self.requests()?;
        let mut attached = Vec::new();
        for container in &self.containers {
            let (endpoint, took) = match by {
                By::Command => self.by_command(container)?,
                _ => {
                    let agent = &mut self.hosts.agents[0];
                    self.runtime
                        .block_on(agent.attach(container, by == By::WaitingCall))?
                }
            };
            let answered = self.pinger.ask(endpoint.address, PATIENCE);
            series.call.push(millis(took));
            series.ping.push(answered.map_or(f64::INFINITY, millis));
            attached.push((0, endpoint));
        }
        let asked = self.requests()?;
        self.hosts.settled(&attached)?;
        for (_, endpoint) in &attached {
            let took = self.runtime.block_on(self.hosts.agents[0].detach(&endpoint.id))?;
            series.detach.push(millis(took));
        }
        Ok(asked
            .into_iter()
            .map(|(kind, count)| (kind, count - before[kind]))
            .collect())
    }

    fn by_command(&self, container: &Container) -> Result<(Attached, Duration)> {
        let (name, path) = (container.name(), container.path());
        let host = self.hosts.lab.host(1);
        // Found before: it is not what is timed.
        host.weft_path()?;
        let started = Instant::now();
        let said = host.weft_json(&["endpoint", "attach", NETWORK, &path, "--id", name])?;
        let took = started.elapsed();
        let address = said["addresses"][0].as_str().context("no address")?;
        let (address, _) = address.split_once('/').unwrap_or((address, ""));
        let attached = Attached {
            id: name.to_owned(),
            address: address.parse()?,
            mac: said["mac"].as_str().context("no MAC")?.to_owned(),
        };
        Ok((attached, took))
    }

    fn bare(&self, series: &mut Series, count: usize) -> Result<()> {
        for _ in 0..count {
            let one = Pace {
                time: PATIENCE,
                each: 1,
            };
            let paced = self
                .runtime
                .block_on(self.bare.run(&self.transaction, 1, false, one))?;
            series.call.push(millis(paced.took));
        }
        self.runtime.block_on(self.bare.clear())
    }

    fn docker(&mut self, series: &mut Series, count: usize) -> Result<()> {
        let Some((docker, pinger)) = &mut self.docker else {
            return Ok(());
        };
        for _ in 0..count {
            series.call.push(millis(docker.connect(1, 0)?));
            let address = docker.address(1, 0)?;
            series
                .ping
                .push(pinger.ask(address, PATIENCE).map_or(f64::INFINITY, millis));
            series.detach.push(millis(docker.disconnect(1, 0)?));
        }
        Ok(())
    }

    /// How many of each kind etcd has been sent so far. Hosts tell how they are by a transaction now and then, whether
    /// anything is attached or not: not counted.
    fn requests(&self) -> Result<BTreeMap<&'static str, u64>> {
        let etcd = self.hosts.lab.etcd(1);
        let statuses = etcd.read("/weft/v1/status/", PATIENCE)?.keys;
        let statuses: i64 = statuses.iter().map(|status| status.version).sum();
        let mut sent = BTreeMap::new();
        for kind in REQUESTS {
            sent.insert(kind, etcd.requests(kind)?);
        }
        // The question above was one, too.
        self.own_reads.set(self.own_reads.get() + 1);
        for (kind, ours) in [("Txn", statuses.unsigned_abs()), ("Range", self.own_reads.get())] {
            if let Some(count) = sent.get_mut(kind) {
                *count = count.saturating_sub(ours);
            }
        }
        Ok(sent)
    }
}

impl Found {
    /// The rows.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let nothing = Series::default();
        let of = |by: By| self.series.get(&by).unwrap_or(&nothing);
        let (docker, bare) = (of(By::Docker), of(By::Bare));
        let beside_docker = |figure| {
            let what = "Docker 20.10: network connect";
            (docker.median_call.runs() > 0).then_some(Against { what, figure })
        };
        let beside_bare = Some(Against {
            what: "the bare transaction",
            figure: &bare.median_call,
        });
        let call = |what: &str, by: By, against, goal| {
            Row::new(
                format!("attach, {what}, p50"),
                "ms",
                &of(by).median_call,
                against,
                goal,
            )
        };
        let tenth = Some(Goal::RatioAtMost(0.1));
        let mut rows = vec![
            call("call", By::Call, beside_docker(&docker.median_call), tenth),
            call("call", By::Call, beside_bare, None),
            whole("attach, call, p99", &of(By::Call).call, 0.99, None),
            call(
                "call with --wait",
                By::WaitingCall,
                beside_docker(&docker.median_call),
                tenth,
            ),
            whole(
                "attach, call with --wait, p99",
                &of(By::WaitingCall).call,
                0.99,
                None,
            ),
            call(
                "weft endpoint attach (a program's start and end)",
                By::Command,
                beside_docker(&docker.median_call),
                tenth,
            ),
        ];
        for (what, by, goal) in [
            ("call", By::Call, 5.0),
            ("call with --wait", By::WaitingCall, 5.0),
            ("weft endpoint attach", By::Command, 5.0),
        ] {
            let series = of(by);
            let name = format!("first ping from another host after {what}");
            let against = (docker.median_ping.runs() > 0).then_some(Against {
                what: "Docker 20.10",
                figure: &docker.median_ping,
            });
            rows.push(Row::new(
                format!("{name}, answered after, p50"),
                "ms",
                &series.median_ping,
                against,
                Some(Goal::AtMost(goal)),
            ));
            rows.push(whole(
                &format!("{name}, answered after, the slowest"),
                &series.ping,
                1.0,
                Some(Goal::AtMost(goal)),
            ));
            let lost = series.ping.iter().filter(|took| **took > AT_ONCE).count();
            rows.push(Row::new(
                format!("{name}: not answered at once, of {}", series.ping.len()),
                "",
                &Figure::from(vec![lost as f64]),
                None,
                Some(Goal::AtMost(0.0)),
            ));
        }
        let against = (docker.median_detach.runs() > 0).then_some(Against {
            what: "Docker 20.10: network disconnect",
            figure: &docker.median_detach,
        });
        rows.push(Row::new(
            "detach, call, p50",
            "ms",
            &of(By::Call).median_detach,
            against,
            None,
        ));
        rows.push(Row::new(
            "etcd transactions for each attach",
            "",
            &self.transactions,
            None,
            Some(Goal::AtMost(1.05)),
        ));
        rows.push(Row::new(
            "etcd requests of any kind for each attach",
            "",
            &self.requests,
            None,
            None,
        ));
        rows
    }

    /// How it was measured.
    pub(crate) fn method(&self) -> Vec<String> {
        let mut method = vec![
            format!(
                "Attach: containers of one host, one after another, into a network that the other host carries too, by a call \
                 over the agent's socket on one connection, or by the command. The moment the call returns, a container on \
                 the other host sends one ping to the new address: if it asks for the address before its own host can \
                 answer, it asks again a second later. The bare transaction is an attach's own: {}.",
                self.shape
            ),
            "Docker: `network connect` by its API for one container, and one ping from a container on the other host as soon \
             as the daemon has told the address."
                .to_owned(),
        ];
        method.extend(self.notes.iter().cloned());
        method
    }
}

/// A row of one quantile of all samples together.
fn whole(name: &str, samples: &[f64], share: f64, goal: Option<Goal>) -> Row {
    Row::new(
        name,
        "ms",
        &Figure::from(vec![quantile(samples, share)]),
        None,
        goal,
    )
}
