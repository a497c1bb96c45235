//! Rounds of faults, dealt like cards: a round takes the next few of a shuffled deck, so that every kind comes in the
//! first rounds already, and each time in other company. A function of the seed alone. Pure.

use std::time::Duration;

use fastrand::Rng;
use weft_lab::Mode;
use weft_storm::choice::{self as storm, Fault, millis};

use crate::choice::{Ending, InUse, Kind, Part, Slip, Way};

/// By how much a proxy delays each piece that it passes on.
const FAR: Duration = Duration::from_millis(200);

/// A card of the deck: a kind without the particulars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Agent,
    Kill,
    Cut,
    Etcd,
    Stop,
    Second,
    Reboot,
    AllMembers,
    Compact,
    Leases,
    Burst,
    Flap,
    Garbage,
    SpoilEndpoint,
    SpoilNetwork,
    SpoilPeer,
    Delete,
    Drift { steady: bool },
    Unplug,
    Container,
    Mtu,
    CompactUnseen,
    NoSpace,
    Slip,
    WideSlip,
    Proxied,
    Clock,
    Underlay,
}

const DECK: [Card; 34] = [
    Card::Agent,
    Card::Agent,
    Card::Kill,
    Card::Kill,
    Card::Cut,
    Card::Cut,
    Card::Etcd,
    Card::Etcd,
    Card::Stop,
    Card::Second,
    Card::Reboot,
    Card::AllMembers,
    Card::Compact,
    Card::Leases,
    Card::Burst,
    Card::Flap,
    Card::Garbage,
    Card::SpoilEndpoint,
    Card::SpoilNetwork,
    Card::SpoilPeer,
    Card::Delete,
    Card::Drift { steady: true },
    Card::Drift { steady: false },
    Card::Unplug,
    Card::Container,
    Card::Mtu,
    Card::CompactUnseen,
    Card::NoSpace,
    Card::Slip,
    Card::WideSlip,
    Card::Proxied,
    Card::Clock,
    Card::Underlay,
    Card::Underlay,
];

/// What cannot be struck by two faults at once, as each would heal the other or find it in its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Agent(usize),
    Link(usize),
    Mtu(usize),
    Kernel(usize),
    Etcd,
    SteadyRecord(usize),
    SteadyNetwork,
    Peer(usize),
    Container(usize),
    /// Whether a host is on, with what its kernel holds.
    Power(usize),
    /// What etcd tells of the past.
    History,
    Once(Card),
}

/// Deals rounds.
#[derive(Debug, Clone)]
pub struct Dealer {
    rng: Rng,
    deck: Vec<Card>,
    hosts: usize,
    members: usize,
    only: Vec<String>,
}

impl Dealer {
    /// For a cluster of this size. The last host's agent is never ended, so that one lives through everything.
    #[must_use]
    pub fn new(seed: u64, hosts: usize, members: usize) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            deck: Vec::new(),
            hosts,
            members,
            only: Vec::new(),
        }
    }

    /// Deals nothing but kinds of these names; all, if there are none.
    #[must_use]
    pub fn only(self, names: &[String]) -> Self {
        Self {
            only: names.to_vec(),
            ..self
        }
    }

    /// The faults of the next round.
    pub fn round(&mut self) -> Vec<Fault<Kind>> {
        let wanted = self.rng.usize(4..=8);
        let (mut faults, mut taken, mut passed) = (Vec::new(), Vec::new(), Vec::new());
        while faults.len() < wanted && passed.len() < 2 * wanted {
            let card = self.draw();
            let (targets, mut kinds) = self.deal(card);
            if !self.only.is_empty() {
                kinds.retain(|fault| self.only.iter().any(|name| name == fault.kind.name()));
                if kinds.is_empty() {
                    continue;
                }
            }
            if targets.iter().any(|target| taken.contains(target)) {
                passed.push(card);
            } else {
                taken.extend(targets);
                faults.extend(kinds);
            }
        }
        // They come first in the next round.
        self.deck.extend(passed.into_iter().rev());
        faults
    }

    fn draw(&mut self) -> Card {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
            self.rng.shuffle(&mut self.deck);
        }
        self.deck.pop().unwrap_or(Card::Kill)
    }

    fn host(&mut self) -> usize {
        self.rng.usize(1..=self.hosts)
    }

    /// A host whose agent may be ended.
    fn mortal(&mut self) -> usize {
        self.rng.usize(1..self.hosts)
    }

    /// What a card brings, and what that is about.
    fn deal(&mut self, card: Card) -> (Vec<Target>, Vec<Fault<Kind>>) {
        let (after, lasts) = (millis(&mut self.rng, 0, 1200), millis(&mut self.rng, 500, 3000));
        let salt = self.rng.u64(0..=0xffff_ffff);
        let (target, kind) = match card {
            Card::Etcd => {
                let faults = storm::at_etcd(&mut self.rng, self.members).into_iter();
                let faults = faults.map(|fault| Fault {
                    kind: Kind::Storm(fault.kind),
                    after: fault.after,
                    lasts: fault.lasts,
                });
                return (vec![Target::Etcd], faults.collect());
            }
            Card::Agent => {
                let host = self.host();
                let revoke = self.rng.bool();
                (
                    Target::Agent(host),
                    Kind::Storm(storm::Kind::PauseAgent { host, revoke }),
                )
            }
            Card::Kill => {
                let host = self.mortal();
                let times = self.rng.u32(1..=4);
                (
                    Target::Agent(host),
                    Kind::Storm(storm::Kind::KillAgent { host, times }),
                )
            }
            Card::Cut => {
                let host = self.host();
                let kind = storm::cut(&mut self.rng, host, self.members);
                (Target::Link(host), Kind::Storm(kind))
            }
            Card::Stop => {
                let host = self.mortal();
                (Target::Agent(host), Kind::StopAgent { host })
            }
            Card::Second => {
                let host = self.host();
                (Target::Agent(host), Kind::SecondAgent { host })
            }
            Card::Reboot => {
                let host = self.mortal();
                let targets = vec![Target::Agent(host), Target::Kernel(host), Target::Power(host)];
                return (targets, vec![fault(Kind::Reboot { host }, after, lasts)]);
            }
            Card::AllMembers => (Target::Etcd, Kind::AllMembers),
            Card::Compact => {
                let times = self.rng.u32(1..=5);
                (Target::History, Kind::Compact { times })
            }
            Card::Leases => (Target::Once(card), Kind::RevokeLeases),
            Card::Burst => {
                let (host, endpoints) = (self.host(), self.rng.usize(50..=200));
                (Target::Once(card), Kind::Burst { host, endpoints })
            }
            Card::Flap => {
                let host = self.host();
                (Target::SteadyRecord(host), Kind::Flap { host })
            }
            Card::Garbage => {
                let keys = self.rng.usize(5..=40);
                (Target::Once(card), Kind::Garbage { salt, keys })
            }
            Card::SpoilEndpoint => {
                let host = self.host();
                (
                    Target::SteadyRecord(host),
                    spoil(InUse::Endpoint(host), Some(salt)),
                )
            }
            Card::SpoilNetwork => (Target::SteadyNetwork, spoil(InUse::Network, Some(salt))),
            Card::SpoilPeer => {
                let host = self.host();
                (Target::Peer(host), spoil(InUse::Peer(host), Some(salt)))
            }
            Card::Delete if self.rng.bool() => (Target::SteadyNetwork, spoil(InUse::Network, None)),
            Card::Delete => {
                let host = self.host();
                (Target::Peer(host), spoil(InUse::Peer(host), None))
            }
            Card::Drift { steady } => {
                let (host, blows) = (self.host(), self.rng.usize(1..=12));
                let kind = Kind::Drift {
                    host,
                    steady,
                    salt,
                    blows,
                };
                (Target::Kernel(host), kind)
            }
            Card::Unplug => {
                let host = self.host();
                (Target::Link(host), Kind::Unplug { host })
            }
            Card::Container => {
                let (host, again) = (self.host(), self.rng.bool());
                (Target::Container(host), Kind::ContainerGone { host, again })
            }
            Card::Mtu => {
                let (host, mtu) = (self.host(), self.rng.u16(1400..=1499));
                (Target::Mtu(host), Kind::Mtu { host, mtu })
            }
            Card::CompactUnseen => {
                let host = self.host();
                let targets = vec![Target::Link(host), Target::History];
                return (targets, vec![fault(Kind::CompactUnseen { host }, after, lasts)]);
            }
            Card::NoSpace => (Target::Once(card), Kind::NoSpace),
            Card::Slip | Card::WideSlip => {
                let slip = self.slip(card == Card::WideSlip);
                let targets = self.touched_by(&slip);
                return (targets, vec![fault(Kind::Slip(slip), after, lasts)]);
            }
            Card::Proxied => {
                let host = self.mortal();
                let modes = [Mode::Delay(FAR), Mode::Stall, Mode::StallOpen];
                let how = modes[self.rng.usize(0..modes.len())];
                let targets = vec![Target::Agent(host), Target::Link(host)];
                return (targets, vec![fault(Kind::Proxied { host, how }, after, lasts)]);
            }
            Card::Clock => {
                let host = self.mortal();
                (Target::Agent(host), Kind::Clock { host })
            }
            Card::Underlay => {
                let host = self.host();
                let ways = [Way::Flaps(self.rng.u32(1..=4)), Way::MadeAnew, Way::Renumbered];
                let how = ways[self.rng.usize(0..ways.len())];
                let targets = vec![Target::Link(host), Target::Mtu(host)];
                return (targets, vec![fault(Kind::Underlay { host, how }, after, lasts)]);
            }
        };
        (vec![target], vec![fault(kind, after, lasts)])
    }
}

/// What slips.
impl Dealer {
    fn slip(&mut self, wide: bool) -> Slip {
        let (one, further) = (self.host(), self.rng.usize(1..self.hosts));
        let hosts = [one, (one - 1 + further) % self.hosts + 1];
        let endings = [Ending::Back, Ending::Republish, Ending::Accept];
        let ending = endings[self.rng.usize(0..if wide { 2 } else { 3 })];
        let parts = [Part::All, Part::Endpoints, Part::Networks, Part::Peers];
        let part = parts[self.rng.usize(0..parts.len())];
        Slip {
            part: if wide { part } else { Part::Own },
            ending,
            hosts,
        }
    }

    /// What must not be struck beside a slip. What a slip has deleted is known for one only to those who see it happen:
    /// of the networks that are made for it, an agent that has not believes that they were meant. Who sees it all gone
    /// does not, but it has to have in its kernel what the store has lost; and nobody else may be at those records.
    fn touched_by(&self, slip: &Slip) -> Vec<Target> {
        let mut targets = vec![Target::Once(Card::Slip), Target::History];
        if slip.part == Part::Own {
            let hosts = slip.hosts.into_iter();
            targets.extend(hosts.flat_map(|host| [Target::Agent(host), Target::Link(host)]));
            return targets;
        }
        targets.extend([Card::Garbage, Card::Burst].map(Target::Once));
        targets.push(Target::SteadyNetwork);
        targets.extend((1..=self.hosts).flat_map(|host| {
            [
                Target::Power(host),
                Target::SteadyRecord(host),
                Target::Peer(host),
                Target::Container(host),
            ]
        }));
        targets
    }
}

fn spoil(what: InUse, salt: Option<u64>) -> Kind {
    Kind::Spoil { what, salt }
}

fn fault(kind: Kind, after: Duration, lasts: Duration) -> Fault<Kind> {
    Fault { kind, after, lasts }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::choice::KINDS;

    fn rounds(seed: u64, count: usize) -> Vec<Vec<Fault<Kind>>> {
        let mut dealer = Dealer::new(seed, 5, 3);
        (0..count).map(|_| dealer.round()).collect()
    }

    #[test]
    fn one_seed_one_chaos() {
        assert_eq!(rounds(1, 200), rounds(1, 200));
        assert_ne!(rounds(1, 200), rounds(2, 200));
    }

    #[test]
    fn every_kind_strikes_soon_and_rounds_are_full() {
        let rounds = rounds(3, 400);
        let names = |rounds: &[Vec<Fault<Kind>>]| -> BTreeSet<&str> {
            rounds.iter().flatten().map(|f| f.kind.name()).collect()
        };
        let wanted: BTreeSet<&str> = KINDS.into_iter().chain(storm::KINDS).collect();
        assert_eq!(names(&rounds), wanted);
        assert!(names(&rounds[..8]).len() > 22, "{:?}", names(&rounds[..8]));
        assert!(rounds.iter().all(|faults| (3..=10).contains(&faults.len())));
    }

    #[test]
    fn what_is_asked_for_alone_comes_alone() {
        for name in KINDS.into_iter().chain(storm::KINDS) {
            let mut dealer = Dealer::new(5, 5, 3).only(&[name.to_owned()]);
            for faults in (0..20).map(|_| dealer.round()) {
                assert!(!faults.is_empty(), "{name}");
                assert!(faults.iter().all(|fault| fault.kind.name() == name), "{faults:?}");
            }
        }
    }

    #[test]
    fn the_last_hosts_agent_is_never_ended_and_nothing_is_struck_twice_at_once() {
        for faults in rounds(4, 400) {
            let mut ended = BTreeSet::new();
            for fault in &faults {
                let (Kind::Storm(storm::Kind::KillAgent { host, .. })
                | Kind::StopAgent { host }
                | Kind::Proxied { host, .. }
                | Kind::Clock { host }
                | Kind::Reboot { host }) = fault.kind
                else {
                    continue;
                };
                assert!(host < 5 && ended.insert(host), "{faults:?}");
            }
            let etcd = faults.iter().filter(|f| f.kind == Kind::AllMembers).count();
            let members = faults.iter().filter(|f| {
                matches!(
                    f.kind,
                    Kind::Storm(
                        storm::Kind::KillMember(_)
                            | storm::Kind::PauseMember(_)
                            | storm::Kind::IsolateMember(_)
                    )
                )
            });
            assert!(etcd == 0 || members.count() == 0, "{faults:?}");
        }
    }
}
