//! This node's presence and status, under one lease. Informs others; nothing else hangs on it.
//!
//! The lease is renewed at a third of its time to live. If it is gone (expired, revoked), or a key is, lease
//! and keys are made again. Failures are waited out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, warn};
use weft_core::complaint::Complaint;
use weft_store_schema::Key;

use crate::{
    backoff::{Backoff, jittered},
    error::{Failure, Verdict},
    members::Members,
};

/// Longest time for giving the lease back at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// So many statuses all hosts together write at most in the time in which one may ([`Timing::report`](crate::Timing)): a change
/// in a network that all of them take part in must not cost etcd more than the changes themselves.
const REPORTS_AT_ONCE: usize = 100;

type Value = Option<Arc<[u8]>>;

/// Sets what the keeper keeps.
#[derive(Debug, Clone)]
pub(crate) struct Presence {
    alive: Arc<watch::Sender<Value>>,
    status: Arc<watch::Sender<Value>>,
    hosts: Arc<AtomicUsize>,
}

impl Presence {
    pub(crate) fn alive(&self, value: Vec<u8>) {
        self.alive.send_replace(Some(value.into()));
    }

    pub(crate) fn withdraw(&self) {
        self.alive.send_replace(None);
    }

    pub(crate) fn status(&self, value: Vec<u8>, hosts: usize) {
        self.hosts.store(hosts, Ordering::Relaxed);
        self.status.send_replace(Some(value.into()));
    }
}

/// The setter, and the task that keeps the presence until the agent stops.
pub(crate) fn new(members: Arc<Members>) -> (Presence, impl Future<Output = ()>) {
    let (alive, alive_receiver) = watch::channel(None);
    let (status, status_receiver) = watch::channel(None);
    let presence = Presence {
        alive: Arc::new(alive),
        status: Arc::new(status),
        hosts: Arc::default(),
    };
    let keeper = Keeper {
        alive_key: members
            .config()
            .prefix
            .key(&Key::Alive(members.config().node.clone())),
        status_key: members
            .config()
            .prefix
            .key(&Key::Status(members.config().node.clone())),
        members,
        alive: alive_receiver,
        status: status_receiver,
        hosts: Arc::clone(&presence.hosts),
        lease: None,
        status_not_before: Instant::now(),
        unwritten: false,
        stranger: Complaint::default(),
    };
    (presence, keeper.run())
}

struct Keeper {
    members: Arc<Members>,
    alive_key: String,
    status_key: String,
    alive: watch::Receiver<Value>,
    status: watch::Receiver<Value>,
    /// So many hosts write a status.
    hosts: Arc<AtomicUsize>,
    lease: Option<i64>,
    status_not_before: Instant,
    /// The last write was refused or lost: all is well only when one has happened.
    unwritten: bool,
    stranger: Complaint,
}

impl Keeper {
    async fn run(mut self) {
        let stop = self.members.stop().clone();
        let timing = self.members.config().timing.clone();
        let mut pause = Backoff::new(timing.retry_first, timing.relist_most);
        let mut complaint = Complaint::default();
        loop {
            let result = tokio::select! {
                result = self.keep(&mut pause, &mut complaint) => result,
                () = stop.cancelled() => break,
            };
            let Err(failure) = result else { break };
            if complaint.is_news(&failure.cause.text) {
                warn!(why = %failure.cause, "this node's presence cannot be kept up; trying again");
            }
            tokio::select! {
                () = tokio::time::sleep(pause.pause()) => {}
                () = self.members.back.notified() => {}
                () = stop.cancelled() => break,
            }
        }
        self.farewell().await;
    }

    /// Keeps lease and keys until something fails; returns without failure when no one sets values any more.
    async fn keep(&mut self, pause: &mut Backoff, complaint: &mut Complaint) -> Result<(), Failure> {
        let timing = self.members.config().timing.clone();
        if self.alive.wait_for(Option::is_some).await.is_err() {
            return Ok(());
        }
        let mut renewed = Instant::now();
        loop {
            if let Some(lease) = self.lease {
                if self.renew(lease).await? {
                    self.check_keys(lease).await?;
                } else {
                    debug!(lease, "the presence lease has expired or was revoked");
                    self.forget_lease();
                }
            }
            if self.lease.is_none() {
                self.grant().await?;
            }
            self.if_all_is_well(pause, complaint);
            let renew_at = renewed.max(Instant::now()) + jittered(timing.lease / 3);
            loop {
                let status_waits = self.status.has_changed().unwrap_or(false);
                tokio::select! {
                    () = sleep_until(renew_at) => break,
                    changed = self.alive.changed() => {
                        if changed.is_err() {
                            return Ok(());
                        }
                        if self.alive.borrow_and_update().is_none() {
                            self.farewell().await;
                            self.forget_lease();
                            if self.alive.wait_for(Option::is_some).await.is_err() {
                                return Ok(());
                            }
                            break;
                        }
                        self.put_all().await?;
                        self.if_all_is_well(pause, complaint);
                    }
                    () = sleep_until(self.status_not_before), if status_waits => {
                        self.put_status().await?;
                        self.if_all_is_well(pause, complaint);
                    }
                    changed = wait_change(&mut self.status), if !status_waits => {
                        if !changed {
                            return Ok(());
                        }
                    }
                }
            }
            renewed = Instant::now();
        }
    }

    /// The lease can be renewed where nothing can be written, as in a full store.
    fn if_all_is_well(&self, pause: &mut Backoff, complaint: &mut Complaint) {
        if self.unwritten {
            return;
        }
        if complaint.over() {
            debug!("this node's presence is kept up again");
        }
        pause.reset();
    }

    fn forget_lease(&mut self) {
        self.lease = None;
        self.members.health.lock().lease = None;
    }

    async fn grant(&mut self) -> Result<(), Failure> {
        let ttl = self.members.config().timing.lease.as_secs().max(1);
        // Spread, so that a stall of etcd does not end the leases of all agents in one second.
        let ttl = i64::try_from(ttl + fastrand::u64(0..=ttl / 6)).unwrap_or(i64::MAX);
        let answer = self
            .members
            .ask(self.bound(), true, |client| async move {
                client.lease_client().grant(ttl, None).await
            })
            .await
            .result?;
        self.lease = Some(answer.id());
        {
            let mut health = self.members.health.lock();
            health.lease = self.lease;
            health.leases += 1;
        }
        self.put_all().await
    }

    /// Renews the lease; false if it is gone.
    async fn renew(&mut self, lease: i64) -> Result<bool, Failure> {
        let answer = self
            .members
            .ask(self.bound(), true, |client| async move {
                // One question and its answer: a standing stream would have to be failed over by hand.
                match client.lease_client().keep_alive(lease).await {
                    Ok(_) => Ok(Renewed(true)),
                    Err(etcd_client::Error::LeaseKeepAliveError(text)) if text.contains("not found") => {
                        Ok(Renewed(false))
                    }
                    Err(error) => Err(error),
                }
            })
            .await;
        answer.result.map(|Renewed(kept)| kept)
    }

    /// Puts the keys again if somebody deleted one of them; leaves them if another agent of this name took them.
    async fn check_keys(&mut self, lease: i64) -> Result<(), Failure> {
        let reads = [&self.alive_key, &self.status_key].map(|key| TxnOp::get(key.clone(), None));
        let answer = self
            .members
            .ask(self.bound(), true, |client| {
                let reads = reads.clone();
                async move { client.kv_client().txn(Txn::new().and_then(reads)).await }
            })
            .await
            .result?;
        let mut holders = answer.op_responses().into_iter().map(|answer| match answer {
            TxnOpResponse::Get(found) => found.kvs().first().map(etcd_client::KeyValue::lease),
            _ => None,
        });
        let (alive, status) = (holders.next().flatten(), holders.next().flatten());
        match alive {
            None => self.put_all().await,
            Some(holder) if holder == lease => {
                self.stranger.over();
                if status.is_none() && self.status.borrow().is_some() {
                    return self.put_all().await;
                }
                Ok(())
            }
            Some(holder) => {
                let why = format!(
                    "{} is kept by another agent (lease {holder:x}); is its node name taken twice?",
                    self.alive_key
                );
                if self.stranger.is_news(&why) {
                    warn!("{why}");
                    self.members.health.failed(why);
                }
                Ok(())
            }
        }
    }

    /// Puts presence and status under the lease.
    async fn put_all(&mut self) -> Result<(), Failure> {
        let alive = self.alive.borrow_and_update().clone();
        let status = self.status.borrow_and_update().clone();
        let puts = [(self.alive_key.clone(), alive), (self.status_key.clone(), status)];
        self.put(
            puts.into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .collect(),
        )
        .await
    }

    async fn put_status(&mut self) -> Result<(), Failure> {
        let status = self.status.borrow_and_update().clone();
        self.put(
            status
                .into_iter()
                .map(|value| (self.status_key.clone(), value))
                .collect(),
        )
        .await
    }

    async fn put(&mut self, values: Vec<(String, Arc<[u8]>)>) -> Result<(), Failure> {
        let (Some(lease), false) = (self.lease, values.is_empty()) else {
            return Ok(());
        };
        let hosts = self.hosts.load(Ordering::Relaxed);
        self.status_not_before = Instant::now() + pace(self.members.config().timing.report, hosts);
        let puts: Vec<_> = values
            .into_iter()
            .map(|(key, value)| TxnOp::put(key, value.to_vec(), Some(PutOptions::new().with_lease(lease))))
            .collect();
        let outcome = self
            .members
            .ask(self.bound(), true, |client| {
                let puts = puts.clone();
                async move { client.kv_client().txn(Txn::new().and_then(puts)).await }
            })
            .await;
        self.unwritten = outcome.result.is_err();
        match outcome.result {
            Ok(_) => Ok(()),
            Err(failure) => {
                self.alive.mark_changed();
                self.status.mark_changed();
                if matches!(failure.verdict, Verdict::Refused | Verdict::LeaseGone) {
                    // "requested lease not found": the next round makes another.
                    self.forget_lease();
                }
                Err(failure)
            }
        }
    }

    /// Gives the lease back, so that others see at once that this agent has gone on purpose.
    async fn farewell(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        let revoke = async {
            let line = self.members.line(self.members.preferred()).await.ok()?;
            line.client.lease_client().revoke(lease).await.ok()
        };
        if timeout(FAREWELL, revoke).await.ok().flatten().is_none() {
            debug!(
                lease,
                "the presence lease could not be given back; it will expire"
            );
        }
    }

    fn bound(&self) -> Duration {
        self.members.config().timing.lease / 3
    }
}

/// The shortest time between two statuses of one of so many hosts.
fn pace(alone: Duration, hosts: usize) -> Duration {
    let turns = hosts.div_ceil(REPORTS_AT_ONCE).max(1);
    alone * u32::try_from(turns).unwrap_or(u32::MAX)
}

struct Renewed(bool);

impl crate::members::Headed for Renewed {
    fn header(&self) -> Option<&etcd_client::ResponseHeader> {
        None
    }
}

/// Waits for a change without taking note of it; false when none can come any more.
async fn wait_change(receiver: &mut watch::Receiver<Value>) -> bool {
    let changed = receiver.changed().await.is_ok();
    receiver.mark_changed();
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hosts_take_turns_with_their_statuses() {
        let second = Duration::from_secs(1);
        for (hosts, want) in [(0, 1), (1, 1), (100, 1), (101, 2), (1000, 10)] {
            assert_eq!(pace(second, hosts), second * want, "{hosts}");
        }
    }
}
