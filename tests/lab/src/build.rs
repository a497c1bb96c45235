//! Building a lab: namespaces, the underlay between them, etcd.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::record::{LabRecord, Underlay};
use crate::{Lab, Namespace, teardown, tools};

/// What a lab is to be.
#[derive(Debug, Clone)]
#[must_use = "a builder makes nothing until `build` is called"]
pub struct LabBuilder {
    hosts: usize,
    underlay: Underlay,
    mtu: u32,
    etcd_members: usize,
    persistent: bool,
    data_base: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
}

impl Default for LabBuilder {
    fn default() -> Self {
        Self {
            hosts: 3,
            underlay: Underlay::V4,
            mtu: 1500,
            etcd_members: 1,
            persistent: false,
            data_base: None,
            bin_dir: None,
        }
    }
}

impl LabBuilder {
    /// Number of hosts, 1 to 200.
    pub fn hosts(mut self, hosts: usize) -> Self {
        self.hosts = hosts;
        self
    }

    /// Address families of the underlay.
    pub fn underlay(mut self, underlay: Underlay) -> Self {
        self.underlay = underlay;
        self
    }

    /// MTU of the underlay in bytes, 1280 to 65535.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Number of etcd members, 1 to 9.
    pub fn etcd_members(mut self, members: usize) -> Self {
        self.etcd_members = members;
        self
    }

    /// The lab stays when this process ends, until it is taken down by id.
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = persistent;
        self
    }

    /// A directory in which etcd's data get a directory of their own; default in memory, where fsync costs nothing.
    pub fn data_base(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_base = Some(dir.into());
        self
    }

    /// Where `weftd` and `weft` lie; default as [`crate::bin_dir`].
    pub fn bin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.bin_dir = Some(dir.into());
        self
    }

    /// Builds it; etcd answers when this returns. Whatever fails, nothing is left behind.
    ///
    /// # Errors
    /// When not root, when a program is missing, when a limit is exceeded, or when a step fails.
    pub fn build(self) -> Result<Lab> {
        tools::require_root_and_tools()?;
        ensure!(
            (1..=200).contains(&self.hosts),
            "a lab has 1 to 200 hosts, not {}",
            self.hosts
        );
        ensure!(
            (1..=9).contains(&self.etcd_members),
            "a lab has 1 to 9 etcd members, not {}",
            self.etcd_members
        );
        ensure!(
            (1280..=65535).contains(&self.mtu),
            "the MTU is 1280 to 65535, not {}",
            self.mtu
        );
        teardown::sweep().context("sweeping labs of dead processes")?;
        let bin_dir = match self.bin_dir {
            Some(dir) => Some(
                dir.canonicalize()
                    .with_context(|| format!("directory {}", dir.display()))?,
            ),
            None => None,
        };
        let data_base = match self.data_base {
            Some(dir) => dir
                .canonicalize()
                .with_context(|| format!("directory {}", dir.display()))?,
            None => memory(),
        };
        let record = LabRecord {
            id: String::new(),
            owner: None,
            boot_id: String::new(),
            hosts: self.hosts,
            underlay: self.underlay,
            mtu: self.mtu,
            etcd_members: self.etcd_members,
            data_dir: PathBuf::new(),
            bin_dir,
        };
        // From here on dropping the lab removes whatever has been made.
        let mut lab = Lab::from_record(record.claim(self.persistent, &data_base)?, true);
        lay_out(&lab).with_context(|| format!("building lab {}", lab.id()))?;
        for member in &lab.members {
            member.spawn()?;
        }
        lab.members.iter().try_for_each(crate::EtcdMember::wait_ready)?;
        lab.remove_on_drop = !self.persistent;
        Ok(lab)
    }
}

/// Memory, when there is a tmpfs.
fn memory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory
    } else {
        Path::new("/var/tmp")
    };
    base.to_path_buf()
}

fn lay_out(lab: &Lab) -> Result<()> {
    let record = lab.record();
    let run = record.run_dir();
    let mut dirs = vec![run.join("pids"), record.data_dir.clone()];
    for host in &lab.hosts {
        dirs.extend([host.dir().join("netns"), host.dir().join("state")]);
    }
    for dir in dirs {
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    }
    for host in &lab.hosts {
        host.write_config()?;
    }

    // Each place is a namespace with one end of a veth pair as eth0; the other end is a port of the switch.
    let hosts = (1..=record.hosts).map(|n| (format!("h{n}"), record.host_addresses(n)));
    let members = (1..=record.etcd_members).map(|n| (format!("etcd{n}"), record.etcd_addresses(n)));
    let places: Vec<_> = hosts.chain(members).collect();
    let prefix = record.prefix();
    let mtu = record.mtu;

    let mut outside = format!("netns add {prefix}sw\n");
    let mut switch = format!("link add br0 mtu {mtu} type bridge mcast_snooping 0\nlink set br0 up\n");
    for (name, _) in &places {
        writeln!(outside, "netns add {prefix}{name}")?;
        writeln!(
            outside,
            "link add eth0 netns {prefix}{name} mtu {mtu} type veth peer name {name} netns {prefix}sw mtu {mtu}"
        )?;
        writeln!(switch, "link set {name} master br0 up")?;
    }
    ip_batch(&mut Command::new("ip"), &outside)?;
    let inside = |name: &str| Namespace::named(&format!("{prefix}{name}")).command("ip");
    ip_batch(&mut inside("sw"), &switch)?;
    for (name, addresses) in &places {
        let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
        for address in addresses {
            // No duplicate detection: the address must be usable at once.
            let rest = if address.is_ipv4() { "/24" } else { "/64 nodad" };
            writeln!(script, "addr add {address}{rest} dev eth0")?;
        }
        ip_batch(&mut inside(name), &script)?;
    }
    Ok(())
}

fn ip_batch(ip: &mut Command, script: &str) -> Result<()> {
    tools::run_with_input(ip.args(["-batch", "-"]), script.as_bytes())
        .map(drop)
        .with_context(|| format!("script:\n{script}"))
}
