//! Hosts of a lab: a namespace on the underlay and one weftd in it, to start, stop, kill and ask.

use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;

use crate::process::Process;
use crate::record::LabRecord;
use crate::{Metrics, Namespace, eventually, tools};

/// How long weftd may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// One host of a lab.
#[derive(Debug)]
pub struct Host {
    pub(crate) lab: LabRecord,
    number: usize,
    netns: Namespace,
    process: Process,
    notify: Mutex<Option<UnixDatagram>>,
}

impl Host {
    pub(crate) fn new(lab: &LabRecord, number: usize) -> Self {
        let log = lab.run_dir().join(format!("h{number}")).join("weftd.log");
        Self {
            lab: lab.clone(),
            number,
            netns: Namespace::named(&format!("{}h{number}", lab.prefix())),
            process: Process::new(&lab.run_dir(), &format!("weftd{number}"), log),
            notify: Mutex::new(None),
        }
    }

    /// Its number, from 1.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its node name: `host<number>`.
    #[must_use]
    pub fn node(&self) -> String {
        format!("host{}", self.number)
    }

    /// Its namespace. The underlay is `eth0` there.
    #[must_use]
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// Its underlay addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.lab.host_addresses(self.number)
    }

    /// Its directory: configuration, socket, state, log, and `netns/` for the networks' namespaces.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.lab.run_dir().join(format!("h{}", self.number))
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir().join("weftd.sock")
    }

    /// What the agent tells Prometheus, asked for now.
    ///
    /// # Errors
    /// When it does not answer, or not with metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::scrape(&self.dir().join("metrics.sock"))
    }

    /// The agent's configuration file; tests may change it between starts.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir().join("weftd.toml")
    }

    /// The agent's log file, of all its starts.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.process.log_path().to_path_buf()
    }

    /// What the agent has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.process.log_path()).unwrap_or_default()).into_owned()
    }

    /// The namespace of a network on this host. It exists while the host has an endpoint in the network.
    #[must_use]
    pub fn netns_of(&self, network: &str) -> Namespace {
        Namespace::at(self.dir().join("netns").join(format!("weft-{network}")))
    }

    /// Writes the agent's configuration for this host.
    pub(crate) fn write_config(&self) -> Result<()> {
        let dir = self.dir();
        let dir = dir.display();
        let node = self.node();
        let endpoints = self.lab.etcd_endpoints();
        let level = std::env::var("WEFT_LAB_LOG").unwrap_or_else(|_| "info".to_owned());
        let text = format!(
            "node = {node:?}\n\
             netns_dir = \"{dir}/netns\"\n\
             attachment_dirs = [\"/run/netns\"]\n\
             state_dir = \"{dir}/state\"\n\n\
             [etcd]\nendpoints = {endpoints:?}\n\n\
             [underlay]\ninterface = \"eth0\"\n\n\
             [api]\nsocket = \"{dir}/weftd.sock\"\n\n\
             [metrics]\nlisten = \"unix:{dir}/metrics.sock\"\n\n\
             [log]\nlevel = {level:?}\n"
        );
        std::fs::write(self.config_path(), text)
            .with_context(|| format!("writing {}", self.config_path().display()))
    }

    /// Starts weftd and waits until it says that its first pass is done.
    ///
    /// # Errors
    /// When it ends or is not ready within 15 seconds; the text holds the end of its log.
    pub fn start_weftd(&self) -> Result<()> {
        self.start_weftd_with(&[])
    }

    /// As [`Host::start_weftd`] with more arguments after `--config <file>`.
    ///
    /// # Errors
    /// As [`Host::start_weftd`].
    pub fn start_weftd_with(&self, args: &[&str]) -> Result<()> {
        self.spawn_weftd(args)?;
        self.wait_ready()
    }

    /// Starts weftd and does not wait, for when it cannot get ready (etcd is down).
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn_weftd(&self, args: &[&str]) -> Result<()> {
        self.spawn_weftd_in(args, &[])
    }

    /// As [`Host::spawn_weftd`] with variables in its environment.
    ///
    /// # Errors
    /// As [`Host::spawn_weftd`].
    pub fn spawn_weftd_in(&self, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
        let path = self.dir().join("notify.sock");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
        let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
        socket
            .set_nonblocking(true)
            .context("making the notify socket non-blocking")?;
        *self.notify.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);

        let mut all = vec!["--config".to_owned(), self.config_path().display().to_string()];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let notify = path.display().to_string();
        let fault = self.fault_path().display().to_string();
        let own = [
            ("NOTIFY_SOCKET", notify.as_str()),
            ("RUST_BACKTRACE", "1"),
            ("WEFT_FAULT_FILE", fault.as_str()),
        ];
        let env = [&own[..], env].concat();
        self.process
            .start(&self.netns, &self.binary("weftd")?, &all, &env)
    }

    /// Waits until the agent that was started last says that it is ready.
    ///
    /// # Errors
    /// As [`Host::start_weftd`].
    pub fn wait_ready(&self) -> Result<()> {
        self.wait_ready_within(PATIENCE)
    }

    /// As [`Host::wait_ready`], with another patience.
    ///
    /// # Errors
    /// As [`Host::start_weftd`].
    pub fn wait_ready_within(&self, patience: Duration) -> Result<()> {
        let mut heard = String::new();
        eventually(patience, &format!("weftd on {} is ready", self.node()), || {
            let mut buffer = [0_u8; 4096];
            let guard = self.notify.lock().unwrap_or_else(PoisonError::into_inner);
            let socket = guard
                .as_ref()
                .ok_or_else(|| anyhow!("it was not started by this lab handle"))?;
            while let Ok(length) = socket.recv(&mut buffer) {
                heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
                heard.push('\n');
            }
            drop(guard);
            if heard.lines().any(|line| line == "READY=1") {
                return Ok(true);
            }
            if self.process.pid().is_none() {
                // Waiting longer is no use.
                return Ok(false);
            }
            bail!("heard so far: {heard:?}")
        })
        .and_then(|ready| {
            if ready {
                Ok(())
            } else {
                Err(anyhow!("weftd on {} has ended", self.node()))
            }
        })
        .with_context(|| format!("its log ends:\n{}", self.process.log_tail()))
    }

    /// As [`Host::wait_ready`], to the moment: when it was heard. For what measures.
    ///
    /// # Errors
    /// When it is not ready in time; the text holds the end of its log.
    pub fn await_ready(&self, patience: Duration) -> Result<Instant> {
        let guard = self.notify.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = guard.as_ref().context("it was not started by this lab handle")?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(patience))?;
        let mut buffer = [0_u8; 4096];
        loop {
            let length = socket
                .recv(&mut buffer)
                .with_context(|| format!("weftd is not ready; its log ends:\n{}", self.process.log_tail()))?;
            let now = Instant::now();
            let heard = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            if heard.lines().any(|line| line == "READY=1") {
                return Ok(now);
            }
        }
    }

    fn fault_path(&self) -> PathBuf {
        self.dir().join("fault")
    }

    /// Has weftd fail on purpose, as `agent/kernel/src/fault.rs` says: `change 3 die`, `question 0 refuse ENOMEM`. A
    /// weftd that is a release does not.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_fault(&self, line: &str) -> Result<()> {
        let (path, new) = (self.fault_path(), self.dir().join("fault.new"));
        std::fs::write(&new, line)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Whether that fault is yet to come.
    #[must_use]
    pub fn has_fault(&self) -> bool {
        self.fault_path().exists()
    }

    /// Takes back a fault that has not come; answers whether there was one.
    #[must_use]
    pub fn clear_fault(&self) -> bool {
        std::fs::remove_file(self.fault_path()).is_ok()
    }

    /// Kills weftd at once.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&self) -> Result<()> {
        self.process.kill9()
    }

    /// Ends weftd by SIGTERM and waits.
    ///
    /// # Errors
    /// When it does not run, does not end within 15 seconds, or ends with a failure.
    pub fn stop(&self) -> Result<()> {
        self.process.terminate(PATIENCE)
    }

    /// [`Host::stop`], then [`Host::start_weftd`].
    ///
    /// # Errors
    /// As those.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start_weftd()
    }

    /// Sends any signal to weftd, for example SIGSTOP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// weftd's process number while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Memory of weftd that is in RAM, in KiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident(&self) -> Result<u64> {
        let pid = self
            .pid()
            .with_context(|| format!("weftd on {} does not run", self.node()))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("its status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let figure = line
            .and_then(|line| line.split_whitespace().next())
            .context("VmRSS")?;
        Ok(figure.parse()?)
    }

    /// Runs `weftd --teardown` with this host's configuration.
    ///
    /// # Errors
    /// When it fails.
    pub fn teardown(&self) -> Result<String> {
        let mut command = self.netns.command(self.binary("weftd")?);
        tools::run(command.arg("--config").arg(self.config_path()).arg("--teardown"))
    }

    /// Where the operator's command lies.
    ///
    /// # Errors
    /// When it is not built.
    pub fn weft_path(&self) -> Result<PathBuf> {
        self.binary("weft")
    }

    /// Runs the operator's command against this host's agent; answers whatever comes of it.
    ///
    /// # Errors
    /// When it cannot be started; a failure of the command itself is in the status.
    pub fn weft_output(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.netns.command(self.weft_path()?);
        tools::apart(command.arg("--socket").arg(self.socket()).args(args))
            .output()
            .context("starting weft")
    }

    /// Runs the operator's command against this host's agent; answers its standard output.
    ///
    /// # Errors
    /// When it fails; the text holds its standard error.
    pub fn weft(&self, args: &[&str]) -> Result<String> {
        crate::successful(
            &format!("weft {args:?} on {}", self.node()),
            &self.weft_output(args)?,
        )
    }

    /// As [`Host::weft`] with `-o json`, parsed.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn weft_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.weft(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("weft {args:?} printed {text:?}"))
    }

    /// Runs a program on this host and answers its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        self.netns.exec(argv)
    }

    /// Whether this host reaches an address of the underlay.
    #[must_use]
    pub fn ping(&self, target: IpAddr) -> bool {
        crate::probe::once(&self.netns, target, Duration::from_secs(1)).unwrap_or(false)
    }

    pub(crate) fn reap(&self) {
        self.process.reap();
    }

    fn binary(&self, name: &str) -> Result<PathBuf> {
        let dir = self.lab.bin_dir.clone().map_or_else(tools::bin_dir, Ok)?;
        let path = dir.join(name);
        if !Path::new(&path).is_file() {
            bail!(
                "{} does not exist: run `cargo build -p weftd -p weft-cli`",
                path.display()
            );
        }
        Ok(path)
    }
}
