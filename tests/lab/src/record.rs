//! What is recorded of a lab on disk, so that any process can find it, use it and remove it: `/run/weft-lab/<id>`.
//!
//! The record is complete before the first namespace is made; names and addresses follow from it alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::labs_dir;
use crate::process::{Identity, boot_id};

/// Which address families the underlay has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// 10.99.0.0/24 only.
    V4,
    /// fd99::/64 only.
    V6,
    /// Both.
    Dual,
}

impl Underlay {
    /// The addresses of the host with this number (1 to 250) on the underlay, IPv4 first.
    #[must_use]
    pub fn addresses(self, number: u8) -> Vec<IpAddr> {
        let v4 = IpAddr::from(Ipv4Addr::new(10, 99, 0, number));
        let v6 = IpAddr::from(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number.into()));
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }
}

/// The written form of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabRecord {
    /// Five letters or digits, in every name the lab makes.
    pub id: String,
    /// The process that built the lab; `None` for one that stays until it is taken down.
    pub owner: Option<Identity>,
    /// The boot in which it was made: process numbers mean nothing in another one.
    pub boot_id: String,
    /// Number of hosts.
    pub hosts: usize,
    /// Families of the underlay.
    pub underlay: Underlay,
    /// MTU of the underlay, bytes.
    pub mtu: u32,
    /// Number of etcd members.
    pub etcd_members: usize,
    /// Where etcd keeps its data: in memory, unless it was asked for elsewhere.
    pub data_dir: PathBuf,
    /// Where `weftd` and `weft` lie; found when first needed if `None`.
    pub bin_dir: Option<PathBuf>,
}

impl LabRecord {
    /// The directory of this lab.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        labs_dir().join(&self.id)
    }

    /// The beginning of all names of namespaces of this lab.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("wl{}-", self.id)
    }

    /// Underlay addresses of host `number`.
    #[must_use]
    pub fn host_addresses(&self, number: usize) -> Vec<IpAddr> {
        self.underlay.addresses(u8::try_from(number).unwrap_or(u8::MAX))
    }

    /// Underlay addresses of etcd member `number`.
    #[must_use]
    pub fn etcd_addresses(&self, number: usize) -> Vec<IpAddr> {
        // Above all hosts.
        self.underlay
            .addresses(u8::try_from(number + 240).unwrap_or(u8::MAX))
    }

    /// One client URL per etcd member.
    #[must_use]
    pub fn etcd_endpoints(&self) -> Vec<String> {
        (1..=self.etcd_members)
            .map(|n| format!("http://{}", SocketAddr::new(self.etcd_addresses(n)[0], 2379)))
            .collect()
    }

    /// Reads the record of a lab.
    ///
    /// # Errors
    /// When there is none with that id, or it cannot be read.
    pub fn load(id: &str) -> Result<Self> {
        let path = labs_dir().join(id).join("lab.json");
        let text = std::fs::read(&path).with_context(|| format!("no lab {id:?}: {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Whether the process that made it is gone, so that the lab belongs to nobody.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.boot_id != boot_id() || self.owner.is_some_and(|owner| !owner.is_running())
    }

    /// Finds a free id and claims it on disk: the record is written beside and renamed into place, so that a sweep
    /// never sees half of one.
    pub(crate) fn claim(mut self, persistent: bool, data_base: &Path) -> Result<Self> {
        let me = Identity::of(std::process::id()).context("reading /proc/self/stat")?;
        self.owner = (!persistent).then_some(me);
        self.boot_id = boot_id();
        std::fs::create_dir_all(labs_dir()).with_context(|| format!("making {}", labs_dir().display()))?;
        for _ in 0..100 {
            self.id = fresh_id();
            self.data_dir = data_base.join(format!("weft-lab-{}", self.id));
            let draft = labs_dir().join(format!(".new-{}-{}-{}", me.pid, me.started, self.id));
            std::fs::create_dir(&draft).with_context(|| format!("making {}", draft.display()))?;
            std::fs::write(draft.join("lab.json"), serde_json::to_vec_pretty(&self)?)
                .with_context(|| format!("writing into {}", draft.display()))?;
            // Renaming onto another lab's directory fails, as that one is not empty.
            if std::fs::rename(&draft, self.run_dir()).is_ok() {
                return Ok(self);
            }
            std::fs::remove_dir_all(&draft).with_context(|| format!("removing {}", draft.display()))?;
        }
        bail!("no free lab id in {}", labs_dir().display())
    }
}

/// The records of all labs on this machine, by id.
///
/// # Errors
/// When the directory of labs cannot be read; a lab that vanishes meanwhile is left out.
pub fn labs() -> Result<Vec<LabRecord>> {
    let entries = match std::fs::read_dir(labs_dir()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", labs_dir().display())),
    };
    let mut labs: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| LabRecord::load(&name).ok())
        .collect();
    labs.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(labs)
}

/// Five characters that differ between processes, calls and times; a clash is found when the id is claimed.
fn fresh_id() -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // Every RandomState has keys of its own, from the system's random source.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(COUNT.fetch_add(1, Ordering::Relaxed));
    hasher.write_u32(std::process::id());
    let mut number = hasher.finish();
    (0..5)
        .map(|_| {
            let digit = u32::try_from(number % 36).unwrap_or(0);
            number /= 36;
            char::from_digit(digit, 36).unwrap_or('0')
        })
        .collect()
}
