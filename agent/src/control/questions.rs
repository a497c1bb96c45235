//! Questions in the store: put, shared by those who ask at the same time, and taken out again.
//!
//! Who joins a question before it is put may use its answers: they cover what was there when it was put. While one is
//! being put, those who come gather for the next: a crowd of attaches asks every few milliseconds, not each by itself.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex as Gate, OnceCell},
    time::{Instant, sleep, timeout_at},
};
use weft_api::Call;
use weft_core::record::{Committed, Guard, Scope, Transaction, Write};
use weft_store::{Store, StoreError};
use weft_store_schema::{BarrierDocument, BarrierRef, EndpointId, Key, NetworkName, encode};

use super::{STORE_PATIENCE, until};

/// Before something is tried again that is missing only for moments, as a lease.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
const FORGET_DEADLINE: Duration = Duration::from_secs(3);
const FORGET_FIRST_PAUSE: Duration = Duration::from_millis(200);
const FORGET_LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// By then, a request that was given up has happened or never will, but for frozen members.
const LATE_REQUEST: Duration = Duration::from_secs(5);

/// Why a question could not be put.
#[derive(Debug)]
pub(super) enum Unasked {
    /// The deadline came first.
    Late,
    /// The store refused it, or did not answer.
    Store(StoreError),
}

/// A question that is in the store.
pub(super) struct Question {
    trace: Trace,
    /// Its own.
    pub(super) revision: i64,
}

impl Question {
    /// Whose it is, and which.
    pub(super) fn barrier(&self) -> &BarrierRef {
        &self.trace.barrier
    }
}

/// What a question leaves in the store, or may leave there. It is taken out when this is dropped.
struct Trace {
    store: Store,
    network: NetworkName,
    barrier: BarrierRef,
    /// None while it is not known to be there.
    revision: Option<i64>,
}

impl Trace {
    fn key(&self) -> Key {
        Key::Barrier(self.network.clone(), self.barrier.clone())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let key = self.key();
        let (store, barrier, revision) = (self.store.clone(), self.barrier.clone(), self.revision);
        // Dropped also when the client leaves, where nothing can be awaited.
        tokio::spawn(forget(store, key, barrier, revision));
    }
}

/// The questions that others may join, one a network.
#[derive(Default)]
pub(crate) struct Questions {
    gathering: Mutex<HashMap<NetworkName, Weak<Round>>>,
}

/// Those who share a question.
pub(super) struct Round {
    network: NetworkName,
    /// Held while a question about the network is being put.
    gate: Arc<Gate<()>>,
    /// It is being put, or was: too late to join.
    closed: AtomicBool,
    question: OnceCell<Question>,
}

impl Questions {
    /// The question about a network that is put next.
    pub(super) fn join(&self, network: &NetworkName) -> Arc<Round> {
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        gathering.retain(|_, round| round.strong_count() > 0);
        let last = gathering.get(network).and_then(Weak::upgrade);
        let round = match last {
            Some(round) if !round.closed.load(Ordering::Relaxed) => return round,
            // It waits until that one has been put.
            Some(closed) => Round::after(network, Arc::clone(&closed.gate)),
            None => Round::after(network, Arc::default()),
        };
        gathering.insert(network.clone(), Arc::downgrade(&round));
        round
    }

    /// Nobody joins a round any more: it is put now.
    fn close(&self, round: &Round) {
        let _nobody_joins_meanwhile = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        round.closed.store(true, Ordering::Relaxed);
    }
}

impl Round {
    fn after(network: &NetworkName, gate: Arc<Gate<()>>) -> Arc<Self> {
        Arc::new(Self {
            network: network.clone(),
            gate,
            closed: AtomicBool::new(false),
            question: OnceCell::new(),
        })
    }

    /// The question, put by whoever comes first; if that one leaves or fails, by the next.
    ///
    /// # Errors
    /// Why it could not be put by this call's deadline.
    pub(super) async fn question(
        &self,
        call: &Call,
        questions: &Questions,
        store: &Store,
    ) -> Result<&Question, Unasked> {
        let put = async || {
            let _gate = self.gate.lock().await;
            questions.close(self);
            put(call, store, &self.network).await
        };
        let shared = self.question.get_or_try_init(put);
        timeout_at(call.deadline, shared)
            .await
            .unwrap_or(Err(Unasked::Late))
    }
}

/// Puts a question into the store.
async fn put(call: &Call, store: &Store, network: &NetworkName) -> Result<Question, Unasked> {
    let mut last = Unasked::Late;
    while Instant::now() < call.deadline {
        let Some(lease) = store.lease() else {
            sleep(PAUSE).await;
            continue;
        };
        let id = uuid::Uuid::new_v4().simple().to_string();
        let id = EndpointId::new(&id).unwrap_or_else(|e| unreachable!("32 hexadecimal digits: {e}"));
        let node = store.node().clone();
        let mut trace = Trace {
            store: store.clone(),
            network: network.clone(),
            barrier: BarrierRef { node, id },
            revision: None,
        };
        let value = encode(&BarrierDocument { version: None, lease });
        let transaction = Transaction {
            guards: vec![Guard::Absent(trace.key())],
            writes: vec![Write::PutLeased(trace.key(), value, lease)],
        };
        let patience = until(call.deadline, STORE_PATIENCE);
        match store.commit(&transaction, patience).await {
            Ok(Committed::Yes { revision }) => {
                trace.revision = Some(revision);
                return Ok(Question { trace, revision });
            }
            Ok(Committed::No { .. }) => {}
            Err(error @ (StoreError::Unavailable { .. } | StoreError::Unknown { .. })) => {
                return Err(Unasked::Store(error));
            }
            Err(error) => {
                // As when the lease has ended: there will be another.
                last = Unasked::Store(error);
                sleep(PAUSE).await;
            }
        }
    }
    Err(last)
}

/// Takes a question and its answers out of the store, however long that takes. What is left when the agent ends goes
/// with its lease.
async fn forget(store: Store, key: Key, barrier: BarrierRef, mut revision: Option<i64>) {
    let mut pause = FORGET_FIRST_PAUSE;
    let mut looked_late = false;
    loop {
        if revision.is_none()
            && let Ok(fetched) = store.get(&key, FORGET_DEADLINE).await
        {
            revision = fetched.entry.map(|entry| entry.mod_revision);
            if revision.is_none() {
                if looked_late {
                    return;
                }
                looked_late = true;
                sleep(LATE_REQUEST).await;
                continue;
            }
        }
        if let Some(revision) = revision {
            let transaction = Transaction {
                guards: vec![Guard::Unchanged(key.clone(), revision)],
                // At once: an answer is only put while the question is there.
                writes: vec![
                    Write::Delete(key.clone()),
                    Write::DeleteAll(Scope::PassedTo(barrier.clone())),
                ],
            };
            match store.commit(&transaction, FORGET_DEADLINE).await {
                Ok(_) | Err(StoreError::Stopping { .. }) => return,
                Err(_) => {}
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(FORGET_LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_a_question_is_put_shares_the_next_and_nothing_stays() {
        let questions = Questions::default();
        let [blue, red]: [NetworkName; 2] = ["blue", "red"].map(|name| name.parse().unwrap());
        let first = questions.join(&blue);
        assert!(Arc::ptr_eq(&first, &questions.join(&blue)));
        questions.close(&first);
        let next = questions.join(&blue);
        assert!(!Arc::ptr_eq(&first, &next) && Arc::ptr_eq(&first.gate, &next.gate));
        drop(first);
        assert!(Arc::ptr_eq(&next, &questions.join(&blue)));
        drop(next);
        let _red = questions.join(&red);
        assert_eq!(
            questions.gathering.lock().unwrap().keys().collect::<Vec<_>>(),
            [&red]
        );
    }
}
