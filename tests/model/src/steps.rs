//! How what is under way goes on, a step at a time, with an interruption possible between any two: chores as the loop of
//! `weftd` does them, transactions as the store's client does. Calls are in `calls.rs`.

use std::{collections::BTreeSet, net::IpAddr};

use weft_core::{
    answer::{self, Weighed, guards_itself, places, weigh},
    chores::{self, Chore},
    claims::{Choosing, Refusal},
    fence::fenced,
    record::{Committed, Guard, Transaction, Write},
};
use weft_store_schema::Key;

use crate::{
    deed::Loss,
    doing::{Doing, Flight, Outcome, Place, Stage, Told},
    fault::Fault,
    oracle::{check_choice, check_refusal, check_view},
    reference::{Verdict, must},
    world::{Frozen, World, words},
};

/// How a step of something ends: it goes on, or it is over.
pub(crate) type Next = Result<Option<Doing>, String>;

impl World {
    /// One step of something under way.
    pub(crate) fn step(&mut self, n: usize, k: usize) -> Verdict {
        let doing = self.agents[n].under_way.remove(k);
        let next = match doing {
            Doing::Chore(chore, flight) => self.step_chore(n, chore, flight),
            Doing::Call(call) => self.step_call(n, call),
        }?;
        if let Some(doing) = next {
            self.agents[n].under_way.insert(k, doing);
        }
        Ok(())
    }

    // ---- chores --------------------------------------------------------------------------------------

    /// Works out what one of the things owed asks for, of those that are not under way.
    pub(crate) fn start_chore(&mut self, n: usize, k: usize) -> Verdict {
        let agent = &self.agents[n];
        if !agent.may_write() {
            return Ok(());
        }
        let idle: Vec<Chore> = agent
            .owed
            .iter()
            .filter(|(_, task)| !task.running)
            .map(|(chore, _)| chore.clone())
            .collect();
        match idle.get(k % idle.len().max(1)) {
            Some(chore) => self.work_out(n, chore).map(drop),
            None => Ok(()),
        }
    }

    /// What a chore asks for now: none if nothing is owed any more, else whether it is under way, or why it cannot be.
    pub(crate) fn work_out(
        &mut self,
        n: usize,
        chore: &Chore,
    ) -> Result<Option<Result<(), Refusal>>, String> {
        let agent = &mut self.agents[n];
        let lost = agent.owed.get(chore).map_or(0, |task| task.lost);
        let choosing = match chore {
            Chore::CompleteEndpoint(endpoint) => agent.choosing(&endpoint.network, lost, self.clock),
            Chore::ForgetReleased(network) => agent.choosing(network, 0, self.clock),
            _ => Choosing::default(),
        };
        match chores::transaction(&agent.snapshot, &agent.peer, chore, &choosing) {
            Ok(None) => {
                agent.owed.remove(chore);
                agent.update_interest();
                Ok(None)
            }
            Err(refusal) => {
                self.tally.full += u64::from(matches!(refusal, Refusal::Full { .. }));
                check_refusal(&self.agents[n], &refusal, &choosing)?;
                Ok(Some(Err(refusal)))
            }
            Ok(Some(transaction)) => {
                let wished: Vec<IpAddr> = match chore {
                    Chore::CompleteEndpoint(name) => {
                        check_view(agent, &name.network, &self.reference)?;
                        let value = agent.snapshot.endpoint(name).and_then(|slot| slot.value.as_ref());
                        value.map_or_else(Vec::new, |e| [e.requested(), &*e.addresses].concat())
                    }
                    _ => Vec::new(),
                };
                let flight = self.fly(n, transaction, &wished, &choosing)?;
                let agent = &mut self.agents[n];
                if let Some(task) = agent.owed.get_mut(chore) {
                    task.running = true;
                    task.anew = false;
                }
                agent.under_way.push(Doing::Chore(chore.clone(), flight));
                Ok(Some(Ok(())))
            }
        }
    }

    /// A transaction that has been worked out.
    pub(crate) fn fly(
        &mut self,
        n: usize,
        transaction: Transaction,
        wished: &[IpAddr],
        choosing: &Choosing,
    ) -> Result<Flight, String> {
        let transaction = fenced(&self.agents[n].snapshot, transaction);
        must!(
            !transaction.guards.is_empty(),
            "unconditional: {}",
            words(&transaction)
        );
        check_choice(
            &self.agents[n],
            &transaction,
            wished,
            choosing,
            &self.reference,
            self.clock,
        )?;
        let agent = &mut self.agents[n];
        let means = transaction.writes.iter().filter_map(|write| match write.key() {
            Some(key @ Key::Address(network, address)) => {
                let claim = agent.snapshot.members(network)?.claim(*address);
                let claim = claim.filter(|slot| !slot.held)?;
                Some((key.clone(), claim.mod_revision))
            }
            _ => None,
        });
        let means = means.collect();
        agent.begin_claims(&transaction);
        let life = (agent.node().clone(), agent.life());
        Ok(Flight::new(transaction, means, life))
    }

    fn step_chore(&mut self, n: usize, chore: Chore, mut flight: Flight) -> Next {
        let Some(outcome) = self.step_flight(n, &mut flight)? else {
            return Ok(Some(Doing::Chore(chore, flight)));
        };
        let clock = self.clock;
        let agent = &mut self.agents[n];
        agent.end_claims(&flight.transaction);
        let mut changes = Vec::new();
        match outcome {
            Outcome::Committed(Committed::Yes { revision }) => {
                if let Chore::DetachEndpoint(endpoint) = &chore {
                    let dirty = agent.snapshot.saw_gone(endpoint, revision);
                    agent.take_in(&dirty);
                }
                if agent.owed.remove(&chore).is_some_and(|task| task.anew) {
                    agent.owed.entry(chore).or_default();
                }
                changes = answer::own_changes(&agent.snapshot, &flight.transaction, revision);
            }
            Outcome::Committed(Committed::No { now, .. }) => {
                if let Some(task) = agent.owed.get_mut(&chore) {
                    task.running = false;
                    task.lost += 1;
                }
                changes = answer::news(&flight.transaction, now);
            }
            Outcome::Unknown | Outcome::Failed => {
                if let Some(task) = agent.owed.get_mut(&chore) {
                    task.running = false;
                }
            }
        }
        agent.learn(&changes, clock);
        Ok(None)
    }

    // ---- transactions --------------------------------------------------------------------------------

    /// One step of a transaction; what became of it, once that is known and the agent is told.
    pub(crate) fn step_flight(&mut self, n: usize, flight: &mut Flight) -> Result<Option<Outcome>, String> {
        match std::mem::replace(&mut flight.place, Place::Here) {
            Place::Here => {
                flight.before.get_or_insert(self.agents[n].heard);
                flight.place = Place::Out;
            }
            Place::Out => {
                let node = self.agents[n].node().clone();
                flight.place = Place::Back(self.carry_out(&node, flight)?);
            }
            Place::Back(answer) => flight.place = Place::Known(self.judge(n, flight, answer)?),
            Place::Known(outcome) => return Ok(Some(outcome)),
        }
        Ok(None)
    }

    /// What the store's client makes of an answer.
    fn judge(
        &mut self,
        n: usize,
        flight: &mut Flight,
        answer: Result<crate::etcd::Answer, crate::etcd::NoSuchLease>,
    ) -> Result<Outcome, String> {
        let Ok(answer) = answer else {
            return Ok(if flight.lost {
                Outcome::Unknown
            } else {
                Outcome::Failed
            });
        };
        self.agents[n].hear(answer.revision);
        if answer.happened || !flight.lost || self.fault == Fault::TakeRefusalsAtTheirWord {
            return Ok(Outcome::Committed(answer.committed(&flight.transaction)));
        }
        let before = flight.before.unwrap_or_default();
        let weighed = weigh(&flight.transaction, &answer.now, before, answer.revision);
        self.say(|| format!("    weighed: {weighed:?}, since {before}"));
        match weighed {
            Weighed::Happened(revision) => {
                self.tally.found_out += 1;
                self.check_as_asked(&flight.transaction, before)?;
                flight.found_out = true;
                Ok(Outcome::Committed(Committed::Yes { revision }))
            }
            Weighed::DidNot => Ok(Outcome::Committed(answer.committed(&flight.transaction))),
            Weighed::Undecided => {
                // Nobody else was there, and nothing is missing that nobody can date the end of: what is there says it all.
                let prefix = self.agents[n].snapshot.prefix();
                let places = places(&flight.transaction);
                let missing = places.iter().zip(&answer.now).any(|(place, now)| {
                    let wants = |key| {
                        let guards = flight.transaction.guards.iter();
                        let mut writes = flight.transaction.writes.iter();
                        guards
                            .into_iter()
                            .any(|g| matches!(g, Guard::Unchanged(k, _) if k == key))
                            || writes.any(|w| w.key() == Some(key) && !matches!(w, Write::Delete(_)))
                    };
                    now.is_none() && matches!(place, answer::Place::Key(key) if wants(*key))
                });
                let of_ranges = places.iter().any(|place| !matches!(place, answer::Place::Key(_)));
                let keys = places.iter().filter_map(|place| match place {
                    answer::Place::Key(key) => Some(prefix.key(key).into_bytes()),
                    _ => None,
                });
                let keys: BTreeSet<Vec<u8>> = keys.collect();
                let others = self
                    .reference
                    .others_wrote(&self.etcd, &keys, before, &flight.happened);
                must!(
                    others || missing || of_ranges,
                    "it is not known what became of {}, and nobody else was there",
                    words(&flight.transaction)
                );
                Ok(Outcome::Unknown)
            }
        }
    }

    /// What is said to have happened was so at some time, whoever did it.
    pub(crate) fn check_as_asked(&self, transaction: &Transaction, before: i64) -> Verdict {
        let prefix = self.agents[0].snapshot.prefix();
        let now_and_then = (before..=self.etcd.revision).any(|revision| {
            transaction.writes.iter().all(|write| match write {
                Write::Put(key, value) | Write::PutLeased(key, value, _) => {
                    let key = prefix.key(key);
                    self.etcd
                        .at(key.as_bytes(), revision)
                        .is_some_and(|e| e.value == *value)
                }
                Write::Delete(key) => self.etcd.at(prefix.key(key).as_bytes(), revision).is_none(),
                Write::DeleteAll(_) => true,
            })
        });
        must!(
            now_and_then,
            "it is said to have happened, and never was so: {}",
            words(transaction)
        );
        Ok(())
    }

    /// An answer is lost.
    pub(crate) fn lose(&mut self, n: usize, k: usize, how: Loss) -> Verdict {
        let node = self.agents[n].node().clone();
        let mut doing = self.agents[n].under_way.remove(k);
        let call = doing.call();
        if let Some(flight) = doing.flight_mut() {
            let is_away = matches!(flight.place, Place::Out | Place::Back(_));
            if is_away {
                if matches!(flight.place, Place::Out) {
                    self.drop_request(&node, flight, call, how)?;
                }
                self.tally.lost += 1;
                flight.lost = true;
                flight.place = if guards_itself(&flight.transaction) {
                    Place::Here
                } else {
                    Place::Known(Outcome::Unknown)
                };
            }
        }
        self.agents[n].under_way.insert(k, doing);
        Ok(())
    }

    fn drop_request(
        &mut self,
        node: &weft_store_schema::NodeName,
        flight: &mut Flight,
        call: Option<usize>,
        how: Loss,
    ) -> Verdict {
        match how {
            Loss::Request => {}
            Loss::Answer => {
                if let Ok(answer) = self.carry_out(node, flight)?
                    && answer.happened
                {
                    self.count(flight, call, answer.revision);
                }
            }
            Loss::Frozen => self.frozen.push(Frozen {
                node: node.clone(),
                flight: flight.clone(),
            }),
        }
        Ok(())
    }

    pub(crate) fn count(&mut self, flight: &mut Flight, call: Option<usize>, revision: i64) {
        flight.happened.push(revision);
        if let Some(call) = call {
            self.deals[call].happened += 1;
        }
    }

    /// The time of something is up.
    pub(crate) fn give_up(&mut self, n: usize, k: usize) -> Verdict {
        let node = self.agents[n].node().clone();
        let mut doing = self.agents[n].under_way.remove(k);
        let number = doing.call();
        if let Some(flight) = doing.flight_mut() {
            match flight.place {
                Place::Here if !flight.lost => flight.place = Place::Known(Outcome::Failed),
                Place::Here | Place::Back(_) => flight.place = Place::Known(Outcome::Unknown),
                Place::Out => {
                    self.drop_request(&node, flight, number, Loss::Frozen)?;
                    flight.place = Place::Known(Outcome::Unknown);
                }
                Place::Known(_) => {}
            }
        } else if let Doing::Call(call) = &mut doing {
            match call.stage.clone() {
                Stage::Start | Stage::Looking | Stage::Removing => return self.tell(n, call, Told::Not),
                Stage::Asking(flight) => return self.leave_open(n, call, &flight),
                Stage::Leaving(name, life, _) => {
                    self.agents[n].remember_detach(&name);
                    let is_remembered = self.agents[n].snapshot.detaching().contains_key(&name);
                    if is_remembered {
                        self.promised.push((name, life));
                    }
                    return self.tell(n, call, Told::Pending);
                }
                Stage::Flying(_) => {}
            }
        }
        self.agents[n].under_way.insert(k, doing);
        Ok(())
    }
}
