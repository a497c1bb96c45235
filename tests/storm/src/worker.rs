//! Those who attach and detach, through the operator's command on their host, and what they may be told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::Value;
use weft_e2e::Cluster;
use weft_lab::{Container, Host, Lab};

use crate::verdict::{Verdict, lock};
use crate::{Network, containers};

/// What a command gives the agent to be done.
const TIMEOUT: &str = "5s";
/// After this many seconds, a command that had [`TIMEOUT`] has not kept it.
const HANGS: &str = "12";
/// The same for commands about networks, which give the agent 30 seconds.
const NETWORK_HANGS: &str = "40";

/// What the owner of a container believes of it, by the answers it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belief {
    /// Nothing is attached.
    Free {
        /// An attach was given up on since all was settled last: the store may carry it out later, which is allowed (a
        /// request that was given up on may still lie in a frozen member of etcd, or in a connection that was cut).
        doubtful: bool,
    },
    /// This id is attached and has these addresses.
    Attached {
        /// Its id.
        id: String,
        /// Its addresses, as answered.
        addresses: BTreeSet<IpAddr>,
        /// As for [`Belief::Free`].
        doubtful: bool,
    },
    /// The last answer was an error: anything may be.
    Unclear,
}

/// A container and who may be attached to it, one at a time.
#[derive(Debug)]
pub struct Place {
    /// Number of its host.
    pub host: usize,
    /// The network that its endpoints are in.
    pub network: String,
    /// The container.
    pub container: Container,
    /// The ids of its endpoints, one of which is attached at a time.
    pub ids: [String; 2],
    /// Which of them. Not changed while there is doubt about it: with both in the store, it would be the agent's choice
    /// which of them has the container.
    pub current: AtomicUsize,
    /// What its worker believes.
    pub belief: Mutex<Belief>,
    /// The last calls and their answers, for the report of a failure.
    pub calls: Mutex<Vec<String>>,
}

impl Place {
    /// The id that is attached, or would be.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.ids[self.current.load(Ordering::Relaxed)]
    }

    /// Takes in that all is settled: nothing that was asked for before is still to come. `there` says whether the
    /// endpoint has a record.
    pub fn settle(&self, there: bool) {
        let mut belief = lock(&self.belief);
        match &mut *belief {
            Belief::Free { .. } if there => *belief = Belief::Unclear,
            Belief::Free { doubtful } | Belief::Attached { doubtful, .. } => *doubtful = false,
            Belief::Unclear => {}
        }
    }
}

/// Lets workers through while it is open, and waits until none is inside.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    /// Lets workers through.
    pub fn open(&self) {
        lock(&self.state).0 = true;
        self.changed.notify_all();
    }

    /// Lets nobody through any more and waits until nobody is inside.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.0 = false;
        while state.1 > 0 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Does something inside, unless the gate stays closed until `over`.
    fn pass(&self, over: impl Fn() -> bool, job: impl FnOnce()) {
        let mut state = lock(&self.state);
        while !state.0 {
            if over() {
                return;
            }
            let waited = self.changed.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        state.1 += 1;
        drop(state);
        let _inside = Inside(self);
        job();
    }
}

/// One who is inside; out again also when it panics, so that nobody waits for it for good.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).1 -= 1;
        self.0.changed.notify_all();
    }
}

/// What came of a command.
enum Answer {
    Done(Value),
    /// A clear error, that says what is the matter.
    Refused(&'static str),
    /// Anything else, which is a fault of weft's.
    Wrong(String),
}

/// The errors that a request may be answered with while hosts and stores fail.
pub(crate) const CLEAR: [&str; 5] = [
    "unavailable",
    "deadline_exceeded",
    "conflict",
    "already_exists",
    "full",
];

fn call(host: &Host, limit: &str, args: &[&str]) -> Result<Answer> {
    let mut command = host.netns().command("timeout");
    let output = command
        .args(["--signal=KILL", limit])
        .arg(host.weft_path()?)
        .arg("--socket")
        .arg(host.socket())
        .args(["-o", "json"])
        .args(args)
        // Ctrl-C in the terminal is for the storm, not for what it has called.
        .process_group(0)
        .output()
        .context("starting weft")?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if output.status.success() {
        return Ok(match serde_json::from_str(&out) {
            Ok(value) => Answer::Done(value),
            Err(error) => Answer::Wrong(format!("it succeeded and printed {out:?}: {error}")),
        });
    }
    let told: Option<Value> = [&err, &out]
        .iter()
        .find_map(|text| serde_json::from_str(text).ok());
    let code = told.as_ref().and_then(|told| told["error"]["code"].as_str());
    let clear = code.and_then(|code| CLEAR.iter().find(|clear| **clear == code));
    Ok(match clear {
        Some(clear) => Answer::Refused(clear),
        None => Answer::Wrong(format!("{} {} {}", output.status, err.trim(), out.trim())),
    })
}

fn addresses(endpoint: &Value) -> BTreeSet<IpAddr> {
    let listed = endpoint["addresses"].as_array().into_iter().flatten();
    listed
        .filter_map(|address| address.as_str()?.split('/').next()?.parse().ok())
        .collect()
}

/// One who attaches and detaches at its places, all on one host.
#[derive(Debug)]
pub struct Worker<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// Its host.
    pub host: &'a Host,
    /// Its places.
    pub places: Vec<&'a Place>,
    /// The networks of its places.
    pub networks: Vec<Network>,
    /// Its choices.
    pub rng: Rng,
    /// Where it reports.
    pub verdict: &'a Verdict,
}

impl Worker<'_> {
    /// Works until the storm is over.
    pub fn run(&mut self, gate: &Gate, over: &(dyn Fn() -> bool + Sync)) {
        while !over() {
            gate.pass(over, || {
                if let Err(error) = self.step() {
                    self.verdict
                        .violated(format!("the storm itself failed: {error:#}"));
                }
            });
        }
    }

    fn step(&mut self) -> Result<()> {
        let mut place = self.places[self.rng.usize(0..self.places.len())];
        let mut belief = lock(&place.belief).clone();
        if matches!(belief, Belief::Attached { .. }) && self.rng.u32(0..3) > 0 {
            // More come than go, so that addresses get scarce.
            place = self.places[self.rng.usize(0..self.places.len())];
            belief = lock(&place.belief).clone();
        }
        let new = match belief {
            Belief::Free { doubtful } => {
                if !doubtful {
                    place.current.store(self.rng.usize(0..2), Ordering::Relaxed);
                }
                if self.rng.u32(0..6) == 0 {
                    self.write_record(place)
                } else {
                    self.attach(place, doubtful)?
                }
            }
            Belief::Attached { doubtful, .. } => self.detach(place, doubtful)?,
            // Whoever got an error asks again, or gives up and cleans up.
            Belief::Unclear if self.rng.bool() => self.attach(place, true)?,
            Belief::Unclear => self.detach(place, true)?,
        };
        let failed = new == Belief::Unclear;
        *lock(&place.belief) = new;
        let pause = if failed {
            self.rng.u64(20..=200)
        } else {
            self.rng.u64(0..=15)
        };
        // A client's own pace, not a wait for anything.
        std::thread::sleep(Duration::from_millis(pause));
        Ok(())
    }

    fn told(&self, place: &Place, what: &str, args: &[&str]) -> Result<Answer> {
        let start = Instant::now();
        let answer = call(self.host, HANGS, args)?;
        let took = start.elapsed();
        let word = match &answer {
            Answer::Done(_) => "ok",
            Answer::Refused(code) => code,
            Answer::Wrong(_) => "wrong",
        };
        self.verdict
            .count(if what == "attach" { "attach" } else { "detach" }, word, 1);
        let mut calls = lock(&place.calls);
        let said = match &answer {
            Answer::Done(value) => value.to_string(),
            Answer::Refused(code) => (*code).to_owned(),
            Answer::Wrong(text) => text.clone(),
        };
        let at = self.verdict.elapsed().as_secs_f64();
        calls.push(format!(
            "{at:.3} s: {what} {} took {} ms: {said}",
            args[3..].join(" "),
            took.as_millis()
        ));
        drop(calls);
        if let Answer::Wrong(text) = &answer {
            self.verdict.violated(format!(
                "host{}: weft {} answered after {} ms, which is no clear error: {text}",
                place.host,
                args.join(" "),
                took.as_millis()
            ));
        }
        Ok(answer)
    }

    fn attach(&mut self, place: &Place, doubtful: bool) -> Result<Belief> {
        let id = place.id();
        let path = place.container.path();
        let mut args = vec![
            "endpoint",
            "attach",
            &place.network,
            &path,
            "--id",
            id,
            "--timeout",
            TIMEOUT,
        ];
        let wish = self
            .networks
            .iter()
            .find(|network| network.name == place.network)
            .and_then(|network| self.rng.choice(&network.wishes))
            .filter(|_| self.rng.u32(0..6) == 0)
            .map(ToString::to_string);
        if let Some(wish) = &wish {
            args.extend(["--address", wish]);
        }
        let Answer::Done(endpoint) = self.told(place, "attach", &args)? else {
            return Ok(Belief::Unclear);
        };
        let answered = addresses(&endpoint);
        // It is ready: nobody but this worker would take it away.
        let there = containers::look(&place.container)?;
        let is_there = there.as_ref().map(|interface| &interface.addresses) == Some(&answered);
        if !is_there && !self.verdict.is_disturbed(place.host) {
            self.verdict.violated(format!(
                "{} of host{} is attached with {answered:?}, but its container has {there:?}",
                id, place.host
            ));
        }
        if let Some(wish) = wish
            && !answered.iter().any(|address| address.to_string() == wish)
        {
            self.verdict.violated(format!(
                "{id} of host{} wished for {wish} and got {answered:?}",
                place.host
            ));
        }
        Ok(Belief::Attached {
            id: id.to_owned(),
            addresses: answered,
            doubtful,
        })
    }

    /// Writes the least that is an endpoint, as an operator does, if there is none; the agent completes it. What came of
    /// it, the next call to the agent shows.
    fn write_record(&mut self, place: &Place) -> Belief {
        let id = place.id();
        let key = Cluster::endpoint_key(&place.network, place.host, id);
        let record = place.container.endpoint_record(&[]);
        let word = match self.lab.create(&key, &record) {
            Ok(true) => "ok",
            Ok(false) => "exists",
            Err(_) => "no answer",
        };
        self.verdict.count("records written by hand", word, 1);
        let at = self.verdict.elapsed().as_secs_f64();
        lock(&place.calls).push(format!("{at:.3} s: etcdctl txn put {key}: {word}"));
        Belief::Unclear
    }

    fn detach(&mut self, place: &Place, doubtful: bool) -> Result<Belief> {
        let args = [
            "endpoint",
            "detach",
            &place.network,
            place.id(),
            "--timeout",
            TIMEOUT,
        ];
        let Answer::Done(answer) = self.told(place, "detach", &args)? else {
            return Ok(Belief::Unclear);
        };
        if answer["record_pending"] == true {
            self.verdict.count("detach", "of them with the record pending", 1);
        }
        Ok(Belief::Free { doubtful })
    }
}

/// Makes and deletes networks that compete for names and VNIs, until the storm is over.
pub(crate) fn make_networks(
    host: &Host,
    mut rng: Rng,
    verdict: &Verdict,
    gate: &Gate,
    over: &(dyn Fn() -> bool + Sync),
) {
    let mut step = || -> Result<()> {
        let name = format!("other{}", rng.u32(1..=3));
        let vni = rng.u32(9001..=9002).to_string();
        let mut args = vec!["network"];
        if rng.bool() {
            args.extend(["create", &name, "--subnet", "10.99.9.0/24"]);
            if rng.bool() {
                args.extend(["--vni", &vni]);
            }
        } else {
            args.extend(["delete", &name]);
        }
        let word = match call(host, NETWORK_HANGS, &args)? {
            Answer::Done(_) => "ok".to_owned(),
            Answer::Refused(code) => code.to_owned(),
            // Somebody else was faster.
            Answer::Wrong(text) if args[1] == "delete" && text.contains("\"not_found\"") => {
                "not_found".to_owned()
            }
            Answer::Wrong(text) => {
                verdict.violated(format!(
                    "{}: weft {} answered, which is no clear error: {text}",
                    host.node(),
                    args.join(" ")
                ));
                "wrong".to_owned()
            }
        };
        verdict.count("networks made and deleted", &word, 1);
        // A client's own pace, not a wait for anything.
        std::thread::sleep(Duration::from_millis(rng.u64(50..=150)));
        Ok(())
    };
    while !over() {
        gate.pass(over, || {
            if let Err(error) = step() {
                verdict.violated(format!("the storm itself failed: {error:#}"));
            }
        });
    }
}
