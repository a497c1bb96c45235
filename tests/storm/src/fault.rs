//! Faults striking and being healed.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use weft_lab::{EtcdMember, Host, Lab, eventually};

use crate::choice::{Fault, Kind, Member};
use crate::scene::Scene;
use crate::verdict::Verdict;

/// How long etcd may take to have a leader, and a member to be back.
const ELECTION: Duration = Duration::from_secs(10);

/// A kind of fault that knows how to happen.
pub trait Strikes: Display + Sync {
    /// What it is counted as.
    fn name(&self) -> &'static str;

    /// Whether workers rest in a round that has it.
    fn needs_rest(&self) -> bool {
        false
    }

    /// Happens, lasts for its time, and is healed.
    ///
    /// # Errors
    /// When it cannot be made or healed, which is a fault of the storm's own.
    fn strike(&self, scene: &Scene<'_>, course: &Course<'_>) -> Result<()>;
}

/// While a fault lasts.
#[derive(Debug)]
pub struct Course<'a> {
    /// When it struck.
    pub from: Instant,
    /// How long it lasts.
    pub lasts: Duration,
    verdict: &'a Verdict,
}

impl Course<'_> {
    /// Lets time pass until this much after it struck; shorter when the storm is over.
    pub fn rest_for(&self, time: Duration) {
        // A fault's duration is time itself, not a condition to wait for.
        while let Some(left) = (self.from + time).checked_duration_since(Instant::now())
            && !self.verdict.is_over()
        {
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Lets time pass until it is to be healed.
    pub fn rest(&self) {
        self.rest_for(self.lasts);
    }
}

/// Lets the faults of a round strike, each in its time, and returns when all are healed: every agent and every member
/// runs and nothing is cut. Whether they have found each other again is for others to see.
///
/// # Errors
/// When a fault cannot be made or healed, which is a fault of the storm's own.
pub fn strike<K: Strikes>(scene: &Scene<'_>, faults: &[Fault<K>]) -> Result<()> {
    let start = Instant::now();
    let verdict = scene.verdict;
    let one = |fault: &Fault<K>| {
        let course = |from, lasts| Course { from, lasts, verdict };
        course(start, fault.after).rest();
        verdict.count("faults", fault.kind.name(), 1);
        verdict.note(&format!("struck: {}", fault.kind));
        fault.kind.strike(scene, &course(Instant::now(), fault.lasts))?;
        verdict.note(&format!("healed: {}", fault.kind));
        anyhow::Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = faults
            .iter()
            .map(|fault| scope.spawn(|| one(fault).with_context(|| fault.to_string())))
            .collect();
        // All of them are waited for, so that nothing strikes any more when this returns.
        let ended: Vec<Result<()>> = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        ended.into_iter().collect::<Result<()>>()
    })?;
    let members = scene.cluster.etcd_members();
    members.iter().try_for_each(EtcdMember::wait_ready)
}

impl Strikes for Kind {
    fn name(&self) -> &'static str {
        Kind::name(self)
    }

    fn strike(&self, scene: &Scene<'_>, course: &Course<'_>) -> Result<()> {
        let (lab, verdict): (&Lab, _) = (scene.cluster, scene.verdict);
        match self {
            Self::KillAgent { host, times } => {
                let host = lab.host(*host);
                // As long down as up, so that it is also killed while it starts.
                let each = course.lasts / (2 * times);
                for round in 0..*times {
                    runs(host, verdict);
                    host.kill9()?;
                    verdict.count("faults", "kill -9 of an agent", 1);
                    course.rest_for(each * (2 * round + 1));
                    host.spawn_weftd(&[])?;
                    course.rest_for(each * (2 * round + 2));
                }
            }
            Self::PauseAgent { host, revoke } => {
                let host = lab.host(*host);
                runs(host, verdict);
                host.signal(Signal::SIGSTOP)?;
                if *revoke {
                    let revoked = revoke_lease(lab, host);
                    let word = if revoked {
                        "lease revoked"
                    } else {
                        "lease not revoked"
                    };
                    verdict.count("faults", word, 1);
                }
                course.rest();
                host.signal(Signal::SIGCONT)?;
            }
            Self::CutAgent { host, members, how } => {
                let addresses: Vec<IpAddr> = members.iter().flat_map(|n| lab.etcd(*n).addresses()).collect();
                let netns = lab.host(*host).netns();
                netns.cut(&addresses, *how)?;
                course.rest();
                netns.reconnect()?;
            }
            Self::KillMember(member) => {
                let member = find(lab, *member)?;
                member.kill9()?;
                course.rest();
                member.spawn()?;
            }
            Self::PauseMember(member) => {
                let member = find(lab, *member)?;
                member.freeze()?;
                course.rest();
                member.thaw()?;
            }
            Self::IsolateMember(member) => {
                let member = find(lab, *member)?;
                let members = lab.etcd_members().iter();
                let others = members.filter(|other| other.number() != member.number());
                let addresses: Vec<IpAddr> = others.flat_map(EtcdMember::addresses).collect();
                member.netns().cut_off(&addresses)?;
                course.rest();
                member.netns().reconnect()?;
            }
        }
        Ok(())
    }
}

/// An agent ends only when a fault ends it.
pub fn runs(host: &Host, verdict: &Verdict) {
    if host.pid().is_none() {
        verdict.violated(format!("the agent of {} has ended by itself", host.node()));
    }
}

/// Every agent runs.
pub fn all_run(lab: &Lab, verdict: &Verdict) {
    lab.hosts().iter().for_each(|host| runs(host, verdict));
}

fn find(lab: &Lab, member: Member) -> Result<&EtcdMember> {
    match member {
        Member::Number(number) => Ok(lab.etcd(number)),
        Member::Leader => {
            let number = eventually(ELECTION, "somebody leads", || Ok(lab.etcd_leader()?.number()))?;
            Ok(lab.etcd(number))
        }
    }
}

/// Takes away an agent's lease, as if it had expired. Not done when etcd cannot do it now.
fn revoke_lease(lab: &Lab, host: &Host) -> bool {
    let key = format!("/weft/v1/alive/{}", host.node());
    let Ok(Some(alive)) = lab.get_kv(&key) else {
        return false;
    };
    let lease = format!("{:x}", alive.lease);
    lab.etcdctl(&["lease", "revoke", &lease, "--command-timeout=2s"])
        .is_ok()
}
