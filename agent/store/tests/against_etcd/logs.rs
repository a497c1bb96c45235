//! What the log says: little, and no secrets.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;
use tracing_subscriber::fmt::MakeWriter;
use weft_store::{Secret, User};

use crate::{access, basic_scopes, config, etcd::Etcd, eventually, open, reader::Reader};

/// A log in memory. The subscriber is this thread's, so these tests run on one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start(&self, filter: &str) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(self.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn an_outage_is_a_few_lines() {
    let mut etcd = Etcd::one().await;
    let log = Log::default();
    let (store, events) = open(config(&[etcd.url()])).await;
    let _guard = log.start("info");
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    store.presence(b"here".to_vec());
    reader.listed(&basic_scopes()).await;
    eventually("the presence", || store.health().lease.is_some()).await;
    etcd.members[0].kill();
    // Tens of attempts to connect.
    sleep(Duration::from_secs(3)).await;
    etcd.members[0].start();
    etcd.ready().await;
    eventually("connected", || store.health().connected).await;
    let text = log.text();
    println!("{text}");
    let lines: Vec<_> = text.lines().filter(|line| line.contains("weft_store")).collect();
    assert!(lines.len() <= 6, "{text}");
    assert!(
        text.contains("connected to etcd again") && text.contains("no connection to etcd"),
        "{text}"
    );
}

#[tokio::test]
async fn no_log_at_any_level_shows_the_password() {
    let etcd = access::with_users(&[]).await;
    for password in [access::PASSWORD, "hunter2-wrong"] {
        let log = Log::default();
        let guard = log.start("trace");
        let mut config = config(&[etcd.url()]);
        config.user = Some(User {
            name: "weft".to_owned(),
            password: Secret::new(password),
        });
        let (store, _events) = open(config).await;
        store.want(basic_scopes().into());
        if password == access::PASSWORD {
            eventually("connected", || store.health().connected).await;
        } else {
            eventually("refused", || store.health().last_error.is_some()).await;
        }
        drop(guard);
        assert!(log.text().contains("TRACE") && log.text().contains("weft_store"));
        for (n, line) in log.text().lines().enumerate() {
            assert!(!line.contains(password), "line {n}: {line}");
        }
    }
}
