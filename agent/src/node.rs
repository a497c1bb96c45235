//! What this host is: its name, its boot, its place on the underlay.

use std::{fmt, fs, io, net::IpAddr, path::PathBuf, time::Duration, time::Instant, time::SystemTime};

use weft_kernel::UnderlaySelection;
use weft_store_schema::{AliveDocument, NodeName, PeerDocument};

use crate::config::Config;

/// The agent's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What of this host does not change while the agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Its name in the cluster.
    pub(crate) name: NodeName,
    /// The kernel's boot id.
    pub(crate) boot_id: String,
    /// When the agent started, by the time of day as it was then.
    pub(crate) started: SystemTime,
    /// The same by a clock that nobody sets.
    pub(crate) begun: Instant,
    /// UDP port of all VTEPs.
    pub(crate) port: u16,
    /// How the underlay is found.
    pub(crate) underlay: UnderlaySelection,
    /// The MTU that was given for it.
    pub(crate) mtu: Option<u16>,
    /// Where the networks' namespaces are.
    pub(crate) netns_dir: PathBuf,
    /// Time between two comparisons of everything.
    pub(crate) resync: Duration,
    /// How long the namespace of an endpoint's container has to be gone.
    pub(crate) dead_grace: Duration,
    /// Whether such endpoints are detached.
    pub(crate) release_dead: bool,
}

impl Node {
    /// Reads what has to be read.
    ///
    /// # Errors
    /// When the kernel does not tell its boot id.
    pub(crate) fn new(config: &Config) -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        Ok(Self {
            name: config.node.clone(),
            boot_id,
            started: SystemTime::now(),
            begun: Instant::now(),
            port: config.underlay.port,
            underlay: UnderlaySelection {
                interface: config.underlay.interface.clone(),
                addresses: config.underlay.addresses.clone(),
            },
            mtu: config.underlay.mtu,
            netns_dir: config.netns_dir.clone(),
            resync: config.resync,
            dead_grace: config.dead_grace,
            release_dead: config.release_dead,
        })
    }

    /// What says that this agent runs.
    pub(crate) fn alive_document(&self) -> AliveDocument {
        let since = self.started.duration_since(SystemTime::UNIX_EPOCH);
        AliveDocument {
            boot_id: self.boot_id.clone(),
            since: since.map_or(0, |d| d.as_secs()),
            agent_version: VERSION.to_owned(),
        }
    }

    /// What this node's peer record should say in this life.
    pub(crate) fn peer_document(&self, underlay: &Underlay, incarnation: &str) -> PeerDocument {
        PeerDocument {
            vteps: [underlay.v4, underlay.v6]
                .into_iter()
                .flatten()
                .map(|a| a.to_string())
                .collect(),
            mtu: Some(underlay.mtu.into()),
            boot_id: Some(self.boot_id.clone()),
            incarnation: Some(incarnation.to_owned()),
            agent_version: Some(VERSION.to_owned()),
            ..PeerDocument::default()
        }
    }
}

/// This host's place on the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Underlay {
    /// The interface.
    pub(crate) ifname: String,
    /// IPv4 VTEP address.
    pub(crate) v4: Option<IpAddr>,
    /// IPv6 VTEP address.
    pub(crate) v6: Option<IpAddr>,
    /// MTU in bytes.
    pub(crate) mtu: u16,
}

impl Underlay {
    /// What the kernel found, with the MTU that was given instead of the interface's if one was.
    pub(crate) fn new(found: weft_kernel::Underlay, node: &Node) -> Self {
        Self {
            ifname: found.ifname,
            v4: found.v4,
            v6: found.v6,
            mtu: node.mtu.unwrap_or(found.mtu),
        }
    }
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vteps: Vec<String> = [self.v4, self.v6]
            .into_iter()
            .flatten()
            .map(|a| a.to_string())
            .collect();
        write!(f, "{} ({}), MTU {}", vteps.join(", "), self.ifname, self.mtu)
    }
}
