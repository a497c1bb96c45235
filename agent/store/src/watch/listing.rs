//! Listings within a session: what is due is listed together, at one revision, beside the watch.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{debug, info, warn};
use weft_core::record::StoreEvent;

use super::{End, Watcher, session::Session};
use crate::{
    backoff::jittered,
    error::{Failure, Verdict},
    follow::{Listing, Reason},
    read::{self, Lists, Position},
};

impl Watcher {
    /// Lists everything anew if the store is another one, or has gone back.
    pub(super) fn compare_history(&mut self, position: Position) {
        let seen = self.follows.values().map(|follow| follow.seen).max().unwrap_or(0);
        if let Some(known) = self.known {
            let why = if known.cluster_id != position.cluster_id {
                Some("it is another cluster")
            } else if position.revision < seen {
                Some("its revision went back")
            } else if position.term < known.term {
                Some("its raft term went back")
            } else {
                None
            };
            if let Some(why) = why {
                warn!(
                    why,
                    endpoint = self.members.health.lock().endpoint,
                    known_revision = seen,
                    revision = position.revision,
                    known_cluster = %format_args!("{:x}", known.cluster_id),
                    cluster = %format_args!("{:x}", position.cluster_id),
                    "the store has another history than before; everything is listed anew"
                );
                // What was heard of the other history says nothing of what happens in this one.
                self.members.health.lock().revision = position.revision;
                for follow in self.follows.values_mut() {
                    follow.list(Reason::History);
                }
            }
        }
        self.known = Some(position);
    }

    /// Lists all that is due, unless a listing runs or the last one failed just now.
    pub(super) fn start_listing(&mut self, session: &mut Session) {
        let now = Instant::now();
        if let Some(at) = self.refresh_at
            && now >= at
        {
            self.refresh_at = Some(now + jittered(self.members.config().timing.relist));
            for follow in self.follows.values_mut() {
                follow.list(Reason::Refresh);
            }
        }
        if session.running.is_some() {
            return;
        }
        let mut due = Vec::new();
        let mut again = 0;
        for (scope, follow) in &mut self.follows {
            let Listing::Due(reason) = follow.listing else {
                continue;
            };
            let due_at = follow
                .listing
                .due_at(self.list_not_before, self.relist_not_before);
            if due_at.is_none_or(|at| now < at) {
                continue;
            }
            follow.asked();
            due.push(scope.clone());
            again += u64::from(!matches!(reason, Reason::New | Reason::Refresh));
        }
        if due.is_empty() {
            return;
        }
        let mut health = self.members.health.lock();
        health.lists += 1;
        health.relists += again;
        drop(health);
        debug!(scopes = due.len(), again, "listing");
        let members = Arc::clone(&self.members);
        let bound = members.config().timing.list;
        session.running = Some(Box::pin(
            async move { read::list_scopes(&members, &due, bound).await },
        ));
    }

    pub(super) fn take_listing(
        &mut self,
        session: &mut Session,
        result: Result<Lists, Failure>,
    ) -> Result<(), End> {
        let lists = match result {
            Ok(lists) => lists,
            Err(failure) => {
                for follow in self.follows.values_mut() {
                    follow.failed();
                }
                self.list_not_before = Instant::now() + self.list_pause.pause();
                if failure.verdict == Verdict::Compacted {
                    // Between two pages.
                    return Ok(());
                }
                self.members.health.failed(failure.cause.to_string());
                if matches!(failure.verdict, Verdict::NotDone | Verdict::Lost) {
                    return Err(End::Lost(failure));
                }
                if self.refusal.is_news(&failure.cause.text) {
                    warn!(why = %failure.cause, "etcd refuses a listing; trying again with growing pauses");
                }
                return Ok(());
            }
        };
        self.list_pause.reset();
        let position = Position {
            revision: lists.revision,
            cluster_id: lists.cluster_id,
            term: lists.term,
        };
        let went_back = self.follows.values().any(|follow| {
            follow.listing == Listing::Running(Reason::Refresh) && lists.revision < follow.seen_when_asked()
        });
        if lists.cluster_id != session.cluster_id || went_back {
            // Under our feet: begin again, and look where the store stands.
            self.compare_history(position);
            return Err(End::Lost(Failure::new(
                Verdict::Lost,
                &session.line.url,
                "the store's history changed during a listing",
            )));
        }
        if self.refusal.over() {
            info!("etcd permits listing again");
        }
        let mut again = 0;
        for (scope, entries) in lists.entries {
            let Some(follow) = self.follows.get_mut(&scope) else {
                continue;
            };
            let Listing::Running(reason) = follow.listing else {
                continue;
            };
            again += usize::from(reason.follows_a_failed_watch());
            let (entries, revision) = follow.listed(entries, lists.revision);
            let event = StoreEvent::Listed {
                scope,
                revision,
                cluster_id: lists.cluster_id,
                continues: reason != Reason::History,
                entries,
            };
            self.outbox.push(event, follow.generation);
        }
        if again > 0 {
            let now = Instant::now();
            let most = self.members.config().timing.relist_most;
            if self
                .relisted
                .replace(now)
                .is_none_or(|last| now > last + most * 2)
            {
                // The last time was long ago; what happens again and again is told once.
                self.relist_pause.reset();
                info!(scopes = again, "listed anew what the watch could not go on with");
            }
            self.relist_not_before = now + self.relist_pause.pause();
        }
        Ok(())
    }
}
