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

#[tokio::test(start_paused = true)]
async fn the_echo_of_a_large_plan_is_no_reason_to_look() {
    let mut ground = Ground::new().await;
    let notices = |count: u32| {
        let told = |n: u32| Notice::Neighbour {
            network: blue(),
            address: std::net::Ipv4Addr::from_bits(0x0a01_0000 + n).into(),
            seen: None,
        };
        (0..count).map(told).collect::<Vec<_>>()
    };
    let applying = |operations| {
        Some(Busy::Applying {
            dirty: Dirty::default(),
            expected: None,
            covers: None,
            operations,
            answer: oneshot::channel().1,
        })
    };
    ground.reconciler.look = Dirty::default();
    ground.reconciler.busy = applying(200_000);
    ground.reconciler.on_notices(notices(300_000));
    assert!(ground.reconciler.look.is_empty(), "they are its own");
    ground.reconciler.busy = applying(1);
    ground.reconciler.on_notices(Vec::new());
    assert!(ground.reconciler.look.everything, "so many are of others");
}
