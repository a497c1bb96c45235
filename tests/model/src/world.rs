//! etcd, the agents and what lies between them. A deed at a time; after each, what must hold is held against it.

use std::collections::BTreeMap;

use weft_core::record::{Guard, Transaction, Write};
use weft_store_schema::{EndpointRef, Key, NodeName, encode};

use crate::{
    agent::Agent,
    deed::{Ask, Deed, NETWORKS, NODES, Schedule, Start},
    doing::{Call, Doing, Flight, Place, Stage, Told},
    etcd::Etcd,
    fault::Fault,
    names::{self, Names},
    reference::{Reference, Verdict, Writer},
};

/// A request that lies in a frozen member.
#[derive(Debug, Clone)]
pub(crate) struct Frozen {
    pub(crate) node: NodeName,
    pub(crate) flight: Flight,
}

/// What is known of a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deal {
    /// How often it happened.
    pub(crate) happened: u32,
    pub(crate) told: Option<Told>,
}

/// How often what happened, over many schedules.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Transactions that happened.
    pub happened: u64,
    /// Transactions that were refused.
    pub refused: u64,
    /// Answers that were lost.
    pub lost: u64,
    /// Times that a lost answer was found out.
    pub found_out: u64,
    /// Callers that were told that it is not known.
    pub unknown: u64,
    /// Agents killed.
    pub crashes: u64,
    /// Requests that were carried out long after they were given up.
    pub late: u64,
    /// Times that no address was free.
    pub full: u64,
    /// Leases that ended with addresses under them.
    pub expired: u64,
    /// Nodes removed for good.
    pub removed: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.happened, other.happened),
            (&mut self.refused, other.refused),
            (&mut self.lost, other.lost),
            (&mut self.found_out, other.found_out),
            (&mut self.unknown, other.unknown),
            (&mut self.crashes, other.crashes),
            (&mut self.late, other.late),
            (&mut self.full, other.full),
            (&mut self.expired, other.expired),
            (&mut self.removed, other.removed),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
    }
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) names: Names,
    pub(crate) etcd: Etcd,
    pub(crate) agents: Vec<Agent>,
    pub(crate) frozen: Vec<Frozen>,
    pub(crate) clock: u64,
    /// When each lease ends.
    pub(crate) leases: BTreeMap<i64, u64>,
    pub(crate) reference: Reference,
    pub(crate) deals: Vec<Deal>,
    /// Lives of endpoints of which callers were told that they are over soon.
    pub(crate) promised: Vec<(EndpointRef, i64)>,
    pub(crate) fault: Fault,
    pub(crate) tally: Tally,
    /// What happened, in words, if somebody wants to know.
    pub(crate) story: Option<Vec<String>>,
}

/// What there is when schedules start: nobody has anything to do.
pub(crate) fn starts() -> Result<Vec<(Start, World)>, String> {
    let all = [Start::Nothing, Start::Networks, Start::InView];
    all.into_iter()
        .map(|start| Ok((start, World::at(start)?)))
        .collect()
}

impl World {
    fn at(start: Start) -> Result<Self, String> {
        let names = Names::default();
        let kept = match start {
            Start::InView => names.networks.clone(),
            Start::Nothing | Start::Networks => Vec::new(),
        };
        let agents = names.nodes.iter().enumerate().map(|(n, node)| {
            let kept = kept.iter().cloned().collect();
            Agent::new(node.clone(), names::peer(n), kept)
        });
        let mut world = Self {
            agents: agents.collect(),
            names,
            etcd: Etcd::new(),
            frozen: Vec::new(),
            clock: 0,
            leases: BTreeMap::new(),
            reference: Reference::default(),
            deals: Vec::new(),
            promised: Vec::new(),
            fault: Fault::None,
            tally: Tally::default(),
            story: None,
        };
        let networks = if start == Start::Nothing { 0 } else { NETWORKS };
        for n in 0..networks {
            let key = Key::Network(world.names.network(n).clone());
            world.put_by_hand(&key, &encode(&names::network(n, 0)))?;
        }
        world.come_to_rest()?;
        Ok(world)
    }

    pub(crate) fn say(&mut self, words: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(words());
        }
    }

    /// All of a schedule, and then rest.
    pub(crate) fn run(&mut self, schedule: &Schedule) -> Verdict {
        for deed in &schedule.deeds {
            self.say(|| format!("{deed:?}"));
            self.take(deed)?;
        }
        self.say(|| "coming to rest".to_owned());
        self.come_to_rest()?;
        self.check_at_rest()
    }

    fn take(&mut self, deed: &Deed) -> Verdict {
        match deed {
            Deed::Ask(n, ask) => self.ask(*n, ask),
            Deed::Chore(n, k) => self.start_chore(index(*n), usize::from(*k)),
            Deed::Step(n, k, times) => {
                let n = index(*n);
                for _ in 0..*times {
                    let count = self.agents[n].under_way.len();
                    if count == 0 {
                        return Ok(());
                    }
                    self.step(n, usize::from(*k) % count)?;
                    if self.agents[n].under_way.len() != count {
                        return Ok(());
                    }
                }
                Ok(())
            }
            Deed::Lose(n, k, how) => match self.pick(*n, *k) {
                Some((n, k)) => self.lose(n, k, *how),
                None => Ok(()),
            },
            Deed::GiveUp(n, k) => match self.pick(*n, *k) {
                Some((n, k)) => self.give_up(n, k),
                None => Ok(()),
            },
            Deed::News(n, k, most) => {
                let n = index(*n);
                let count = self.agents[n].feeds.len();
                let scope = self.agents[n]
                    .feeds
                    .keys()
                    .nth(usize::from(*k) % count.max(1))
                    .cloned();
                if let Some(scope) = scope {
                    self.agents[n].news(&self.etcd, &scope, usize::from(*most), self.clock);
                }
                Ok(())
            }
            Deed::AllNews(n) => {
                self.agents[index(*n)].all_news(&self.etcd, self.clock);
                Ok(())
            }
            Deed::Relist(n, k) => {
                let agent = &mut self.agents[index(*n)];
                let count = agent.feeds.len();
                let scope = agent.feeds.keys().nth(usize::from(*k) % count.max(1)).cloned();
                scope.iter().for_each(|scope| agent.lose_watch(scope));
                Ok(())
            }
            Deed::Crash(n) => {
                self.crash(index(*n));
                Ok(())
            }
            Deed::Thaw(k) => {
                if self.frozen.is_empty() {
                    return Ok(());
                }
                let frozen = self.frozen.swap_remove(usize::from(*k) % self.frozen.len());
                self.thaw(&frozen)
            }
            Deed::Time(seconds) => self.pass(u64::from(*seconds)),
            Deed::Put {
                node,
                network,
                id,
                wish,
            } => {
                let name = self.names.endpoint(*node, *network, *id);
                // Without its network it would be no endpoint, by nobody's fault but the writer's.
                if !self.reference.spaces.contains_key(&name.network) {
                    return Ok(());
                }
                let document = names::endpoint(*wish, &name.id);
                self.put_by_hand(&Key::Endpoint(name), &encode(&document))
            }
            Deed::Del { node, network, id } => {
                let key = Key::Endpoint(self.names.endpoint(*node, *network, *id));
                let key = self.agents[0].snapshot.prefix().key(&key);
                self.etcd.delete(key.as_bytes());
                self.reference.observe(&self.etcd, Writer::Hand, self.clock)
            }
        }
    }

    pub(crate) fn put_by_hand(&mut self, key: &Key, value: &[u8]) -> Verdict {
        let key = self.agents[0].snapshot.prefix().key(key);
        self.etcd.put(key.as_bytes(), value);
        self.reference.observe(&self.etcd, Writer::Hand, self.clock)
    }

    fn pick(&self, n: u8, k: u8) -> Option<(usize, usize)> {
        let n = index(n);
        let count = self.agents[n].under_way.len();
        (count > 0).then(|| (n, usize::from(k) % count))
    }

    fn ask(&mut self, n: u8, ask: &Ask) -> Verdict {
        let number = self.deals.len();
        self.deals.push(Deal::default());
        let call = Call {
            number,
            ask: ask.clone(),
            stage: Stage::Start,
            life: self.agents[index(n)].life(),
            pins: Vec::new(),
            lost: 0,
            lease: None,
            found_out: false,
            ended: None,
        };
        let agent = &mut self.agents[index(n)];
        agent.under_way.push(Doing::Call(call));
        let k = agent.under_way.len() - 1;
        self.step(index(n), k)
    }

    fn crash(&mut self, n: usize) {
        self.tally.crashes += 1;
        let agent = &mut self.agents[n];
        let node = agent.node().clone();
        let left = std::mem::take(&mut agent.under_way);
        if self.fault == Fault::ForgetDetaches {
            agent.forget_detaches();
        }
        agent.restart();
        // What was sent may still arrive.
        for doing in left {
            if let Some(flight) = doing.flight().filter(|flight| matches!(flight.place, Place::Out)) {
                self.frozen.push(Frozen {
                    node: node.clone(),
                    flight: flight.clone(),
                });
            }
        }
    }

    fn thaw(&mut self, frozen: &Frozen) -> Verdict {
        let answer = self.carry_out(&frozen.node, &frozen.flight)?;
        // Known and accepted (see the store's `transaction.rs`): what was given up may happen all the same, once, whole,
        // and only if all that it rests on is as it was. What must hold at every moment does hold.
        if answer.is_ok_and(|answer| answer.happened) {
            self.tally.late += 1;
        }
        Ok(())
    }

    /// Time passes, and leases end.
    pub(crate) fn pass(&mut self, seconds: u64) -> Verdict {
        self.clock += seconds;
        let ended: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, end)| **end <= self.clock)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in ended {
            self.leases.remove(&lease);
            let before = self.etcd.revision;
            self.etcd.end_lease(lease);
            self.tally.expired += u64::from(self.etcd.revision > before);
            self.reference.observe(&self.etcd, Writer::Lease, self.clock)?;
        }
        Ok(())
    }

    /// A transaction arrives at the store.
    pub(crate) fn carry_out(
        &mut self,
        node: &NodeName,
        flight: &Flight,
    ) -> Result<Result<crate::etcd::Answer, crate::etcd::NoSuchLease>, String> {
        let sent: Transaction = self.fault.damage(flight.transaction.clone());
        let mut answer = self.etcd.execute(&sent, node);
        if let Ok(answer) = &mut answer {
            if answer.happened {
                self.tally.happened += 1;
            } else {
                self.tally.refused += 1;
                // The judgement looks at what was asked, whatever was sent.
                if sent != flight.transaction {
                    answer.now = self.etcd.state_of(&flight.transaction, node);
                }
            }
        }
        let number = self.etcd.revision;
        self.say(|| {
            let came = match &answer {
                Ok(answer) if answer.happened => "happens",
                Ok(_) => "is refused",
                Err(_) => "names a lease that has ended",
            };
            format!("    {number}: {node}'s {} {came}", words(&flight.transaction))
        });
        self.reference
            .observe(&self.etcd, Writer::Agent(flight), self.clock)?;
        Ok(answer)
    }
}

pub(crate) fn index(n: u8) -> usize {
    usize::from(n % NODES)
}

/// A transaction as people read it.
pub(crate) fn words(transaction: &Transaction) -> String {
    let guards = transaction.guards.iter().map(|guard| match guard {
        Guard::Absent(key) => format!("{key} absent"),
        Guard::Unchanged(key, at) => format!("{key} of {at}"),
        Guard::Empty(scope) => format!("{scope:?} empty"),
        Guard::Settled(scope, at) => format!("{scope:?} settled at {at}"),
    });
    let writes = transaction.writes.iter().map(|write| match write {
        Write::Put(key, value) => format!("put {key} {}", String::from_utf8_lossy(value)),
        Write::PutLeased(key, value, lease) => {
            format!("put {key} {} under {lease}", String::from_utf8_lossy(value))
        }
        Write::Delete(key) => format!("delete {key}"),
        Write::DeleteAll(scope) => format!("delete all of {scope:?}"),
    });
    let (guards, writes): (Vec<_>, Vec<_>) = (guards.collect(), writes.collect());
    format!("[if {}: {}]", guards.join(", "), writes.join(", "))
}
