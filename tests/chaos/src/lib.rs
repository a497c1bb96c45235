//! Chaos: everything that can go wrong with a cluster, several things at once, drawn from a seed, while workers attach
//! and detach and steady traffic runs between the hosts.
//!
//! It is a storm (`weft_storm`: stage, workers, witness, oracle, settled checks) with more faults and more to hold. After
//! each round, when all is healed and has settled:
//!
//! 1. every host's kernel and every container is what the oracle makes of the records, no more and no less;
//! 2. all pairs talk, no address is twice in the store or in containers, `weft audit` is clean;
//! 3. no agent has ended by itself, panicked, flooded its log or grown ([`health`]);
//! 4. the steady traffic has lost nothing, but on paths that a fault of the round concerned ([`choice::Kind::concerns`]).

mod agents;
pub mod choice;
pub mod deal;
mod drift;
mod faults;
pub mod health;
mod slip;
pub mod steady;
mod store;
mod underlay;
mod writes;

use std::time::Duration;

use anyhow::Result;
use weft_lab::Underlay;
use weft_storm::scene::Scene;
use weft_storm::verdict::Verdict;
use weft_storm::{MEMBERS, Network, Storm, evidence, pass_over, settled};

use crate::deal::Dealer;
use crate::health::Health;
use crate::steady::Steady;

/// The chaos that `make chaos` makes.
#[must_use]
pub fn chaos(seed: u64, lasts: Duration) -> Storm {
    let underlays = [Underlay::V4, Underlay::Dual, Underlay::V6];
    Storm {
        name: "chaos",
        hosts: 5,
        underlay: underlays[usize::try_from(seed % 3).unwrap_or(0)],
        networks: vec![Network::small(1, 5), Network::small(2, 6)],
        containers: 4,
        workers: 1,
        by_hand: slip::NETWORKS
            .into_iter()
            .chain([steady::NETWORK])
            .map(str::to_owned)
            .collect(),
        sample: usize::MAX,
        evidence: evidence("chaos", seed),
        ..Storm::long(seed, lasts)
    }
}

/// Lets chaos loose on a lab of its own and removes everything after, whatever happens.
///
/// # Errors
/// When something that must hold did not, with everything known about it; or when the chaos itself failed.
pub fn run(chaos: &Storm, verdict: &Verdict, say: &(dyn Fn(&str) + Sync)) -> Result<()> {
    run_only(chaos, &[], verdict, say)
}

/// As [`run`], with no faults but those of these names, among [`names`]; none for all.
///
/// # Errors
/// As [`run`].
pub fn run_only(
    chaos: &Storm,
    only: &[String],
    verdict: &Verdict,
    say: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    pass_over(chaos, verdict, say, &|scene| rounds(scene, only))
}

/// Names of all kinds of faults.
pub fn names() -> impl Iterator<Item = &'static str> {
    choice::KINDS.into_iter().chain(weft_storm::choice::KINDS)
}

fn rounds(scene: &Scene<'_>, only: &[String]) -> Result<()> {
    let (chaos, verdict) = (scene.storm, scene.verdict);
    let mut dealer = Dealer::new(chaos.seed, chaos.hosts, MEMBERS).only(only);
    let mut health = Health::default();
    underlay::know_all_neighbours(scene.cluster)?;
    let mut steady = Steady::start(scene.cluster)?;
    settled::check(scene)?;
    health.check(scene.cluster, verdict)?;
    let begun = verdict.elapsed();
    let mut round = 0;
    while verdict.elapsed() - begun < chaos.lasts && !verdict.is_over() {
        round += 1;
        let faults = dealer.round();
        for host in faults.iter().filter_map(|fault| fault.kind.disturbs()) {
            verdict.disturb(host);
        }
        if !scene.round(round, &faults)? {
            break;
        }
        health.check(scene.cluster, verdict)?;
        let concerned = faults.iter().filter_map(|fault| fault.kind.concerns());
        steady.renew(&concerned.collect(), verdict)?;
        // Not the last one, whose agent lives through everything.
        let number = usize::try_from(round).unwrap_or(1) % (chaos.hosts - 1) + 1;
        settled::restart(scene.cluster.host(number), verdict)?;
    }
    scene.end_rounds(round)
}
