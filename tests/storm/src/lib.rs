//! A storm: workers attach and detach endpoints on several hosts as fast as they can, in networks with few addresses,
//! while agents and members of etcd are killed, stopped and cut off from each other; and a checker that looks all the
//! time, at every revision of the store and into every container.
//!
//! The parts serve others too: [`pass_over`] lets somebody else say what happens in the rounds.
//!
//! Inputs: a seed, which decides all choices (what strikes whom when, who attaches what where), and sizes. Outputs:
//! counts, or what did not hold, with what the store and the workers have to say of it. What must hold when is told in
//! [`witness`] and [`settled`]. It must not know how weft works inside: it sees the command line, the records and the
//! kernel.

pub mod choice;
pub mod command;
pub mod containers;
mod evidence;
pub mod fault;
pub mod kernel;
pub mod ledger;
pub mod oracle;
pub mod records;
pub mod scene;
pub mod settled;
pub mod verdict;
pub mod witness;
pub mod worker;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use weft_lab::{NeighbourTables, Underlay};

use crate::scene::Scene;
use crate::verdict::Verdict;

/// The members of etcd.
pub const MEMBERS: usize = 3;
/// When an agent is paused for longer than its lease lives, and after how long another one. They take most of a minute,
/// in which little else happens.
const FIRST_LONG_PAUSE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_secs(180);
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
    /// What it is called, and by which `make` makes it.
    pub name: &'static str,
    /// Decides all choices.
    pub seed: u64,
    /// Rounds of faults are begun for this long.
    pub lasts: Duration,
    /// Number of hosts.
    pub hosts: usize,
    /// Address families of the underlay.
    pub underlay: Underlay,
    /// The networks.
    pub networks: Vec<Network>,
    /// Containers on each host in each network.
    pub containers: usize,
    /// Workers on each host.
    pub workers: usize,
    /// Other networks, in which records are written by hand.
    pub by_hand: BTreeSet<String>,
    /// How many endpoints of each network are pinged by each other when all has settled.
    pub sample: usize,
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
            name: "storm",
            seed,
            lasts,
            hosts: 4,
            underlay: Underlay::V4,
            networks: vec![Network::small(1, 5), Network::small(2, 6)],
            containers: 12,
            workers: 3,
            by_hand: BTreeSet::new(),
            sample: 8,
            long_pauses: true,
            evidence: evidence("storm", seed),
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

/// Where the evidence of a failure goes.
#[must_use]
pub fn evidence(name: &str, seed: u64) -> PathBuf {
    // Tests run in the directory of their crate, the command anywhere.
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(beside, PathBuf::from);
    target.join(name).join(format!("seed-{seed}"))
}

/// Lets a storm pass over a lab of its own and removes everything after, whatever happens. `say` is told what goes on.
/// Ends soon after [`Verdict::end`].
///
/// # Errors
/// When something that must hold did not, with everything known about it; or when the storm itself failed.
pub fn run(storm: &Storm, verdict: &Verdict, say: &(dyn Fn(&str) + Sync)) -> Result<()> {
    pass_over(storm, verdict, say, &rounds)
}

/// As [`run`], with somebody else's rounds: they begin when everybody is there, with the gate closed.
///
/// # Errors
/// As [`run`].
pub fn pass_over(
    storm: &Storm,
    verdict: &Verdict,
    say: &(dyn Fn(&str) + Sync),
    rounds: &dyn Fn(&Scene<'_>) -> Result<()>,
) -> Result<()> {
    let (name, seed) = (storm.name, storm.seed);
    say(&format!(
        "SEED={seed}: {} hosts, {MEMBERS} members of etcd, underlay {:?}",
        storm.hosts, storm.underlay
    ));
    let tables = NeighbourTables::now();
    let outcome = scene::in_a_lab(storm, verdict, say, rounds);
    let summary = verdict.summary();
    say(&format!(
        "SEED={seed}: after {:.1} s\n{summary}",
        verdict.elapsed().as_secs_f64()
    ));
    let violations = verdict.violations();
    if !violations.is_empty() {
        let excuse = tables
            .excuse()
            .map_or_else(String::new, |why| format!("\n  but {why}"));
        bail!(
            "SEED={seed}: this does not hold:\n  {}{excuse}\nwhat was done:\n  {}\nlogs and all changes: {}\nagain: make {name} SEED={seed} SECONDS={}",
            violations.join("\n  "),
            verdict.last_round().join("\n  "),
            storm.evidence.display(),
            storm.lasts.as_secs().max(1)
        );
    }
    outcome.with_context(|| format!("SEED={seed}"))
}

fn rounds(scene: &Scene<'_>) -> Result<()> {
    let (storm, verdict) = (scene.storm, scene.verdict);
    let mut rng = Rng::with_seed(storm.seed);
    let begun = verdict.elapsed();
    let mut long_pauses = 0;
    let mut round = 0;
    while verdict.elapsed() - begun < storm.lasts && !verdict.is_over() {
        round += 1;
        let long = storm.long_pauses && verdict.elapsed() - begun >= FIRST_LONG_PAUSE + EVERY * long_pauses;
        long_pauses += u32::from(long);
        let faults = choice::round(&mut rng, storm.hosts, MEMBERS, long);
        if !scene.round(round, &faults)? {
            break;
        }
        settled::restart(scene.cluster.host(rng.usize(1..=storm.hosts)), verdict)?;
    }
    scene.end_rounds(round)
}
