//! Bare watchers of etcd: what every agent does before it does anything else, and no more. Each has a connection of its
//! own and one watch.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use etcd_client::{Client, WatchOptions};
use tokio::task::JoinSet;

use weft_bench::Tally;

/// So many watchers of one directory. Dropping them ends them.
pub(crate) struct Watchers {
    count: usize,
    tally: Arc<Tally>,
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// Opens them; each stands when this returns.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub(crate) async fn open(url: &str, directory: &str, count: usize) -> Result<Self> {
        let tally = Arc::new(Tally::default());
        let mut tasks = JoinSet::new();
        for who in 0..count {
            let client = Client::connect([url], None).await.context("connecting to etcd")?;
            let options = WatchOptions::new().with_prefix();
            let mut watch = client.watch_client().watch(directory, Some(options)).await;
            let stream = watch
                .as_mut()
                .map_err(|error| anyhow::anyhow!("watching: {error}"))?;
            // Answered once the watch exists.
            stream.message().await.context("watching")?;
            let tally = Arc::clone(&tally);
            tasks.spawn(async move {
                let _client = client;
                let Ok(mut stream) = watch else { return };
                while let Ok(Some(message)) = stream.message().await {
                    if !message.events().is_empty() {
                        tally.arrived(who, Instant::now());
                    }
                }
            });
        }
        Ok(Self {
            count,
            tally,
            _tasks: tasks,
        })
    }

    /// Waits for the next change from now on.
    pub(crate) fn expect(&self) {
        self.tally.expect(self.count);
    }

    /// Waits until all have seen it; when the last one did.
    ///
    /// # Errors
    /// When one has not within `patience`.
    pub(crate) fn last(&self, patience: Duration) -> Result<Instant> {
        self.tally.last(patience)
    }
}
