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
use tokio::time::sleep;
use weft_api::{ApiError, Call, Subject};
use weft_core::barrier::Obstacle;
use weft_proto::v1;
use weft_store_schema::{Key, Kind, NetworkName, NodeName};

use super::{
    AgentControl, Pin,
    questions::{PAUSE, Unasked},
    store_error,
};
use crate::reconcile::Reconciler;

/// How long etcd may take, past the deadline, to say whose agents are alive.
const ALIVE_PATIENCE: Duration = Duration::from_millis(700);
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
                Ok(done) if done.hosts.is_empty() && done.unannounced.is_empty() => {}
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
                Asked::Void => sleep(PAUSE).await,
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
        let round = self.questions.join(network);
        let question = match round.question(call, &self.questions, &self.store).await {
            Ok(question) => question,
            Err(Unasked::Late) => return own_is_late("it could not put the question into the store"),
            Err(Unasked::Store(error)) => return Err(store_error(&error)),
        };
        let revision = question.revision;

        // What is asked is known when the question has come back, after all that was there before it.
        let (name, barrier) = (network.clone(), question.barrier().clone());
        let asked = self
            .wait(call.deadline, move |r| {
                if r.snapshot.barrier(&name, &barrier).is_some() {
                    r.asked(&name, revision).map(Some)
                } else {
                    (r.reached.certain() >= revision).then_some(None)
                }
            })
            .await?;
        let asked = match asked {
            None => return own_is_late("it has not heard from the store"),
            Some(None) => return Ok(Asked::Void),
            Some(Some(asked)) => asked,
        };

        let missing = {
            let (name, barrier) = (network.clone(), question.barrier().clone());
            let hosts = asked.hosts.clone();
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
                    hosts: asked.hosts.iter().map(ToString::to_string).collect(),
                    unannounced: asked.unannounced.iter().map(ToString::to_string).collect(),
                },
                again: asked.again,
            }),
            Some(false) => Ok(Asked::Void),
            None => match self.ask(missing).await? {
                None => Ok(Asked::Void),
                Some(missing) => Ok(Asked::Late(self.reasons(missing).await)),
            },
        }
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
