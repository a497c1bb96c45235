//! Transactions: guards, what a refusal returns, and exactly one effect although answers are lost.

use std::time::Duration;

use tokio::time::Instant;
use weft_core::record::{Committed, Guard, Scope, Transaction, Write};
use weft_store::{Store, StoreError};
use weft_store_schema::Key;

use crate::{
    PATIENCE, config, endpoint_key,
    etcd::{Etcd, full},
    eventually, follow, network, network_key, open,
    proxy::{Mode, Proxy},
    reader::Reader,
};

fn address_key(n: u8) -> Key {
    Key::Address(network("blue"), std::net::Ipv4Addr::new(10, 1, 0, n).into())
}

/// A claim as agents make it: endpoint and address appear together, or not at all.
fn claim(id: &str, n: u8) -> Transaction {
    Transaction {
        guards: vec![
            Guard::Absent(endpoint_key("blue", "host1", id)),
            Guard::Absent(address_key(n)),
        ],
        writes: vec![
            Write::Put(
                endpoint_key("blue", "host1", id),
                format!("{{\"id\":\"{id}\"}}").into_bytes(),
            ),
            Write::Put(
                address_key(n),
                format!("{{\"endpoint\":\"host1/{id}\"}}").into_bytes(),
            ),
        ],
    }
}

async fn commit(store: &Store, transaction: &Transaction) -> Committed {
    store.commit(transaction, PATIENCE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_or_nothing_and_what_is_there_instead() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(config(&[etcd.url()])).await;
    let Committed::Yes { revision } = commit(&store, &claim("web", 2)).await else {
        panic!("the first claim")
    };
    assert_eq!(etcd.revision().await, revision);
    // Another endpoint, the same address: nothing of it happens, and the refusal shows the holder.
    let Committed::No { now, revision: at } = commit(&store, &claim("db", 2)).await else {
        panic!("the address is taken")
    };
    assert_eq!(at, revision);
    assert_eq!(now.len(), 2);
    assert_eq!(now[0], None);
    let holder = now[1].as_ref().unwrap();
    assert_eq!(holder.value, b"{\"endpoint\":\"host1/web\"}");
    assert_eq!(
        (holder.create_revision, holder.mod_revision),
        (revision, revision)
    );
    assert_eq!(etcd.range("endpoints/", 0).await.len(), 1);

    // Release, on the condition that both are as we know them.
    let release = |revision| Transaction {
        guards: vec![
            Guard::Unchanged(address_key(2), revision),
            Guard::Unchanged(endpoint_key("blue", "host1", "web"), revision),
        ],
        writes: vec![
            Write::Delete(address_key(2)),
            Write::Delete(endpoint_key("blue", "host1", "web")),
        ],
    };
    let Committed::No { now, .. } = commit(&store, &release(revision - 1)).await else {
        panic!("another revision")
    };
    assert_eq!(
        now[0].as_ref().unwrap().mod_revision,
        revision,
        "in the guards' order"
    );
    assert!(String::from_utf8_lossy(&now[0].as_ref().unwrap().key).ends_with("10.1.0.2"));
    assert!(matches!(
        commit(&store, &release(revision)).await,
        Committed::Yes { .. }
    ));
    assert!(etcd.range("", 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_deleted_only_when_empty() {
    let etcd = Etcd::one().await;
    let revision = etcd.put("networks/blue", "{}").await;
    etcd.put("endpoints/blue/host2/web", "{}").await;
    etcd.put("endpoints/blue2/host2/web", "{}").await;
    let (store, _events) = open(config(&[etcd.url()])).await;
    let delete = Transaction {
        guards: vec![
            Guard::Empty(Scope::Endpoints(network("blue"))),
            Guard::Unchanged(network_key("blue"), revision),
        ],
        writes: vec![Write::Delete(network_key("blue"))],
    };
    let Committed::No { now, .. } = commit(&store, &delete).await else {
        panic!("it has an endpoint")
    };
    assert_eq!(
        now[0].as_ref().unwrap().key,
        full("endpoints/blue/host2/web").as_bytes()
    );
    assert_eq!(now[1].as_ref().unwrap().mod_revision, revision);
    etcd.delete("endpoints/blue/host2/web").await;
    assert!(matches!(commit(&store, &delete).await, Committed::Yes { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_changes_come_as_events_at_the_revision_returned() {
    let etcd = Etcd::one().await;
    let (store, events) = open(config(&[etcd.url()])).await;
    let mut reader = Reader::new(events);
    let scopes = [
        Scope::Endpoints(network("blue")),
        Scope::Addresses(network("blue")),
    ];
    store.want(scopes.clone().into());
    reader.listed(&scopes).await;
    let Committed::Yes { revision } = commit(&store, &claim("web", 2)).await else {
        panic!()
    };
    reader
        .until("both changes", |reader| {
            scopes.iter().all(|scope| reader.copy(scope).revision == revision)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_race_for_one_address_one_wins() {
    let etcd = Etcd::one().await;
    let (store, _events) = open(config(&[etcd.url()])).await;
    let claims: Vec<_> = (0..64).map(|n| claim(&format!("e{n}"), 2)).collect();
    let outcomes = futures::future::join_all(claims.iter().map(|claim| commit(&store, claim))).await;
    let won = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Committed::Yes { .. }))
        .count();
    assert_eq!((won, etcd.range("endpoints/", 0).await.len()), (1, 1));
}

/// Commits while the answer is thrown away; the connection is reset once `happened` holds.
async fn with_lost_answer(
    etcd: &Etcd,
    transaction: Transaction,
    deadline: Duration,
    meanwhile: impl AsyncFnOnce(),
) -> Result<Committed, StoreError> {
    let proxy = Proxy::before(&etcd.url()).await;
    let (store, _events) = open(config(std::slice::from_ref(&proxy.url))).await;
    // The connection stands before the answer is lost.
    store.get(&network_key("blue"), PATIENCE).await.unwrap();
    proxy.set(Mode::DropReplies);
    let (Write::Put(key, _) | Write::PutLeased(key, ..) | Write::Delete(key)) = &transaction.writes[0] else {
        panic!("a transaction of a key");
    };
    // Not just any revision: the store writes its presence, too.
    let key = key.to_string();
    let written = async || etcd.range(&key, 0).await.first().map(|entry| entry.mod_revision);
    let before = written().await;
    let committing = {
        let store = store.store.clone();
        tokio::spawn(async move { store.commit(&transaction, deadline).await })
    };
    while written().await == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    meanwhile().await;
    proxy.reset(Mode::Forward);
    let result = committing.await.unwrap();
    assert!(store.health().retries >= 1 || result.is_err());
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_found_out_and_nothing_happens_twice() {
    let etcd = Etcd::one().await;
    let committed = with_lost_answer(&etcd, claim("web", 2), PATIENCE, async || {})
        .await
        .unwrap();
    let entries = etcd.range("", 0).await;
    assert_eq!(entries.len(), 2);
    // The revision is that of the first sending, and each key was written once.
    assert_eq!(
        committed,
        Committed::Yes {
            revision: entries[0].mod_revision
        }
    );
    assert!(
        entries
            .iter()
            .all(|entry| entry.create_revision == entry.mod_revision)
    );

    // An update that guards what it writes.
    let revision = entries[0].mod_revision;
    let update = Transaction {
        guards: vec![Guard::Unchanged(address_key(2), revision)],
        writes: vec![Write::Put(address_key(2), b"new".to_vec())],
    };
    let committed = with_lost_answer(&etcd, update, PATIENCE, async || {})
        .await
        .unwrap();
    let address = &etcd.range("addresses/", 0).await[0];
    assert_eq!(
        committed,
        Committed::Yes {
            revision: address.mod_revision
        }
    );

    // A deletion.
    let release = Transaction {
        guards: vec![Guard::Unchanged(address_key(2), address.mod_revision)],
        writes: vec![Write::Delete(address_key(2))],
    };
    let committed = with_lost_answer(&etcd, release, PATIENCE, async || {})
        .await
        .unwrap();
    assert!(matches!(committed, Committed::Yes { .. }));
    assert!(etcd.range("addresses/", 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_with_others_in_between_is_called_unknown() {
    let etcd = Etcd::one().await;
    let result = with_lost_answer(&etcd, claim("web", 2), PATIENCE, async || {
        etcd.put("addresses/blue/10.1.0.2", "somebody else's now").await;
    })
    .await;
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }), "{error:?}");
    assert!(error.to_string().contains("endpoints/blue/host1/web"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_guard_itself_is_not_sent_again() {
    let etcd = Etcd::one().await;
    let revision = etcd.put("networks/blue", "{}").await;
    let transaction = Transaction {
        guards: vec![Guard::Unchanged(network_key("blue"), revision)],
        writes: vec![Write::Put(network_key("green"), b"{}".to_vec())],
    };
    let error = with_lost_answer(&etcd, transaction, PATIENCE, async || {})
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }), "{error:?}");
    let green = &etcd.range("networks/green", 0).await[0];
    assert_eq!(green.create_revision, green.mod_revision, "written once");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_through_a_line_that_breaks_all_the_time() {
    let etcd = Etcd::one().await;
    let proxy = Proxy::before(&etcd.url()).await;
    let (store, _events) = open(config(std::slice::from_ref(&proxy.url))).await;
    let breaking = async {
        loop {
            for mode in [Mode::DropReplies, Mode::Forward, Mode::Refuse, Mode::Forward] {
                proxy.reset(mode);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(1..30))).await;
            }
        }
    };
    let claiming = async {
        let (mut yes, mut unknown) = (0, 0);
        for n in 1..=200_u8 {
            match store.commit(&claim(&format!("e{n}"), n), PATIENCE).await {
                Ok(Committed::Yes { revision }) => {
                    yes += 1;
                    let holder = &etcd.range(&format!("addresses/blue/10.1.0.{n}"), revision).await[0];
                    assert_eq!(holder.create_revision, revision, "made by this very transaction");
                }
                Ok(Committed::No { now, .. }) => panic!("e{n}: nobody else claims: {now:?}"),
                Err(StoreError::Unknown { .. }) => unknown += 1,
                Err(error) => panic!("e{n}: {error:?}"),
            }
        }
        (yes, unknown)
    };
    tokio::select! {
        () = breaking => {}
        (yes, unknown) = claiming => assert!(yes == 200, "{yes} made, {unknown} unknown"),
    }
    assert_eq!(etcd.range("endpoints/", 0).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_etcd_down_it_fails_in_time_and_says_what_and_where() {
    let mut etcd = Etcd::one().await;
    let (store, _events) = open(config(&[etcd.url()])).await;
    commit(&store, &claim("web", 2)).await;
    etcd.members[0].kill();
    let start = Instant::now();
    let error = store
        .commit(&claim("db", 3), Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(
        start.elapsed() < Duration::from_millis(1500),
        "{:?}",
        start.elapsed()
    );
    // The first sending may run into the dying connection; the next are refused.
    assert!(
        matches!(error, StoreError::Unavailable { .. } | StoreError::Unknown { .. }),
        "{error:?}"
    );
    let error = store
        .commit(&claim("db", 3), Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    for part in [
        "writing endpoints/blue/host1/db",
        "1000 ms",
        "nothing was changed",
        &etcd.url(),
        "refused",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let error = store
        .get(&network_key("blue"), Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("reading networks/blue"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_says_so_and_reads_go_on() {
    let etcd = Etcd::with(
        1,
        "http",
        &["--quota-backend-bytes", "300000"],
        etcd_client::ConnectOptions::new(),
    )
    .await;
    let (store, _reader) = follow(config(&[etcd.url()])).await;
    let mut n = 0;
    let error = loop {
        n += 1;
        let transaction = Transaction {
            guards: vec![Guard::Absent(network_key(&format!("n{n}")))],
            writes: vec![Write::Put(network_key(&format!("n{n}")), vec![b'x'; 20_000])],
        };
        if let Err(error) = store.commit(&transaction, Duration::from_secs(5)).await {
            break error;
        }
        assert!(n < 100, "the quota is never reached");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("full"), "{error}");
    store.get(&network_key("n1"), PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_whole_at_one_revision() {
    let etcd = Etcd::one().await;
    etcd.fill("networks/n", 0..25).await;
    let mut config = config(&[etcd.url()]);
    config.limits.page = 10;
    let (store, _events) = open(config).await;
    let directory = store.prefix().all(weft_store_schema::Kind::Networks);
    let listing = store.list(&directory, PATIENCE).await.unwrap();
    assert_eq!(listing.entries, etcd.range("networks/", 0).await);
    assert_eq!(listing.revision, etcd.revision().await);
    let fetched = store.get(&network_key("n00007"), PATIENCE).await.unwrap();
    assert_eq!(fetched.entry.as_ref(), listing.entries.get(7));
    assert_eq!(fetched.cluster_id, listing.cluster_id);
    assert_eq!(
        store.get(&network_key("none"), PATIENCE).await.unwrap().entry,
        None
    );
    eventually("the revision is known", || {
        store.health().revision == listing.revision
    })
    .await;
}
