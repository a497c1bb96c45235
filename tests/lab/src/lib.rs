//! A lab: several hosts as network namespaces, joined by an underlay, and a real etcd beside them.
//!
//! Inputs: how many hosts, which underlay, how many etcd members. Outputs: handles to put records, to start and
//! kill agents, to make containers (plain namespaces), to ping and to look at what the kernel holds.
//! The lab must not know how weft works inside: it speaks to it by its configuration, its command line, etcd's
//! records and the kernel's own view (`ip -j`, `bridge -j`).
//!
//! ```no_run
//! use std::time::Duration;
//! use weft_lab::{Lab, Underlay, eventually};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::builder().hosts(2).underlay(Underlay::V4).build()?;
//! lab.start_all()?;
//! lab.put("/weft/v1/networks/blue", r#"{"subnets":[{"cidr":"10.1.0.0/16"}]}"#)?;
//! let web = lab.container("web")?;
//! lab.put("/weft/v1/endpoints/blue/host1/web", &web.endpoint_record(&["10.1.0.9"]))?;
//! eventually(Duration::from_secs(5), "web has its address", || {
//!     anyhow::ensure!(web.addresses()?.contains(&"10.1.0.9".parse()?));
//!     Ok(())
//! })?;
//! # Ok(()) }
//! ```
//!
//! Nothing of a lab is in the root network namespace, so labs run side by side with the same addresses. A lab is
//! recorded in `/run/weft-lab/<id>` before anything is made; dropping it removes everything, and what a killed
//! process left is removed by [`sweep`], which every new lab calls first.

mod build;
mod clock;
mod container;
mod etcd;
mod host;
mod metrics;
mod namespace;
mod neighbours;
mod probe;
mod process;
mod proxy;
mod record;
mod teardown;
mod tools;
mod traffic;
mod underlay;
mod wait;
mod watch;
mod writer;

pub use build::LabBuilder;
pub use clock::Clock;
pub use container::Container;
pub use etcd::{EtcdMember, KeyValue, MemberStatus, Reading};
pub use host::Host;
pub use metrics::Metrics;
pub use namespace::{Cut, Namespace};
pub use neighbours::NeighbourTables;
pub use probe::{PingStream, PingSummary, Pinger};
pub use proxy::{Mode, Proxy};
pub use record::{LabRecord, Underlay, labs};
pub use teardown::{Swept, down, sweep};
pub use tools::{bin_dir, require_root_and_tools};
pub use traffic::{FlowSummary, Traffic};
pub use wait::eventually;
pub use watch::{KeyEvent, Watch};
pub use writer::Writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, ensure};

/// A running lab. Dropping it removes everything it made, unless it was built to persist or was opened by id.
#[derive(Debug)]
pub struct Lab {
    record: LabRecord,
    hosts: Vec<Host>,
    members: Vec<EtcdMember>,
    remove_on_drop: bool,
}

impl Lab {
    /// Describes a lab to build. Defaults: three hosts, IPv4 underlay, MTU 1500, one etcd member.
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// Opens a lab that is up, by its id, from any process. Dropping the handle leaves the lab alone.
    ///
    /// # Errors
    /// When no lab with that id is recorded.
    pub fn open(id: &str) -> Result<Self> {
        Ok(Self::from_record(LabRecord::load(id)?, false))
    }

    fn from_record(record: LabRecord, remove_on_drop: bool) -> Self {
        let hosts = (1..=record.hosts).map(|n| Host::new(&record, n)).collect();
        let members = (1..=record.etcd_members)
            .map(|n| EtcdMember::new(&record, n))
            .collect();
        Self {
            record,
            hosts,
            members,
            remove_on_drop,
        }
    }

    /// The lab's id: part of every name it makes.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The directory of this lab: sockets, logs, configurations, `h1/`, `h2/`, `etcd1/`.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.record.run_dir()
    }

    /// What is recorded of this lab.
    #[must_use]
    pub fn record(&self) -> &LabRecord {
        &self.record
    }

    /// Host `number`, counted from 1. Its node name is `host<number>`.
    ///
    /// # Panics
    /// When the lab has no such host: a mistake in the test.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        number
            .checked_sub(1)
            .and_then(|index| self.hosts.get(index))
            .unwrap_or_else(|| {
                panic!("the lab has hosts 1 to {}, not {number}", self.hosts.len());
            })
    }

    /// All hosts, in order.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Starts weftd on every host and waits until all are ready.
    ///
    /// # Errors
    /// As [`Host::start_weftd`]; the first that fails.
    pub fn start_all(&self) -> Result<()> {
        for host in &self.hosts {
            host.spawn_weftd(&[])?;
        }
        self.hosts.iter().try_for_each(Host::wait_ready)
    }

    /// Makes a container: a network namespace of its own with only loopback up, at `/run/netns/wl<id>-c-<name>`.
    ///
    /// # Errors
    /// When the namespace cannot be made, for example because the name is taken.
    pub fn container(&self, name: &str) -> Result<Container> {
        Container::create(&self.record, name)
    }

    /// The handle of a container made before (also by another process).
    #[must_use]
    pub fn existing_container(&self, name: &str) -> Container {
        Container::existing(&self.record, name)
    }

    /// etcd member `number`, counted from 1: to stop, kill, freeze and start it.
    ///
    /// # Panics
    /// When the lab has no such member: a mistake in the test.
    #[must_use]
    pub fn etcd(&self, number: usize) -> &EtcdMember {
        number
            .checked_sub(1)
            .and_then(|index| self.members.get(index))
            .unwrap_or_else(|| {
                panic!(
                    "the lab has etcd members 1 to {}, not {number}",
                    self.members.len()
                );
            })
    }

    /// All etcd members, in order.
    #[must_use]
    pub fn etcd_members(&self) -> &[EtcdMember] {
        &self.members
    }

    /// The etcd member that leads: one that says so of itself and whom another one agrees with, if there are others.
    ///
    /// # Errors
    /// When no member that answers leads, for example during an election.
    pub fn etcd_leader(&self) -> Result<&EtcdMember> {
        let known: Vec<_> = self
            .members
            .iter()
            .filter(|member| member.pid().is_some())
            .filter_map(|member| Some((member, member.status().ok()?)))
            .collect();
        let votes = |id: u64| known.iter().filter(|(_, status)| status.leader == id).count();
        // One that was cut off still takes itself for the leader for a while, alone.
        let majority = self.members.len() / 2 + 1;
        let leader = known
            .iter()
            .find(|(_, status)| status.leader == status.member && votes(status.member) >= majority);
        leader.map(|(member, _)| *member).with_context(|| {
            format!(
                "nobody leads: {:?}",
                known.iter().map(|(_, s)| s).collect::<Vec<_>>()
            )
        })
    }

    /// Client URLs of all etcd members, as hosts of the lab reach them.
    #[must_use]
    pub fn etcd_endpoints(&self) -> Vec<String> {
        self.record.etcd_endpoints()
    }

    /// Runs `etcdctl` (API version 3) against all members of the lab; answers its standard output.
    ///
    /// # Errors
    /// When etcdctl fails; the text holds its standard error.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        etcd::etcdctl(&self.record, args, b"")
    }

    /// Writes a key. The key is used as given (`/weft/v1/…`).
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.put_bytes(key, value.as_bytes())
    }

    /// Writes any bytes (but not none) to a key.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn put_bytes(&self, key: &str, value: &[u8]) -> Result<()> {
        etcd::etcdctl(&self.record, &["put", "--", key], value).map(drop)
    }

    /// Writes a key if it does not exist; answers whether it was written.
    ///
    /// # Errors
    /// When etcdctl fails. Then it may have been written all the same.
    pub fn create(&self, key: &str, value: &str) -> Result<bool> {
        // Keys and values are quoted as in Go, of which JSON is a part.
        let (key, value) = (serde_json::to_string(key)?, serde_json::to_string(value)?);
        let script = format!("create({key}) = \"0\"\n\nput {key} {value}\n\n\n");
        let args = ["--command-timeout=2s", "--dial-timeout=1s", "txn"];
        Ok(etcd::etcdctl(&self.record, &args, script.as_bytes())?.starts_with("SUCCESS"))
    }

    /// Writes keys in one transaction, at most 128.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn put_all(&self, records: &[(String, String)]) -> Result<()> {
        self.transact(&[], records)
    }

    /// Deletes and writes keys in one transaction, at most 128.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn transact(&self, deleted: &[String], written: &[(String, String)]) -> Result<()> {
        // No compares, then what happens, then what happens otherwise.
        let mut text = "\n".to_owned();
        for key in deleted {
            text.push_str(&format!("del {key}\n"));
        }
        for (key, value) in written {
            // Quoted as in Go, of which JSON is a part.
            text.push_str(&format!("put {key} {}\n", serde_json::to_string(value)?));
        }
        text.push_str("\n\n");
        let said = etcd::etcdctl(&self.record, &["txn"], text.as_bytes())?;
        ensure!(said.contains("SUCCESS"), "etcdctl txn: {said}");
        Ok(())
    }

    /// Deletes keys in one transaction, at most 128.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn del_all(&self, keys: &[String]) -> Result<()> {
        let deletions: String = keys.iter().map(|key| format!("del {key}\n")).collect();
        let text = format!("\n{deletions}\n\n");
        let said = etcd::etcdctl(&self.record, &["txn"], text.as_bytes())?;
        ensure!(said.contains("SUCCESS"), "etcdctl txn: {said}");
        Ok(())
    }

    /// Reads a key's value; `None` when it does not exist.
    ///
    /// # Errors
    /// When etcdctl fails or the value is not UTF-8.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        self.get_kv(key)?.map(|kv| kv.text()).transpose()
    }

    /// Reads a key with its revisions and lease; `None` when it does not exist.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn get_kv(&self, key: &str) -> Result<Option<KeyValue>> {
        Ok(etcd::get(&self.record, key, false)?.into_iter().next())
    }

    /// Reads a key as JSON; `None` when it does not exist.
    ///
    /// # Errors
    /// When etcdctl fails or the value is not JSON.
    pub fn get_json(&self, key: &str) -> Result<Option<serde_json::Value>> {
        let Some(text) = self.get(key)? else {
            return Ok(None);
        };
        Ok(Some(
            serde_json::from_str(&text).with_context(|| format!("{key} holds {text:?}"))?,
        ))
    }

    /// Reads all keys that start with `prefix`.
    ///
    /// # Errors
    /// When etcdctl fails or a value is not UTF-8.
    pub fn get_prefix(&self, prefix: &str) -> Result<BTreeMap<String, String>> {
        etcd::get(&self.record, prefix, true)?
            .iter()
            .map(|kv| Ok((kv.key.clone(), kv.text()?)))
            .collect()
    }

    /// Deletes a key; answers whether it existed.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn del(&self, key: &str) -> Result<bool> {
        Ok(self.etcdctl(&["del", "--", key])?.trim() != "0")
    }

    /// Deletes all keys that start with `prefix`; answers how many there were.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn del_prefix(&self, prefix: &str) -> Result<u64> {
        Ok(self.etcdctl(&["del", "--prefix", "--", prefix])?.trim().parse()?)
    }

    /// Takes the lab down now and says what went wrong, which dropping cannot.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn close(mut self) -> Result<()> {
        self.remove_on_drop = false;
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        for host in &self.hosts {
            host.reap();
        }
        for member in &self.members {
            member.reap();
        }
        teardown::remove(&self.record)
    }

    fn tell_of_failure(&self) {
        for host in &self.hosts {
            if let Some(tail) = tools::tail(&host.log_path(), 30) {
                eprintln!(
                    "--- lab {}: end of the log of weftd on {}:\n{tail}",
                    self.id(),
                    host.node()
                );
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.remove_on_drop {
            return;
        }
        if std::thread::panicking() {
            self.tell_of_failure();
        }
        if let Err(error) = self.remove() {
            eprintln!("lab {} was not removed completely: {error:#}", self.id());
        }
    }
}

/// The standard output of a command that must succeed.
///
/// # Errors
/// When the exit status is not zero; the text holds the end of standard error.
fn successful(what: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{what} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        stdout.trim()
    );
    Ok(stdout)
}

/// Where labs are recorded.
fn labs_dir() -> &'static Path {
    Path::new("/run/weft-lab")
}
