//! Counting the records of a revision.

use std::time::Duration;

use weft_core::suspicion::Census;
use weft_store::Ending;
use weft_store_schema::Key;

use crate::{PATIENCE, config, etcd::Etcd, network, open};

/// Half of what threads have otherwise: a build without optimization must be far from the end of its stack.
const STACK: usize = 1 << 20;

#[tokio::test]
async fn the_records_of_each_revision_are_counted() {
    let etcd = Etcd::one().await;
    etcd.put("networks/blue", "{}").await;
    etcd.put("peers/host1", "{}").await;
    etcd.put("endpoints/blue/host1/a", "{}").await;
    let before = etcd.put("endpoints/red/host2/b", "{}").await;
    let after = etcd.delete("endpoints/blue/host1/a").await;
    let (store, _events) = open(config(&etcd.urls())).await;
    let blue = network("blue");
    let count = async |revision| {
        let census = store.census(Some(&blue), i64::MAX, revision, PATIENCE);
        census.await.unwrap()
    };
    let wanted = Census {
        endpoints: 2,
        of_network: 1,
        survivors: true,
        networks: 1,
        peers: 1,
        own_peer: true,
        removed: false,
    };
    assert_eq!(count(before).await.as_ref(), Some(&wanted));
    let wanted = Census {
        endpoints: 1,
        of_network: 0,
        ..wanted
    };
    assert_eq!(count(after).await.as_ref(), Some(&wanted));
    etcd.compact(after).await;
    assert_eq!(count(before).await, None, "compacted away");
    store.close().await;
}

/// What was changed since is what was there; what was made since is not.
#[tokio::test]
async fn what_is_left_of_before_is_told_from_what_is_newer() {
    let etcd = Etcd::one().await;
    let since = etcd.put("endpoints/red/host9/z", "{}").await;
    let changed = etcd.put("endpoints/red/host9/z", r#"{"name":"z"}"#).await;
    // More than fit into a page, and before what is old.
    etcd.fill("endpoints/blue/host1/", 0..1200).await;
    let (store, _events) = open(config(&etcd.urls())).await;
    let left = async |since, revision| {
        let census = store
            .census(None, since, revision, PATIENCE)
            .await
            .unwrap()
            .unwrap();
        (census.endpoints, census.survivors)
    };
    assert_eq!(left(since, changed).await, (1, true));
    assert_eq!(left(since, 0).await, (1201, true));
    let gone = etcd.delete("endpoints/red/host9/z").await;
    assert_eq!(left(since, gone).await, (1200, false));
    assert_eq!(left(i64::MAX, gone).await, (1200, true));
    store.close().await;
}

/// As an agent asks when etcd has just been away: two revisions at once, and connecting is part of it.
#[test]
fn counting_while_connecting_needs_little_stack() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut etcd = Etcd::one().await;
        let revision = etcd.put("networks/blue", "{}").await;
        let (store, _events) = open(config(&etcd.urls())).await;
        etcd.members[0].kill();
        let asking = store.store.clone();
        let asked = tokio::spawn(async move {
            let ask = |revision| asking.census(None, i64::MAX, revision, PATIENCE);
            tokio::try_join!(ask(revision - 1), ask(revision))
        });
        // Time for it to find nobody.
        tokio::time::sleep(Duration::from_millis(100)).await;
        etcd.members[0].start();
        let (before, after) = asked.await.unwrap().unwrap();
        assert_eq!(before.map(|census| census.networks), Some(0));
        assert_eq!(after.map(|census| census.networks), Some(1));
        store.close().await;
    });
}

#[tokio::test]
async fn the_revision_that_deleted_a_key_is_found() {
    let etcd = Etcd::one().await;
    let name = "endpoints/blue/host1/a";
    let (mut lives, mut between) = (Vec::new(), 0);
    for more in [3, 40] {
        let put = etcd.put(name, "{}").await;
        for _ in 0..more {
            between = etcd.put("networks/blue", "{}").await;
        }
        lives.push((put, etcd.delete(name).await));
    }
    let now = etcd.put("networks/blue", "{}").await;
    let (store, _events) = open(config(&etcd.urls())).await;
    let key = weft_store_schema::Prefix::default().parse(format!("/weft/v1/{name}").as_bytes());
    let key: Key = key.unwrap();
    let ending = async |since, until| store.end_of_life(&key, since, until, PATIENCE).await.unwrap();
    let (first, last) = (lives[0], lives[1]);
    assert_eq!(ending(first.0, last.0 - 1).await, Ending::Deleted(first.1));
    assert_eq!(ending(last.0, now).await, Ending::Deleted(last.1));
    assert_eq!(ending(last.0, last.1).await, Ending::Deleted(last.1));
    assert_eq!(
        ending(first.0, now).await,
        Ending::Deleted(last.1),
        "the last time"
    );
    assert_eq!(ending(last.1, now).await, Ending::NeverBegan, "another history");
    assert_eq!(ending(now + 5, now).await, Ending::NeverBegan, "a shorter one");
    etcd.compact(between).await;
    assert_eq!(
        ending(first.0, now).await,
        Ending::Deleted(last.1),
        "the history has that yet"
    );
    etcd.compact(now).await;
    assert_eq!(ending(last.0, now).await, Ending::Forgotten);
    store.close().await;
}
