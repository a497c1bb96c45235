//! What can happen, as values: a schedule is a list of deeds. Numbers are taken modulo what there is, and a deed that
//! is not possible then is none: so any part of a schedule is a schedule, which is what shrinking needs.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// Something that somebody asks an agent for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Make a network, of one of the forms, with one of the VNIs or none.
    Create {
        /// Which network.
        network: u8,
        /// Which subnets.
        form: u8,
        /// Which VNI; 0 for none.
        vni: u8,
    },
    /// Change a network in one of the ways.
    Update {
        /// Which network.
        network: u8,
        /// What is changed.
        change: u8,
    },
    /// Delete a network.
    Delete {
        /// Which network.
        network: u8,
    },
    /// Make an endpoint.
    Attach {
        /// Which network.
        network: u8,
        /// Which identity.
        id: u8,
        /// Which address is wished for; 0 for none.
        wish: u8,
        /// With the reservation of that identity.
        reserved: bool,
    },
    /// Take an endpoint away.
    Detach {
        /// Which network.
        network: u8,
        /// Which identity.
        id: u8,
    },
    /// Reserve addresses.
    Reserve {
        /// Which network.
        network: u8,
        /// Which identity.
        id: u8,
        /// Which address is wished for; 0 for none.
        wish: u8,
        /// For so long.
        time: u8,
    },
    /// Remove another node for good.
    Remove {
        /// Which node.
        node: u8,
    },
    /// Give a reservation up.
    Unreserve {
        /// Which network.
        network: u8,
        /// Which identity.
        id: u8,
    },
}

/// How an answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// The request did not arrive.
    Request,
    /// The transaction happened, or was refused, and nobody hears of it.
    Answer,
    /// The request lies in a frozen member: it may be carried out at any time, or never.
    Frozen,
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// Somebody asks a node's agent for something.
    Ask(u8, Ask),
    /// An agent works out the transaction of one of the things it owes.
    Chore(u8, u8),
    /// One of the things that an agent has under way goes on by so many steps: send, arrive, answer, learn.
    Step(u8, u8, u8),
    /// An answer to one of those is lost.
    Lose(u8, u8, Loss),
    /// The time of one of those is up.
    GiveUp(u8, u8),
    /// One of the scopes that an agent watches has news for it, so many revisions of it.
    News(u8, u8, u8),
    /// All of them.
    AllNews(u8),
    /// An agent loses the watch of a scope, and lists it anew.
    Relist(u8, u8),
    /// An agent is killed. Another one starts, which knows what lies on the disk.
    Crash(u8),
    /// What lay in a frozen member is carried out.
    Thaw(u8),
    /// Time passes.
    Time(u8),
    /// Somebody writes the least that is an endpoint, with a wish or none.
    Put {
        /// Which node.
        node: u8,
        /// Which network.
        network: u8,
        /// Which identity.
        id: u8,
        /// Which address is wished for; 0 for none.
        wish: u8,
    },
    /// Somebody deletes the record of an endpoint.
    Del {
        /// Which node.
        node: u8,
        /// Which network.
        network: u8,
        /// Which identity.
        id: u8,
    },
}

/// How many nodes, networks and identities there are.
pub(crate) const NODES: u8 = 3;
pub(crate) const NETWORKS: u8 = 2;
pub(crate) const IDS: u8 = 3;

/// What there is when a schedule starts. The peers are published in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// No network.
    Nothing,
    /// Two networks, of which the agents know no more than that they are there.
    Networks,
    /// Two networks that the agents have in view.
    InView,
}

/// A schedule: how it starts, and what happens then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// What there is.
    pub start: Start,
    /// What happens.
    pub deeds: Vec<Deed>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let start = match rng.u8(..12) {
            0 => Start::Nothing,
            1..4 => Start::Networks,
            _ => Start::InView,
        };
        // A schedule is about a few things, so that they meet.
        let theme = Theme {
            network: (rng.u8(..3) != 0).then(|| rng.u8(..NETWORKS)),
            by_hand: rng.u8(..3) == 0,
            networks_change: rng.u8(..3) == 0 || start == Start::Nothing,
            reservations: rng.u8(..3) == 0,
            removals: rng.u8(..4) == 0,
        };
        let length = rng.usize(8..56);
        let deeds = (0..length).map(|_| theme.deed(&mut rng)).collect();
        Self { start, deeds }
    }
}

struct Theme {
    network: Option<u8>,
    by_hand: bool,
    networks_change: bool,
    reservations: bool,
    removals: bool,
}

impl Theme {
    fn deed(&self, rng: &mut Rng) -> Deed {
        let n = rng.u8(..NODES);
        match rng.u8(..100) {
            0..22 => self.ask(n, rng),
            22..52 => Deed::Step(n, rng.u8(..4), rng.u8(1..7)),
            52..62 => Deed::Chore(n, rng.u8(..4)),
            62..69 => {
                let how = [Loss::Request, Loss::Answer, Loss::Answer, Loss::Frozen];
                Deed::Lose(n, rng.u8(..4), how[rng.usize(..how.len())])
            }
            69..71 => Deed::GiveUp(n, rng.u8(..4)),
            71..79 => Deed::News(n, rng.u8(..), rng.u8(1..4)),
            79..87 => Deed::AllNews(n),
            87..88 => Deed::Relist(n, rng.u8(..)),
            88..90 => Deed::Crash(n),
            90..92 => Deed::Thaw(rng.u8(..4)),
            92..95 => Deed::Time(rng.u8(1..8)),
            _ if self.by_hand && rng.bool() => Deed::Del {
                node: n,
                network: self.network(rng),
                id: rng.u8(..IDS),
            },
            _ => Deed::Put {
                node: n,
                network: self.network(rng),
                id: rng.u8(..IDS),
                wish: wish(rng),
            },
        }
    }

    fn network(&self, rng: &mut Rng) -> u8 {
        self.network.unwrap_or_else(|| rng.u8(..NETWORKS))
    }

    fn ask(&self, n: u8, rng: &mut Rng) -> Deed {
        let (network, id) = (self.network(rng), rng.u8(..IDS));
        let ask = match rng.u8(..20) {
            0..3 if self.networks_change => match rng.u8(..3) {
                0 => Ask::Create {
                    network,
                    form: rng.u8(..4),
                    vni: rng.u8(..3),
                },
                1 => Ask::Update {
                    network,
                    change: rng.u8(..8),
                },
                _ => Ask::Delete { network },
            },
            3..6 if self.reservations => Ask::Reserve {
                network,
                id,
                wish: wish(rng),
                time: rng.u8(1..6),
            },
            6..8 if self.reservations => Ask::Unreserve { network, id },
            8 if self.removals => Ask::Remove {
                node: rng.u8(..NODES),
            },
            8..14 => Ask::Detach { network, id },
            _ => Ask::Attach {
                network,
                id,
                wish: wish(rng),
                reserved: self.reservations && rng.bool(),
            },
        };
        Deed::Ask(n, ask)
    }
}

fn wish(rng: &mut Rng) -> u8 {
    if rng.u8(..4) == 0 { rng.u8(1..9) } else { 0 }
}
