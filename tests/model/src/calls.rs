//! The API's calls, step by step, as `weftd` carries them out; and what callers are told, which had better be true.

use weft_core::{
    answer,
    claims::{self, Choosing, Refusal},
    lost::{Found, Telling},
    record::{Change, Committed, Guard, Write},
    removal::Holdings,
};
use weft_store_schema::{EndpointRef, Family, Key};

use crate::{
    deed::Ask,
    doing::{Call, Doing, Flight, Outcome, Place, Stage, Told},
    fault::Fault,
    names,
    oracle::{check_refusal, check_view},
    reference::{Verdict, must},
    steps::Next,
    world::{World, words},
};

impl World {
    pub(crate) fn step_call(&mut self, n: usize, mut call: Call) -> Next {
        match std::mem::replace(&mut call.stage, Stage::Start) {
            Stage::Start => self.start(n, call),
            Stage::Looking => {
                call.stage = Stage::Looking;
                if !self.agents[n].is_informed() || self.waits_for_detach(n, &call) {
                    return Ok(Some(Doing::Call(call)));
                }
                self.look(n, call)
            }
            Stage::Flying(mut flight) => {
                let before = self.deals[call.number].happened;
                let was_out = matches!(flight.place, Place::Out);
                let outcome = self.step_flight(n, &mut flight)?;
                if let (true, Place::Back(Ok(answer))) = (was_out, &flight.place)
                    && answer.happened
                {
                    let revision = answer.revision;
                    self.count(&mut flight, Some(call.number), revision);
                    // Known and accepted: a network that is deleted meanwhile leaves nothing that would tell.
                    let is_one = !matches!(call.ask, Ask::Remove { .. } | Ask::Create { .. });
                    must!(
                        before == 0 || !is_one,
                        "it happened twice: {}",
                        words(&flight.transaction)
                    );
                }
                let Some(outcome) = outcome else {
                    call.stage = Stage::Flying(flight);
                    return Ok(Some(Doing::Call(call)));
                };
                self.land(n, call, flight, outcome)
            }
            Stage::Asking(flight) => {
                let found = Telling::of(&flight.transaction).map_or(Found::Not, |telling| {
                    let key = self.agents[n].snapshot.prefix().key(telling.key);
                    let lease = self.etcd.lease_of(key.as_bytes()).unwrap_or_default();
                    telling.judge(self.etcd.get(key.as_bytes()), lease)
                });
                self.say(|| format!("    asked: {found:?}"));
                if found == Found::Not {
                    return self.found_nothing(n, call, &flight);
                }
                self.tally.found_out += 1;
                call.found_out = true;
                // What is gone may have gone by its lease.
                let deletes = flight.transaction.writes.iter().all(|write| match write {
                    Write::Put(key, _) => matches!(key, Key::Released(..)),
                    Write::PutLeased(..) => false,
                    Write::Delete(_) | Write::DeleteAll(_) => true,
                });
                if !deletes {
                    self.check_as_asked(&flight.transaction, flight.before.unwrap_or_default())?;
                }
                if let Found::At(revision) = found {
                    let outcome = Outcome::Committed(Committed::Yes { revision });
                    return self.land(n, call, flight, outcome);
                }
                self.done(n, call)
            }
            Stage::Removing => self.remove(n, call),
            Stage::Leaving(name, life, asked) => {
                let agent = &self.agents[n];
                if !agent.snapshot.has_left(&name) {
                    call.stage = Stage::Leaving(name, life, asked);
                    return Ok(Some(Doing::Call(call)));
                }
                let left = self.reference.records.get(&name);
                must!(
                    left.is_none_or(|record| {
                        if life > 0 {
                            record.created != life
                        } else {
                            record.created > asked
                        }
                    }),
                    "{name} (of revision {life}) is said to be detached, and is there: {left:?}"
                );
                self.tell(n, &mut call, Told::Done)?;
                Ok(None)
            }
        }
    }

    /// Whether a call waits for a former endpoint of the name to be gone.
    fn waits_for_detach(&self, n: usize, call: &Call) -> bool {
        let Ask::Attach { network, id, .. } = &call.ask else {
            return false;
        };
        let name = self.names.endpoint(n as u8, *network, *id);
        self.agents[n].snapshot.detaching().contains_key(&name)
    }

    /// What comes first: to look the network up, to bring it into view; a detachment is done at once.
    fn start(&mut self, n: usize, mut call: Call) -> Next {
        let clock = self.clock;
        let network = match &call.ask {
            Ask::Create { .. } => None,
            Ask::Remove { node } => {
                if *self.names.node(*node) == *self.agents[n].node() {
                    self.tell(n, &mut call, Told::Nothing)?;
                    return Ok(None);
                }
                call.stage = Stage::Removing;
                return Ok(Some(Doing::Call(call)));
            }
            Ask::Update { network, .. } | Ask::Delete { network } => {
                Some(self.names.network(*network).clone())
            }
            Ask::Attach { network, .. } | Ask::Reserve { network, .. } | Ask::Unreserve { network, .. } => {
                let name = self.names.network(*network).clone();
                let agent = &mut self.agents[n];
                if agent.snapshot.network(&name).is_none() {
                    let entry = self.etcd.read(&Key::Network(name.clone())).cloned();
                    agent.hear(self.etcd.revision);
                    agent.learn(&entry.map(Change::Put).into_iter().collect::<Vec<_>>(), clock);
                }
                Some(name)
            }
            Ask::Detach { network, id } => {
                let name = self.names.endpoint(n as u8, *network, *id);
                let agent = &mut self.agents[n];
                let seen = agent.snapshot.endpoint(&name).is_some();
                let key = Key::Endpoint(name.clone());
                let unseen = self.etcd.read(&key).filter(|_| !seen).cloned();
                if !seen && unseen.is_none() && agent.is_informed() {
                    self.tell(n, &mut call, Told::Nothing)?;
                    return Ok(None);
                }
                let life = match unseen {
                    Some(entry) => {
                        let life = entry.create_revision;
                        agent.detach_life(&name, life);
                        agent.hear(self.etcd.revision);
                        agent.learn(&[Change::Put(entry)], clock);
                        life
                    }
                    None => agent.detach(&name),
                };
                if !agent.adopted {
                    agent.remember_detach(&name);
                    self.promised.push((name, life));
                    self.tell(n, &mut call, Told::Pending)?;
                    return Ok(None);
                }
                call.stage = Stage::Leaving(name, life, self.etcd.revision);
                return Ok(Some(Doing::Call(call)));
            }
        };
        if let Some(network) = network {
            self.agents[n].pin(&network);
            call.pins.push(network);
        }
        call.stage = Stage::Looking;
        Ok(Some(Doing::Call(call)))
    }

    /// Works out a transaction.
    fn look(&mut self, n: usize, mut call: Call) -> Next {
        let names = self.names.clone();
        if self.agents[n].life() != call.life {
            self.tell(n, &mut call, Told::Not)?;
            return Ok(None);
        }
        if let Some(network) = call.pins.first() {
            check_view(&self.agents[n], network, &self.reference)?;
        }
        let mut wished = Vec::new();
        let mut choosing = Choosing::default();
        if let Some(network) = call.pins.first() {
            choosing = self.agents[n].choosing(network, call.lost, self.clock);
        }
        let snapshot = &self.agents[n].snapshot;
        let made = match &call.ask {
            Ask::Create { network, form, vni } => {
                claims::create_network(snapshot, names.network(*network), &names::network(*form, *vni))
            }
            Ask::Update { network, change } => {
                claims::update_network(snapshot, names.network(*network), &names::change(*change))
            }
            Ask::Delete { network } => claims::delete_network(snapshot, names.network(*network)),
            Ask::Attach {
                network,
                id,
                wish,
                reserved,
            } => {
                let name = names.endpoint(n as u8, *network, *id);
                // Asked for once more: what is there is waited for, and nothing is written.
                if call.lost == 0 && snapshot.endpoint(&name).is_some_and(|slot| slot.value.is_some()) {
                    self.tell(n, &mut call, Told::Nothing)?;
                    return Ok(None);
                }
                wished = names::wished(*wish);
                let document = names::endpoint(*wish, &name.id);
                let reservation = reserved.then_some(&name.id);
                claims::attach(snapshot, &name, document, reservation, &choosing)
            }
            Ask::Reserve {
                network,
                id,
                wish,
                time,
            } => {
                wished = names::wished(*wish);
                let lease = *call.lease.get_or_insert_with(|| {
                    let lease = self.etcd.grant();
                    self.leases.insert(lease, self.clock + u64::from(*time));
                    lease
                });
                let families: Vec<Family> = snapshot
                    .network(names.network(*network))
                    .and_then(|slot| slot.value.as_ref())
                    .map_or_else(Vec::new, |network| network.families().collect());
                let (network, id) = (names.network(*network), names.id(*id));
                claims::reserve(snapshot, network, id, &wished, &families, lease, &choosing)
            }
            Ask::Unreserve { network, id } => {
                claims::unreserve(snapshot, names.network(*network), names.id(*id))
            }
            Ask::Detach { .. } | Ask::Remove { .. } => return Ok(None),
        };
        match made {
            Ok(transaction) => {
                let flight = self.fly(n, transaction, &wished, &choosing)?;
                call.stage = Stage::Flying(flight);
                Ok(Some(Doing::Call(call)))
            }
            Err(refusal) => {
                self.say(|| format!("    refused: {refusal}"));
                self.tally.full += u64::from(matches!(refusal, Refusal::Full { .. }));
                check_refusal(&self.agents[n], &refusal, &choosing)?;
                self.tell(n, &mut call, Told::Not)?;
                Ok(None)
            }
        }
    }

    /// The outcome of a call's transaction comes to the loop.
    fn land(&mut self, n: usize, mut call: Call, flight: Flight, outcome: Outcome) -> Next {
        let clock = self.clock;
        let agent = &mut self.agents[n];
        agent.end_claims(&flight.transaction);
        match outcome {
            Outcome::Committed(Committed::Yes { revision }) => {
                let changes = answer::own_changes(&agent.snapshot, &flight.transaction, revision);
                agent.learn(&changes, clock);
                call.found_out |= flight.found_out;
                if call.ended.is_none() && matches!(call.ask, Ask::Remove { .. }) {
                    call.ended = Some(revision);
                }
                self.done(n, call)
            }
            Outcome::Committed(Committed::No { now, .. }) => {
                let occupied = flight.transaction.guards.iter().zip(&now);
                let occupied = occupied
                    .filter(|(guard, _)| matches!(guard, Guard::Empty(_)))
                    .any(|(_, entry)| entry.is_some());
                agent.learn(&answer::news(&flight.transaction, now), clock);
                if occupied {
                    self.tell(n, &mut call, Told::Not)?;
                    return Ok(None);
                }
                call.lost += 1;
                call.stage = match call.ask {
                    Ask::Remove { .. } => Stage::Removing,
                    _ => Stage::Looking,
                };
                Ok(Some(Doing::Call(call)))
            }
            Outcome::Unknown if self.fault == Fault::TakeSilenceForYes => {
                self.tell(n, &mut call, Told::Done)?;
                Ok(None)
            }
            // Whether its life has ended is seen by looking again.
            Outcome::Unknown if call.ended.is_none() && matches!(call.ask, Ask::Remove { .. }) => {
                self.done(n, call)
            }
            Outcome::Unknown => {
                call.stage = Stage::Asking(flight);
                Ok(Some(Doing::Call(call)))
            }
            Outcome::Failed => {
                self.tell(n, &mut call, Told::Not)?;
                Ok(None)
            }
        }
    }

    /// A call's transaction has happened.
    fn done(&mut self, n: usize, mut call: Call) -> Next {
        if matches!(call.ask, Ask::Remove { .. }) {
            call.stage = Stage::Removing;
            return Ok(Some(Doing::Call(call)));
        }
        self.tell(n, &mut call, Told::Done)?;
        Ok(None)
    }

    /// Nothing tells of a call's transaction.
    fn found_nothing(&mut self, n: usize, mut call: Call, flight: &Flight) -> Next {
        if matches!(call.ask, Ask::Remove { .. }) {
            // It looks again.
            call.stage = Stage::Removing;
            return Ok(Some(Doing::Call(call)));
        }
        self.leave_open(n, &mut call, flight)?;
        Ok(None)
    }

    /// The caller is told that nobody knows what became of a call. An endpoint that was to be made is not to be there in
    /// the end, if it was.
    pub(crate) fn leave_open(&mut self, n: usize, call: &mut Call, flight: &Flight) -> Verdict {
        if let Ask::Attach { network, id, .. } = &call.ask {
            let name = self.names.endpoint(n as u8, *network, *id);
            let agent = &mut self.agents[n];
            agent.detach(&name);
            agent.remember_detach(&name);
            let happened = flight.happened.iter();
            self.promised.extend(happened.map(|at| (name.clone(), *at)));
        }
        self.tell(n, call, Told::Unknown)
    }

    /// Looks what is left of a node that is removed, and gives up the next of it.
    fn remove(&mut self, n: usize, mut call: Call) -> Next {
        let Ask::Remove { node } = call.ask else {
            return Ok(None);
        };
        let node = self.names.node(node).clone();
        let entries: Vec<_> = self.etcd.entries().cloned().collect();
        let agent = &mut self.agents[n];
        agent.hear(self.etcd.revision);
        let holdings = Holdings::of(agent.snapshot.prefix(), &entries, &node);
        let Some(ended) = call.ended else {
            call.stage = Stage::Removing;
            match holdings.end(&node, agent.node(), true) {
                _ if holdings.is_unknown() => {
                    self.tell(n, &mut call, Told::Nothing)?;
                    return Ok(None);
                }
                None => call.ended = Some(self.etcd.revision),
                Some(end) => {
                    let flight = self.fly(n, end, &[], &Choosing::default())?;
                    call.stage = Stage::Flying(flight);
                }
            }
            return Ok(Some(Doing::Call(call)));
        };
        let mut endpoints = holdings
            .endpoints
            .iter()
            .filter(|held| held.create_revision <= ended);
        // What is claimed for a node that is back is its own to give up.
        let strays = holdings.strays.first().filter(|_| holdings.peer.is_none());
        let (network, name, stray) = match (endpoints.next(), strays) {
            (Some(held), _) => (held.name.network.clone(), Some(held.name.clone()), None),
            (None, Some((name, address))) => (name.network.clone(), None, Some(*address)),
            (None, None) => {
                let mut records = self.reference.records.iter();
                let left = records.find(|(name, record)| name.node == node && record.created <= ended);
                must!(left.is_none(), "{node} is said to be removed, and has {left:?}");
                self.tally.removed += 1;
                self.tell(n, &mut call, Told::Done)?;
                return Ok(None);
            }
        };
        call.stage = Stage::Removing;
        if !call.pins.contains(&network) {
            agent.pin(&network);
            call.pins.push(network.clone());
        }
        if agent.is_informed() && agent.life() == call.life {
            let view = &agent.snapshot;
            let transaction = match (name, stray) {
                (Some(name), _) => {
                    let slot = view.endpoint(&name).filter(|slot| slot.create_revision <= ended);
                    slot.and_then(|_| claims::delete_endpoint(view, &name).ok())
                }
                (None, Some(address)) => claims::release_orphan(view, &network, address),
                (None, None) => None,
            };
            if let Some(transaction) = transaction {
                let flight = self.fly(n, transaction, &[], &Choosing::default())?;
                call.stage = Stage::Flying(flight);
            }
        } else if agent.life() != call.life {
            self.tell(n, &mut call, Told::Unknown)?;
            return Ok(None);
        }
        Ok(Some(Doing::Call(call)))
    }

    /// The caller is told, and it had better be true.
    pub(crate) fn tell(&mut self, n: usize, call: &mut Call, told: Told) -> Verdict {
        for network in call.pins.drain(..) {
            self.agents[n].unpin(&network);
        }
        self.say(|| format!("    told: {told:?} of {:?}", call.ask));
        self.tally.unknown += u64::from(told == Told::Unknown);
        let deal = &mut self.deals[call.number];
        deal.told = Some(told);
        let happened = deal.happened;
        let is_write = !matches!(call.ask, Ask::Detach { .. } | Ask::Remove { .. });
        match told {
            Told::Not | Told::Nothing if is_write => must!(
                happened == 0,
                "told that it did not happen, and it has: {:?}",
                call.ask
            ),
            Told::Done if is_write && !call.found_out => must!(
                happened > 0,
                "told that it happened, and it has not: {:?}",
                call.ask
            ),
            _ => {}
        }
        Ok(())
    }

    /// Whether an endpoint's life goes on.
    pub(crate) fn lives(&self, name: &EndpointRef, life: i64) -> bool {
        let record = self.reference.records.get(name);
        record.is_some_and(|record| life > 0 && record.created == life)
    }
}
