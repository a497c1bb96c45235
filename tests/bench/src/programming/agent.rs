//! A host with an agent and one endpoint of its own in a network with many elsewhere: how long a start takes, what a change
//! costs, how much memory it needs.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_bench::{Figure, Process, Progress};
use weft_lab::{Container, Host, Lab, Namespace, eventually};

use crate::{
    apply::index,
    records::{Bare, Remote, check, remotes},
    wire::Wire,
};

/// A host, and how many endpoints its network has elsewhere.
pub(crate) struct Site<'l> {
    pub(crate) host: &'l Host,
    pub(crate) count: u32,
    pub(crate) network: String,
    remotes: Vec<Remote>,
    /// The next endpoint elsewhere that is not there yet.
    next: u32,
    _container: Container,
}

/// What many changes, one after another, came to.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// From sending the transaction until the kernel told of the neighbour, microseconds each.
    pub(crate) latencies: Vec<f64>,
    /// CPU time of the agent for each change, microseconds.
    pub(crate) cpu: f64,
}

impl<'l> Site<'l> {
    /// Fills etcd; the agent is started and stopped once, so that all that is written once is written.
    pub(crate) fn prepare(lab: &'l Lab, number: usize, count: u32, bare: &Bare) -> Result<Self> {
        let host = lab.host(number);
        let network = format!("net{count}");
        let container = lab.container(&format!("c{number}"))?;
        let remotes = remotes(count);
        bare.fill(&network, &remotes)?;
        let record = format!(
            r#"{{"attachment":{{"netns":"{}"}},"requested_addresses":["10.254.0.9"]}}"#,
            container.path()
        );
        bare.put(
            &format!("/weft/v1/endpoints/{network}/{}/web", host.node()),
            &record,
        )?;
        let site = Self {
            host,
            count,
            network,
            remotes,
            next: 500_000,
            _container: container,
        };
        site.host.spawn_weftd(&[])?;
        site.host.await_ready(Duration::from_secs(60))?;
        eventually(Duration::from_secs(60), "everything is in the kernel", || {
            site.check()
        })?;
        site.settle()?;
        Ok(site)
    }

    fn netns(&self) -> Namespace {
        self.host.netns_of(&self.network)
    }

    fn wire(&self, listen: bool) -> Result<Wire> {
        self.netns().within(|| Wire::open(listen))?
    }

    /// Checks that the kernel holds exactly what it should.
    pub(crate) fn check(&self) -> Result<()> {
        check(
            &self.wire(false)?.rows()?,
            &self.remotes,
            index(&self.netns(), "vx4")?,
        )
    }

    /// Waits until the agent owes the store nothing.
    fn settle(&self) -> Result<()> {
        eventually(Duration::from_secs(30), "nothing is owed", || {
            let metrics = self.host.metrics()?;
            let (owed, ready) = (
                metrics.get("weft_chores_owed")?,
                metrics.get("weft_ready_endpoints")?,
            );
            ensure!(owed == 0.0 && ready == 1.0, "{owed} owed, {ready} ready");
            Ok(())
        })
    }

    /// From starting the program until its first pass is done, with an empty kernel.
    pub(crate) fn start_anew(&self) -> Result<Duration> {
        let netns = self.netns();
        if netns.exists() {
            // See `Bed::empty`.
            let (tunnel, bridge) = (index(&netns, "vx4")?, index(&netns, "br0")?);
            self.wire(false)?.program(&self.remotes, tunnel, bridge, false)?;
            self.host.teardown()?;
        }
        ensure!(!self.netns().exists(), "the kernel is not empty");
        let took = self.start()?;
        self.check()?;
        Ok(took)
    }

    /// From starting the program until its first pass is done, with everything in place, and that nothing was written:
    /// neither to the kernel nor, beyond presence, to etcd.
    pub(crate) fn start_again(&self, bare: &Bare) -> Result<Duration> {
        let (before, _) = bare.written_since(i64::MAX - 1)?;
        let took = self.start()?;
        let writes = self.host.metrics()?.get("weft_netlink_writes_total")?;
        ensure!(writes == 0.0, "a restart wrote {writes} messages to the kernel");
        self.check()?;
        let (_, keys) = bare.written_since(before)?;
        let node = self.host.node();
        let presence = [
            format!("/weft/v1/alive/{node}"),
            format!("/weft/v1/status/{node}"),
        ];
        let others: Vec<_> = keys.iter().filter(|key| !presence.contains(key)).collect();
        ensure!(others.is_empty(), "a restart wrote {others:?}");
        Ok(took)
    }

    fn start(&self) -> Result<Duration> {
        let started = Instant::now();
        self.host.spawn_weftd(&[])?;
        let ready = self.host.await_ready(Duration::from_secs(60))?;
        Ok(ready.duration_since(started))
    }

    /// How long the kernel takes to tell all that the agent asks for at a start.
    pub(crate) fn time_dump(&self) -> Result<Duration> {
        Ok(self.wire(false)?.time_dump()?.0)
    }

    /// What the start has cost so far, for whoever looks on.
    pub(crate) fn spent(&self) -> Result<String> {
        let (cpu, memory) = (self.process()?.cpu()?, self.process()?.memory()?);
        let overruns = self.host.metrics()?.get("weft_netlink_overruns_total")?;
        Ok(format!(
            "the agent has used {cpu:.0?} of CPU time and {:.1} MB; notifications overrun: {overruns}",
            memory.resident as f64 / 1e6
        ))
    }

    pub(crate) fn process(&self) -> Result<Process> {
        self.host
            .pid()
            .map(Process)
            .with_context(|| format!("weftd on {} does not run", self.host.node()))
    }

    /// Attaches endpoints elsewhere, one after another.
    pub(crate) fn change(&mut self, bare: &Bare, count: u32, changes: &mut Changes) -> Result<()> {
        let mut wire = self.wire(true)?;
        let process = self.process()?;
        let before = process.cpu()?;
        for _ in 0..count {
            let remote = self.take();
            let sent = Instant::now();
            bare.attach(&self.network, remote)?;
            let there = wire.wait_for(remote.address)?;
            changes.latencies.push((there - sent).as_secs_f64() * 1e6);
        }
        changes.cpu = (process.cpu()? - before).as_secs_f64() * 1e6 / f64::from(count);
        self.check()
    }

    fn take(&mut self) -> Remote {
        let remote = Remote::new(self.next);
        self.next += 1;
        self.remotes.push(remote);
        remote
    }

    /// Attaches and detaches endpoints elsewhere at a rate; the share of a core that the agent used meanwhile, percent.
    pub(crate) fn churn(&mut self, bare: &Bare, rate: u32, time: Duration) -> Result<f64> {
        let process = self.process()?;
        let (before, started) = (process.cpu()?, Instant::now());
        let mut done = 0;
        while started.elapsed() < time {
            if self.remotes.len() > self.count as usize + 50 {
                if let Some(remote) = self.remotes.pop() {
                    bare.detach(&self.network, remote)?;
                }
            } else {
                let remote = self.take();
                bare.attach(&self.network, remote)?;
            }
            done += 1;
            let due = started + Duration::from_secs(1) * done / rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let used = (process.cpu()? - before).as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
        eventually(
            Duration::from_secs(10),
            "the last change is in the kernel",
            || self.check(),
        )?;
        Ok(used)
    }

    /// Takes back what [`Site::change`] and [`Site::churn`] have attached.
    pub(crate) fn restore(&mut self, bare: &Bare) -> Result<()> {
        while self.remotes.len() > self.count as usize {
            if let Some(remote) = self.remotes.pop() {
                bare.detach(&self.network, remote)?;
            }
        }
        eventually(Duration::from_secs(10), "what was attached is gone", || {
            self.check()
        })
    }
}

/// The share of a core that a process uses of itself, percent.
pub(crate) fn idle(process: &Process, time: Duration) -> Result<f64> {
    let (before, started) = (process.cpu()?, Instant::now());
    std::thread::sleep(time);
    Ok((process.cpu()? - before).as_secs_f64() / started.elapsed().as_secs_f64() * 100.0)
}

/// Waits until memory and CPU have come to rest after a start.
pub(crate) fn rest(progress: Progress) {
    progress.say("at rest");
    std::thread::sleep(Duration::from_secs(2));
}

/// A value at a share of the sorted samples.
pub(crate) fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A figure from durations, in milliseconds.
pub(crate) fn millis(durations: &[Duration]) -> Figure {
    Figure::from(
        durations
            .iter()
            .map(|d| d.as_secs_f64() * 1e3)
            .collect::<Vec<_>>(),
    )
}

/// Where a lab's benchmark keeps its files.
pub(crate) fn dir_of(lab: &Lab) -> PathBuf {
    lab.run_dir().join("bench")
}
