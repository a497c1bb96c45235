//! Waiting until every host that takes part in a network has caught up: a question is put into the store, and the
//! answers come by the watch.
//!
//! The question's own revision is later than whatever the caller did before, and it reaches every host after that.
//! Who has to answer is read from the records as they were at that revision: no list of hosts is kept anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::time::{Instant, sleep};
use weft_api::{ApiError, Call, Subject};
use weft_core::{
    barrier::Obstacle,
    record::{Committed, Guard, Scope, Transaction, Write},
};
use weft_proto::v1;
use weft_store::{Store, StoreError};
use weft_store_schema::{BarrierDocument, BarrierRef, EndpointId, Key, Kind, NetworkName, NodeName, encode};

use super::{AgentControl, Pin, STORE_PATIENCE, parse, store_error, until};
use crate::reconcile::Reconciler;

/// How long etcd may take, past the deadline, to say whose agents are alive.
const ALIVE_PATIENCE: Duration = Duration::from_millis(700);
/// A lease is missing only for moments.
const LEASE_PAUSE: Duration = Duration::from_millis(20);
const FORGET_DEADLINE: Duration = Duration::from_secs(3);
const FORGET_FIRST_PAUSE: Duration = Duration::from_millis(200);
const FORGET_LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// By then, a request that was given up has happened or never will, but for frozen members.
const LATE_REQUEST: Duration = Duration::from_secs(5);
/// Networks asked about at a time.
const AT_ONCE: usize = 64;
/// Hosts named in one error.
const NAMED: usize = 20;

/// The hosts that had not caught up by the deadline, each with what is known of why.
pub(super) type Behind = BTreeMap<NodeName, Option<String>>;

/// What became of one question.
enum Asked {
    /// All have answered. `again`: their agents have completed records since, so there is more to ask for.
    Passed {
        converged: v1::Convergence,
        again: bool,
    },
    /// It is gone, with the lease it was put under.
    Void,
    Late(Behind),
}

/// A question in the store, or perhaps there. It is taken out when this is dropped.
struct Question {
    store: Store,
    network: NetworkName,
    barrier: BarrierRef,
    /// None while it is not known to be there.
    revision: Option<i64>,
}

impl Question {
    fn key(&self) -> Key {
        Key::Barrier(self.network.clone(), self.barrier.clone())
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let key = self.key();
        let (store, barrier, revision) = (self.store.clone(), self.barrier.clone(), self.revision);
        // Dropped also when the client leaves, where nothing can be awaited.
        tokio::spawn(forget(store, key, barrier, revision));
    }
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

impl AgentControl {
    /// Waits for all hosts of these networks, which are pinned. Those without any are left out of the result.
    pub(super) async fn converge_all(
        &self,
        call: &Call,
        networks: Vec<NetworkName>,
    ) -> Result<(Vec<v1::Convergence>, BTreeMap<NetworkName, Behind>), ApiError> {
        let asked = futures::stream::iter(networks).map(|network| async move {
            let result = self.converge(call, &network).await;
            (network, result)
        });
        let mut results = asked.buffer_unordered(AT_ONCE);
        let (mut converged, mut behind) = (Vec::new(), BTreeMap::new());
        while let Some((network, result)) = results.next().await {
            match result? {
                Ok(done) if done.hosts.is_empty() => {}
                Ok(done) => converged.push(done),
                Err(late) => drop(behind.insert(network, late)),
            }
        }
        converged.sort_by(|a: &v1::Convergence, b| a.network.cmp(&b.network));
        Ok((converged, behind))
    }

    /// Brings the records of networks into view, all at once.
    pub(super) async fn view_of_all(
        &self,
        call: &Call,
        networks: &[NetworkName],
    ) -> Result<Vec<Pin>, ApiError> {
        let mut pins = Vec::new();
        let names = networks.to_vec();
        self.ask(move |r| names.iter().for_each(|name| r.pin(name)))
            .await?;
        for network in networks {
            pins.push(Pin {
                asker: self.asker.clone(),
                network: network.clone(),
            });
        }
        self.informed(call).await?;
        Ok(pins)
    }

    /// Waits until every host that takes part in a network has programmed all that was written before this call. The
    /// network has to be pinned.
    pub(super) async fn converge(
        &self,
        call: &Call,
        network: &NetworkName,
    ) -> Result<Result<v1::Convergence, Behind>, ApiError> {
        let mut repeated = false;
        loop {
            match self.ask_all(call, network).await? {
                Asked::Passed { again: true, .. } if !repeated => repeated = true,
                Asked::Passed { converged, .. } => return Ok(Ok(converged)),
                Asked::Late(behind) => return Ok(Err(behind)),
                Asked::Void => sleep(LEASE_PAUSE).await,
            }
        }
    }

    async fn ask_all(&self, call: &Call, network: &NetworkName) -> Result<Asked, ApiError> {
        let own_is_late = |why: &str| {
            let behind = BTreeMap::from([(self.node.clone(), Some(why.to_owned()))]);
            Ok(Asked::Late(behind))
        };
        let name = network.clone();
        let announced =
            move |r: &mut Reconciler| (!r.snapshot.takes_part(&name) || r.is_announced()).then_some(());
        if self.wait(call.deadline, announced).await?.is_none() {
            return own_is_late("its own record is not in the store yet");
        }
        let Some(question) = self.put_question(call, network).await? else {
            return own_is_late("it could not put the question into the store");
        };
        let Some(revision) = question.revision else {
            return Ok(Asked::Void);
        };

        // What is asked is known when the question has come back, after all that was there before it.
        let (name, barrier) = (network.clone(), question.barrier.clone());
        let asked = self
            .wait(call.deadline, move |r| {
                if r.snapshot.barrier(&name, &barrier).is_some() {
                    r.asked(&name, revision).map(Some)
                } else {
                    (r.reached.certain() >= revision).then_some(None)
                }
            })
            .await?;
        let (hosts, again) = match asked {
            None => return own_is_late("it has not heard from the store"),
            Some(None) => return Ok(Asked::Void),
            Some(Some(asked)) => asked,
        };

        let missing = {
            let (name, barrier, hosts) = (network.clone(), question.barrier.clone(), hosts.clone());
            move |r: &mut Reconciler| r.missing(&name, &hosts, &barrier)
        };
        let nobody = missing.clone();
        let waited = self
            .wait(call.deadline, move |r| match nobody(r) {
                None => Some(false),
                Some(missing) => missing.is_empty().then_some(true),
            })
            .await?;
        match waited {
            Some(true) => Ok(Asked::Passed {
                converged: v1::Convergence {
                    network: network.to_string(),
                    revision,
                    hosts: hosts.iter().map(ToString::to_string).collect(),
                },
                again,
            }),
            Some(false) => Ok(Asked::Void),
            None => match self.ask(missing).await? {
                None => Ok(Asked::Void),
                Some(missing) => Ok(Asked::Late(self.reasons(missing).await)),
            },
        }
    }

    /// Puts a question into the store; none if that has not succeeded by the deadline.
    async fn put_question(&self, call: &Call, network: &NetworkName) -> Result<Option<Question>, ApiError> {
        let mut last = None;
        while Instant::now() < call.deadline {
            let Some(lease) = self.store.lease() else {
                sleep(LEASE_PAUSE).await;
                continue;
            };
            let id = uuid::Uuid::new_v4().simple().to_string();
            let mut question = Question {
                store: self.store.clone(),
                network: network.clone(),
                barrier: BarrierRef {
                    node: self.node.clone(),
                    id: parse::<EndpointId>("id", &id)?,
                },
                revision: None,
            };
            let value = encode(&BarrierDocument { version: None, lease });
            let transaction = Transaction {
                guards: vec![Guard::Absent(question.key())],
                writes: vec![Write::PutLeased(question.key(), value, lease)],
            };
            let patience = until(call.deadline, STORE_PATIENCE);
            match self.store.commit(&transaction, patience).await {
                Ok(Committed::Yes { revision }) => {
                    question.revision = Some(revision);
                    return Ok(Some(question));
                }
                Ok(Committed::No { .. }) => {}
                Err(error @ (StoreError::Unavailable { .. } | StoreError::Unknown { .. })) => {
                    return Err(store_error(&error));
                }
                Err(error) => {
                    // As when the lease has ended: there will be another.
                    last = Some(error);
                    sleep(LEASE_PAUSE).await;
                }
            }
        }
        last.map_or(Ok(None), |error| Err(store_error(&error)))
    }

    /// Why hosts have not answered, as far as this one can know.
    async fn reasons(&self, missing: BTreeMap<NodeName, Option<Obstacle>>) -> Behind {
        let directory = self.store.prefix().all(Kind::Alive);
        let listed = self.store.list(&directory, ALIVE_PATIENCE).await;
        let alive: Option<BTreeSet<NodeName>> = listed.ok().map(|listing| {
            let keys = listing.entries.iter();
            keys.filter_map(|entry| match self.store.prefix().parse(&entry.key) {
                Ok(Key::Alive(node)) => Some(node),
                _ => None,
            })
            .collect()
        });
        let reason = |node: &NodeName, obstacle: Option<Obstacle>| match (obstacle, &alive) {
            (Some(obstacle), _) => Some(obstacle.to_string()),
            (None, None) => None,
            (None, Some(alive)) if alive.contains(node) => Some("its agent is alive".to_owned()),
            (None, Some(_)) => Some("its agent is not running".to_owned()),
        };
        missing
            .into_iter()
            .map(|(node, obstacle)| {
                let reason = reason(&node, obstacle);
                (node, reason)
            })
            .collect()
    }
}

/// The error that names who has not caught up. `done` is what holds nevertheless.
pub(super) fn behind_error(
    call: &Call,
    what: Subject,
    done: &str,
    behind: &BTreeMap<NetworkName, Behind>,
) -> ApiError {
    let names: BTreeSet<&NodeName> = behind.values().flat_map(BTreeMap::keys).collect();
    let told: Vec<String> = behind
        .iter()
        .flat_map(|(network, hosts)| {
            hosts.iter().map(move |(node, why)| {
                let within = match behind.len() {
                    1 => String::new(),
                    _ => format!("network {network}: "),
                };
                match why {
                    Some(why) => format!("{within}{node} ({why})"),
                    None => format!("{within}{node}"),
                }
            })
        })
        .collect();
    let more = told.len().saturating_sub(NAMED);
    let mut list = told[..told.len() - more].join(", ");
    if more > 0 {
        list.push_str(&format!(" and {more} more"));
    }
    ApiError::Behind {
        what,
        waited: call.started.elapsed(),
        why: format!("{done}not caught up: {list}"),
        hosts: names.into_iter().map(ToString::to_string).collect(),
    }
}
