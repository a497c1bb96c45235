//! Which faults strike when: a function of the seed alone. Pure.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// How long an agent's presence lives in the store without it, and a margin: its lease is 30 s and up to a sixth.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(37);

/// One member of the etcd cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// The one with this number, from 1.
    Number(usize),
    /// Whoever leads when the fault strikes.
    Leader,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "etcd{number}"),
            Self::Leader => f.write_str("the leader"),
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An agent is killed with SIGKILL this many times, each time started again after the time.
    KillAgent {
        /// Host, from 1.
        host: usize,
        /// How often.
        times: u32,
    },
    /// An agent is stopped by SIGSTOP.
    PauseAgent {
        /// Host, from 1.
        host: usize,
        /// Its lease is revoked meanwhile, as if it had expired.
        revoke: bool,
    },
    /// All packets between a host and members of etcd vanish.
    CutAgent {
        /// Host, from 1.
        host: usize,
        /// Members, from 1.
        members: Vec<usize>,
    },
    /// A member of etcd is killed with SIGKILL.
    KillMember(Member),
    /// A member of etcd is stopped by SIGSTOP.
    PauseMember(Member),
    /// All packets between a member of etcd and the other members vanish; its clients still reach it.
    IsolateMember(Member),
}

/// Names of the kinds, in the order of [`Kind::number`].
pub const KINDS: [&str; 9] = [
    "agent killed",
    "agent paused",
    "agent paused, lease gone",
    "agent cut from etcd",
    "etcd member killed",
    "etcd leader killed",
    "etcd member paused",
    "etcd leader paused",
    "etcd member isolated",
];

impl Kind {
    /// Its place in [`KINDS`].
    #[must_use]
    pub fn number(&self) -> usize {
        match self {
            Self::KillAgent { .. } => 0,
            Self::PauseAgent { revoke: false, .. } => 1,
            Self::PauseAgent { revoke: true, .. } => 2,
            Self::CutAgent { .. } => 3,
            Self::KillMember(Member::Number(_)) => 4,
            Self::KillMember(Member::Leader) => 5,
            Self::PauseMember(Member::Number(_)) => 6,
            Self::PauseMember(Member::Leader) => 7,
            Self::IsolateMember(_) => 8,
        }
    }
}

/// A fault of a round: it strikes, stays and is healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// From the beginning of the round until it strikes.
    pub after: Duration,
    /// From then until it is healed.
    pub lasts: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::KillAgent { host, times: 1 } => write!(f, "kill -9 of host{host}'s agent")?,
            Kind::KillAgent { host, times } => write!(f, "{times} × kill -9 of host{host}'s agent")?,
            Kind::PauseAgent { host, revoke } => {
                let lease = if *revoke { ", its lease revoked" } else { "" };
                write!(f, "SIGSTOP of host{host}'s agent{lease}")?;
            }
            Kind::CutAgent { host, members } => write!(f, "host{host} cut from etcd {members:?}")?,
            Kind::KillMember(member) => write!(f, "kill -9 of {member}")?,
            Kind::PauseMember(member) => write!(f, "SIGSTOP of {member}")?,
            Kind::IsolateMember(member) => write!(f, "{member} cut from its peers")?,
        }
        write!(
            f,
            " ({:.1} to {:.1} s)",
            self.after.as_secs_f64(),
            (self.after + self.lasts).as_secs_f64()
        )
    }
}

fn millis(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from..=to))
}

/// The faults of one round: one to three hosts are struck, and in two rounds of three also etcd, now and then so that no
/// majority is left. With `long`, one agent is paused for longer than its lease lives.
#[must_use]
pub fn round(rng: &mut Rng, hosts: usize, members: usize, long: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut order: Vec<usize> = (1..=hosts).collect();
    rng.shuffle(&mut order);
    let struck = rng.usize(1..=3.min(hosts));
    for (at, host) in order.into_iter().take(struck).enumerate() {
        let after = millis(rng, 200, 1500);
        let mut lasts = millis(rng, 300, 3000);
        let kind = match rng.u32(0..10) {
            _ if long && at == 0 => {
                lasts = LONGER_THAN_A_LEASE;
                Kind::PauseAgent { host, revoke: false }
            }
            0..=3 => Kind::KillAgent {
                host,
                times: rng.u32(1..=4),
            },
            4..=6 => Kind::PauseAgent {
                host,
                revoke: rng.bool(),
            },
            _ => {
                let all = rng.bool();
                let mut cut: Vec<usize> = (1..=members).collect();
                if !all {
                    rng.shuffle(&mut cut);
                    cut.truncate(rng.usize(1..=members));
                    cut.sort_unstable();
                }
                Kind::CutAgent { host, members: cut }
            }
        };
        faults.push(Fault { kind, after, lasts });
    }
    let mut numbers: Vec<usize> = (1..=members).collect();
    rng.shuffle(&mut numbers);
    let struck = match rng.u32(0..9) {
        0..=2 => 0,
        3..=7 => 1,
        // Two of three: nothing can be written, and most reads cannot be answered.
        _ => 2.min(members),
    };
    for number in numbers.into_iter().take(struck) {
        // Two faults must not both be told to strike whoever leads.
        let member = if struck == 1 && rng.bool() {
            Member::Leader
        } else {
            Member::Number(number)
        };
        let kind = match rng.u32(0..5) {
            0..=2 => Kind::KillMember(member),
            3 => Kind::PauseMember(member),
            _ => Kind::IsolateMember(member),
        };
        faults.push(Fault {
            kind,
            after: millis(rng, 200, 2000),
            lasts: millis(rng, 500, 3500),
        });
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(seed: u64) -> Vec<Vec<Fault>> {
        let mut rng = Rng::with_seed(seed);
        (0..200).map(|n| round(&mut rng, 4, 3, n == 7)).collect()
    }

    #[test]
    fn one_seed_one_storm() {
        assert_eq!(rounds(1), rounds(1));
        assert_ne!(rounds(1), rounds(2));
    }

    #[test]
    fn every_kind_strikes_and_no_host_or_member_twice_in_a_round() {
        let rounds = rounds(3);
        for (number, name) in KINDS.iter().enumerate() {
            assert!(
                rounds.iter().flatten().any(|f| f.kind.number() == number),
                "{name}"
            );
        }
        for faults in &rounds {
            let mut hosts: Vec<_> = faults
                .iter()
                .filter_map(|f| match &f.kind {
                    Kind::KillAgent { host, .. }
                    | Kind::PauseAgent { host, .. }
                    | Kind::CutAgent { host, .. } => Some(*host),
                    _ => None,
                })
                .collect();
            let count = hosts.len();
            hosts.sort_unstable();
            hosts.dedup();
            assert!(count == hosts.len() && count >= 1, "{faults:?}");
        }
        let longest = |faults: &Vec<Fault>| faults.iter().map(|f| f.lasts).max();
        assert_eq!(longest(&rounds[7]), Some(LONGER_THAN_A_LEASE));
        assert!(longest(&rounds[8]) < Some(Duration::from_secs(4)));
    }
}
