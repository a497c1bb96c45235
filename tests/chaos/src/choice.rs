//! What can go wrong, and whom it concerns. Pure.

use std::fmt;

use weft_lab::Mode;
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
    /// A host is cut from etcd, and what happens meanwhile is compacted away before it is back.
    CompactUnseen {
        /// Host, from 1.
        host: usize,
    },
    /// etcd says that its database is full.
    NoSpace,
    /// One command deletes much of what is in use; it comes back, or is confirmed.
    Slip(Slip),
    /// An agent reaches etcd through proxies that do this.
    Proxied {
        /// Host, from 1.
        host: usize,
        /// What they do.
        how: Mode,
    },
    /// An agent's time of day jumps.
    Clock {
        /// Host, from 1.
        host: usize,
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
    /// Something is done to a host's underlay interface.
    Underlay {
        /// Host, from 1.
        host: usize,
        /// What.
        how: Way,
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

/// What is done to an underlay interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It goes down and up again, this many times.
    Flaps(u32),
    /// It is deleted, and made anew later.
    MadeAnew,
    /// It gets other addresses, and its own again later.
    Renumbered,
}

/// A slip, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slip {
    /// What it deletes.
    pub part: Part,
    /// How it ends.
    pub ending: Ending,
    /// Hosts with endpoints in two networks that are made for it, from 1.
    pub hosts: [usize; 2],
}

/// What a slip deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The endpoints of the two networks that are made for it.
    Own,
    /// All endpoints.
    Endpoints,
    /// All networks.
    Networks,
    /// All peers.
    Peers,
    /// Everything.
    All,
}

impl Part {
    /// What all keys that it deletes begin with.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Own => "/weft/v1/endpoints/slip",
            Self::Endpoints => "/weft/v1/endpoints/",
            Self::Networks => "/weft/v1/networks/",
            Self::Peers => "/weft/v1/peers/",
            Self::All => "/weft/v1/",
        }
    }
}

/// How a slip ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Somebody puts back what was deleted.
    Back,
    /// `weft resync --republish` on each host.
    Republish,
    /// `weft resync --accept` on each host that holds.
    Accept,
}

impl Ending {
    fn words(self) -> &'static str {
        match self {
            Self::Back => "put back",
            Self::Republish => "republished",
            Self::Accept => "accepted",
        }
    }
}

/// Names of the kinds that a storm has not.
pub const KINDS: [&str; 27] = [
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
    "compacted while cut off",
    "etcd out of space",
    "slip in two networks",
    "slip across all networks",
    "etcd far away",
    "etcd stalling",
    "clock jumping",
    "underlay flapping",
    "underlay made anew",
    "VTEP address changed",
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
            Self::CompactUnseen { .. } => 17,
            Self::NoSpace => 18,
            Self::Slip(slip) if slip.part == Part::Own => 19,
            Self::Slip(_) => 20,
            Self::Proxied {
                how: Mode::Delay(_), ..
            } => 21,
            Self::Proxied { .. } => 22,
            Self::Clock { .. } => 23,
            Self::Underlay { how, .. } => match how {
                Way::Flaps(_) => 24,
                Way::MadeAnew => 25,
                Way::Renumbered => 26,
            },
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
            | Self::Underlay { host, .. }
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
            Self::CompactUnseen { host } => {
                write!(
                    f,
                    "host{host} cut from etcd and all that it has not seen compacted"
                )
            }
            Self::NoSpace => write!(f, "etcd out of space"),
            Self::Slip(Slip {
                part,
                ending,
                hosts: [one, other],
            }) => {
                let (prefix, ends) = (part.prefix(), ending.words());
                write!(f, "del --prefix {prefix}, {ends} (host{one}, host{other})")
            }
            Self::Proxied { host, how } => write!(f, "host{host} reaches etcd through proxies ({how:?})"),
            Self::Clock { host } => write!(f, "the clock of host{host}'s agent jumping"),
            Self::Underlay { host, how } => match how {
                Way::Flaps(times) => write!(f, "{times} × host{host}'s underlay down and up"),
                Way::MadeAnew => write!(f, "host{host}'s underlay made anew"),
                Way::Renumbered => write!(f, "other underlay addresses for host{host}"),
            },
            Self::Mtu { host, mtu } => write!(f, "MTU of host{host}'s underlay {mtu}"),
        }
    }
}
