//! A storm: workers attach and detach endpoints on several hosts as fast as they can, in networks with few addresses,
//! while agents and members of etcd are killed, stopped and cut off from each other; and a checker that looks all the
//! time, at every revision of the store and into every container.
//!
//! Inputs: a seed, which decides all choices (what strikes whom when, who attaches what where), and sizes. Outputs:
//! counts, or what did not hold, with what the store and the workers have to say of it. What must hold when is told in
//! [`witness`] and [`settled`]. It must not know how weft works inside: it sees the command line, the records and the
//! kernel.

pub mod choice;
pub mod containers;
pub mod fault;
pub mod ledger;
pub mod records;
pub mod settled;
pub mod verdict;
pub mod witness;
pub mod worker;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use weft_e2e::Cluster;
use weft_lab::{Host, Lab, eventually};

use crate::verdict::{Verdict, lock};
use crate::witness::Witness;
use crate::worker::{Belief, Gate, Place, Worker};

/// The members of etcd.
const MEMBERS: usize = 3;
/// When an agent is paused for longer than its lease lives, and after how long another one. They take most of a minute,
/// in which little else happens.
const FIRST_LONG_PAUSE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_secs(180);
/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(2);

/// A network of a storm.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its subnets.
    pub cidrs: Vec<String>,
    /// Addresses that are wished for now and then.
    pub wishes: Vec<IpAddr>,
}

impl Network {
    /// A network with an IPv4 subnet of 2^`bits` addresses and an IPv6 subnet of as many.
    #[must_use]
    pub fn small(number: u8, bits: u8) -> Self {
        // Neither the gateway nor, in IPv4, the last one.
        let wishes = (2..((1_u16 << bits) - 1).min(18)).flat_map(|last| {
            [
                IpAddr::from([10, 30 + number, 0, u8::try_from(last).unwrap_or(2)]),
                IpAddr::from([0xfd30 + u16::from(number), 0, 0, 0, 0, 0, 0, last]),
            ]
        });
        Self {
            name: format!("storm{number}"),
            cidrs: vec![
                format!("10.{}.0.0/{}", 30 + u16::from(number), 32 - bits),
                format!("{:x}::/{}", 0xfd30 + u16::from(number), 128 - bits),
            ],
            wishes: wishes.collect(),
        }
    }
}

/// How big a storm is and how long it lasts.
#[derive(Debug, Clone)]
pub struct Storm {
    /// Decides all choices.
    pub seed: u64,
    /// Rounds of faults are begun for this long.
    pub lasts: Duration,
    /// Number of hosts.
    pub hosts: usize,
    /// The networks.
    pub networks: Vec<Network>,
    /// Containers on each host in each network.
    pub containers: usize,
    /// Workers on each host.
    pub workers: usize,
    /// Agents are also paused for longer than their lease lives, once in three minutes.
    pub long_pauses: bool,
    /// Where evidence of a failure goes.
    pub evidence: PathBuf,
}

impl Storm {
    /// The storm that `make storm` makes.
    #[must_use]
    pub fn long(seed: u64, lasts: Duration) -> Self {
        Self {
            seed,
            lasts,
            hosts: 4,
            networks: vec![Network::small(1, 5), Network::small(2, 6)],
            containers: 12,
            workers: 3,
            long_pauses: true,
            evidence: evidence(seed),
        }
    }

    /// A storm for every run of the tests.
    #[must_use]
    pub fn short(seed: u64) -> Self {
        Self {
            lasts: Duration::from_secs(8),
            networks: vec![Network::small(1, 4)],
            containers: 5,
            workers: 2,
            long_pauses: false,
            ..Self::long(seed, Duration::ZERO)
        }
    }
}

fn evidence(seed: u64) -> PathBuf {
    // Tests run in the directory of their crate, the command anywhere.
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(beside, PathBuf::from);
    target.join("storm").join(format!("seed-{seed}"))
}

/// Lets a storm pass over a lab of its own and removes everything after, whatever happens. `say` is told what goes on.
/// Ends soon after [`Verdict::end`].
///
/// # Errors
/// When something that must hold did not, with everything known about it; or when the storm itself failed.
pub fn run(storm: &Storm, verdict: &Verdict, say: &(dyn Fn(&str) + Sync)) -> Result<()> {
    let seed = storm.seed;
    say(&format!(
        "SEED={seed}: {} hosts, {MEMBERS} members of etcd",
        storm.hosts
    ));
    let outcome = in_a_lab(storm, verdict, say);
    let summary = verdict.summary();
    say(&format!(
        "SEED={seed}: after {:.1} s\n{summary}",
        verdict.elapsed().as_secs_f64()
    ));
    let violations = verdict.violations();
    if !violations.is_empty() {
        bail!(
            "SEED={seed}: this does not hold:\n  {}\nlogs and all changes: {}\nagain: make storm SEED={seed} SECONDS={}",
            violations.join("\n  "),
            storm.evidence.display(),
            storm.lasts.as_secs().max(1)
        );
    }
    outcome.with_context(|| format!("SEED={seed}"))
}

fn in_a_lab(storm: &Storm, verdict: &Verdict, say: &(dyn Fn(&str) + Sync)) -> Result<()> {
    let cluster = Cluster::build(Lab::builder().hosts(storm.hosts).etcd_members(MEMBERS))?;
    say(&format!("lab {} is up", cluster.id()));
    let outcome = over(&cluster, storm, verdict, say);
    if outcome.is_err() || !verdict.violations().is_empty() {
        say("the agents' logs end with:");
        // Dropped, it prints the ends of the agents' logs.
        drop(cluster);
        return outcome;
    }
    cluster.close()
}

fn over(cluster: &Cluster, storm: &Storm, verdict: &Verdict, say: &(dyn Fn(&str) + Sync)) -> Result<()> {
    for network in &storm.networks {
        let mut args = vec!["network", "create", &network.name];
        args.extend(network.cidrs.iter().flat_map(|cidr| ["--subnet", cidr]));
        cluster.host(1).weft(&args)?;
    }
    let places = places(cluster, storm)?;
    say(&format!("{} containers are made", places.len()));
    let witness = Witness::new(cluster, &places, verdict);
    let ended = AtomicBool::new(false);
    let has_ended = || ended.load(Ordering::Relaxed);
    // Workers also end when the storm does; witnesses see it to its end.
    let no_more = || has_ended() || verdict.is_over();
    let gate = Gate::default();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| witness.follow(&has_ended));
        scope.spawn(|| witness.read(&has_ended));
        scope.spawn(|| witness.look(&has_ended));
        scope.spawn(|| tell(verdict, say, &has_ended));
        for (number, mut worker) in workers(cluster, storm, &places, verdict).into_iter().enumerate() {
            worker.rng = Rng::with_seed(storm.seed.wrapping_mul(1000).wrapping_add(number as u64));
            let (gate, no_more) = (&gate, &no_more);
            scope.spawn(move || worker.run(gate, no_more));
        }
        for host in cluster.hosts().iter().take(2) {
            let (gate, no_more) = (&gate, &no_more);
            let rng = Rng::with_seed(storm.seed.wrapping_add(host.number() as u64));
            scope.spawn(move || worker::make_networks(host, rng, verdict, gate, no_more));
        }
        let outcome = rounds(cluster, storm, &places, &witness, &gate, verdict, say);
        ended.store(true, Ordering::Relaxed);
        outcome
    });
    if outcome.is_err() || !verdict.violations().is_empty() {
        keep_evidence(cluster, storm, &witness).context("keeping the evidence")?;
    }
    outcome
}

fn rounds(
    cluster: &Cluster,
    storm: &Storm,
    places: &[Place],
    witness: &Witness<'_>,
    gate: &Gate,
    verdict: &Verdict,
    say: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    let mut rng = Rng::with_seed(storm.seed);
    let begun = verdict.elapsed();
    let mut long_pauses = 0;
    let mut round = 0;
    while verdict.elapsed() - begun < storm.lasts && !verdict.is_over() {
        round += 1;
        let long = storm.long_pauses && verdict.elapsed() - begun >= FIRST_LONG_PAUSE + EVERY * long_pauses;
        long_pauses += u32::from(long);
        let faults = choice::round(&mut rng, storm.hosts, MEMBERS, long);
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        say(&format!("round {round}: {}", told.join(", ")));
        gate.open();
        fault::strike(cluster, &faults, verdict)?;
        fault::all_run(cluster, verdict);
        gate.close();
        if verdict.is_over() {
            break;
        }
        settled::check(cluster, places, witness, verdict)?;
        settled::restart(cluster.host(rng.usize(1..=storm.hosts)), verdict)?;
    }
    gate.close();
    if verdict.is_over() {
        return Ok(());
    }
    verdict.count("settled", "rounds", round);
    // Looks go on; those that were made so far are all judged once one that is made from here on is.
    let goal = witness.looks() + 1;
    eventually(Duration::from_secs(10), "every look is judged", || {
        ensure!(witness.judged() >= goal, "{} of {goal}", witness.judged());
        Ok(())
    })
}

/// Makes the containers, many at a time: each takes the kernel a while.
fn places(cluster: &Cluster, storm: &Storm) -> Result<Vec<Place>> {
    let mut wanted = Vec::new();
    for (number, network) in storm.networks.iter().enumerate() {
        for host in 1..=storm.hosts {
            wanted.extend((1..=storm.containers).map(|n| (number, &network.name, host, n)));
        }
    }
    let made = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .chunks(wanted.len().div_ceil(4).max(1))
            .map(|some| {
                scope.spawn(|| {
                    some.iter().try_for_each(|(number, network, host, n)| {
                        let container = cluster.container(&format!("{number}-{host}-{n}"))?;
                        lock(&made).push(Place {
                            host: *host,
                            network: (*network).clone(),
                            container,
                            ids: [format!("c{n}-a"), format!("c{n}-b")],
                            current: AtomicUsize::new(0),
                            belief: Mutex::new(Belief::Free { doubtful: false }),
                            calls: Mutex::default(),
                        });
                        anyhow::Ok(())
                    })
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let mut places: Vec<Place> = lock(&made).drain(..).collect();
    // In an order that does not depend on who was faster.
    places.sort_by_key(|place| (place.host, place.container.name().to_owned()));
    Ok(places)
}

fn workers<'a>(
    cluster: &'a Cluster,
    storm: &Storm,
    places: &'a [Place],
    verdict: &'a Verdict,
) -> Vec<Worker<'a>> {
    let mut workers = Vec::new();
    for host in cluster.hosts() {
        let here: Vec<&Place> = places
            .iter()
            .filter(|place| place.host == host.number())
            .collect();
        for number in 0..storm.workers {
            workers.push(Worker {
                lab: cluster,
                host,
                places: here.iter().skip(number).step_by(storm.workers).copied().collect(),
                networks: storm.networks.clone(),
                rng: Rng::with_seed(0),
                verdict,
            });
        }
    }
    workers
}

fn tell(verdict: &Verdict, say: &(dyn Fn(&str) + Sync), over: &dyn Fn() -> bool) {
    let mut last = verdict.elapsed();
    while !over() {
        // Not a wait for anything: how soon the end is noticed.
        std::thread::sleep(Duration::from_millis(100));
        if verdict.elapsed() - last < PROGRESS {
            continue;
        }
        last = verdict.elapsed();
        say(&format!(
            "{:6.1} s: attached {}, detached {}, refused {}; looks {}, reads {}",
            last.as_secs_f64(),
            verdict.counted("attach", "ok"),
            verdict.counted("detach", "ok"),
            worker::CLEAR
                .iter()
                .map(|code| verdict.counted("attach", code) + verdict.counted("detach", code))
                .sum::<u64>(),
            verdict.counted("looks", "looks into all containers"),
            verdict.counted("looks", "reads of the store checked"),
        ));
    }
}

/// Logs of all agents and members, every change in the store and every call, in files.
fn keep_evidence(lab: &Lab, storm: &Storm, witness: &Witness<'_>) -> Result<()> {
    let dir = &storm.evidence;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let keep = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    for host in lab.hosts() {
        keep(&format!("weftd-{}.log", host.node()), Host::log(host))?;
    }
    for member in lab.etcd_members() {
        let log = lab.run_dir().join(format!("etcd{}.log", member.number()));
        std::fs::copy(&log, dir.join(format!("etcd{}.log", member.number())))
            .with_context(|| format!("copying {}", log.display()))?;
    }
    let changes: Vec<String> = lock(&witness.ledger).changes().map(str::to_owned).collect();
    keep("changes.txt", changes.join("\n"))?;
    keep("calls.txt", witness.calls())
}
