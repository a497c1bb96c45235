//! What can go wrong, and whom it concerns. Pure.

use std::fmt;

use weft_storm::choice as storm;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// What a storm has, too: agents and members of etcd killed and paused, cuts.
    Storm(storm::Kind),
    /// An agent is stopped by SIGTERM and started again later.
    StopAgent {
        /// Host, from 1.
        host: usize,
    },
    /// Another agent is started beside the one that runs.
    SecondAgent {
        /// Host, from 1.
        host: usize,
    },
    /// A host loses power: its agent and everything of weft's in its kernel are gone; it comes back.
    Reboot {
        /// Host, from 1.
        host: usize,
    },
    /// Every member of etcd is killed.
    AllMembers,
    /// The store is compacted up to the present, this many times.
    Compact {
        /// How often.
        times: u32,
    },
    /// Every lease in the store is revoked.
    RevokeLeases,
    /// This many endpoints are written to the store at once, and deleted later.
    Burst {
        /// Host that they are for, from 1.
        host: usize,
        /// How many.
        endpoints: usize,
    },
    /// The record of an endpoint that talks is rewritten all the time.
    Flap {
        /// Its host, from 1.
        host: usize,
    },
    /// Keys that make no sense are written, and deleted later.
    Garbage {
        /// Decides which.
        salt: u64,
        /// How many.
        keys: usize,
    },
    /// A record that is in use is overwritten with something that makes no sense, or deleted, and put back later.
    Spoil {
        /// Which.
        what: InUse,
        /// Decides with what; `None` deletes it.
        salt: Option<u64>,
    },
    /// Somebody deletes and alters objects of weft's in a host's kernel.
    Drift {
        /// Host, from 1.
        host: usize,
        /// In the network of the steady traffic, or in one of the workers'.
        steady: bool,
        /// Decides which objects.
        salt: u64,
        /// How many times.
        blows: usize,
    },
    /// A host's cable is unplugged.
    Unplug {
        /// Host, from 1.
        host: usize,
    },
    /// A container ends without being detached; it is detached later.
    ContainerGone {
        /// Its host, from 1.
        host: usize,
        /// Before that another one is started under the same path.
        again: bool,
    },
    /// A host's underlay gets another MTU.
    Mtu {
        /// Host, from 1.
        host: usize,
        /// In bytes.
        mtu: u16,
    },
}

/// A record that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InUse {
    /// The network of the steady traffic.
    Network,
    /// The endpoint of the steady traffic on a host.
    Endpoint(usize),
    /// A host's peer record.
    Peer(usize),
}

/// Names of the kinds that a storm has not.
pub const KINDS: [&str; 17] = [
    "agent stopped and started",
    "agent started twice",
    "host rebooted",
    "all etcd members killed",
    "store compacted",
    "all leases revoked",
    "burst of records",
    "record flapping",
    "garbage records",
    "endpoint record spoiled",
    "network record spoiled",
    "peer record spoiled",
    "record in use deleted",
    "drift",
    "host unplugged",
    "container gone",
    "underlay MTU changed",
];

impl Kind {
    /// What it is counted as.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let number = match self {
            Self::Storm(kind) => return kind.name(),
            Self::StopAgent { .. } => 0,
            Self::SecondAgent { .. } => 1,
            Self::Reboot { .. } => 2,
            Self::AllMembers => 3,
            Self::Compact { .. } => 4,
            Self::RevokeLeases => 5,
            Self::Burst { .. } => 6,
            Self::Flap { .. } => 7,
            Self::Garbage { .. } => 8,
            Self::Spoil { salt: None, .. } => 12,
            Self::Spoil { what, .. } => match what {
                InUse::Endpoint(_) => 9,
                InUse::Network => 10,
                InUse::Peer(_) => 11,
            },
            Self::Drift { .. } => 13,
            Self::Unplug { .. } => 14,
            Self::ContainerGone { .. } => 15,
            Self::Mtu { .. } => 16,
        };
        KINDS[number]
    }

    /// The host whose part of the steady traffic may lose packets by it. All other traffic must not lose any, by this
    /// or any other fault: it needs neither agents nor etcd.
    #[must_use]
    pub fn concerns(&self) -> Option<usize> {
        match self {
            Self::Reboot { host }
            | Self::Unplug { host }
            | Self::Drift {
                host, steady: true, ..
            } => Some(*host),
            _ => None,
        }
    }

    /// The host on which it is at weft's own objects.
    #[must_use]
    pub fn disturbs(&self) -> Option<usize> {
        match self {
            Self::Reboot { host } | Self::Drift { host, .. } => Some(*host),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storm(kind) => write!(f, "{kind}"),
            Self::StopAgent { host } => write!(f, "SIGTERM of host{host}'s agent"),
            Self::SecondAgent { host } => write!(f, "a second agent on host{host}"),
            Self::Reboot { host } => write!(f, "reboot of host{host}"),
            Self::AllMembers => write!(f, "kill -9 of all members"),
            Self::Compact { times } => write!(f, "{times} × compaction"),
            Self::RevokeLeases => write!(f, "all leases revoked"),
            Self::Burst { host, endpoints } => write!(f, "{endpoints} endpoints for host{host} at once"),
            Self::Flap { host } => write!(f, "the steady endpoint's record of host{host} flapping"),
            Self::Garbage { salt, keys } => write!(f, "{keys} keys of garbage #{salt:x}"),
            Self::Spoil { what, salt } => {
                match what {
                    InUse::Network => write!(f, "the steady network's record")?,
                    InUse::Endpoint(host) => write!(f, "the steady endpoint's record of host{host}")?,
                    InUse::Peer(host) => write!(f, "the peer record of host{host}")?,
                }
                match salt {
                    Some(salt) => write!(f, " overwritten with garbage #{salt:x}"),
                    None => write!(f, " deleted"),
                }
            }
            Self::Drift {
                host,
                steady,
                salt,
                blows,
            } => {
                let network = if *steady {
                    "the steady network"
                } else {
                    "a worker's network"
                };
                write!(f, "{blows} × drift #{salt:x} in {network} on host{host}")
            }
            Self::Unplug { host } => write!(f, "host{host} unplugged"),
            Self::ContainerGone { host, again } => {
                let again = if *again { " and another under its path" } else { "" };
                write!(f, "a container gone{again} on host{host}")
            }
            Self::Mtu { host, mtu } => write!(f, "MTU of host{host}'s underlay {mtu}"),
        }
    }
}
