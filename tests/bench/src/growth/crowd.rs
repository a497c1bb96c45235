//! What a fleet does to etcd: joining, resting, one change at a time, more and more changes a second, and all starting anew
//! at once.

use std::{path::Path, time::Duration, time::Instant};

use anyhow::{Context, Result};
use etcd_client::Client;
use tokio::sync::mpsc::UnboundedReceiver;
use weft_bench::{Form, Progress, quantile, resident_bytes};
use weft_lab::Lab;
use weft_store_schema::Mac;

use crate::{
    fleet::{Arrived, Board, Fleet, Interest},
    process,
    records::{self, Endpoint},
    server::Reading,
};

/// Endpoints of each network that change: their hosts have no agents.
const CHANGING: usize = 20;
/// Changes a second while one at a time is measured.
const QUIET_RATE: u32 = 10;
/// Everybody waits this long at most until all are there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);
/// The rates that are tried, changes a second.
const RATES: [u32; 7] = [25, 50, 100, 200, 400, 800, 1600];
/// A rate is sustained while the 99th percentile of the delay stays below this.
const LATE: Duration = Duration::from_millis(500);

/// What was measured. Times in milliseconds, memory in MiB, unless it says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    /// Who takes part in what.
    pub(crate) interest: Interest,
    /// Agents that a change concerns, on average.
    pub(crate) interested: f64,
    /// Watches at etcd.
    pub(crate) watchers: f64,
    /// Watches that etcd had fallen behind with after the highest rate that was tried.
    pub(crate) slow: f64,
    /// etcd's memory with the records and without agents, and with them.
    pub(crate) etcd_resident: [f64; 2],
    /// Memory of this process for each agent.
    pub(crate) resident: f64,
    /// Seconds until all had joined that were never there before, and the CPU seconds of etcd and of all agents for it.
    pub(crate) join: [f64; 3],
    /// The same when all are started anew at once, records and state being there.
    pub(crate) anew: [f64; 3],
    /// Reads that etcd answered for that.
    pub(crate) anew_reads: f64,
    /// Share of a core at rest, in percent: etcd, each agent.
    pub(crate) rest: [f64; 2],
    /// From a put until the first and the last whom it concerns have it.
    pub(crate) first: Vec<f64>,
    /// Until the last.
    pub(crate) last: Vec<f64>,
    /// CPU of etcd for a change.
    pub(crate) etcd_cpu: f64,
    /// CPU of all agents for a change.
    pub(crate) cpu: f64,
    /// Bytes that etcd sent for a change, in KiB.
    pub(crate) sent: f64,
    /// Events that etcd handed to watches for a change.
    pub(crate) events: f64,
    /// Keys put for a change: its own, and what agents tell of themselves because of it.
    pub(crate) puts: f64,
    /// The highest rate at which the delay stayed low, changes a second.
    pub(crate) sustained: f64,
    /// Each rate that was tried: changes a second, median and 99th percentile of the delay, those that did not come.
    pub(crate) rates: Vec<(u32, f64, f64, usize)>,
}

/// Builds a lab with one etcd, measures, and takes it down.
///
/// # Errors
/// When something does not work.
pub(crate) fn measure(interest: Interest, form: Form, base: &Path, progress: Progress) -> Result<Point> {
    // A thread of its own: it goes into the lab's namespace for good.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| on_lab(interest, form, base, progress));
        match thread.join() {
            Ok(point) => point,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
    .with_context(|| format!("{interest:?}"))
}

fn on_lab(interest: Interest, form: Form, base: &Path, progress: Progress) -> Result<Point> {
    let lab = Lab::builder().hosts(1).data_base(base).build()?;
    records::write(&lab, prepared(interest))?;
    lab.host(1).netns().enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let crowd = Crowd {
        lab: &lab,
        interest,
        form,
        progress,
    };
    let point = runtime.block_on(crowd.measure())?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    lab.close()?;
    Ok(point)
}

/// Networks, hosts without agents, the agents' two endpoints each, and those that change.
fn prepared(interest: Interest) -> Vec<records::Record> {
    let mut all: Vec<_> = (0..interest.networks).flat_map(records::of_network).collect();
    all.push(records::of_outsider(0));
    for agent in 0..interest.agents {
        for network in interest.of(agent) {
            let address = records::address(u32::try_from(256 + agent).unwrap_or(u32::MAX));
            let endpoint = Endpoint {
                network,
                node: crate::fleet::node(agent),
                id: "own".to_owned(),
                address,
                mac: records::mac_of(address),
                attachment: (format!("/run/netns/simulated-{agent}"), format!("e{network}")),
            };
            all.extend([endpoint.record(), endpoint.claim()]);
        }
    }
    for network in 0..interest.networks {
        for number in 0..CHANGING {
            let endpoint = changing(network, number);
            all.extend([endpoint.record(), endpoint.claim()]);
        }
    }
    all
}

fn changing(network: usize, number: usize) -> Endpoint {
    Endpoint::outside(network, 0, 0x80_0000 + u32::try_from(number).unwrap_or(u32::MAX))
}

struct Crowd<'a> {
    lab: &'a Lab,
    interest: Interest,
    form: Form,
    progress: Progress,
}

impl Crowd<'_> {
    async fn measure(&self) -> Result<Point> {
        let etcd = self.lab.etcd(1);
        let url = etcd.endpoint();
        let agents = self.interest.agents;
        // In memory: they are as many disks elsewhere.
        let states = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let (board, mut arrived) = Board::new();
        let (empty, memory, own) = (Reading::take(etcd)?, resident_bytes()?, self.own()?);
        let own_since =
            |before: Duration| -> Result<f64> { Ok(self.own()?.saturating_sub(before).as_secs_f64()) };
        self.say("all join");
        let fleet = Fleet::start(self.interest, &url, states.path(), &board).await?;
        let joined = fleet.ready.last().copied().unwrap_or_default();
        let own_join = own_since(own)?;
        let after_join = self.settled().await?;
        let resident = resident_bytes()?.saturating_sub(memory);
        let rest = self.rest().await?;
        self.say("one change at a time");
        let mut changes = Changes::new(self, board.clone()).await?;
        let before = (Reading::take(etcd)?, self.own()?);
        let number = self.form.pick(30, 100);
        let (first, last) = changes.one_by_one(number, &mut arrived).await?;
        // What agents tell of themselves comes within a second.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let now = (Reading::take(etcd)?, self.own()?);
        let spent = now.0.since(&before.0);
        let each = |all: f64| all / f64::from(number);
        self.say("more and more changes");
        let mut rates = Vec::new();
        for rate in RATES {
            let seconds = self.form.pick(2, 5);
            let (p50, p99, lost) = changes.at(rate, seconds, &mut arrived).await?;
            fleet.all_run()?;
            rates.push((rate, p50, p99, lost));
            if !kept_up(&(rate, p50, p99, lost)) {
                break;
            }
        }
        let slow = Reading::take(etcd)?.slow_watchers();
        let sustained = rates.iter().take_while(|rate| kept_up(rate)).last();
        fleet.end().await?;
        self.settled().await?;
        self.say("all start anew");
        let (before_anew, own) = (Reading::take(etcd)?, self.own()?);
        let fleet = Fleet::start(self.interest, &url, states.path(), &board).await?;
        let anew = fleet.ready.last().copied().unwrap_or_default();
        let (spent_anew, own_anew) = (Reading::take(etcd)?.since(&before_anew), own_since(own)?);
        fleet.end().await?;
        let interested: usize = changes.networks.iter().map(|(_, interested)| interested).sum();
        Ok(Point {
            interest: self.interest,
            interested: interested as f64 / changes.networks.len() as f64,
            watchers: after_join.watchers(),
            slow,
            etcd_resident: [empty.resident, after_join.resident],
            resident: resident as f64 / agents as f64 / f64::from(1 << 20),
            join: [joined.as_secs_f64(), after_join.since(&empty).cpu, own_join],
            anew: [anew.as_secs_f64(), spent_anew.cpu, own_anew],
            anew_reads: spent_anew.ranges,
            rest,
            first,
            last,
            etcd_cpu: each(spent.cpu * 1000.0),
            cpu: each(now.1.saturating_sub(before.1).as_secs_f64() * 1000.0),
            sent: each(spent.sent / 1024.0),
            events: each(spent.events),
            puts: each(spent.puts),
            sustained: sustained.map_or(0.0, |rate| f64::from(rate.0)),
            rates,
        })
    }

    fn say(&self, what: &str) {
        let Interest {
            agents, everything, ..
        } = self.interest;
        let interest = if everything {
            "all networks"
        } else {
            "their networks"
        };
        self.progress
            .say(format!("{agents} agents on {interest}: {what}"));
    }

    fn own(&self) -> Result<Duration> {
        process::cpu(std::process::id())
    }

    /// Waits until etcd has nothing more to send, half a minute at most.
    async fn settled(&self) -> Result<Reading> {
        let mut before = Reading::take(self.lab.etcd(1))?;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = Reading::take(self.lab.etcd(1))?;
            let quiet = now.since(&before).puts < 2.0 + self.interest.agents as f64 / 100.0;
            before = now;
            if quiet {
                break;
            }
        }
        Ok(before)
    }

    async fn rest(&self) -> Result<[f64; 2]> {
        let time = self.form.pick(3, 10);
        let (etcd, own) = (Reading::take(self.lab.etcd(1))?, self.own()?);
        tokio::time::sleep(Duration::from_secs(time)).await;
        let (etcd_now, own_now) = (Reading::take(self.lab.etcd(1))?, self.own()?);
        let share = |cpu: f64| cpu * 100.0 / time as f64;
        let own = own_now.saturating_sub(own).as_secs_f64() / self.interest.agents as f64;
        Ok([share(etcd_now.since(&etcd).cpu), share(own)])
    }
}

fn kept_up((_, _, p99, lost): &(u32, f64, f64, usize)) -> bool {
    *lost == 0 && *p99 < LATE.as_secs_f64() * 1000.0
}

/// Gives endpoints new MACs, one after another.
struct Changes {
    client: Client,
    board: Board,
    /// Networks that somebody takes part in, and how many do.
    networks: Vec<(usize, usize)>,
    next: usize,
}

impl Changes {
    async fn new(crowd: &Crowd<'_>, board: Board) -> Result<Self> {
        let networks = (0..crowd.interest.networks).map(|n| (n, crowd.interest.in_network(n)));
        Ok(Self {
            client: Client::connect([crowd.lab.etcd(1).endpoint()], None).await?,
            board,
            networks: networks.filter(|(_, interested)| *interested > 0).collect(),
            next: 0,
        })
    }

    /// Puts the next one; its delay counts from `since`.
    fn put(&mut self, since: Instant) -> Result<impl Future<Output = Result<()>> + use<>> {
        let number = self.next;
        self.next += 1;
        let (network, interested) = self.networks[number % self.networks.len()];
        let mut endpoint = changing(network, (number / self.networks.len()) % CHANGING);
        let [.., a, b, c] = u32::try_from(number)?.to_be_bytes();
        endpoint.mac = [2, 0xfe, 0, a, b, c];
        let mac = Mac::new(endpoint.mac).context("a MAC")?;
        self.board.expect(mac, interested, since);
        let mut client = self.client.clone();
        Ok(async move {
            let (key, value) = endpoint.record();
            client.put(key, value, None).await.context("a put")?;
            Ok(())
        })
    }

    async fn one_by_one(
        &mut self,
        number: u32,
        arrived: &mut UnboundedReceiver<Arrived>,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let mut tick = tokio::time::interval(Duration::from_secs(1) / QUIET_RATE);
        for _ in 0..number {
            tick.tick().await;
            self.put(Instant::now())?.await?;
            let one = tokio::time::timeout(Duration::from_secs(30), arrived.recv()).await;
            let one = one
                .context("a change did not come to all within 30 s")?
                .context("the board")?;
            first.push(one.first.as_secs_f64() * 1000.0);
            last.push(one.last.as_secs_f64() * 1000.0);
        }
        Ok((first, last))
    }

    /// So many changes a second; median and 99th percentile of the delays until the last had it, and how many did not
    /// come to all within two seconds after the end.
    async fn at(
        &mut self,
        rate: u32,
        seconds: u32,
        arrived: &mut UnboundedReceiver<Arrived>,
    ) -> Result<(f64, f64, usize)> {
        let begun = Instant::now();
        let mut puts = Vec::new();
        for number in 0..rate * seconds {
            let due = begun + Duration::from_secs(1) * number / rate;
            tokio::time::sleep_until(due.into()).await;
            puts.push(tokio::spawn(self.put(due)?));
        }
        for put in puts {
            put.await??;
        }
        let mut delays = Vec::new();
        let until = tokio::time::Instant::now() + Duration::from_secs(2);
        while delays.len() < (rate * seconds) as usize {
            match tokio::time::timeout_at(until, arrived.recv()).await {
                Ok(Some(one)) => delays.push(one.last.as_secs_f64() * 1000.0),
                Ok(None) | Err(_) => break,
            }
        }
        let lost = self.board.give_up();
        // What came between the last look and giving up is of this rate, too.
        while arrived.try_recv().is_ok() {}
        Ok((quantile(&delays, 0.5), quantile(&delays, 0.99), lost))
    }
}
