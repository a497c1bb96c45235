//! Servers and networks that fail in ways that are not plain to see.

use std::time::Duration;

use tokio::time::Instant;
use weft_core::record::{Connection, Scope};

use crate::{
    basic_scopes, config,
    etcd::Etcd,
    follow, open,
    proxy::{Mode, Proxy},
    reader::Reader,
};

/// The watch stands on the proxy, and goes over to etcd itself when the proxy fails: how long that takes
/// until a change arrives.
async fn replaced(mode: Mode, tune: impl FnOnce(&mut weft_store::Config)) -> (Duration, weft_store::Health) {
    let etcd = Etcd::one().await;
    let proxy = Proxy::before(&etcd.url()).await;
    let mut config = config(&[proxy.url.clone(), etcd.url()]);
    tune(&mut config);
    loop {
        let (store, events) = open(config.clone()).await;
        let mut reader = Reader::new(events);
        store.want(basic_scopes().into());
        reader.listed(&basic_scopes()).await;
        let revision = etcd.put("elsewhere", "x").await;
        reader
            .until("progress", |reader| reader.progress >= revision)
            .await;
        if store.health().endpoint != proxy.url {
            // The first endpoint is up to chance.
            continue;
        }
        proxy.set(mode);
        etcd.put("networks/after", "x").await;
        let start = Instant::now();
        reader
            .until("the change by the other endpoint", |reader| {
                reader.has(&Scope::Networks, "networks/after")
            })
            .await;
        assert!(
            matches!(
                reader.connections.as_slice(),
                [
                    Connection::Up { .. },
                    Connection::Down { .. },
                    Connection::Up { .. }
                ]
            ),
            "{:?}",
            reader.connections
        );
        assert_eq!(store.health().lists, 1, "resumed, not listed");
        return (start.elapsed(), store.health());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_connection_is_noticed_by_pings() {
    let (took, health) = replaced(Mode::Freeze, |config| {
        config.timing.ping = Duration::from_millis(500);
        config.timing.ping_timeout = Duration::from_millis(500);
        config.timing.silence = Duration::from_secs(600);
    })
    .await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(health.silences, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_watch_is_noticed_by_its_silence() {
    // Pings cannot help here: as behind a proxy that answers them itself.
    let (took, health) = replaced(Mode::DropReplies, |config| {
        config.timing.ping = Duration::from_secs(600);
        config.timing.progress = Duration::from_millis(400);
        config.timing.silence = Duration::from_millis(1000);
    })
    .await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(health.silences, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_is_not_taken_for_a_stuck_one() {
    let etcd = Etcd::one().await;
    let mut config = config(&[etcd.url()]);
    config.timing.progress = Duration::from_millis(200);
    config.timing.silence = Duration::from_millis(600);
    let (store, mut reader) = follow(config).await;
    // Five times the silence that would end it.
    reader.step(Instant::now() + Duration::from_secs(3)).await;
    while reader
        .step(Instant::now() + Duration::from_secs(1))
        .await
        .is_some()
    {}
    assert_eq!((store.health().silences, store.health().streams), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_accepts_and_never_answers_is_passed_over() {
    let etcd = Etcd::one().await;
    let dead = Proxy::before(&etcd.url()).await;
    dead.set(Mode::Freeze);
    let mut config = config(&[dead.url.clone(), etcd.url()]);
    config.timing.connect = Duration::from_millis(700);
    for _ in 0..4 {
        let (store, events) = open(config.clone()).await;
        let mut reader = Reader::new(events);
        store.want(basic_scopes().into());
        reader
            .until_within("listed in spite of it", Duration::from_secs(5), |reader| {
                reader.scopes.len() == 2
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_line_is_slow_and_nothing_else() {
    let etcd = Etcd::one().await;
    etcd.fill("networks/n", 0..50).await;
    let proxy = Proxy::before(&etcd.url()).await;
    proxy.set(Mode::Delay(Duration::from_millis(200)));
    let (store, events) = open(config(std::slice::from_ref(&proxy.url))).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    for n in 0..3 {
        let revision = etcd.put("networks/more", &n.to_string()).await;
        reader
            .until("the change", |reader| {
                reader.copy(&Scope::Networks).revision == revision
            })
            .await;
    }
    let health = store.health();
    assert_eq!(
        (health.disconnects, health.streams, health.lists),
        (0, 1, 1),
        "{health:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_is_not_there_is_waited_for() {
    let mut etcd = Etcd::one().await;
    etcd.members[0].kill();
    let (store, events) = open(config(&[etcd.url()])).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader
        .until("it is told", |reader| {
            matches!(reader.connections.as_slice(), [Connection::Down { .. }])
        })
        .await;
    let Some(Connection::Down { why }) = reader.connections.last() else {
        unreachable!()
    };
    assert!(
        why.contains(&etcd.url()) && why.to_lowercase().contains("refused"),
        "{why}"
    );
    // Told once, however often it is tried.
    assert!(
        reader
            .step(Instant::now() + Duration::from_secs(1))
            .await
            .is_none()
    );
    etcd.members[0].start();
    etcd.ready().await;
    let back = Instant::now();
    reader.listed(&basic_scopes()).await;
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
}

/// Brings the data of an earlier time back.
fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_went_back_in_time_is_listed_anew() {
    let mut etcd = Etcd::one().await;
    etcd.fill("networks/old", 0..5).await;
    etcd.members[0].kill();
    let (data, saved) = (etcd.members[0].data.clone(), etcd.dir.path().join("saved"));
    copy_dir(&data, &saved);
    etcd.members[0].start();
    etcd.ready().await;
    etcd.fill("networks/new", 0..50).await;
    let (store, mut reader) = follow(config(&[etcd.url()])).await;
    let before = reader.copy(&Scope::Networks).revision;
    etcd.members[0].kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_dir(&saved, &data);
    etcd.members[0].start();
    etcd.ready().await;
    reader
        .until("listed anew", |reader| {
            reader.copy(&Scope::Networks).listings.len() == 2
        })
        .await;
    let networks = reader.copy(&Scope::Networks);
    assert!(networks.revision < before);
    assert_eq!(networks.list(), etcd.range("networks/", 0).await);
    // And it goes on from there.
    etcd.put("networks/later", "x").await;
    reader
        .until("a change", |reader| {
            reader.has(&Scope::Networks, "networks/later")
        })
        .await;
    assert_eq!(store.health().relists, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_of_another_cluster_is_listed_anew() {
    let mut etcd = Etcd::one().await;
    etcd.fill("networks/old", 0..5).await;
    let other = Etcd::one().await;
    // Ahead of the first, so that the revision says nothing.
    other.fill("elsewhere/n", 0..50).await;
    let proxy = Proxy::before(&etcd.url()).await;
    let second = Proxy::before(&other.url()).await;
    second.set(Mode::Refuse);
    let (store, events) = open(config(&[proxy.url.clone(), second.url.clone()])).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    etcd.members[0].kill();
    second.set(Mode::Forward);
    reader
        .until("listed anew", |reader| {
            reader.copy(&Scope::Networks).listings.len() == 2
        })
        .await;
    assert!(reader.copy(&Scope::Networks).entries.is_empty());
    assert_eq!(
        reader.clusters.len(),
        2,
        "the listing says that it is another cluster"
    );
    assert!(reader.broken > 0, "and that it goes on from nothing");
    assert_eq!(store.health().cluster_id, reader.clusters.last().copied());
}

/// etcd counts pings that come sooner than its `--grpc-keepalive-min-time` and ends the connection at the third.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_connection_is_not_ended_for_its_pings() {
    let etcd = Etcd::one().await;
    let mut config = config(&etcd.urls());
    let default = weft_store::Timing::default();
    config.timing.ping = default.ping;
    config.timing.ping_timeout = default.ping_timeout;
    config.timing.progress = Duration::from_secs(600);
    config.timing.silence = Duration::from_secs(600);
    let (store, _reader) = follow(config).await;
    // Nothing happens, and for long enough that pings of a second or two would have been the end of it.
    tokio::time::sleep(Duration::from_secs(14)).await;
    let health = store.health();
    assert_eq!(
        (health.disconnects, health.streams),
        (0, 1),
        "{:?}",
        health.last_error
    );
}
