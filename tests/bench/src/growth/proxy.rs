//! etcd's own proxies between agents and etcd: they gather equal watches into one. Started on the lab's first host.

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use weft_lab::{Lab, eventually};

use crate::process;

const FIRST_PORT: u16 = 23790;

/// One proxy, ended with its handle.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    /// Where it listens.
    pub(crate) url: String,
}

impl Proxy {
    /// Starts one and waits until it listens. The caller is in the host's namespace.
    ///
    /// # Errors
    /// When it does not listen within ten seconds.
    pub(crate) fn start(lab: &Lab, number: u16) -> Result<Self> {
        let address = format!("127.0.0.1:{}", FIRST_PORT + number);
        let log = lab.run_dir().join(format!("proxy{number}.log"));
        let log = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let child = Command::new("etcd")
            .args(["grpc-proxy", "start"])
            .arg(format!("--endpoints={}", lab.etcd(1).endpoint()))
            .arg(format!("--listen-addr={address}"))
            .arg(format!("--advertise-client-url={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting etcd grpc-proxy")?;
        let proxy = Self {
            child,
            url: format!("http://{address}"),
        };
        eventually(Duration::from_secs(10), "the proxy listens", || {
            Ok(TcpStream::connect(&address).map(drop)?)
        })?;
        Ok(proxy)
    }

    /// CPU time so far and memory in MiB.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn used(&self) -> Result<(Duration, f64)> {
        let pid = self.child.id();
        Ok((process::cpu(pid)?, process::resident(pid)?))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
