//! The first contact, resuming, compaction, bursts and slow readers.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_core::record::{Connection, Scope};
use weft_store::Limits;

use crate::{
    basic_scopes, config,
    etcd::Etcd,
    eventually, follow, network, open,
    proxy::{Mode, Proxy},
    reader::Reader,
};

fn many_scopes() -> Vec<Scope> {
    let mut scopes = basic_scopes().to_vec();
    for name in ["a", "b", "c", "d"] {
        scopes.push(Scope::Endpoints(network(name)));
        scopes.push(Scope::Addresses(network(name)));
    }
    scopes.push(Scope::Vnis);
    scopes.push(Scope::OwnEndpoints(network("e")));
    scopes
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sync_is_at_one_revision_page_by_page() {
    let etcd = Etcd::one().await;
    etcd.fill("networks/n", 0..27).await;
    etcd.fill("peers/p", 0..4).await;
    etcd.fill("endpoints/a/host2/e", 0..12).await;
    etcd.fill("endpoints/e/host1/e", 0..3).await;
    etcd.fill("endpoints/e/host2/e", 0..3).await;
    // While others write.
    let mut kv = etcd.client().await.kv_client();
    let writer = tokio::spawn(async move {
        for n in 0_u32.. {
            let key = format!(
                "/weft/v1/{}/w{}",
                ["networks", "peers", "endpoints/a/host3"][n as usize % 3],
                n % 50
            );
            if n % 4 == 3 {
                kv.delete(key, None).await.unwrap();
            } else {
                kv.put(key, n.to_string(), None).await.unwrap();
            }
        }
    });
    let mut config = config(&[etcd.url()]);
    config.limits.page = 4;
    let scopes = many_scopes();
    for _ in 0..5 {
        let (store, events) = open(config.clone()).await;
        let mut reader = Reader::new(events);
        store.want(scopes.iter().cloned().collect());
        let mut listed = Vec::new();
        let end = Instant::now() + crate::PATIENCE;
        while listed.len() < scopes.len() {
            match reader.step(end).await.expect("all is listed") {
                weft_core::record::StoreEvent::Listed {
                    revision,
                    entries,
                    scope,
                    ..
                } => {
                    listed.push((scope, revision, entries));
                }
                weft_core::record::StoreEvent::Connection(Connection::Up { .. }) => {}
                other => assert!(!listed.is_empty(), "{other:?} before the first listing"),
            }
        }
        let at = listed[0].1;
        for (scope, revision, entries) in listed {
            assert_eq!(revision, at, "{scope:?}");
            assert_eq!(
                entries,
                etcd.range(&crate::scopes::directory(&scope), at).await,
                "{scope:?}"
            );
        }
        assert_eq!(store.health().lists, 1);
    }
    writer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_is_resumed_without_a_listing() {
    let mut etcd = Etcd::one().await;
    etcd.fill("networks/n", 0..5).await;
    let (store, mut reader) = follow(config(&[etcd.url()])).await;
    for round in 0..3 {
        etcd.members[0].kill();
        reader
            .until("the loss is told", |reader| {
                matches!(reader.connections.last(), Some(Connection::Down { .. }))
            })
            .await;
        assert!(!store.health().connected);
        etcd.members[0].start();
        etcd.ready().await;
        let back = Instant::now();
        etcd.put(&format!("networks/after{round}"), "x").await;
        reader
            .until("the change after the restart", |reader| {
                reader.has(&Scope::Networks, &format!("networks/after{round}"))
            })
            .await;
        assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    }
    let health = store.health();
    assert_eq!((health.lists, health.relists), (1, 0), "{health:?}");
    assert!(health.resumes >= 3 && health.disconnects >= 3, "{health:?}");
    assert_eq!(
        reader.copy(&Scope::Networks).list(),
        etcd.range("networks/", 0).await
    );
    assert!(health.last_error.is_some_and(|error| error.contains("127.0.0.1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_made_while_cut_off_arrive_in_order_without_a_listing() {
    let etcd = Etcd::one().await;
    let proxy = Proxy::before(&etcd.url()).await;
    let (store, events) = open(config(std::slice::from_ref(&proxy.url))).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    proxy.set(Mode::Refuse);
    etcd.fill("networks/n", 0..200).await;
    etcd.fill("peers/p", 0..100).await;
    for n in 0..50 {
        etcd.delete(&format!("networks/n{n:05}")).await;
    }
    proxy.set(Mode::Forward);
    reader
        .until("all changes", |reader| {
            reader.copy(&Scope::Networks).changes == 250 && reader.copy(&Scope::Peers).changes == 100
        })
        .await;
    assert_eq!(
        reader.copy(&Scope::Networks).list(),
        etcd.range("networks/", 0).await
    );
    assert_eq!(reader.copy(&Scope::Networks).listings.len(), 1);
    assert_eq!(store.health().lists, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_while_cut_off_leads_to_one_listing() {
    let etcd = Etcd::one().await;
    etcd.fill("networks/n", 0..20).await;
    let proxy = Proxy::before(&etcd.url()).await;
    let (store, events) = open(config(std::slice::from_ref(&proxy.url))).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    proxy.set(Mode::Refuse);
    for n in 0..10 {
        etcd.delete(&format!("networks/n{n:05}")).await;
    }
    let revision = etcd.fill("networks/m", 0..10).await;
    etcd.compact(revision).await;
    proxy.set(Mode::Forward);
    reader
        .until("listed again", |reader| {
            basic_scopes()
                .iter()
                .all(|scope| reader.copy(scope).listings.len() == 2)
        })
        .await;
    assert_eq!(
        reader.copy(&Scope::Networks).list(),
        etcd.range("networks/", 0).await
    );
    // And the watch goes on from there.
    etcd.put("networks/later", "x").await;
    reader
        .until("a change after the listing", |reader| {
            reader.has(&Scope::Networks, "networks/later")
        })
        .await;
    let health = store.health();
    assert!(health.lists <= 3, "no listing over and over: {health:?}");
    assert_eq!(health.relists, 2, "{health:?}");
}

/// etcd 3.4 drops a deletion at the very revision that it was compacted at, without telling a watch that begins there.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_compacted_at_its_own_revision_is_not_missed() {
    let etcd = Etcd::one().await;
    etcd.fill("networks/n", 0..2).await;
    let proxy = Proxy::before(&etcd.url()).await;
    let (store, events) = open(config(std::slice::from_ref(&proxy.url))).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    proxy.set(Mode::Refuse);
    let revision = etcd.delete("networks/n00001").await;
    etcd.compact(revision).await;
    proxy.set(Mode::Forward);
    reader
        .until("the deletion", |reader| {
            !reader.has(&Scope::Networks, "networks/n00001")
        })
        .await;
    assert!(reader.has(&Scope::Networks, "networks/n00000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_while_connected_and_quiet_changes_nothing() {
    let etcd = Etcd::one().await;
    let (store, mut reader) = follow(config(&[etcd.url()])).await;
    let revision = etcd.fill("elsewhere/n", 0..20).await;
    // Progress says that the watches stand: compaction before that would rightly lead to a listing.
    reader
        .until("progress", |reader| reader.progress >= revision)
        .await;
    let revision = etcd.fill("elsewhere/n", 0..20).await;
    etcd.compact(revision).await;
    etcd.put("networks/later", "x").await;
    reader
        .until("the change", |reader| {
            reader.has(&Scope::Networks, "networks/later")
        })
        .await;
    assert_eq!(store.health().lists, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_under_a_reader_that_fell_behind() {
    let etcd = Etcd::one().await;
    let mut config = config(&[etcd.url()]);
    config.limits = Limits {
        queue: 1,
        backlog: 64 << 10,
        ..Limits::default()
    };
    let (store, mut reader) = follow(config).await;
    // More than all buffers between us hold, so that etcd has to keep the rest for us.
    let mut kv = etcd.client().await.kv_client();
    let large = vec![b'x'; 200 << 10];
    for n in 0..300 {
        kv.put(format!("/weft/v1/networks/large{}", n % 20), large.clone(), None)
            .await
            .unwrap();
    }
    etcd.compact(etcd.revision().await).await;
    // etcd looks after slow watches every 100 ms; it has to find this one compacted before we read on.
    sleep(Duration::from_millis(500)).await;
    reader
        .until("listed again after compaction", |reader| {
            reader.copy(&Scope::Networks).listings.len() >= 2
        })
        .await;
    etcd.put("networks/later", "x").await;
    reader
        .until("the change after it", |reader| {
            reader.has(&Scope::Networks, "networks/later")
        })
        .await;
    assert_eq!(
        reader.copy(&Scope::Networks).list(),
        etcd.range("networks/", 0).await
    );
    assert!(store.health().relists >= 1);
    assert_eq!(store.health().disconnects, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_reaches_a_slow_reader_whole() {
    let etcd = Etcd::one().await;
    let mut config = config(&[etcd.url()]);
    config.limits = Limits {
        queue: 2,
        backlog: 16 << 10,
        ..Limits::default()
    };
    let (store, mut reader) = follow(config).await;
    let writers: Vec<_> = (0..10)
        .map(|writer| {
            let client = etcd.client();
            async move {
                let mut kv = client.await.kv_client();
                for n in 0..500 {
                    let key = format!("/weft/v1/networks/w{writer}-{}", n % 100);
                    kv.put(key, n.to_string(), None).await.unwrap();
                }
            }
        })
        .collect();
    futures::future::join_all(writers).await;
    let end = Instant::now() + crate::PATIENCE;
    while reader.copy(&Scope::Networks).changes < 5000 {
        reader.step(end).await.expect("all changes arrive");
        sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(reader.copy(&Scope::Networks).changes, 5000, "each exactly once");
    assert_eq!(
        reader.copy(&Scope::Networks).list(),
        etcd.range("networks/", 0).await
    );
    assert!(
        reader.changed_events < 2500,
        "{} events: neighbours go together",
        reader.changed_events
    );
    assert_eq!((store.health().lists, store.health().disconnects), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_reaches_a_commit_soon_and_without_changes_of_ours() {
    let etcd = Etcd::one().await;
    let (store, mut reader) = follow(config(&[etcd.url()])).await;
    let revision = etcd.fill("elsewhere/n", 0..5).await;
    reader
        .until("progress over foreign changes", |reader| {
            reader.progress >= revision
        })
        .await;
    let transaction = weft_core::record::Transaction {
        guards: vec![weft_core::record::Guard::Absent(crate::network_key("blue"))],
        writes: vec![weft_core::record::Write::Put(
            crate::network_key("blue"),
            b"{}".to_vec(),
        )],
    };
    let committed = store.commit(&transaction, crate::PATIENCE).await.unwrap();
    let weft_core::record::Committed::Yes { revision } = committed else {
        panic!("{committed:?}")
    };
    let start = Instant::now();
    reader
        .until("progress", |reader| reader.progress >= revision)
        .await;
    assert!(
        start.elapsed() < Duration::from_millis(900),
        "{:?}",
        start.elapsed()
    );
    assert!(
        reader.has(&Scope::Networks, "networks/blue"),
        "the change comes before the progress"
    );
    assert_eq!(store.health().progress, reader.progress);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_listed_again_by_the_clock_and_on_request() {
    let etcd = Etcd::one().await;
    etcd.fill("networks/n", 0..5).await;
    let mut config = config(&[etcd.url()]);
    config.timing.relist = Duration::from_millis(400);
    let (store, events) = open(config).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader
        .until("listed three times", |reader| {
            basic_scopes().iter().all(|scope| {
                reader
                    .scopes
                    .get(scope)
                    .is_some_and(|copy| copy.listings.len() >= 3)
            })
        })
        .await;
    assert_eq!(store.health().relists, 0);
    assert_eq!(store.health().streams, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_beside_the_watch_never_goes_back_in_time() {
    let etcd = Etcd::one().await;
    let (store, mut reader) = follow(config(&[etcd.url()])).await;
    let mut kv = etcd.client().await.kv_client();
    let writer = tokio::spawn(async move {
        for n in 0..2000 {
            kv.put(format!("/weft/v1/networks/n{}", n % 7), n.to_string(), None)
                .await
                .unwrap();
        }
    });
    while !writer.is_finished() {
        store.relist();
        let listings = reader.copy(&Scope::Networks).listings.len();
        reader
            .until("listed", |reader| {
                reader.copy(&Scope::Networks).listings.len() > listings
            })
            .await;
    }
    writer.await.unwrap();
    let want = etcd.range("networks/", 0).await;
    reader
        .until("the final state", |reader| {
            reader.copy(&Scope::Networks).list() == want
        })
        .await;
    let listings = &reader.copy(&Scope::Networks).listings;
    assert!(listings.len() > 3 && listings.is_sorted(), "{listings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_the_events() {
    let etcd = Etcd::one().await;
    let (store, mut events) = open(config(&[etcd.url()])).await;
    store.want(basic_scopes().into());
    eventually("connected", || store.health().connected).await;
    store.close().await;
    while events.recv().await.is_some() {}
    let error = store
        .get(&crate::network_key("blue"), crate::PATIENCE)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("stopping"), "{error}");
}

/// Questions of agents to one another hang on this: an answer that is too early loses packets, one that never comes
/// while anything happens is none.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_expected_is_told_amid_changes_and_never_too_early() {
    let etcd = Etcd::one().await;
    let (store, mut reader) = follow(config(&[etcd.url()])).await;
    let written = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (client, written) = (etcd.client(), std::sync::Arc::clone(&written));
            let written_by = async move |client: etcd_client::Client| {
                let mut kv = client.kv_client();
                for n in 0_usize.. {
                    let directory = ["networks", "peers"][n % 2];
                    let key = format!("/weft/v1/{directory}/w{writer}-{}", n % 50);
                    let answer = kv.put(key, n.to_string(), None).await.unwrap();
                    written.lock().unwrap().push(answer.header().unwrap().revision());
                }
            };
            (client, written_by)
        })
        .collect();
    let mut running = Vec::new();
    for (client, written_by) in writers {
        let client = client.await;
        running.push(tokio::spawn(async move { written_by(client).await }));
    }
    let received = |reader: &Reader| -> usize {
        [Scope::Networks, Scope::Peers]
            .iter()
            .map(|s| reader.copy(s).changes)
            .sum()
    };
    let (before, mut told, mut slowest) = (received(&reader), Vec::new(), Duration::ZERO);
    assert_eq!(before, 0);
    for _ in 0..20 {
        let expected = etcd.put("networks/asked", "now").await - 1;
        written.lock().unwrap().push(expected + 1);
        let start = Instant::now();
        store.expect(expected);
        reader
            .until("it is told", |reader| reader.progress >= expected)
            .await;
        slowest = slowest.max(start.elapsed());
        told.push((reader.progress, received(&reader)));
    }
    for writer in &running {
        writer.abort();
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let written = written.lock().unwrap();
    assert!(written.len() > 200, "{} changes are no storm", written.len());
    for (progress, received) in told {
        let known = written.iter().filter(|revision| **revision <= progress).count();
        assert!(
            received >= known,
            "at {progress}, {received} changes had come of {known}"
        );
    }
}
