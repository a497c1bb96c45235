//! Hosts with agents and kernels: namespaces of this machine, real weftd, real etcd. One change at a time, from the put until
//! all kernels have it; starts; and what agent and etcd use.

use std::{path::Path, time::Duration, time::Instant, time::SystemTime};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{Client, Txn, TxnOp};
use weft_bench::{Ears, quantile};
use weft_lab::{Host, Lab};

use crate::{
    process,
    records::{self, Endpoint, Record},
    server,
};

/// Hosts without agents that the other endpoints are on.
const OUTSIDERS: usize = 64;
/// The first of the changing endpoints.
const CHANGING: u32 = 0x80_0000;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(25);
/// Longest time until all kernels have a change.
const CHANGE: Duration = Duration::from_secs(20);
/// Longest start.
const PATIENCE: Duration = Duration::from_secs(240);

/// How large everything is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Hosts, each with an agent.
    pub(crate) hosts: usize,
    /// Networks; every host has an endpoint in each.
    pub(crate) networks: usize,
    /// Endpoints of other hosts, in the first network.
    pub(crate) endpoints: usize,
}

/// What was measured. Times in milliseconds, memory in MiB.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    /// The size.
    pub(crate) size: Size,
    /// From the put of an endpoint until the last kernel has it: each change.
    pub(crate) delays: Vec<f64>,
    /// Of that, until etcd had answered the put: each change.
    pub(crate) answers: Vec<f64>,
    /// CPU time of the first host's agent for one change (half of them puts, half deletions).
    pub(crate) cpu: f64,
    /// CPU time of etcd for one change.
    pub(crate) etcd_cpu: f64,
    /// Keys that etcd was given for one change: the records' own, and what agents write because of it.
    pub(crate) puts: f64,
    /// Memory of the first host's agent.
    pub(crate) resident: f64,
    /// Memory of etcd.
    pub(crate) etcd_resident: f64,
    /// etcd's database, MiB, with all that was written since it was made.
    pub(crate) database: f64,
    /// Watches at etcd.
    pub(crate) watchers: f64,
    /// From exec to the end of the first pass, nothing of it in the kernel.
    pub(crate) start: f64,
    /// The same with all of it in the kernel.
    pub(crate) restart: f64,
}

impl Point {
    /// The median delay.
    pub(crate) fn p50(&self) -> f64 {
        quantile(&self.delays, 0.5)
    }

    /// The 99th percentile.
    pub(crate) fn p99(&self) -> f64 {
        quantile(&self.delays, 0.99)
    }
}

/// Builds a lab of this size, measures, and takes it down.
///
/// # Errors
/// When something does not work, or the kernel does not hold what it should.
pub(crate) fn measure(size: Size, changes: u32, base: &Path) -> Result<Point> {
    // A thread of its own: it goes into the lab's namespace for good.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| on_lab(size, changes, base));
        match thread.join() {
            Ok(point) => point,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
    .with_context(|| format!("{size:?}"))
}

fn on_lab(size: Size, changes: u32, base: &Path) -> Result<Point> {
    let lab = Lab::builder().hosts(size.hosts).data_base(base).build()?;
    prepare(&lab, size)?;
    for host in lab.hosts() {
        host.spawn_weftd(&[])?;
    }
    for host in lab.hosts() {
        host.wait_ready_within(PATIENCE)?;
    }
    let first = lab.host(1);
    let mut starts = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        first.stop()?;
        first.teardown()?;
        starts[0].push(timed_start(first)?);
        first.kill9()?;
        starts[1].push(timed_start(first)?);
    }
    lab.host(1).netns().enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let mut client = runtime.block_on(Client::connect([lab.etcd(1).endpoint()], None))?;
    let ears = Ears::open(&places(&lab))?;
    let pid = first.pid().context("weftd has ended")?;
    let mut one = |number: u32| -> Result<(f64, f64)> {
        let endpoint = Endpoint::outside(0, 0, CHANGING + number);
        let [record, claim] = [endpoint.record(), endpoint.claim()];
        let put = |(key, value): &Record| TxnOp::put(key.as_str(), value.as_str(), None);
        // One at a time: what the last one left to be done is over.
        std::thread::sleep(PAUSE);
        ears.expect(endpoint.entries(false));
        let begun = Instant::now();
        runtime.block_on(client.txn(Txn::new().and_then([put(&record), put(&claim)])))?;
        let answer = begun.elapsed();
        let delay = ears.last(CHANGE)?.saturating_duration_since(begun);
        let delete = |(key, _): &Record| TxnOp::delete(key.as_str(), None);
        ears.expect(endpoint.entries(true));
        runtime.block_on(client.txn(Txn::new().and_then([delete(&record), delete(&claim)])))?;
        ears.last(CHANGE)?;
        Ok((delay.as_secs_f64() * 1000.0, answer.as_secs_f64() * 1000.0))
    };
    for number in 0..10 {
        one(number)?;
    }
    let (before, used) = (server::Reading::take(lab.etcd(1))?, process::cpu(pid)?);
    let (delays, answers) = (10..10 + changes)
        .map(&mut one)
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    // What agents tell of themselves comes within a second.
    std::thread::sleep(Duration::from_millis(1200));
    let (after, used_now) = (server::Reading::take(lab.etcd(1))?, process::cpu(pid)?);
    let spent = after.since(&before);
    let each = |seconds: f64| seconds * 1000.0 / f64::from(2 * changes);
    check(&lab, size)?;
    let point = Point {
        size,
        delays,
        answers,
        cpu: each(used_now.saturating_sub(used).as_secs_f64()),
        etcd_cpu: each(spent.cpu),
        puts: spent.puts / f64::from(2 * changes),
        resident: process::resident(pid)?,
        etcd_resident: after.resident,
        database: after.of("etcd_mvcc_db_total_size_in_bytes") / f64::from(1 << 20),
        watchers: after.watchers(),
        start: weft_bench::median(&starts[0]),
        restart: weft_bench::median(&starts[1]),
    };
    drop(ears);
    lab.close()?;
    Ok(point)
}

/// Writes the records, and makes a container on each host.
fn prepare(lab: &Lab, size: Size) -> Result<()> {
    let mut all: Vec<Record> = Vec::new();
    all.extend((0..OUTSIDERS).map(records::of_outsider));
    all.extend((0..size.networks).flat_map(records::of_network));
    for host in lab.hosts() {
        let container = lab.container(&format!("c{}", host.number()))?;
        for network in 0..size.networks {
            let address = records::address(u32::try_from(host.number())?);
            let endpoint = Endpoint {
                network,
                node: host.node(),
                id: "own".to_owned(),
                address,
                mac: records::mac_of(address),
                attachment: (container.path(), format!("e{network}")),
            };
            all.extend([endpoint.record(), endpoint.claim()]);
        }
    }
    for number in 0..size.endpoints {
        let endpoint = Endpoint::outside(0, number % OUTSIDERS, 0x1_0000 + u32::try_from(number)?);
        all.extend([endpoint.record(), endpoint.claim()]);
    }
    records::write(lab, all)
}

fn places(lab: &Lab) -> Vec<weft_lab::Namespace> {
    let network = records::network(0);
    lab.hosts().iter().map(|host| host.netns_of(&network)).collect()
}

/// Starts weftd: milliseconds until its log says that the first pass is done.
fn timed_start(host: &Host) -> Result<f64> {
    let begun = SystemTime::now();
    host.spawn_weftd(&[])?;
    host.wait_ready_within(PATIENCE)?;
    let log = host.log();
    let line = log.lines().rev().find(|line| line.contains("first pass done"));
    let Some(time) = line.and_then(|line| line.split_whitespace().next()) else {
        bail!("the log does not tell of the first pass");
    };
    let done = humantime::parse_rfc3339(time).with_context(|| format!("time {time:?} in the log"))?;
    Ok(done
        .duration_since(begun)
        .context("the clock was set")?
        .as_secs_f64()
        * 1000.0)
}

/// Holds the forwarding tables against the records.
fn check(lab: &Lab, size: Size) -> Result<()> {
    let wanted = size.endpoints + size.hosts - 1;
    for place in places(lab) {
        let rows = place.exec(&["bridge", "fdb", "show", "dev", "vx4"])?;
        let remote = rows.lines().filter(|row| row.contains(" dst ")).count();
        ensure!(
            remote == wanted,
            "{} forwards to {remote} endpoints instead of {wanted}",
            place.path().display()
        );
    }
    Ok(())
}
