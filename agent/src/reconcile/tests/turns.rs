//! A burst of events that does not end: it is taken in in turns.

use super::*;
use crate::reconcile::records::TURN;

#[tokio::test]
async fn a_burst_without_end_leaves_others_their_turn() {
    const IN_ONE: usize = 100;
    let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
    let mut revision = 100;
    let mut burst = || {
        let change = |n: usize| {
            revision += 1;
            Change::Put(entry(
                &format!("networks/n{n}"),
                revision,
                &json!({"subnets": [{"cidr": "10.9.0.0/24"}]}),
            ))
        };
        let event = StoreEvent::Changed {
            scope: Scope::Networks,
            changes: (0..IN_ONE).map(change).collect(),
        };
        Some((event, Instant::now()))
    };
    for _ in 0..3 {
        let mut taken = 1;
        let first = burst().unwrap();
        ground.reconciler.on_store_events(first, || {
            taken += 1;
            burst()
        });
        // Whatever else waits has its turn now; so many were taken in together.
        assert_eq!(taken, TURN.div_ceil(IN_ONE));
        assert_eq!(ground.reconciler.snapshot.networks().count(), IN_ONE + 1);
    }
    // One that is larger comes as a whole, and alone.
    let entries = (0..2 * TURN).map(|n| {
        entry(
            &format!("networks/n{n}"),
            9,
            &json!({"subnets": [{"cidr": "10.9.0.0/24"}]}),
        )
    });
    let listed = StoreEvent::Listed {
        scope: Scope::Networks,
        revision: 9999,
        cluster_id: CLUSTER,
        continues: true,
        entries: entries.collect(),
    };
    ground
        .reconciler
        .on_store_events((listed, Instant::now()), || panic!("it is enough for a turn"));
    // And what is less than a turn leaves nothing behind.
    let mut few = vec![burst().unwrap(), burst().unwrap()];
    let first = burst().unwrap();
    ground.reconciler.on_store_events(first, || few.pop());
    assert!(few.is_empty());
}
