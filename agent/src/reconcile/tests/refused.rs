//! What the store does not take is told by its cause.

use weft_store::Cause;

use super::*;

const WRITES: &str = "(store writes)";

fn full(member: u32) -> StoreError {
    StoreError::Full {
        what: "writing networks/blue".to_owned(),
        source: Cause {
            endpoint: format!("http://etcd{member}:2379"),
            text: "mvcc: database space exceeded".to_owned(),
        },
    }
}

impl Ground {
    fn chore(&mut self, chore: &Chore, result: Result<Committed, StoreError>) {
        self.reconciler
            .on_chore_done(ChoreDone::of(chore.clone(), result));
    }
}

#[tokio::test(start_paused = true)]
async fn one_cause_is_one_problem_until_the_last_write_that_waits_for_its_end() {
    let log = Log::begin();
    let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
    let written = || Ok(Committed::Yes { revision: 20 });
    let network = Chore::CompleteNetwork("red".parse().unwrap());
    let vni = Chore::FreeVni(weft_store_schema::Vni::new(9).unwrap());
    for n in 0..30 {
        ground.chore(&network, Err(full(n % 3)));
        ground.chore(&vni, Err(full(n % 2)));
        assert_eq!(ground.problem(WRITES).is_some(), n > 1);
        // What only deletes, and what is refused because it is out of date, is answered all the time.
        ground.chore(&Chore::PublishPeer, written());
    }
    let silent = || StoreError::Unknown {
        what: "writing networks/blue".to_owned(),
        source: Cause {
            endpoint: "http://etcd1:2379".to_owned(),
            text: "no answer in time".to_owned(),
        },
    };
    for n in 0..10 {
        ground.chore(&vni, Err(full(n)));
        ground.chore(&network, Err(silent()));
    }
    ground.chore(&vni, written());
    assert!(ground.problem(WRITES).is_some(), "the other one waits");
    ground.chore(&network, written());
    assert_eq!(ground.problem(WRITES), None);
    let lines = log.lines(WRITES);
    assert_eq!(lines.len(), 3, "two causes and their end: {lines:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_what_it_is_is_not_also_the_stores_trouble() {
    let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
    let network = Chore::CompleteNetwork("red".parse().unwrap());
    let too_large = || StoreError::Transaction {
        what: "writing networks/red".to_owned(),
        why: "too large".to_owned(),
    };
    for _ in 0..5 {
        ground.chore(&network, Err(full(1)));
    }
    assert!(ground.problem(WRITES).is_some() && ground.problem("networks/red").is_none());
    for _ in 0..5 {
        ground.chore(&network, Err(too_large()));
        ground.chore(&network, Err(full(1)));
        assert!(ground.problem(WRITES).is_none() && ground.problem("networks/red").is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_has_just_died_is_no_trouble() {
    let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
    for n in 0..10 {
        ground.chore(&Chore::PublishPeer, Err(full(n)));
        ground.chore(&Chore::PublishPeer, Err(full(n)));
        ground.connect();
        assert_eq!(ground.problem(WRITES), None);
    }
}
