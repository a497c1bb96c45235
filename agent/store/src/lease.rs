//! Leases of callers: granted for a time, given back before it ends if all goes well. Nobody renews them.
//!
//! The id is made here, not by etcd: when an answer is lost, the second sending finds the lease of the first.

use std::time::Duration;

use crate::{
    StoreError,
    error::{Failure, Verdict},
    members::Members,
};

/// Grants a lease; see [`Store::grant`](crate::Store::grant).
pub(crate) async fn grant(members: &Members, ttl: Duration, deadline: Duration) -> Result<i64, StoreError> {
    let what = format!("granting a lease of {} s", ttl.as_secs());
    refuse_if_stopping(members, &what)?;
    let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
    let options = |id| etcd_client::LeaseGrantOptions::new().with_id(id);
    let id = fastrand::i64(1..i64::MAX);
    let outcome = members
        .ask(deadline, true, |client| async move {
            client.lease_client().grant(seconds, Some(options(id))).await
        })
        .await;
    match (outcome.result, outcome.lost) {
        (Ok(answer), _) => Ok(answer.id()),
        // Of 2^63 ids, the one that is there after a lost answer is ours.
        (Err(failure), Some(_)) if is_taken(&failure) => Ok(id),
        (Err(_), Some(lost)) => Err(lost.into_error(what, members.user(), deadline)),
        (Err(failure), None) => Err(failure.into_error(what, members.user(), deadline)),
    }
}

/// Ends a lease; see [`Store::revoke`](crate::Store::revoke).
pub(crate) async fn revoke(members: &Members, id: i64, deadline: Duration) -> Result<(), StoreError> {
    let what = format!("revoking lease {id:x}");
    refuse_if_stopping(members, &what)?;
    let outcome = members
        .ask(deadline, true, |client| async move {
            client.lease_client().revoke(id).await
        })
        .await;
    match outcome.result {
        Ok(_) => Ok(()),
        Err(failure) if failure.verdict == Verdict::LeaseGone => Ok(()),
        Err(failure) => Err(failure.into_error(what, members.user(), deadline)),
    }
}

fn refuse_if_stopping(members: &Members, what: &str) -> Result<(), StoreError> {
    if members.stop().is_cancelled() {
        return Err(StoreError::Stopping {
            what: what.to_owned(),
        });
    }
    Ok(())
}

fn is_taken(failure: &Failure) -> bool {
    failure.verdict == Verdict::Refused && failure.cause.text.contains("lease already exists")
}
