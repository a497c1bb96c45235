//! etcd members as child processes, with free ports and data in memory where possible.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, GetOptions};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use weft_core::record::Entry;

use crate::PATIENCE;

/// A port nobody listens on. Below the range the kernel takes ports for outgoing connections from.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        // Tests that run side by side have process ids in a row: each has sixteen ports before the next one's begin.
        let start = u16::try_from(std::process::id() % 750).unwrap() * 16;
        let port = 20_000 + (start + offset) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A directory in memory if the system has one.
pub(crate) fn scratch() -> TempDir {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() {
        shm.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::Builder::new()
        .prefix("weft-store-")
        .tempdir_in(base)
        .unwrap()
}

pub(crate) struct Member {
    pub(crate) url: String,
    pub(crate) data: PathBuf,
    name: String,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Member {
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new("etcd")
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd cannot be started; install it: apt-get install etcd-server");
        self.child = Some(child);
    }

    pub(crate) fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("it runs");
        Pid::from_raw(i32::try_from(child.id()).unwrap())
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn freeze(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One or more members, and a client to do things behind the store's back.
pub(crate) struct Etcd {
    pub(crate) members: Vec<Member>,
    pub(crate) dir: TempDir,
    options: ConnectOptions,
}

impl Etcd {
    /// One member.
    pub(crate) async fn one() -> Self {
        Self::with(1, "http", &[], ConnectOptions::new()).await
    }

    /// Several members.
    pub(crate) async fn cluster(members: usize) -> Self {
        Self::with(members, "http", &[], ConnectOptions::new()).await
    }

    /// Members with further arguments, reached by `options`.
    pub(crate) async fn with(count: usize, scheme: &str, args: &[&str], options: ConnectOptions) -> Self {
        let dir = scratch();
        let names: Vec<_> = (0..count).map(|n| format!("m{n}")).collect();
        let peers: Vec<_> = names
            .iter()
            .map(|_| format!("http://127.0.0.1:{}", free_port()))
            .collect();
        let cluster: Vec<_> = names
            .iter()
            .zip(&peers)
            .map(|(name, url)| format!("{name}={url}"))
            .collect();
        let mut members = Vec::new();
        for (name, peer) in names.iter().zip(&peers) {
            let url = format!("{scheme}://127.0.0.1:{}", free_port());
            let data = dir.path().join(name);
            let mut all: Vec<String> = [
                "--name",
                name,
                "--data-dir",
                data.to_str().unwrap(),
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-token",
                dir.path().to_str().unwrap(),
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "500",
                "--unsafe-no-fsync",
                "--logger",
                "zap",
                "--log-level",
                "warn",
            ]
            .map(str::to_owned)
            .to_vec();
            all.extend(args.iter().map(|arg| (*arg).to_owned()));
            members.push(Member {
                url,
                data,
                name: name.clone(),
                args: all,
                log: dir.path().join(format!("{name}.log")),
                child: None,
            });
        }
        let mut etcd = Self {
            members,
            dir,
            options,
        };
        for member in &mut etcd.members {
            member.start();
        }
        etcd.ready().await;
        etcd
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    pub(crate) fn url(&self) -> String {
        self.members[0].url.clone()
    }

    pub(crate) async fn client_of(&self, member: usize) -> Client {
        Client::connect([&self.members[member].url], Some(self.options.clone()))
            .await
            .unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of(0).await
    }

    /// Waits until all running members answer linearizable reads.
    pub(crate) async fn ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        for n in 0..self.members.len() {
            if self.members[n].child.is_none() {
                continue;
            }
            loop {
                let answered = timeout(Duration::from_secs(2), async {
                    let client = Client::connect([&self.members[n].url], Some(self.options.clone())).await?;
                    client.kv_client().get("ready", None).await.map(drop)
                })
                .await;
                if matches!(answered, Ok(Ok(()))) {
                    break;
                }
                // A permission or login that is missing is an answer too.
                if let Ok(Err(etcd_client::Error::GRpcStatus(status))) = &answered
                    && ["permission", "user name", "authentication"]
                        .iter()
                        .any(|word| status.message().contains(word))
                {
                    break;
                }
                let member = &mut self.members[n];
                if let Ok(Some(status)) = member.child.as_mut().unwrap().try_wait() {
                    panic!("{} ended ({status}):\n{}", member.name, member.log());
                }
                assert!(
                    Instant::now() < end,
                    "{} does not answer: {answered:?}\n{}",
                    member.name,
                    member.log()
                );
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Puts a key; the revision.
    pub(crate) async fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self
            .client()
            .await
            .kv_client()
            .put(full(key), value, None)
            .await
            .unwrap();
        answer.header().unwrap().revision()
    }

    /// Puts `n` keys of a directory.
    pub(crate) async fn fill(&self, directory: &str, range: std::ops::Range<usize>) -> i64 {
        let mut kv = self.client().await.kv_client();
        let mut revision = 0;
        for n in range {
            let answer = kv
                .put(format!("{}{n:05}", full(directory)), format!("{n}"), None)
                .await
                .unwrap();
            revision = answer.header().unwrap().revision();
        }
        revision
    }

    pub(crate) async fn delete(&self, key: &str) -> i64 {
        let answer = self
            .client()
            .await
            .kv_client()
            .delete(full(key), None)
            .await
            .unwrap();
        answer.header().unwrap().revision()
    }

    /// Compacts everything up to a revision away.
    pub(crate) async fn compact(&self, revision: i64) {
        let options = etcd_client::CompactionOptions::new().with_physical();
        self.client()
            .await
            .kv_client()
            .compact(revision, Some(options))
            .await
            .unwrap();
    }

    pub(crate) async fn revision(&self) -> i64 {
        let answer = self
            .client()
            .await
            .kv_client()
            .get("revision", None)
            .await
            .unwrap();
        answer.header().unwrap().revision()
    }

    /// What lies below a directory, at a revision (0 for now).
    pub(crate) async fn range(&self, directory: &str, revision: i64) -> Vec<Entry> {
        let options = GetOptions::new().with_prefix().with_revision(revision);
        let mut kv = self
            .client()
            .await
            .kv_client()
            .max_decoding_message_size(256 << 20);
        let mut answer = kv.get(full(directory), Some(options)).await.unwrap();
        let kvs = answer.take_kvs();
        kvs.iter()
            .map(|kv| Entry {
                key: kv.key().to_vec(),
                value: kv.value().to_vec(),
                create_revision: kv.create_revision(),
                mod_revision: kv.mod_revision(),
            })
            .collect()
    }
}

/// The full key of one below the default prefix.
pub(crate) fn full(key: &str) -> String {
    format!("/weft/v1/{key}")
}
