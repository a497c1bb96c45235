//! The store against real etcd servers: started here, killed, frozen, compacted, rolled back.
//!
//! Needs Debian's `etcd` (package `etcd-server`); without it the tests fail and say so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod census;
mod clusters;
mod etcd;
mod grpc_proxy;
mod leases;
mod logs;
mod outages;
mod presence;
mod proxy;
mod reader;
mod scopes;
mod sync;
mod transactions;

use std::time::Duration;

use crate::reader::Reader;
use tokio_util::sync::CancellationToken;
use weft_core::record::Scope;
use weft_store::{Config, Events, Limits, Store, Timing};
use weft_store_schema::{EndpointId, EndpointRef, Key, NetworkName, NodeName, Prefix};

/// How long a condition may take to hold. Long: the machine may be busy; nothing waits that long when it works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn network(name: &str) -> NetworkName {
    NetworkName::new(name).unwrap()
}

pub(crate) fn node() -> NodeName {
    NodeName::new("host1").unwrap()
}

pub(crate) fn network_key(name: &str) -> Key {
    Key::Network(network(name))
}

pub(crate) fn endpoint_key(name: &str, node: &str, id: &str) -> Key {
    Key::Endpoint(EndpointRef {
        network: network(name),
        node: NodeName::new(node).unwrap(),
        id: EndpointId::new(id).unwrap(),
    })
}

/// Short intervals, so that what takes half a minute in the field takes a second here.
pub(crate) fn config(endpoints: &[String]) -> Config {
    let ms = Duration::from_millis;
    Config {
        timing: Timing {
            connect: ms(2000),
            ping: ms(1000),
            ping_timeout: ms(1000),
            attempt: ms(1500),
            retry_first: ms(20),
            reconnect_most: ms(200),
            relist_most: ms(1000),
            progress: ms(1000),
            settle: ms(100),
            silence: ms(10_000),
            relist: Duration::ZERO,
            ..Timing::default()
        },
        limits: Limits::default(),
        ..Config::new(endpoints.to_vec(), Prefix::default(), node())
    }
}

/// A store that stops with the test.
pub(crate) struct Opened {
    pub(crate) store: Store,
    stop: CancellationToken,
}

impl Opened {
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.store.closed())
            .await
            .expect("the tasks end");
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl std::ops::Deref for Opened {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.store
    }
}

pub(crate) async fn open(config: Config) -> (Opened, Events) {
    // RUST_LOG=weft_store=debug shows what happens.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let stop = CancellationToken::new();
    let (store, events) = Store::open(config, stop.clone()).await.unwrap();
    (Opened { store, stop }, events)
}

/// A store whose basic scopes are listed.
pub(crate) async fn follow(config: Config) -> (Opened, Reader) {
    let (store, events) = open(config).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    reader.listed(&basic_scopes()).await;
    (store, reader)
}

pub(crate) fn basic_scopes() -> [Scope; 2] {
    [Scope::Networks, Scope::Peers]
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < end,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
