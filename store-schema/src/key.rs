//! The key layout: `<prefix>networks/<network>` and its siblings.

use std::{fmt, net::IpAddr};

use thiserror::Error;

use crate::{EndpointId, NameError, NetworkName, NodeName, Vni};

/// Why a key under our prefix is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Outside the prefix.
    #[error("the key is not under the prefix {0}")]
    Prefix(Prefix),
    /// Not UTF-8.
    #[error("the key is not UTF-8 text")]
    Utf8,
    /// No such kind of record, or a wrong number of parts.
    #[error(
        "no record has such a key; known are networks/<network>, endpoints/<network>/<node>/<id>, peers/<node>, \
         removed/<node>, addresses/<network>/<address>, released/<network>/<address>, vnis/<vni>, alive/<node>, \
         status/<node>, barriers/<network>/<node>/<id> and passed/<node>/<id>/<node>"
    )]
    Form,
    /// A part is not a valid name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The last part is not an address as it is written canonically.
    #[error("{0:?} is not an IP address in canonical form")]
    Address(String),
    /// The last part is not a VNI.
    #[error("{0:?} is not a VNI from 1 to 16777215")]
    Vni(String),
    /// The prefix itself is malformed.
    #[error(
        "prefix {0:?} is not valid: it starts and ends with '/', has no empty part and at most 200 characters"
    )]
    BadPrefix(String),
}

/// The prefix of every key of one cluster, `/weft/v1/` by default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix(String);

impl Default for Prefix {
    fn default() -> Self {
        Self("/weft/v1/".to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An endpoint's full name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointRef {
    /// The network.
    pub network: NetworkName,
    /// The host that carries it.
    pub node: NodeName,
    /// Its identity there.
    pub id: EndpointId,
}

impl fmt::Display for EndpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.node, self.id)
    }
}

/// A question of one node to all others, by who asks and a number of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarrierRef {
    /// The node that asks.
    pub node: NodeName,
    /// Unlike any other question of this node.
    pub id: EndpointId,
}

impl fmt::Display for BarrierRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.id)
    }
}

/// The kinds of records, each a directory below the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `networks/<network>`
    Networks,
    /// `vnis/<vni>`
    Vnis,
    /// `peers/<node>`
    Peers,
    /// `removed/<node>`
    Removed,
    /// `alive/<node>`
    Alive,
    /// `endpoints/<network>/<node>/<id>`
    Endpoints,
    /// `addresses/<network>/<address>`
    Addresses,
    /// `released/<network>/<address>`
    Released,
    /// `status/<node>`
    Status,
    /// `barriers/<network>/<node>/<id>`
    Barriers,
    /// `passed/<node>/<id>/<node>`
    Passed,
}

impl Kind {
    /// The directory's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Networks => "networks",
            Self::Vnis => "vnis",
            Self::Peers => "peers",
            Self::Removed => "removed",
            Self::Alive => "alive",
            Self::Endpoints => "endpoints",
            Self::Addresses => "addresses",
            Self::Released => "released",
            Self::Status => "status",
            Self::Barriers => "barriers",
            Self::Passed => "passed",
        }
    }
}

/// A key, without its prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A network's record.
    Network(NetworkName),
    /// A claim of a VNI.
    Vni(Vni),
    /// A peer's record.
    Peer(NodeName),
    /// The mark of a node that an operator has removed.
    Removed(NodeName),
    /// A node's presence.
    Alive(NodeName),
    /// An endpoint's record.
    Endpoint(EndpointRef),
    /// A claim of an address.
    Address(NetworkName, IpAddr),
    /// The trace of an address that was given up.
    Released(NetworkName, IpAddr),
    /// A node's status.
    Status(NodeName),
    /// The question whether all who take part in a network have caught up.
    Barrier(NetworkName, BarrierRef),
    /// A node's answer to such a question.
    Passed(BarrierRef, NodeName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "networks/{network}"),
            Self::Vni(vni) => write!(f, "vnis/{vni}"),
            Self::Peer(node) => write!(f, "peers/{node}"),
            Self::Removed(node) => write!(f, "removed/{node}"),
            Self::Alive(node) => write!(f, "alive/{node}"),
            Self::Endpoint(endpoint) => write!(f, "endpoints/{endpoint}"),
            Self::Address(network, address) => write!(f, "addresses/{network}/{address}"),
            Self::Released(network, address) => write!(f, "released/{network}/{address}"),
            Self::Status(node) => write!(f, "status/{node}"),
            Self::Barrier(network, barrier) => write!(f, "barriers/{network}/{barrier}"),
            Self::Passed(barrier, node) => write!(f, "passed/{barrier}/{node}"),
        }
    }
}

impl Prefix {
    /// Parses a prefix; a missing slash at either end is added.
    ///
    /// # Errors
    /// When it is empty, has an empty part, control characters or more than 200 characters.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        let inner = text.trim_matches('/');
        let whole = format!("/{inner}/");
        let valid = !inner.is_empty()
            && whole.len() <= 200
            && inner
                .split('/')
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic()));
        if valid {
            Ok(Self(whole))
        } else {
            Err(KeyError::BadPrefix(text.chars().take(200).collect()))
        }
    }

    /// The prefix as text, with a slash at both ends.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full key.
    pub fn key(&self, key: &Key) -> String {
        format!("{}{key}", self.0)
    }

    /// The directory of all records of a kind, with a slash at the end.
    pub fn all(&self, kind: Kind) -> String {
        format!("{}{}/", self.0, kind.as_str())
    }

    /// The directory of a network's endpoints on all nodes.
    pub fn endpoints_of(&self, network: &NetworkName) -> String {
        format!("{}endpoints/{network}/", self.0)
    }

    /// The directory of a network's endpoints on one node.
    pub fn endpoints_on(&self, network: &NetworkName, node: &NodeName) -> String {
        format!("{}endpoints/{network}/{node}/", self.0)
    }

    /// The directory of a network's address claims.
    pub fn addresses_of(&self, network: &NetworkName) -> String {
        format!("{}addresses/{network}/", self.0)
    }

    /// The directory of the traces of addresses that were given up in a network.
    pub fn released_of(&self, network: &NetworkName) -> String {
        format!("{}released/{network}/", self.0)
    }

    /// The directory of the questions to all who take part in a network.
    pub fn barriers_of(&self, network: &NetworkName) -> String {
        format!("{}barriers/{network}/", self.0)
    }

    /// The directory of the answers to a node's questions.
    pub fn passed_to(&self, node: &NodeName) -> String {
        format!("{}passed/{node}/", self.0)
    }

    /// The directory of the answers to one question.
    pub fn passed_of(&self, barrier: &BarrierRef) -> String {
        format!("{}passed/{barrier}/", self.0)
    }

    /// Parses a full key.
    ///
    /// # Errors
    /// When the bytes are not a key of ours; the error says which part is at fault.
    pub fn parse(&self, key: &[u8]) -> Result<Key, KeyError> {
        let rest = key
            .strip_prefix(self.0.as_bytes())
            .ok_or_else(|| KeyError::Prefix(self.clone()))?;
        let rest = std::str::from_utf8(rest).map_err(|_| KeyError::Utf8)?;
        let mut parts = rest.split('/');
        let parts = [
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ];
        Ok(match parts {
            [Some("networks"), Some(network), None, ..] => Key::Network(NetworkName::new(network)?),
            [Some("vnis"), Some(vni), None, ..] => Key::Vni(parse_vni(vni)?),
            [Some("peers"), Some(node), None, ..] => Key::Peer(NodeName::new(node)?),
            [Some("removed"), Some(node), None, ..] => Key::Removed(NodeName::new(node)?),
            [Some("alive"), Some(node), None, ..] => Key::Alive(NodeName::new(node)?),
            [Some("status"), Some(node), None, ..] => Key::Status(NodeName::new(node)?),
            [Some("addresses"), Some(network), Some(address), None, ..] => {
                Key::Address(NetworkName::new(network)?, parse_address(address)?)
            }
            [Some("released"), Some(network), Some(address), None, ..] => {
                Key::Released(NetworkName::new(network)?, parse_address(address)?)
            }
            [Some("barriers"), Some(network), Some(node), Some(id), None] => {
                Key::Barrier(NetworkName::new(network)?, barrier(node, id)?)
            }
            [Some("passed"), Some(asking), Some(id), Some(node), None] => {
                Key::Passed(barrier(asking, id)?, NodeName::new(node)?)
            }
            [Some("endpoints"), Some(network), Some(node), Some(id), None] => Key::Endpoint(EndpointRef {
                network: NetworkName::new(network)?,
                node: NodeName::new(node)?,
                id: EndpointId::new(id)?,
            }),
            _ => return Err(KeyError::Form),
        })
    }
}

fn barrier(node: &str, id: &str) -> Result<BarrierRef, KeyError> {
    Ok(BarrierRef {
        node: NodeName::new(node)?,
        id: EndpointId::new(id)?,
    })
}

/// One address has one key: `fd00:0::1` beside `fd00::1` would let two holders in.
fn parse_address(text: &str) -> Result<IpAddr, KeyError> {
    let bad = || KeyError::Address(text.chars().take(80).collect());
    let address: IpAddr = text.parse().map_err(|_| bad())?;
    if address.to_string() == text {
        Ok(address)
    } else {
        Err(bad())
    }
}

fn parse_vni(text: &str) -> Result<Vni, KeyError> {
    let bad = || KeyError::Vni(text.chars().take(40).collect());
    let vni = text.parse().ok().and_then(Vni::new).ok_or_else(bad)?;
    if vni.to_string() == text {
        Ok(vni)
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_as_written() {
        let prefix = Prefix::default();
        for text in [
            "networks/blue",
            "vnis/16777215",
            "peers/host1",
            "alive/host1",
            "status/host1",
            "endpoints/blue/host1/web",
            "addresses/blue/10.1.0.2",
            "addresses/blue/fd00::2",
            "released/blue/10.1.0.2",
            "removed/host1",
            "barriers/blue/host1/b1",
            "passed/host1/b1/host2",
        ] {
            let full = format!("/weft/v1/{text}");
            let key = prefix.parse(full.as_bytes()).unwrap();
            assert_eq!(prefix.key(&key), full);
        }
    }

    #[test]
    fn what_is_not_a_key_says_why() {
        let prefix = Prefix::default();
        for (text, want) in [
            ("/other/networks/blue", "not under the prefix"),
            ("/weft/v1/", "no record has such a key"),
            ("/weft/v1/networks", "no record has such a key"),
            ("/weft/v1/networks/", "network name"),
            ("/weft/v1/networks/a/b", "no record has such a key"),
            ("/weft/v1/endpoints/blue/host1", "no record has such a key"),
            ("/weft/v1/endpoints/blue/host1/a/b", "no record has such a key"),
            (
                "/weft/v1/endpoints/blue/host1/a/b/c/d",
                "no record has such a key",
            ),
            ("/weft/v1/endpoints/blue/../web", "node name"),
            ("/weft/v1/addresses/blue/10.1.0", "canonical"),
            ("/weft/v1/addresses/blue/fd00:0::2", "canonical"),
            ("/weft/v1/vnis/007", "VNI"),
            ("/weft/v1/vnis/16777216", "VNI"),
        ] {
            let error = prefix.parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        assert_eq!(prefix.parse(b"/weft/v1/networks/\xff"), Err(KeyError::Utf8));
    }

    #[test]
    fn prefixes() {
        assert_eq!(Prefix::new("a/b").unwrap().as_str(), "/a/b/");
        assert_eq!(Prefix::new("/weft/v1/").unwrap(), Prefix::default());
        for bad in ["", "/", "//", "/a//b/", "/a b/", "/a\n/", &"x".repeat(199)] {
            assert!(Prefix::new(bad).is_err(), "{bad:?}");
        }
    }
}
