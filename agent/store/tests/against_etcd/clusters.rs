//! Three members: one dies, the leader dies, one is frozen.

use std::time::Duration;

use tokio::time::Instant;
use weft_core::record::{Committed, Guard, Scope, Transaction, Write};
use weft_store::Store;

use crate::{PATIENCE, basic_scopes, config, etcd::Etcd, follow, network_key, open, reader::Reader};

async fn create(store: &Store, name: &str, deadline: Duration) -> Result<Committed, weft_store::StoreError> {
    let transaction = Transaction {
        guards: vec![Guard::Absent(network_key(name))],
        writes: vec![Write::Put(network_key(name), b"{}".to_vec())],
    };
    store.commit(&transaction, deadline).await
}

async fn leader(etcd: &Etcd) -> usize {
    for n in 0..etcd.members.len() {
        let client = etcd.client_of(n).await;
        let status = client.maintenance_client().status().await.unwrap();
        if status.leader() == status.header().unwrap().member_id() {
            return n;
        }
    }
    panic!("no leader");
}

fn member_of(etcd: &Etcd, url: &str) -> usize {
    etcd.urls().iter().position(|other| other == url).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_in_use_is_killed() {
    let mut etcd = Etcd::cluster(3).await;
    let (store, events) = open(config(&etcd.urls())).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    create(&store, "before", PATIENCE).await.unwrap();
    let used = member_of(&etcd, &store.health().endpoint);
    etcd.members[used].kill();
    // No call may fail, and none twice: each is one creation.
    for n in 0..50 {
        let committed = create(&store, &format!("n{n}"), Duration::from_secs(10))
            .await
            .unwrap();
        assert!(matches!(committed, Committed::Yes { .. }), "n{n}: {committed:?}");
    }
    reader
        .until("all changes", |reader| {
            reader.copy(&Scope::Networks).entries.len() == 51
        })
        .await;
    assert_eq!(store.health().lists, 1);
    assert_eq!(reader.copy(&Scope::Networks).changes, 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed() {
    let mut etcd = Etcd::cluster(3).await;
    let (store, events) = open(config(&etcd.urls())).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    let leader = leader(&etcd).await;
    etcd.members[leader].kill();
    for n in 0..20 {
        let committed = create(&store, &format!("n{n}"), PATIENCE).await.unwrap();
        assert!(matches!(committed, Committed::Yes { .. }), "n{n}: {committed:?}");
    }
    reader
        .until("all changes", |reader| {
            reader.copy(&Scope::Networks).entries.len() == 20
        })
        .await;
    assert_eq!(store.health().lists, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_in_use_is_frozen() {
    let etcd = Etcd::cluster(3).await;
    let mut config = config(&etcd.urls());
    config.timing.ping = Duration::from_millis(1000);
    let (store, mut reader) = follow(config).await;
    let used = member_of(&etcd, &store.health().endpoint);
    etcd.members[used].freeze();
    let start = Instant::now();
    let committed = create(&store, "after", Duration::from_secs(10)).await.unwrap();
    assert!(matches!(committed, Committed::Yes { .. }), "{committed:?}");
    reader
        .until("the change", |reader| {
            reader.has(&Scope::Networks, "networks/after")
        })
        .await;
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!(store.health().lists, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_everything_waits_and_says_so() {
    let mut etcd = Etcd::cluster(3).await;
    let (store, events) = open(config(&etcd.urls())).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    etcd.members[0].kill();
    etcd.members[1].kill();
    let start = Instant::now();
    let error = create(&store, "blue", Duration::from_secs(2)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(error.is_temporary(), "{error:?}");
    assert!(error.to_string().contains("networks/blue"), "{error}");
    reader
        .until("the loss is told: the last member knows of no leader", |_| {
            !store.health().connected
        })
        .await;
    etcd.members[0].start();
    etcd.members[1].start();
    etcd.ready().await;
    create(&store, "green", PATIENCE).await.unwrap();
    reader
        .until("the change", |reader| {
            reader.has(&Scope::Networks, "networks/green")
        })
        .await;
}
