//! The stage of a storm: a lab with agents, networks, containers, and threads that work and look until it is over.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use weft_e2e::Cluster;
use weft_lab::{Lab, eventually};

use crate::choice::Fault;
use crate::fault::{self, Strikes};
use crate::verdict::{Verdict, lock};
use crate::witness::Witness;
use crate::worker::{Belief, Gate, Place, Worker};
use crate::{MEMBERS, Storm, evidence, settled, worker};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(2);

/// What the rounds of a storm have to do with.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The lab, its agents started.
    pub cluster: &'a Cluster,
    /// What was asked for.
    pub storm: &'a Storm,
    /// The containers of the workers.
    pub places: &'a [Place],
    /// Who looks.
    pub witness: &'a Witness<'a>,
    /// Workers work while it is open.
    pub gate: &'a Gate,
    /// Where everything is noted.
    pub verdict: &'a Verdict,
    /// Is told what goes on.
    pub say: &'a (dyn Fn(&str) + Sync),
}

impl Scene<'_> {
    /// A round: faults strike while workers work (unless a fault needs them at rest), all is healed, and what then must hold is checked. Answers whether there
    /// is any point in going on.
    ///
    /// # Errors
    /// When the storm itself fails.
    pub fn round<K: Strikes>(&self, number: u64, faults: &[Fault<K>]) -> Result<bool> {
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let told = format!("round {number}: {}", told.join(", "));
        (self.say)(&told);
        self.verdict.note(&told);
        if !faults.iter().any(|fault| fault.kind.needs_rest()) {
            self.gate.open();
        }
        fault::strike(self, faults)?;
        fault::all_run(self.cluster, self.verdict);
        self.gate.close();
        if !self.verdict.is_over() {
            settled::check(self)?;
        }
        Ok(!self.verdict.is_over())
    }

    /// Closes the gate after the last round, and waits until all that was looked at is judged.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn end_rounds(&self, rounds: u64) -> Result<()> {
        self.gate.close();
        if self.verdict.is_over() {
            return Ok(());
        }
        self.verdict.count("settled", "rounds", rounds);
        // Looks go on; those that were made so far are all judged once one that is made from here on is.
        let goal = self.witness.looks() + 1;
        eventually(Duration::from_secs(10), "every look is judged", || {
            ensure!(
                self.witness.judged() >= goal,
                "{} of {goal}",
                self.witness.judged()
            );
            Ok(())
        })
    }
}

pub(crate) fn in_a_lab(
    storm: &Storm,
    verdict: &Verdict,
    say: &(dyn Fn(&str) + Sync),
    rounds: &dyn Fn(&Scene<'_>) -> Result<()>,
) -> Result<()> {
    let lab = Lab::builder().hosts(storm.hosts).underlay(storm.underlay);
    let cluster = Cluster::build(lab.etcd_members(MEMBERS))?;
    say(&format!("lab {} is up", cluster.id()));
    let outcome = over(&cluster, storm, verdict, say, rounds);
    if outcome.is_err() || !verdict.violations().is_empty() {
        say("the agents' logs end with:");
        // Dropped, it prints the ends of the agents' logs.
        drop(cluster);
        return outcome;
    }
    cluster.close()
}

fn over(
    cluster: &Cluster,
    storm: &Storm,
    verdict: &Verdict,
    say: &(dyn Fn(&str) + Sync),
    rounds: &dyn Fn(&Scene<'_>) -> Result<()>,
) -> Result<()> {
    for network in &storm.networks {
        let mut args = vec!["network", "create", &network.name];
        args.extend(network.cidrs.iter().flat_map(|cidr| ["--subnet", cidr]));
        cluster.host(1).weft(&args)?;
    }
    let places = places(cluster, storm)?;
    say(&format!("{} containers are made", places.len()));
    let witness = Witness::new(cluster, &places, storm.by_hand.clone(), verdict);
    let ended = AtomicBool::new(false);
    let has_ended = || ended.load(Ordering::Relaxed);
    // Workers also end when the storm does; witnesses see it to its end.
    let no_more = || has_ended() || verdict.is_over();
    let gate = Gate::default();
    let outcome = std::thread::scope(|scope| {
        let _all_end = OnDrop(|| {
            ended.store(true, Ordering::Relaxed);
            gate.close();
        });
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
        rounds(&Scene {
            cluster,
            storm,
            places: &places,
            witness: &witness,
            gate: &gate,
            verdict,
            say,
        })
    });
    if outcome.is_err() || !verdict.violations().is_empty() {
        evidence::keep(cluster, &storm.evidence, &witness, verdict).context("keeping the evidence")?;
    }
    outcome
}

/// Does something in the end, also when somebody panics: threads that wait for the end would be waited for without end.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
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
