//! Which faults strike when: a function of the seed alone. Pure.
//!
//! [`Fault`] is for faults of any kind; [`Kind`] are those of a storm.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use weft_lab::Cut;

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
    /// Nothing gets through between a host and members of etcd.
    CutAgent {
        /// Host, from 1.
        host: usize,
        /// Members, from 1.
        members: Vec<usize>,
        /// What becomes of the packets.
        how: Cut,
    },
    /// A member of etcd is killed with SIGKILL.
    KillMember(Member),
    /// A member of etcd is stopped by SIGSTOP.
    PauseMember(Member),
    /// All packets between a member of etcd and the other members vanish; its clients still reach it.
    IsolateMember(Member),
}

/// Names of the kinds.
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
    /// Its name among [`KINDS`].
    #[must_use]
    pub fn name(&self) -> &'static str {
        KINDS[match self {
            Self::KillAgent { .. } => 0,
            Self::PauseAgent { revoke: false, .. } => 1,
            Self::PauseAgent { revoke: true, .. } => 2,
            Self::CutAgent { .. } => 3,
            Self::KillMember(Member::Number(_)) => 4,
            Self::KillMember(Member::Leader) => 5,
            Self::PauseMember(Member::Number(_)) => 6,
            Self::PauseMember(Member::Leader) => 7,
            Self::IsolateMember(_) => 8,
        }]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillAgent { host, times: 1 } => write!(f, "kill -9 of host{host}'s agent"),
            Self::KillAgent { host, times } => write!(f, "{times} × kill -9 of host{host}'s agent"),
            Self::PauseAgent { host, revoke } => {
                let lease = if *revoke { ", its lease revoked" } else { "" };
                write!(f, "SIGSTOP of host{host}'s agent{lease}")
            }
            Self::CutAgent { host, members, how } => {
                write!(f, "host{host} cut from etcd {members:?} ({how})")
            }
            Self::KillMember(member) => write!(f, "kill -9 of {member}"),
            Self::PauseMember(member) => write!(f, "SIGSTOP of {member}"),
            Self::IsolateMember(member) => write!(f, "{member} cut from its peers"),
        }
    }
}

/// A fault of a round: it strikes, stays and is healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault<K = Kind> {
    /// What.
    pub kind: K,
    /// From the beginning of the round until it strikes.
    pub after: Duration,
    /// From then until it is healed.
    pub lasts: Duration,
}

impl<K: fmt::Display> fmt::Display for Fault<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.after, self.after + self.lasts);
        write!(
            f,
            "{} ({:.1} to {:.1} s)",
            self.kind,
            from.as_secs_f64(),
            to.as_secs_f64()
        )
    }
}

/// A time between two numbers of milliseconds.
pub fn millis(rng: &mut Rng, from: u64, to: u64) -> Duration {
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
        let kind = if long && at == 0 {
            lasts = LONGER_THAN_A_LEASE;
            Kind::PauseAgent { host, revoke: false }
        } else {
            at_an_agent(rng, host, members)
        };
        faults.push(Fault { kind, after, lasts });
    }
    faults.extend(at_etcd(rng, members));
    faults
}

/// Something that goes wrong with an agent, or between it and etcd.
#[must_use]
pub fn at_an_agent(rng: &mut Rng, host: usize, members: usize) -> Kind {
    match rng.u32(0..10) {
        0..=3 => Kind::KillAgent {
            host,
            times: rng.u32(1..=4),
        },
        4..=6 => Kind::PauseAgent {
            host,
            revoke: rng.bool(),
        },
        _ => cut(rng, host, members),
    }
}

/// A cut between an agent and some or all members of etcd.
#[must_use]
pub fn cut(rng: &mut Rng, host: usize, members: usize) -> Kind {
    let all = rng.bool();
    let mut cut: Vec<usize> = (1..=members).collect();
    if !all {
        rng.shuffle(&mut cut);
        cut.truncate(rng.usize(1..=members));
        cut.sort_unstable();
    }
    let how = [Cut::Both, Cut::Hearing, Cut::Speaking, Cut::Refused];
    Kind::CutAgent {
        host,
        members: cut,
        how: how[rng.usize(0..how.len())],
    }
}

/// What goes wrong with etcd in a round: nothing, something with one member, or with so many that no majority is left.
#[must_use]
pub fn at_etcd(rng: &mut Rng, members: usize) -> Vec<Fault> {
    let mut numbers: Vec<usize> = (1..=members).collect();
    rng.shuffle(&mut numbers);
    let struck = match rng.u32(0..9) {
        0..=2 => 0,
        3..=7 => 1,
        // Two of three: nothing can be written, and most reads cannot be answered.
        _ => 2.min(members),
    };
    let numbers = numbers.into_iter().take(struck);
    numbers
        .map(|number| {
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
            Fault {
                kind,
                after: millis(rng, 200, 2000),
                lasts: millis(rng, 500, 3500),
            }
        })
        .collect()
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
        for name in KINDS {
            let mut all = rounds.iter().flatten();
            assert!(all.any(|f| f.kind.name() == name), "{name}");
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
