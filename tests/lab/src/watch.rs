//! Following keys of the lab's etcd as they change, by `etcdctl watch`. Knows nothing of what the keys mean.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::KeyValue;
use crate::etcd::AnswerKeyValue;

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEvent {
    /// Whether the key was deleted; its value is empty then.
    pub deleted: bool,
    /// The key as it became, with the revision of the change.
    pub kv: KeyValue,
}

/// Changes of keys in the order in which they happened. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    heard: Receiver<Result<Vec<KeyEvent>>>,
}

/// A line of `etcdctl watch --write-out=json`.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "Events", default)]
    events: Option<Vec<Event>>,
    #[serde(rename = "CompactRevision", default)]
    compact_revision: i64,
    #[serde(rename = "Canceled", default)]
    canceled: bool,
}

#[derive(Deserialize)]
struct Event {
    /// 1 for a deletion; left out for a put.
    #[serde(rename = "type", default)]
    kind: u8,
    kv: AnswerKeyValue,
}

impl Watch {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let mut child = crate::tools::apart(&mut command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().context("etcdctl's standard output")?;
        let (tell, heard) = mpsc::channel();
        // It ends with the output, so with the child.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let events = line.context("reading from etcdctl").and_then(|line| parse(&line));
                if tell.send(events).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, heard })
    }

    /// The next changes: one or more whole revisions, or none when nothing has happened within `patience`.
    ///
    /// # Errors
    /// When the watch has ended: its member is gone, or what was asked for is compacted away.
    pub fn next(&self, patience: Duration) -> Result<Vec<KeyEvent>> {
        match self.heard.recv_timeout(patience) {
            Ok(events) => events,
            Err(RecvTimeoutError::Timeout) => Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => bail!("etcdctl watch has ended"),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Both fail only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Result<Vec<KeyEvent>> {
    let line: Line = serde_json::from_str(line).with_context(|| format!("line of etcdctl: {line:?}"))?;
    if line.canceled || line.compact_revision != 0 {
        bail!("etcd ended the watch (compacted at {})", line.compact_revision);
    }
    let events = line.events.unwrap_or_default().into_iter();
    events
        .map(|event| {
            Ok(KeyEvent {
                deleted: event.kind == 1,
                kv: event.kv.try_into()?,
            })
        })
        .collect()
}
