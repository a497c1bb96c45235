//! Presence and status under a lease that comes back whatever ends it.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_store::Config;

use crate::{
    PATIENCE, basic_scopes, config,
    etcd::{Etcd, full},
    eventually, open,
    proxy::{Mode, Proxy},
    reader::Reader,
};

fn with_lease(mut config: Config, seconds: u64) -> Config {
    config.timing.lease = Duration::from_secs(seconds);
    config.timing.report = Duration::from_millis(200);
    config
}

/// The value of a key and the lease it hangs on.
async fn held(etcd: &Etcd, key: &str) -> Option<(String, i64)> {
    let answer = etcd
        .client()
        .await
        .kv_client()
        .get(full(key), None)
        .await
        .unwrap();
    answer
        .kvs()
        .first()
        .map(|kv| (kv.value_str().unwrap().to_owned(), kv.lease()))
}

async fn wait_for(
    etcd: &Etcd,
    what: &str,
    want: impl Fn(Option<(String, i64)>, Option<(String, i64)>) -> bool,
) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (alive, status) = (held(etcd, "alive/host1").await, held(etcd, "status/host1").await);
        if want(alive.clone(), status.clone()) {
            return;
        }
        assert!(Instant::now() < end, "not in time: {what}; {alive:?} {status:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_and_status_are_kept_under_one_lease_until_the_end() {
    let etcd = Etcd::one().await;
    // Long enough that a busy machine does not let it expire between two renewals.
    let (store, _events) = open(with_lease(config(&[etcd.url()]), 6)).await;
    store.report(b"early".to_vec(), 1);
    store.presence(b"here".to_vec());
    wait_for(&etcd, "both keys under one lease", |alive, status| {
        match (alive, status) {
            (Some((alive, lease)), Some((status, other))) => {
                alive == "here" && status == "early" && lease == other && lease != 0
            }
            _ => false,
        }
    })
    .await;
    let lease = store.health().lease.unwrap();
    // Longer than the lease lives without renewal, its share of chance included.
    sleep(Duration::from_secs(9)).await;
    assert_eq!(held(&etcd, "alive/host1").await, Some(("here".to_owned(), lease)));
    assert_eq!(store.health().leases, 1);
    store.presence(b"changed".to_vec());
    wait_for(&etcd, "the new presence", |alive, _| {
        alive == Some(("changed".to_owned(), lease))
    })
    .await;
    // At the end both go at once, not when the lease expires.
    store.close().await;
    assert_eq!(
        (
            held(&etcd, "alive/host1").await,
            held(&etcd, "status/host1").await
        ),
        (None, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_lease_is_made_again() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(with_lease(config(&[etcd.url()]), 2)).await;
    store.presence(b"here".to_vec());
    store.report(b"fine".to_vec(), 1);
    wait_for(&etcd, "the keys", |alive, status| {
        alive.is_some() && status.is_some()
    })
    .await;
    let lease = store.health().lease.unwrap();
    etcd.client().await.lease_client().revoke(lease).await.unwrap();
    assert_eq!(held(&etcd, "alive/host1").await, None);
    wait_for(&etcd, "the keys under a new lease", |alive, status| {
        alive.is_some_and(|(value, other)| value == "here" && other != lease)
            && status.is_some_and(|(value, _)| value == "fine")
    })
    .await;
    assert_eq!(store.health().leases, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_after_the_lease_was_revoked_brings_both_back() {
    let etcd = Etcd::one().await;
    // Renewal is far away: the failing put has to notice.
    let (store, _events) = open(with_lease(config(&[etcd.url()]), 600)).await;
    store.presence(b"here".to_vec());
    wait_for(&etcd, "the key", |alive, _| alive.is_some()).await;
    let lease = store.health().lease.unwrap();
    etcd.client().await.lease_client().revoke(lease).await.unwrap();
    store.report(b"fine".to_vec(), 1);
    wait_for(&etcd, "both keys", |alive, status| {
        alive.is_some() && status.is_some()
    })
    .await;
    assert_ne!(store.health().lease.unwrap(), lease);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_lease_is_made_again() {
    let etcd = Etcd::one().await;
    let proxy = Proxy::before(&etcd.url()).await;
    let (store, _events) = open(with_lease(config(std::slice::from_ref(&proxy.url)), 1)).await;
    store.presence(b"here".to_vec());
    wait_for(&etcd, "the key", |alive, _| alive.is_some()).await;
    proxy.set(Mode::Refuse);
    wait_for(&etcd, "it expires while we are cut off", |alive, _| {
        alive.is_none()
    })
    .await;
    proxy.set(Mode::Forward);
    wait_for(&etcd, "it is back", |alive, _| alive.is_some()).await;
    assert_eq!(store.health().leases, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_back_with_the_connection() {
    let etcd = Etcd::one().await;
    let proxy = Proxy::before(&etcd.url()).await;
    let mut config = with_lease(config(std::slice::from_ref(&proxy.url)), 1);
    // Left to itself, the keeper would pause for longer than anybody waits here.
    config.timing.retry_first = Duration::from_secs(2);
    config.timing.relist_most = PATIENCE * 10;
    let (store, events) = open(config).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    store.presence(b"here".to_vec());
    reader.listed(&basic_scopes()).await;
    wait_for(&etcd, "the key", |alive, _| alive.is_some()).await;
    proxy.set(Mode::Refuse);
    // How long etcd is away: three failures of the keeper, and well into its third pause.
    sleep(Duration::from_secs(8)).await;
    proxy.set(Mode::Forward);
    let back = Instant::now();
    wait_for(&etcd, "it is back", |alive, _| alive.is_some()).await;
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_keys_are_put_again() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(with_lease(config(&[etcd.url()]), 2)).await;
    store.presence(b"here".to_vec());
    wait_for(&etcd, "the key", |alive, _| alive.is_some()).await;
    etcd.delete("alive/host1").await;
    wait_for(&etcd, "it is back", |alive, _| alive.is_some()).await;
    store.report(b"fine".to_vec(), 1);
    wait_for(&etcd, "the status", |_, status| status.is_some()).await;
    etcd.delete("status/host1").await;
    wait_for(&etcd, "that is back, too", |_, status| {
        status.is_some_and(|(value, _)| value == "fine")
    })
    .await;
    assert_eq!(store.health().leases, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_of_the_same_name_is_not_fought() {
    let etcd = Etcd::one().await;
    let (first, _events) = open(with_lease(config(&[etcd.url()]), 2)).await;
    first.presence(b"first".to_vec());
    wait_for(&etcd, "the first", |alive, _| alive.is_some()).await;
    let (second, _events) = open(with_lease(config(&[etcd.url()]), 2)).await;
    second.presence(b"second".to_vec());
    eventually("the first tells of it", || {
        first
            .health()
            .last_error
            .is_some_and(|error| error.contains("taken twice"))
    })
    .await;
    assert_eq!(held(&etcd, "alive/host1").await.unwrap().0, "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_reports_few_are_written_and_the_last_one_is() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(with_lease(config(&[etcd.url()]), 30)).await;
    store.presence(b"here".to_vec());
    wait_for(&etcd, "the key", |alive, _| alive.is_some()).await;
    let (before, begun) = (etcd.revision().await, Instant::now());
    for n in 0..100 {
        store.report(n.to_string().into_bytes(), 1);
        sleep(Duration::from_millis(10)).await;
    }
    wait_for(&etcd, "the last report", |_, status| {
        status.is_some_and(|(value, _)| value == "99")
    })
    .await;
    let written = etcd.revision().await - before;
    // At one per 200 ms, however long a busy machine takes for what is to take one second.
    let most = i64::try_from(begun.elapsed().as_millis() / 200).unwrap() + 2;
    assert!(written >= 2 && written <= most, "{written} of {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_do_not_all_end_in_one_second() {
    let etcd = Etcd::one().await;
    let mut stores = Vec::new();
    for _ in 0..12 {
        let (store, events) = open(with_lease(config(&[etcd.url()]), 60)).await;
        store.presence(b"here".to_vec());
        store.report(b"fine".to_vec(), 1);
        stores.push((store, events));
    }
    let mut leases = etcd.client().await.lease_client();
    let mut times = std::collections::BTreeSet::new();
    for (store, _) in &stores {
        eventually("a lease", || store.health().lease.is_some()).await;
        let lease = store.health().lease.unwrap();
        times.insert(leases.time_to_live(lease, None).await.unwrap().granted_ttl());
        assert_eq!(store.health().leases, 1, "one for all that an agent keeps");
    }
    assert!(
        times.len() > 1 && times.iter().all(|ttl| (60..=70).contains(ttl)),
        "{times:?}"
    );
}
