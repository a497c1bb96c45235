//! Questions whether all have caught up: other agents' are answered in the store as soon as this host can, and those
//! who put this agent's own are told here how it stands.
//!
//! A question is a record that vanishes with whoever asks. So is an answer; until it is there, or the question is
//! gone, it is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use weft_core::{
    barrier::{self, Obstacle, Standing},
    record::{Committed, Guard, Transaction, Write},
};
use weft_store::StoreError;
use weft_store_schema::{BarrierRef, Key, NetworkName, NodeName, PassedDocument, encode};

use super::{Reconciler, chain};

/// How long the store may take for an answer before it is tried anew.
const COMMIT_DEADLINE: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

type Question = (NetworkName, BarrierRef);

/// Whom a question is to.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Those who are to answer.
    pub(crate) hosts: BTreeSet<NodeName>,
    /// Those who cannot: no agent of theirs has ever said where it is.
    pub(crate) unannounced: BTreeSet<NodeName>,
    /// Whether agents have yet to complete records that were there before it.
    pub(crate) again: bool,
}

/// How far an answer has got.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// Not given, and not tried before then.
    Due { at: Instant, pause: Duration },
    /// On its way; tried again after this pause if it does not arrive.
    Written { pause: Duration },
    /// The store has it, or the question has become void.
    Done,
}

/// The answers to the questions that are known.
#[derive(Debug)]
pub(super) struct Answers {
    given: BTreeMap<Question, Answer>,
    done: mpsc::UnboundedSender<Answered>,
}

/// What became of an answer.
#[derive(Debug)]
pub(super) struct Answered {
    question: Question,
    result: Result<Committed, StoreError>,
}

impl Answers {
    /// None, and where it is told what becomes of each.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Answered>) {
        let (done, results) = mpsc::unbounded_channel();
        let given = BTreeMap::new();
        (Self { given, done }, results)
    }

    /// When the next one is to be tried again, of those that failed.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.given.values().filter_map(|answer| match answer {
            Answer::Due { at, pause } if !pause.is_zero() => Some(*at),
            _ => None,
        });
        due.min()
    }
}

/// A question as it stands in the store, with its revision and the lease of whoever asks.
struct Open {
    question: Question,
    revision: i64,
    lease: i64,
    /// How long was waited for this attempt.
    pause: Duration,
}

impl Reconciler {
    /// Answers what can be answered now.
    pub(super) fn answer_questions(&mut self) {
        if self.answers.given.is_empty() && self.snapshot.barriers().next().is_none() {
            return;
        }
        let snapshot = &self.snapshot;
        self.answers
            .given
            .retain(|(network, barrier), _| snapshot.barrier(network, barrier).is_some());
        let now = Instant::now();
        let mut open = Vec::new();
        for (question, slot) in self.snapshot.barriers() {
            let answer = match self.answers.given.get(question) {
                Some(answer) => *answer,
                None => {
                    // Whether the own host has caught up is asked for too.
                    self.store.expect(slot.mod_revision - 1);
                    let pause = Duration::ZERO;
                    let answer = Answer::Due { at: now, pause };
                    self.answers.given.insert(question.clone(), answer);
                    answer
                }
            };
            let (network, barrier) = question;
            let to_us = barrier.node != self.node.name && self.snapshot.takes_part(network);
            if let (Answer::Due { at, pause }, Some(value), true) = (answer, &slot.value, to_us)
                && at <= now
            {
                open.push(Open {
                    question: question.clone(),
                    revision: slot.mod_revision,
                    lease: value.lease,
                    pause,
                });
            }
        }
        if open.is_empty() || !self.is_connected() {
            return;
        }
        self.with_standing(|standing| {
            open.retain(
                |Open {
                     question, revision, ..
                 }| { standing.obstacle(&question.0, &question.1, *revision).is_none() },
            );
        });
        for open in open {
            self.answer(open);
        }
    }

    fn answer(&mut self, open: Open) {
        let Open {
            question,
            revision,
            lease,
            pause,
        } = open;
        let (network, barrier) = &question;
        let passed = Key::Passed(barrier.clone(), self.node.name.clone());
        let value = encode(&PassedDocument {
            version: None,
            applied_revision: self.reached.applied(),
        });
        let transaction = Transaction {
            // To a question that is gone, nothing must be left that nobody takes away.
            guards: vec![
                Guard::Unchanged(Key::Barrier(network.clone(), barrier.clone()), revision),
                Guard::Absent(passed.clone()),
            ],
            writes: vec![Write::PutLeased(passed, value, lease)],
        };
        let (store, done) = (self.store.clone(), self.answers.done.clone());
        let pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.answers
            .given
            .insert(question.clone(), Answer::Written { pause });
        tokio::spawn(async move {
            let result = store.commit(&transaction, COMMIT_DEADLINE).await;
            // The loop may have ended meanwhile.
            let _ = done.send(Answered { question, result });
        });
    }

    pub(super) fn on_answered(&mut self, answered: Answered) {
        let Answered { question, result } = answered;
        let Some(answer) = self.answers.given.get_mut(&question) else {
            return;
        };
        let Answer::Written { pause } = *answer else {
            return;
        };
        *answer = match result {
            // Refused: the question is gone, or this host's former agent has answered it.
            Ok(Committed::Yes { .. } | Committed::No { .. }) => Answer::Done,
            Err(error) => {
                tracing::debug!(?question, error = %chain(&error), "not answered, tried again");
                Answer::Due {
                    at: Instant::now() + pause,
                    pause,
                }
            }
        };
    }

    /// What keeps this host from saying that it has caught up with a question of this revision, if anything does.
    pub(crate) fn obstacle(
        &self,
        network: &NetworkName,
        question: &BarrierRef,
        revision: i64,
    ) -> Option<Obstacle> {
        self.with_standing(|standing| standing.obstacle(network, question, revision))
    }

    /// How this host stands: the same for all questions, and made from all that is wrong here.
    fn with_standing<T>(&self, judge: impl FnOnce(&Standing<'_>) -> T) -> T {
        let refused: BTreeSet<NetworkName> = self
            .failures
            .keys()
            .filter(|(_, id)| id.is_none())
            .map(|(network, _)| network.clone())
            .collect();
        let host = self.host();
        judge(&Standing {
            snapshot: &self.snapshot,
            host: host.as_ref(),
            observed: &self.observed,
            reached: self.reached,
            refused: &refused,
            hopeless: &self.problems.bad_records(),
        })
    }

    /// Whether the others can know where this host is: its record is in the store.
    pub(crate) fn is_announced(&self) -> bool {
        let (peer, underlay) = (self.snapshot.peer(&self.node.name), self.underlay.as_ref());
        peer.zip(underlay)
            .is_some_and(|(peer, underlay)| (peer.v4, peer.v6) == (underlay.v4, underlay.v6))
    }

    /// Whom a question of this revision is to; none before everything older than the question is known here.
    pub(crate) fn asked(&self, network: &NetworkName, revision: i64) -> Option<Asked> {
        let known = self.reached.certain() >= revision - 1 && barrier::is_in_view(&self.snapshot, network);
        known.then(|| Asked {
            hosts: barrier::participants(&self.snapshot, network),
            unannounced: barrier::unannounced(&self.snapshot, network),
            again: barrier::any_incomplete(&self.snapshot, network),
        })
    }

    /// Those of the asked that have not answered, with the reason where it is known; none if the question is gone.
    pub(crate) fn missing(
        &self,
        network: &NetworkName,
        asked: &BTreeSet<NodeName>,
        question: &BarrierRef,
    ) -> Option<BTreeMap<NodeName, Option<Obstacle>>> {
        let revision = self.snapshot.barrier(network, question)?.mod_revision;
        let mut missing: BTreeMap<NodeName, Option<Obstacle>> =
            barrier::missing(&self.snapshot, network, asked, question)
                .into_iter()
                .map(|node| (node, None))
                .collect();
        if let Some(own) = missing.get_mut(&self.node.name) {
            *own = self.obstacle(network, question, revision);
            if own.is_none() {
                missing.remove(&self.node.name);
            }
        }
        Some(missing)
    }
}
