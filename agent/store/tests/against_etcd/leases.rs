//! Leases of callers: what lies under one goes with it, what was put again without one stays.

use std::{error::Error as _, time::Duration};

use tokio::time::{Instant, sleep};
use weft_core::record::{Committed, Guard, Transaction, Write};
use weft_store::{Store, StoreError};
use weft_store_schema::Key;

use crate::{
    PATIENCE, config, endpoint_key,
    etcd::Etcd,
    network, open,
    proxy::{Mode, Proxy},
};

fn address() -> Key {
    Key::Address(network("blue"), std::net::Ipv4Addr::new(10, 1, 0, 2).into())
}

fn reserve(lease: i64) -> Transaction {
    Transaction {
        guards: vec![Guard::Absent(address())],
        writes: vec![Write::PutLeased(
            address(),
            br#"{"reservation":"host1/r"}"#.to_vec(),
            lease,
        )],
    }
}

/// As an attach takes a reservation over.
fn adopt(revision: i64) -> Transaction {
    let endpoint = endpoint_key("blue", "host1", "web");
    Transaction {
        guards: vec![
            Guard::Absent(endpoint.clone()),
            Guard::Unchanged(address(), revision),
        ],
        writes: vec![
            Write::Put(address(), br#"{"endpoint":"host1/web"}"#.to_vec()),
            Write::Put(endpoint, b"{}".to_vec()),
        ],
    }
}

async fn happens(store: &Store, transaction: &Transaction) -> i64 {
    match store.commit(transaction, PATIENCE).await.unwrap() {
        Committed::Yes { revision } => revision,
        refused => panic!("{refused:?}"),
    }
}

/// Value and lease of the address's key.
async fn held(store: &Store) -> Option<(String, i64)> {
    let fetched = store.get(&address(), PATIENCE).await.unwrap();
    let entry = fetched.entry?;
    Some((String::from_utf8(entry.value).unwrap(), fetched.lease))
}

async fn gone(store: &Store) -> Duration {
    let started = Instant::now();
    while held(store).await.is_some() {
        assert!(started.elapsed() < PATIENCE, "it is still there");
        sleep(Duration::from_millis(20)).await;
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_under_a_lease_goes_when_it_expires_or_is_revoked() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(config(&[etcd.url()])).await;
    let lease = store.grant(Duration::from_secs(2), PATIENCE).await.unwrap();
    happens(&store, &reserve(lease)).await;
    assert_eq!(
        held(&store).await,
        Some((r#"{"reservation":"host1/r"}"#.to_owned(), lease))
    );
    let lasted = gone(&store).await;
    assert!(lasted > Duration::from_secs(1), "{lasted:?}");

    let lease = store.grant(Duration::from_secs(600), PATIENCE).await.unwrap();
    happens(&store, &reserve(lease)).await;
    store.revoke(lease, PATIENCE).await.unwrap();
    assert_eq!(held(&store).await, None);
    store.revoke(lease, PATIENCE).await.expect("done already is fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_adopted_stays_when_the_lease_ends() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(config(&[etcd.url()])).await;
    let adopted = Some((r#"{"endpoint":"host1/web"}"#.to_owned(), 0));
    let lease = store.grant(Duration::from_secs(600), PATIENCE).await.unwrap();
    let revision = happens(&store, &reserve(lease)).await;
    happens(&store, &adopt(revision)).await;
    store.revoke(lease, PATIENCE).await.unwrap();
    assert_eq!(held(&store).await, adopted);

    etcd.delete("addresses/blue/10.1.0.2").await;
    etcd.delete("endpoints/blue/host1/web").await;
    let short = store.grant(Duration::from_secs(1), PATIENCE).await.unwrap();
    let revision = happens(&store, &reserve(short)).await;
    happens(&store, &adopt(revision)).await;
    let mut leases = etcd.client().await.lease_client();
    let end = Instant::now() + PATIENCE;
    while leases.time_to_live(short, None).await.unwrap().ttl() >= 0 {
        assert!(Instant::now() < end, "the lease does not expire");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(held(&store).await, adopted);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_put_under_a_lease_that_is_gone() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(config(&[etcd.url()])).await;
    let lease = store.grant(Duration::from_secs(600), PATIENCE).await.unwrap();
    store.revoke(lease, PATIENCE).await.unwrap();
    let error = store.commit(&reserve(lease), PATIENCE).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseGone { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "writing addresses/blue/10.1.0.2: the lease that it was to lie under is gone"
    );
    assert!(error.source().unwrap().to_string().contains("lease not found"));
    assert_eq!(held(&store).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_whose_answer_was_lost_is_found_again() {
    let etcd = Etcd::one().await;
    let proxy = Proxy::before(&etcd.url()).await;
    let (store, _events) = open(config(std::slice::from_ref(&proxy.url))).await;
    // Connected, so that the request gets through.
    store.get(&address(), PATIENCE).await.unwrap();
    proxy.set(Mode::DropReplies);
    let granting = tokio::spawn({
        let store = store.store.clone();
        async move { store.grant(Duration::from_secs(600), PATIENCE).await }
    });
    let mut leases = etcd.client().await.lease_client();
    let end = Instant::now() + PATIENCE;
    while leases.leases().await.unwrap().leases().is_empty() {
        assert!(Instant::now() < end, "the request does not get through");
        sleep(Duration::from_millis(20)).await;
    }
    proxy.reset(Mode::Forward);
    let lease = granting.await.unwrap().unwrap();
    let all = leases.leases().await.unwrap();
    let all: Vec<i64> = all.leases().iter().map(etcd_client::LeaseStatus::id).collect();
    assert_eq!(all, [lease]);
    store.revoke(lease, PATIENCE).await.unwrap();
}
