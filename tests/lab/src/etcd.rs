//! The lab's etcd: members that can be stopped, killed and frozen, asked how they are, and reads and writes by `etcdctl`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::process::Process;
use crate::record::LabRecord;
use crate::watch::Watch;
use crate::writer::{self, Writer};
use crate::{Namespace, eventually, tools};

/// One member of the lab's etcd cluster.
#[derive(Debug)]
pub struct EtcdMember {
    lab: LabRecord,
    number: usize,
    netns: Namespace,
    process: Process,
}

impl EtcdMember {
    pub(crate) fn new(lab: &LabRecord, number: usize) -> Self {
        let name = format!("etcd{number}");
        let log = lab.run_dir().join(format!("{name}.log"));
        Self {
            lab: lab.clone(),
            number,
            netns: Namespace::named(&format!("{}{name}", lab.prefix())),
            process: Process::new(&lab.run_dir(), &name, log),
        }
    }

    /// Its number, from 1.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its addresses on the underlay, IPv4 first: clients and the other members reach it there.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.lab.etcd_addresses(self.number)
    }

    /// The namespace it runs in.
    #[must_use]
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// Its client URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.lab.etcd_endpoints().swap_remove(self.number - 1)
    }

    fn urls(&self, number: usize, port: u16) -> String {
        let addresses = self.lab.etcd_addresses(number).into_iter();
        let urls: Vec<_> = addresses
            .map(|address| format!("http://{}", SocketAddr::new(address, port)))
            .collect();
        urls.join(",")
    }

    /// What its identity and the cluster's follow from.
    fn identity(&self, token: &str) -> Vec<String> {
        let cluster: Vec<_> = (1..=self.lab.etcd_members)
            .flat_map(|n| {
                let urls = self.urls(n, 2380);
                let urls = urls.split(',').map(|url| format!("etcd{n}={url}"));
                urls.collect::<Vec<_>>()
            })
            .collect();
        let flags = [
            ("--name", format!("etcd{}", self.number)),
            ("--data-dir", self.data_dir()),
            ("--initial-advertise-peer-urls", self.urls(self.number, 2380)),
            ("--initial-cluster", cluster.join(",")),
            ("--initial-cluster-token", token.to_owned()),
        ];
        let flags = flags.into_iter();
        flags.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Starts it without waiting for it to answer. Its data of before are kept.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&self) -> Result<()> {
        self.spawn_with(&[])
    }

    /// As [`EtcdMember::spawn`] with more arguments, such as `--quota-backend-bytes=16777216`.
    ///
    /// # Errors
    /// As [`EtcdMember::spawn`].
    pub fn spawn_with(&self, more: &[&str]) -> Result<()> {
        let local = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 2379);
        let args = [
            (
                "--listen-client-urls",
                format!("{},http://{local}", self.urls(self.number, 2379)),
            ),
            ("--advertise-client-urls", self.urls(self.number, 2379)),
            ("--listen-peer-urls", self.urls(self.number, 2380)),
            ("--initial-cluster-state", "new".to_owned()),
            ("--logger", "zap".to_owned()),
        ];
        let mut args: Vec<_> = args
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .chain(self.identity(&self.lab.id))
            .collect();
        if self.lab.etcd_members == 1 {
            // Nobody to hear from: a lone member waits for its election timeout at each start, a second by default.
            args.extend(["--heartbeat-interval=20", "--election-timeout=100"].map(str::to_owned));
        }
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.process.start(&self.netns, Path::new("etcd"), &args, &[])
    }

    /// Starts it and waits until it answers reads.
    ///
    /// # Errors
    /// When it does not within 20 seconds (for a majority is missing, for example); the text holds its log.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Waits until it answers reads.
    ///
    /// # Errors
    /// As [`EtcdMember::start`].
    pub fn wait_ready(&self) -> Result<()> {
        eventually(
            Duration::from_secs(20),
            &format!("etcd{} answers", self.number),
            || {
                if self.process.pid().is_none() {
                    bail!("it has ended:\n{}", self.process.log_tail());
                }
                // etcdctl that finds nobody listening tries again after a whole second.
                let address = self.address();
                self.netns
                    .within(|| TcpStream::connect(address))?
                    .with_context(|| format!("connecting to {address}"))?;
                let args = ["endpoint", "health", "--command-timeout=2s"];
                etcdctl_at(&self.netns, &[self.endpoint()], &args, b"").map(drop)
            },
        )
        .with_context(|| format!("log of etcd:\n{}", self.process.log_tail()))
    }

    /// What it says of itself and of who leads, as far as it knows: one that is cut off from the others may still
    /// name a leader of before.
    ///
    /// # Errors
    /// When it does not answer within two seconds.
    pub fn status(&self) -> Result<MemberStatus> {
        let args = ["endpoint", "status", "--write-out=json"];
        let text = self.etcdctl(&[&args[..], &["--dial-timeout=1s", "--command-timeout=2s"]].concat())?;
        let [answer]: [StatusAnswer; 1] =
            serde_json::from_str(&text).with_context(|| format!("answer of etcdctl: {text:?}"))?;
        Ok(MemberStatus {
            member: answer.status.header.member_id,
            leader: answer.status.leader,
            revision: answer.status.header.revision,
        })
    }

    /// Runs `etcdctl` against this member alone; answers its standard output.
    ///
    /// # Errors
    /// When etcdctl fails; the text holds its standard error.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        etcdctl_at(&self.netns, &[self.endpoint()], args, b"")
    }

    /// Reads all keys that start with `prefix` through this member, at one revision that is not older than the call.
    ///
    /// # Errors
    /// When it does not answer within `patience`, which it cannot without a majority.
    pub fn read(&self, prefix: &str, patience: Duration) -> Result<Reading> {
        let dial = format!("--dial-timeout={}ms", patience.as_millis());
        let command = format!("--command-timeout={}ms", patience.as_millis());
        let args = [
            "get",
            "--write-out=json",
            &dial,
            &command,
            "--prefix",
            "--",
            prefix,
        ];
        reading(&self.etcdctl(&args)?)
    }

    /// How many requests of a method of etcd's API it was sent since it started: `Range`, `Txn`, `LeaseGrant` and so on.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn requests(&self, method: &str) -> Result<u64> {
        let metrics = writer::get(&self.netns, self.address(), "/metrics")?;
        let method = format!("grpc_method=\"{method}\"");
        let counts = metrics
            .lines()
            .filter(|line| line.starts_with("grpc_server_started_total{") && line.contains(&method));
        counts
            .map(|line| {
                let count = line.rsplit(' ').next().unwrap_or_default();
                count.parse::<u64>().with_context(|| format!("metric: {line}"))
            })
            .sum()
    }

    /// All that it counts, by name with labels as it writes them: `etcd_debugging_mvcc_watcher_total`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let text = writer::get(&self.netns, self.address(), "/metrics")?;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let read = |line: &str| {
            let (name, value) = line.rsplit_once(' ').context("no value")?;
            Ok((
                name.to_owned(),
                value.parse().with_context(|| format!("metric: {line}"))?,
            ))
        };
        samples.map(read).collect()
    }

    /// A connection for writing faster than a program can be started for each write.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn writer(&self) -> Result<Writer> {
        Writer::connect(&self.netns, self.address())
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.lab.etcd_addresses(self.number)[0], 2379)
    }

    /// Follows all keys that start with `prefix` through this member, from `revision` on (1 for all that ever was).
    ///
    /// # Errors
    /// When etcdctl cannot be started.
    pub fn watch(&self, prefix: &str, revision: i64) -> Result<Watch> {
        let mut command = self.netns.command("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .env_remove("ETCDCTL_ENDPOINTS")
            .arg(format!("--endpoints={}", self.endpoint()))
            .args([
                "watch",
                "--write-out=json",
                "--prefix",
                &format!("--rev={revision}"),
            ])
            // No "--" here: what follows that is a command to etcdctl watch.
            .arg(prefix);
        Watch::start(command)
    }

    /// Ends it by SIGTERM and waits.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn stop(&self) -> Result<()> {
        // etcd ends by the signal it was sent, so its status is no news.
        match self.process.terminate(Duration::from_secs(15)) {
            Err(_) if self.process.pid().is_none() => Ok(()),
            other => other,
        }
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&self) -> Result<()> {
        self.process.kill9()
    }

    /// Stops it in its tracks: connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`EtcdMember::freeze`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Deletes its data, as after the loss of a disk. It must not run.
    ///
    /// # Errors
    /// When it runs, or the data cannot be removed.
    pub fn wipe(&self) -> Result<()> {
        if let Some(pid) = self.process.pid() {
            bail!("etcd{} runs as process {pid}", self.number);
        }
        std::fs::remove_dir_all(self.data_dir()).with_context(|| format!("removing {}", self.data_dir()))
    }

    /// Saves a snapshot of the store to a file, which is named.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn save_snapshot(&self, name: &str) -> Result<String> {
        let file = self.lab.run_dir().join(format!("{name}.snapshot"));
        let file = file.display().to_string();
        self.etcdctl(&["snapshot", "save", &file])?;
        Ok(file)
    }

    /// Puts a snapshot in the place of its data, as an operator does after a loss: all members of the cluster have to be
    /// treated alike. With `token` as another cluster. It must not run.
    ///
    /// # Errors
    /// When it runs, or the snapshot cannot be restored.
    pub fn restore_snapshot(&self, file: &str, token: Option<&str>) -> Result<()> {
        self.wipe()?;
        let mut command = self.netns.command("etcdctl");
        command.env("ETCDCTL_API", "3").env_remove("ETCDCTL_ENDPOINTS");
        command.args(["snapshot", "restore", file]);
        command.args(self.identity(token.unwrap_or(&self.lab.id)));
        let output = command.output().context("etcdctl snapshot restore")?;
        if !output.status.success() {
            bail!(
                "etcdctl snapshot restore: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Where its data lie: to copy them while it is stopped, for a rolled-back store.
    #[must_use]
    pub fn data_dir(&self) -> String {
        self.lab
            .data_dir
            .join(format!("etcd{}", self.number))
            .display()
            .to_string()
    }

    /// Process number while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    pub(crate) fn reap(&self) {
        self.process.reap();
    }
}

/// How a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its own id.
    pub member: u64,
    /// The id of the member that leads, as it knows; 0 for none.
    pub leader: u64,
    /// The store's revision that it has got to.
    pub revision: i64,
}

#[derive(Deserialize)]
struct StatusAnswer {
    #[serde(rename = "Status")]
    status: StatusOfMember,
}

#[derive(Deserialize)]
struct StatusOfMember {
    header: Header,
    #[serde(default)]
    leader: u64,
}

/// Keys of one revision of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The revision.
    pub revision: i64,
    /// The keys, in order.
    pub keys: Vec<KeyValue>,
}

/// A key as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Store revision of the creation.
    pub create_revision: i64,
    /// Store revision of the last change.
    pub mod_revision: i64,
    /// Number of changes since creation, from 1.
    pub version: i64,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
}

impl KeyValue {
    /// The value as text.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn text(&self) -> Result<String> {
        String::from_utf8(self.value.clone()).with_context(|| format!("value of {}", self.key))
    }
}

/// `etcdctl get --write-out=json`: bytes are in base64, zero fields are left out.
#[derive(Deserialize)]
struct Answer {
    header: Header,
    #[serde(default)]
    kvs: Vec<AnswerKeyValue>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    member_id: u64,
    #[serde(default)]
    revision: i64,
}

/// A key as etcdctl writes it in JSON.
#[derive(Deserialize)]
pub(crate) struct AnswerKeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    create_revision: i64,
    #[serde(default)]
    mod_revision: i64,
    #[serde(default)]
    version: i64,
    #[serde(default)]
    lease: i64,
}

impl TryFrom<AnswerKeyValue> for KeyValue {
    type Error = anyhow::Error;

    fn try_from(kv: AnswerKeyValue) -> Result<Self> {
        Ok(Self {
            key: String::from_utf8(decode_base64(&kv.key)?).context("a key that is not UTF-8")?,
            value: decode_base64(&kv.value)?,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        })
    }
}

pub(crate) fn get(lab: &LabRecord, key: &str, as_prefix: bool) -> Result<Vec<KeyValue>> {
    let prefix: &[&str] = if as_prefix { &["--prefix"] } else { &[] };
    let text = etcdctl(
        lab,
        &[&["get", "--write-out=json"], prefix, &["--", key]].concat(),
        b"",
    )?;
    Ok(reading(&text)?.keys)
}

fn reading(text: &str) -> Result<Reading> {
    let answer: Answer =
        serde_json::from_str(text).with_context(|| format!("answer of etcdctl: {text:?}"))?;
    Ok(Reading {
        revision: answer.header.revision,
        keys: answer
            .kvs
            .into_iter()
            .map(KeyValue::try_from)
            .collect::<Result<_>>()?,
    })
}

pub(crate) fn etcdctl(lab: &LabRecord, args: &[&str], input: &[u8]) -> Result<String> {
    let netns = Namespace::named(&format!("{}etcd1", lab.prefix()));
    etcdctl_at(&netns, &lab.etcd_endpoints(), args, input)
}

fn etcdctl_at(netns: &Namespace, endpoints: &[String], args: &[&str], input: &[u8]) -> Result<String> {
    let mut command = netns.command("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .env_remove("ETCDCTL_ENDPOINTS")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .args(args);
    tools::run_with_input(&mut command, input)
}

/// Standard base64 with padding, as Go's JSON writes bytes.
fn decode_base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for character in text.bytes().filter(|byte| *byte != b'=') {
        let six = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(anyhow!("not base64: {text:?}")),
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff)?);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64() {
        assert_eq!(decode_base64("").unwrap(), b"");
        assert_eq!(decode_base64("aGFsbG8=").unwrap(), b"hallo");
        assert_eq!(decode_base64("/+8A").unwrap(), [0xff, 0xef, 0]);
        assert!(decode_base64("a b").is_err());
    }
}
