//! Faults striking and being healed.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use weft_lab::{EtcdMember, Host, Lab, eventually};

use crate::choice::{Fault, KINDS, Kind, Member};
use crate::verdict::Verdict;

/// How long etcd may take to have a leader, and a member to be back.
const ELECTION: Duration = Duration::from_secs(10);

/// Lets the faults of a round strike, each in its time, and returns when all are healed: every agent and every member
/// runs and nothing is cut. Whether they have found each other again is for others to see.
///
/// # Errors
/// When a fault cannot be made or healed, which is a fault of the storm's own.
pub fn strike(lab: &Lab, faults: &[Fault], verdict: &Verdict) -> Result<()> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = faults
            .iter()
            .map(|fault| {
                scope.spawn(move || one(lab, fault, start, verdict).with_context(|| fault.to_string()))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    lab.etcd_members().iter().try_for_each(EtcdMember::wait_ready)
}

/// Lets time pass; shorter when the storm is over.
fn rest(until: Instant, verdict: &Verdict) {
    while let Some(left) = until.checked_duration_since(Instant::now())
        && !verdict.is_over()
    {
        // A fault's duration is time itself, not a condition to wait for.
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

fn one(lab: &Lab, fault: &Fault, start: Instant, verdict: &Verdict) -> Result<()> {
    rest(start + fault.after, verdict);
    let until = start + fault.after + fault.lasts;
    verdict.count("faults", KINDS[fault.kind.number()], 1);
    match &fault.kind {
        Kind::KillAgent { host, times } => {
            let host = lab.host(*host);
            // As long down as up, so that it is also killed while it starts.
            let each = fault.lasts / (2 * times);
            for round in 0..*times {
                runs(host, verdict);
                host.kill9()?;
                verdict.count("faults", "kill -9 of an agent", 1);
                rest(start + fault.after + each * (2 * round + 1), verdict);
                host.spawn_weftd(&[])?;
                rest(start + fault.after + each * (2 * round + 2), verdict);
            }
        }
        Kind::PauseAgent { host, revoke } => {
            let host = lab.host(*host);
            runs(host, verdict);
            host.signal(Signal::SIGSTOP)?;
            if *revoke {
                let revoked = revoke_lease(lab, host);
                verdict.count(
                    "faults",
                    if revoked {
                        "lease revoked"
                    } else {
                        "lease not revoked"
                    },
                    1,
                );
            }
            rest(until, verdict);
            host.signal(Signal::SIGCONT)?;
        }
        Kind::CutAgent { host, members } => {
            let addresses: Vec<IpAddr> = members.iter().flat_map(|n| lab.etcd(*n).addresses()).collect();
            let netns = lab.host(*host).netns();
            netns.cut_off(&addresses)?;
            rest(until, verdict);
            netns.reconnect()?;
        }
        Kind::KillMember(member) => {
            let member = find(lab, *member)?;
            member.kill9()?;
            rest(until, verdict);
            member.spawn()?;
        }
        Kind::PauseMember(member) => {
            let member = find(lab, *member)?;
            member.freeze()?;
            rest(until, verdict);
            member.thaw()?;
        }
        Kind::IsolateMember(member) => {
            let member = find(lab, *member)?;
            let others = lab
                .etcd_members()
                .iter()
                .filter(|other| other.number() != member.number());
            member
                .netns()
                .cut_off(&others.flat_map(EtcdMember::addresses).collect::<Vec<_>>())?;
            rest(until, verdict);
            member.netns().reconnect()?;
        }
    }
    Ok(())
}

/// An agent ends only when a fault ends it.
fn runs(host: &Host, verdict: &Verdict) {
    if host.pid().is_none() {
        verdict.violated(format!("the agent of {} has ended by itself", host.node()));
    }
}

/// Every agent runs.
pub(crate) fn all_run(lab: &Lab, verdict: &Verdict) {
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
