//! Scopes come, go and replace each other while others write: nothing is lost, nothing comes too late.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use weft_core::record::{Scope, StoreEvent};

use crate::{
    basic_scopes, config,
    etcd::Etcd,
    network, open,
    proxy::{Mode, Proxy},
    reader::Reader,
};

const NETWORKS: [&str; 3] = ["a", "b", "c"];

/// The directory of a scope of `host1`, below the prefix.
pub(crate) fn directory(scope: &Scope) -> String {
    match scope {
        Scope::Networks => "networks/".to_owned(),
        Scope::Peers => "peers/".to_owned(),
        Scope::Vnis => "vnis/".to_owned(),
        Scope::OwnEndpoints(name) => format!("endpoints/{name}/host1/"),
        Scope::Endpoints(name) => format!("endpoints/{name}/"),
        Scope::Addresses(name) => format!("addresses/{name}/"),
        Scope::Removed => "removed/".to_owned(),
        Scope::Released(name) => format!("released/{name}/"),
        Scope::Barriers(name) => format!("barriers/{name}/"),
        Scope::Passed => "passed/host1/".to_owned(),
        Scope::PassedTo(barrier) => format!("passed/{barrier}/"),
    }
}

fn a_key(random: &mut fastrand::Rng) -> String {
    let name = NETWORKS[random.usize(..3)];
    let n = random.u32(..20);
    match random.u8(..5) {
        0 => format!("networks/{name}{n}"),
        1 => format!("peers/p{n}"),
        2 => format!("addresses/{name}/10.0.0.{n}"),
        3 => format!("endpoints/{name}/host1/e{n}"),
        _ => format!("endpoints/{name}/host2/e{n}"),
    }
}

fn some_scopes(random: &mut fastrand::Rng) -> BTreeSet<Scope> {
    let mut scopes: BTreeSet<_> = basic_scopes().into();
    for name in NETWORKS {
        match random.u8(..4) {
            0 => {}
            1 => {
                scopes.insert(Scope::OwnEndpoints(network(name)));
            }
            _ => {
                scopes.insert(Scope::Endpoints(network(name)));
            }
        }
        if random.bool() {
            scopes.insert(Scope::Addresses(network(name)));
        }
    }
    scopes
}

/// One run: random writes, random interest, random faults; in the end the copy made of events must be what
/// etcd holds.
async fn model(seed: u64) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let etcd = Etcd::one().await;
    let proxy = Proxy::before(&etcd.url()).await;
    let mut config = config(std::slice::from_ref(&proxy.url));
    config.limits.page = 7;
    config.limits.queue = 1 + random.usize(..8);
    config.limits.backlog = 1 << random.u32(8..16);
    config.timing.relist = Duration::from_millis(random.u64(100..2000));
    let (store, events) = open(config).await;
    let mut reader = Reader::new(events);
    let mut wanted = some_scopes(&mut random);
    store.want(wanted.clone());

    let mut kv = etcd.client().await.kv_client();
    let mut written = random.fork();
    let writer = tokio::spawn(async move {
        for n in 0..1500 {
            let key = crate::etcd::full(&a_key(&mut written));
            if written.u8(..3) == 0 {
                kv.delete(key, None).await.unwrap();
            } else {
                kv.put(key, n.to_string(), None).await.unwrap();
            }
            if n % 500 == 499 {
                let revision = kv.get("x", None).await.unwrap().header().unwrap().revision();
                kv.compact(revision - written.i64(0..100), None).await.unwrap();
            }
            sleep(Duration::from_micros(written.u64(..2000))).await;
        }
    });
    let mut cut = None;
    while !writer.is_finished() {
        if let Some(StoreEvent::Listed { scope, .. } | StoreEvent::Changed { scope, .. }) =
            reader.step(Instant::now() + Duration::from_millis(5)).await
            && !wanted.contains(&scope)
        {
            panic!("{scope:?} was dropped");
        }
        if random.u8(..60) == 0 {
            let next = some_scopes(&mut random);
            store.want(next.clone());
            for gone in wanted.difference(&next) {
                reader.forget(gone);
            }
            wanted = next;
        }
        match (cut, random.u8(..200)) {
            (None, 0) => {
                proxy.reset([Mode::Refuse, Mode::Freeze, Mode::Forward][random.usize(..3)]);
                cut = Some(Instant::now() + Duration::from_millis(random.u64(..300)));
            }
            (Some(until), _) if Instant::now() >= until => {
                proxy.reset(Mode::Forward);
                cut = None;
            }
            _ => {}
        }
    }
    writer.await.unwrap();
    proxy.reset(Mode::Forward);
    let mut want = BTreeMap::new();
    for scope in &wanted {
        want.insert(scope.clone(), etcd.range(&directory(scope), 0).await);
    }
    reader
        .until(&format!("seed {seed}: the final state"), |reader| {
            want.iter().all(|(scope, entries)| {
                reader
                    .scopes
                    .get(scope)
                    .is_some_and(|copy| copy.list() == *entries)
            })
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_interest_over_random_writes_and_faults() {
    // A seed of one's own: STORE_SEED=7 cargo test -p weft-store random_interest
    if let Ok(seed) = std::env::var("STORE_SEED") {
        return model(seed.parse().unwrap()).await;
    }
    let fresh = fastrand::u64(..1 << 32);
    for seed in [1, 2, 3, fresh] {
        model(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_endpoints_and_all_endpoints_replace_each_other() {
    let etcd = Etcd::one().await;
    etcd.put("endpoints/blue/host1/web", "1").await;
    etcd.put("endpoints/blue/host2/web", "1").await;
    let proxy = Proxy::before(&etcd.url()).await;
    let (own, all) = (
        Scope::OwnEndpoints(network("blue")),
        Scope::Endpoints(network("blue")),
    );
    let (store, events) = open(config(std::slice::from_ref(&proxy.url))).await;
    let mut reader = Reader::new(events);
    store.want([own.clone()].into());
    reader.listed(std::slice::from_ref(&own)).await;
    assert_eq!(reader.copy(&own).entries.len(), 1);
    // The listing takes 100 ms and more; what happens to our own endpoints meanwhile is in it, and the reader panics if
    // the old scope speaks again.
    proxy.set(Mode::Delay(Duration::from_millis(100)));
    store.want([all.clone()].into());
    reader.forget(&own);
    etcd.put("endpoints/blue/host1/web", "2").await;
    reader.listed(std::slice::from_ref(&all)).await;
    assert_eq!(reader.copy(&all).entries.len(), 2);
    proxy.set(Mode::Forward);
    etcd.put("endpoints/blue/host1/web", "3").await;
    etcd.put("endpoints/blue/host2/web", "3").await;
    reader
        .until("changes of the new scope", |reader| {
            reader.copy(&all).changes >= 2
        })
        .await;
    assert_eq!(reader.copy(&all).list(), etcd.range("endpoints/blue/", 0).await);
    // And back: the other's endpoints end, ours go on.
    store.want([own.clone()].into());
    reader.forget(&all);
    reader.listed(std::slice::from_ref(&own)).await;
    etcd.put("endpoints/blue/host2/web", "4").await;
    let revision = etcd.put("endpoints/blue/host1/web", "4").await;
    reader
        .until("our own change", |reader| reader.copy(&own).revision >= revision)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_scope_arrives_after_it_was_dropped() {
    let etcd = Etcd::one().await;
    let (store, events) = open(config(&[etcd.url()])).await;
    let mut reader = Reader::new(events);
    for round in 0..20 {
        store.want(basic_scopes().into());
        reader.listed(&basic_scopes()).await;
        // Events wait in the queue.
        etcd.fill("peers/p", 0..20).await;
        etcd.fill("networks/n", 0..1).await;
        if round % 2 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        store.want([Scope::Networks].into());
        // The reader panics if the scope changes before it is listed anew.
        reader.forget(&Scope::Peers);
        reader.take_waiting();
    }
    assert_eq!(store.health().streams, 1, "{:?}", store.health());
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_scopes_on_one_stream() {
    let etcd = Etcd::one().await;
    let (store, events) = open(config(&[etcd.url()])).await;
    let mut reader = Reader::new(events);
    let scopes: Vec<_> = (0..300)
        .flat_map(|n| {
            let name = network(&format!("n{n}"));
            [Scope::Endpoints(name.clone()), Scope::Addresses(name)]
        })
        .collect();
    store.want(scopes.iter().cloned().collect());
    reader.listed(&scopes).await;
    let revision = etcd.put("addresses/n299/10.0.0.1", "x").await;
    let last = Scope::Addresses(network("n299"));
    reader
        .until("a change and progress over all", |reader| {
            reader.copy(&last).revision == revision && reader.progress >= revision
        })
        .await;
    store.want([last].into());
    let revision = etcd.put("elsewhere", "x").await;
    reader
        .until("progress over the rest", |reader| reader.progress >= revision)
        .await;
    assert_eq!(store.health().streams, 1);
}
