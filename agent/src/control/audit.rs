//! The audit of all records: read at one revision, judged, mended if that is asked for, and judged again.
//!
//! It works on what the store says, not on this host's view: any agent gives the same answer, but for what it holds although
//! the store has lost it. What it has in memory meanwhile is every record of the cluster.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt as _, stream};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use weft_api::{ApiError, AuditStream, Call, Subject};
use weft_core::{
    audit::{Audit, Counts, Finding, Held, audit},
    fence::fenced,
    record::Committed,
};
use weft_proto::v1::{self, audit_response::Part};
use weft_store::{Store, StoreError};

use super::{AgentControl, STORE_PATIENCE, stopping, store_error, until};
use crate::reconcile::Asker;

/// Mends under way at a time.
const AT_ONCE: usize = 16;
/// Between the two looks.
const SECOND_LOOK: std::time::Duration = std::time::Duration::from_millis(700);
/// After so many rounds, what still changes under our hands is left to the next audit.
const MOST_ROUNDS: usize = 4;
/// Parts of the answer that may wait for the client.
const QUEUE: usize = 256;

type Teller = mpsc::Sender<Result<v1::AuditResponse, ApiError>>;

impl AgentControl {
    /// See [`weft_api::Control::audit`].
    pub(super) async fn start_audit(&self, call: Call, repair: bool) -> Result<AuditStream, ApiError> {
        if !self.ask(|r| r.is_connected()).await? {
            return Err(self.no_store().await);
        }
        if repair {
            // What is about to be held is not to be given up.
            self.has_compared(&call).await?;
        }
        let place = Arc::clone(&self.auditing)
            .try_lock_owned()
            .map_err(|_| ApiError::Unavailable {
                what: "the audit".to_owned(),
                why: "another one is under way on this host".to_owned(),
            })?;
        let (tell, told) = mpsc::channel(QUEUE);
        let auditor = Auditor {
            asker: self.asker.clone(),
            store: self.store.clone(),
            call,
            tell,
        };
        tokio::spawn(async move {
            let _place = place;
            let ended = tokio::select! {
                ended = auditor.run(repair) => ended,
                // Whoever asked has left.
                () = auditor.tell.closed() => return,
            };
            if let Err(error) = ended {
                let _ = auditor.tell.send(Err(error)).await;
            }
        });
        Ok(Box::pin(ReceiverStream::new(told)))
    }
}

struct Auditor {
    asker: Asker,
    store: Store,
    call: Call,
    tell: Teller,
}

impl Auditor {
    async fn run(&self, repair: bool) -> Result<(), ApiError> {
        let mut mended = 0;
        for round in 1.. {
            let (found, revision) = self.look_twice(mended).await?;
            let is_last = !repair || round == MOST_ROUNDS;
            if is_last || found.findings.iter().all(|finding| finding.mend.is_none()) {
                self.tell_all(found, revision, mended).await;
                return Ok(());
            }
            mended += self.mend(found.findings).await?;
        }
        Ok(())
    }

    /// What is wrong in two looks: what an agent is about to mend anyway, such as the claims of an endpoint that was
    /// deleted a moment ago, is no finding.
    async fn look_twice(&self, mended: u64) -> Result<(Audit, i64), ApiError> {
        let (first, revision) = self.look(mended).await?;
        if first.findings.is_empty() {
            return Ok((first, revision));
        }
        tokio::time::sleep(SECOND_LOOK).await;
        let (mut second, revision) = self.look(mended).await?;
        let name = |finding: &Finding| (finding.key.clone(), finding.kind.to_string());
        let before: BTreeSet<_> = first.findings.iter().map(name).collect();
        second.findings.retain(|finding| before.contains(&name(finding)));
        Ok((second, revision))
    }

    /// Reads and judges everything.
    async fn look(&self, mended: u64) -> Result<(Audit, i64), ApiError> {
        let tell = self.tell.clone();
        let progress = move |records: usize| {
            let progress = v1::AuditProgress {
                records: records as u64,
                mended,
            };
            // A client that is behind misses some.
            let _ = tell.try_send(Ok(part(Part::Progress(progress))));
        };
        let prefix = self.store.prefix().clone();
        let patience = self.call.deadline.saturating_duration_since(Instant::now());
        let listing = self
            .store
            .list_telling(prefix.as_str(), patience, &progress)
            .await
            .map_err(|error| match Instant::now() < self.call.deadline {
                true => store_error(&error),
                false => self.late(),
            })?;
        let revision = listing.revision;
        let leased: BTreeSet<Vec<u8>> = listing.leased;
        let here = self.store.node().clone();
        // Later than the listing: what it lacks and is to be held is held by then, or in the second look.
        let held = self.asker.ask(|r| Held {
            keys: r.snapshot.held_keys().into_iter().collect(),
            because: r.snapshot.held_because().map(str::to_owned),
        });
        let held = held.await.ok_or_else(stopping)?;
        // Very many records take a while, in which the rest goes on.
        let judged =
            tokio::task::spawn_blocking(move || audit(&prefix, &listing.entries, &leased, &here, &held))
                .await;
        Ok((judged.map_err(|_| stopping())?, revision))
    }

    /// Carries out what can be mended; returns how much was.
    async fn mend(&self, findings: Vec<Finding>) -> Result<u64, ApiError> {
        let mendable = findings.into_iter().filter(|finding| finding.mend.is_some());
        let mut done = stream::iter(mendable)
            .map(|finding| async move {
                let result = self.mend_one(&finding).await;
                (finding, result)
            })
            .buffer_unordered(AT_ONCE);
        let mut mended = 0;
        while let Some((finding, result)) = done.next().await {
            if result? {
                mended += 1;
                tracing::info!(key = finding.key, kind = %finding.kind, remedy = finding.remedy, "mended");
                self.tell_part(finding_part(finding, true)).await;
            }
        }
        Ok(mended)
    }

    /// Whether it was done. What has changed meanwhile is for the next round to judge.
    async fn mend_one(&self, finding: &Finding) -> Result<bool, ApiError> {
        let Some(mend) = finding.mend.clone() else {
            return Ok(false);
        };
        let after = finding.after.clone();
        let made = self.asker.ask(move |r| {
            let too_early = after.is_some_and(|(holder, address)| r.may_have(&holder, Some(address)));
            (!too_early).then(|| fenced(&r.snapshot, mend))
        });
        let Some(transaction) = made.await.ok_or_else(stopping)? else {
            return Ok(false);
        };
        let patience = until(self.call.deadline, STORE_PATIENCE);
        if patience.is_zero() {
            return Err(self.late());
        }
        match self.store.commit(&transaction, patience).await {
            Ok(Committed::Yes { .. }) => Ok(true),
            Ok(Committed::No { .. }) | Err(StoreError::Unknown { .. }) => Ok(false),
            Err(error) => Err(store_error(&error)),
        }
    }

    async fn tell_part(&self, part: v1::AuditResponse) {
        // If the client has left, this task is about to end.
        let _ = self.tell.send(Ok(part)).await;
    }

    async fn tell_all(&self, found: Audit, revision: i64, mended: u64) {
        let summary = summary(found.counts, found.findings.len(), revision, mended);
        let findings = found.findings.into_iter();
        for told in findings
            .map(|finding| finding_part(finding, false))
            .chain([summary])
        {
            self.tell_part(told).await;
        }
    }

    fn late(&self) -> ApiError {
        ApiError::DeadlineExceeded {
            what: Subject::new("records", ""),
            waited: self.call.started.elapsed(),
            why: "there are too many to be read in that time; allow more".to_owned(),
        }
    }
}

fn part(part: Part) -> v1::AuditResponse {
    v1::AuditResponse { part: Some(part) }
}

fn finding_part(finding: Finding, mended: bool) -> v1::AuditResponse {
    part(Part::Finding(v1::AuditFinding {
        key: finding.key,
        kind: finding.kind.to_string(),
        message: finding.message,
        remedy: finding.remedy,
        mendable: finding.mend.is_some(),
        mended,
    }))
}

fn summary(counts: Counts, findings: usize, revision: i64, mended: u64) -> v1::AuditResponse {
    part(Part::Summary(v1::AuditSummary {
        revision,
        networks: counts.networks as u64,
        endpoints: counts.endpoints as u64,
        pending_endpoints: counts.pending as u64,
        claims: counts.claims as u64,
        reservations: counts.reservations as u64,
        vni_claims: counts.vnis as u64,
        peers: counts.peers as u64,
        released_addresses: counts.released as u64,
        findings: findings as u64,
        mended,
    }))
}
