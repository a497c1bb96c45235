//! Claims that somebody deletes from the store.

use weft_core::{chores, claims::Choosing};

use super::*;
use crate::drift::Kind;

fn deleted(entry: &Entry, mod_revision: i64) -> Change {
    Change::Deleted {
        key: entry.key.clone(),
        mod_revision,
    }
}

impl Ground {
    /// The store agrees to what a chore writes.
    fn written(&mut self, chore: Chore) {
        let peer = self.reconciler.peer_document().unwrap();
        let owed = chores::transaction(&self.reconciler.snapshot, &peer, &chore, &Choosing::default());
        let owed = owed.unwrap().unwrap_or_default();
        let done = ChoreDone::with(chore, owed, Ok(Committed::Yes { revision: 20 }));
        self.reconciler.on_chore_done(done);
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_somebody_deleted_is_claimed_again_and_told_of() {
    use futures::{FutureExt as _, StreamExt as _};

    let log = Log::begin();
    let claimed = claim("10.1.0.2", "host1/web");
    let mut ground = Ground::informed(vec![endpoint("web", "10.1.0.2")], vec![claimed.clone()]).await;
    let mut events = ground.reconciler.events.subscribe();
    let complete = [
        (
            Scope::Addresses(blue()),
            claimed,
            Chore::CompleteEndpoint(of_blue("web")),
        ),
        (Scope::Vnis, vni(), Chore::CompleteNetwork(blue())),
    ];
    for (scope, gone, chore) in complete {
        let changes = vec![deleted(&gone, 11)];
        ground.event(StoreEvent::Changed { scope, changes });
        assert!(ground.owes(&chore), "{chore:?}");
        ground.written(chore);
        let key = String::from_utf8(gone.key).unwrap().replace("/weft/v1/", "");
        let told = log.lines("claimed again");
        assert_eq!(
            told.iter().filter(|line| line.contains(&key)).count(),
            1,
            "{told:?}"
        );
        let event = events.next().now_or_never().flatten().unwrap().unwrap();
        assert!(event.message.contains(&key) && event.kind() == v1::EventKind::DriftRepaired);
        let Some(v1::event::Subject::Drift(drift)) = event.subject else {
            panic!("{event:?}")
        };
        assert_eq!((drift.object, drift.found), (key, String::new()));
    }
    assert_eq!(ground.reconciler.metrics.drift(), [(Kind::Claim, 2)]);
    assert_eq!(ground.reconciler.metrics.changes(), []);
    assert!(ground.reconciler.taken.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_goes_with_its_endpoint_is_none_that_somebody_took() {
    let log = Log::begin();
    let (web, claimed) = (endpoint("web", "10.1.0.2"), claim("10.1.0.2", "host1/web"));
    let mut ground = Ground::informed(vec![web.clone()], vec![claimed.clone()]).await;
    let complete = Chore::CompleteEndpoint(of_blue("web"));
    // One transaction; the claims are told of first.
    ground.event(StoreEvent::Changed {
        scope: Scope::Addresses(blue()),
        changes: vec![deleted(&claimed, 11)],
    });
    ground.event(StoreEvent::Changed {
        scope: Scope::Endpoints(blue()),
        changes: vec![deleted(&web, 11)],
    });
    let not = Committed::No {
        revision: 11,
        now: Vec::new(),
    };
    let done = ChoreDone::of(complete, Ok(not));
    ground.reconciler.on_chore_done(done);
    tokio::time::advance(Duration::from_secs(60)).await;
    ground.reconciler.on_time();
    assert!(ground.reconciler.taken.is_empty());
    assert!(log.lines("claimed again").is_empty());
}
