//! etcd while it is being asked: what its process uses, and what it counts itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use weft_lab::EtcdMember;

use crate::process;

/// What etcd had used and counted at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    cpu: Duration,
    /// Memory in RAM, MiB.
    pub(crate) resident: f64,
    counted: BTreeMap<String, f64>,
}

impl Reading {
    /// Now.
    ///
    /// # Errors
    /// When it does not run or does not answer.
    pub(crate) fn take(etcd: &EtcdMember) -> Result<Self> {
        let pid = etcd.pid().context("etcd has ended")?;
        Ok(Self {
            counted: etcd.metrics()?,
            cpu: process::cpu(pid)?,
            resident: process::resident(pid)?,
        })
    }

    /// A figure that it counts, summed over its labels that begin as given: `grpc_server_started_total{grpc_method="Range"`.
    pub(crate) fn of(&self, name: &str) -> f64 {
        let named = self.counted.range(name.to_owned()..);
        named
            .take_while(|(key, _)| key.starts_with(name))
            .map(|(_, value)| value)
            .sum()
    }

    /// Watches that it serves.
    pub(crate) fn watchers(&self) -> f64 {
        self.of("etcd_debugging_mvcc_watcher_total")
    }

    /// Watches that it has fallen behind with.
    pub(crate) fn slow_watchers(&self) -> f64 {
        self.of("etcd_debugging_mvcc_slow_watcher_total")
    }

    /// What has happened since another reading.
    pub(crate) fn since(&self, before: &Self) -> Spent {
        let more = |name| self.of(name) - before.of(name);
        Spent {
            cpu: self.cpu.saturating_sub(before.cpu).as_secs_f64(),
            sent: more("etcd_network_client_grpc_sent_bytes_total"),
            events: more("etcd_debugging_mvcc_events_total"),
            // Some versions have both names, others one of them.
            puts: more("etcd_debugging_mvcc_put_total").max(more("etcd_mvcc_put_total")),
            ranges: more("etcd_debugging_mvcc_range_total").max(more("etcd_mvcc_range_total")),
        }
    }
}

/// What etcd did between two readings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// CPU time, seconds.
    pub(crate) cpu: f64,
    /// Bytes sent to clients.
    pub(crate) sent: f64,
    /// Events handed to watches.
    pub(crate) events: f64,
    /// Keys put.
    pub(crate) puts: f64,
    /// Reads.
    pub(crate) ranges: f64,
}
