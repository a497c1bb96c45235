//! `peers/<node>`: a host that carries endpoints, and where its tunnels end.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Family, Mtu, RecordError, document};

/// A peer as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "peers/<node>")]
pub struct PeerDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// VTEP addresses on the underlay: at most one IPv4 and one IPv6 address, at least one of them.
    #[schemars(length(min = 1, max = 2))]
    pub vteps: Vec<String>,
    /// MTU of the underlay interface in bytes; 1500 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65_535))]
    pub mtu: Option<u64>,
    /// `agent` (written by the node's own agent) or `external` (a VTEP that an operator describes).
    #[serde(default, skip_serializing_if = "PeerKind::is_agent")]
    pub kind: PeerKind,
    /// The kernel's boot id of the host, a UUID: tells a restart of the host from one of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Tells one life of the node in the cluster from the next: an agent that finds that it was removed meanwhile
    /// starts another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// Version of the agent that wrote the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
}

/// Who stands behind a peer record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// A host with an agent, which keeps the record itself.
    #[default]
    Agent,
    /// A VTEP without an agent, described by an operator.
    External,
}

impl PeerKind {
    fn is_agent(&self) -> bool {
        *self == Self::Agent
    }

    /// The kind as it is written in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::External => "external",
        }
    }
}

/// A valid peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The IPv4 VTEP address.
    pub v4: Option<IpAddr>,
    /// The IPv6 VTEP address; at least one of the two is there.
    pub v6: Option<IpAddr>,
    /// MTU of the underlay.
    pub mtu: Mtu,
    /// Who stands behind the record.
    pub kind: PeerKind,
    /// The host's boot id.
    pub boot_id: Option<Box<str>>,
    /// The node's life in the cluster.
    pub incarnation: Option<Box<str>>,
    /// Version of the agent.
    pub agent_version: Option<Box<str>>,
}

impl PeerDocument {
    /// Validates the document.
    ///
    /// # Errors
    /// The first field that is not allowed.
    pub fn validate(self) -> Result<Peer, RecordError> {
        document::check_version(self.version)?;
        let (mut v4, mut v6) = (None, None);
        for (i, text) in self.vteps.iter().enumerate() {
            let at = format!("vteps[{i}]");
            let shown: String = text.chars().take(80).collect();
            let address: IpAddr = text
                .parse()
                .map_err(|_| RecordError::field(&at, format!("{shown:?} is not an IP address")))?;
            if !is_vtep(address) {
                let why = format!(
                    "{address} cannot be a VTEP address: it is loopback, link-local, multicast, broadcast, \
                     unspecified or IPv4-mapped"
                );
                return Err(RecordError::field(at, why));
            }
            let slot = if address.is_ipv4() { &mut v4 } else { &mut v6 };
            if slot.replace(address).is_some() {
                return Err(RecordError::field(
                    at,
                    format!("a second {} address; one is allowed", Family::of(address)),
                ));
            }
        }
        if v4.or(v6).is_none() {
            return Err(RecordError::field(
                "vteps",
                "empty; give the host's IPv4 or IPv6 address on the underlay",
            ));
        }
        let mtu = match self.mtu {
            Some(n) => Mtu::new(n).ok_or_else(|| {
                RecordError::field("mtu", format!("{n} is not from {} to {}", Mtu::MIN, u16::MAX))
            })?,
            None => Mtu::ETHERNET,
        };
        let text = |field: &str, text: Option<String>| match text {
            Some(t) if t.len() > 128 || t.chars().any(char::is_control) => Err(RecordError::field(
                field,
                "longer than 128 bytes, or with control characters",
            )),
            other => Ok(other.map(Into::into)),
        };
        Ok(Peer {
            v4,
            v6,
            mtu,
            kind: self.kind,
            boot_id: text("boot_id", self.boot_id)?,
            incarnation: text("incarnation", self.incarnation)?,
            agent_version: text("agent_version", self.agent_version)?,
        })
    }
}

fn is_vtep(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local)
}

impl Peer {
    /// Decodes and validates a stored peer.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        document::decode::<PeerDocument>(bytes)?.validate()
    }

    /// The VTEP address of a family.
    pub fn vtep(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The VTEP addresses, IPv4 first.
    pub fn vteps(&self) -> impl Iterator<Item = IpAddr> {
        [self.v4, self.v6].into_iter().flatten()
    }
}

/// The mark that an operator's removal of a node leaves, as it is stored: an agent of that life of the node which comes
/// back knows by it that nothing of what it held is its own any more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "removed/<node>")]
pub struct RemovedDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// Which life of the node was ended: its peer record's `incarnation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// The node on which the operator asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// How many endpoints were released.
    pub endpoints: u64,
    /// Which endpoints those were, for people: `<network>/<id>` and the addresses, at most 100 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub held: Vec<String>,
}

impl RemovedDocument {
    /// Most endpoints that a mark names.
    pub const MOST_HELD: usize = 100;

    /// Decodes and validates a stored mark.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let document = document::decode::<Self>(bytes)?;
        document::check_version(document.version)?;
        Ok(document)
    }
}
