//! `endpoints/<network>/<node>/<id>`: one interface of one container in one network.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Addresses, IfName, Mac, RecordError, document};

/// The interface's name inside the container when the record gives none.
pub const DEFAULT_IFNAME: &str = "eth0";

/// An endpoint as it is stored.
///
/// The least is `{"attachment":{"netns":"/run/netns/web"}}`; the node's agent adds addresses and MAC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "endpoints/<network>/<node>/<id>")]
pub struct EndpointDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// A name for people, 1 to 63 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the endpoint's interface is.
    #[serde(deserialize_with = "document::object")]
    pub attachment: AttachmentDocument,
    /// Addresses wished for; free ones are chosen for the families (of the network) not named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub requested_addresses: Vec<String>,
    /// Addresses held, each with its claim; filled in by the node's agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,
    /// The interface's MAC address; when absent, `02:42:` and the low 32 bits of the first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The operator's own notes; weft only shows them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Where an endpoint's interface is, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttachmentDocument {
    /// Path of the container's network namespace on its host, directly inside one of the directories that
    /// the host's agent allows (by default `/run/netns`, `/var/run/netns` and `/run/docker/netns`).
    pub netns: String,
    /// The interface's name in the container; `eth0` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub ifname: Option<String>,
}

/// A valid endpoint. An agent holds every one of the networks that its host takes part in, so it is kept small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Addresses held (or, in a record written by hand, said to be held), no two the same.
    pub addresses: Addresses,
    /// The MAC, once known.
    pub mac: Option<Mac>,
    texts: Texts,
    /// Boxed because nearly every record has none of it.
    rest: Option<Box<Rest>>,
}

/// What few endpoints have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rest {
    requested: Vec<IpAddr>,
    labels: BTreeMap<String, String>,
}

/// What only the endpoint's own host needs, and whoever lists it: where the interface is, the interface's name if it is not
/// the usual one, and the name for people, one after another. None of them holds a control character.
#[derive(Clone, PartialEq, Eq)]
struct Texts(Box<str>);

const BETWEEN: char = '\0';

/// A container's network namespace and the interface in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// Absolute, without `.` or `..`; whether it lies where it may is the agent's to check.
    pub netns: Box<str>,
    /// The interface's name in the container.
    pub ifname: IfName,
}

const MAX_ADDRESSES: usize = 16;

impl EndpointDocument {
    /// Validates the document.
    ///
    /// # Errors
    /// The first field that is not allowed.
    pub fn validate(self) -> Result<Endpoint, RecordError> {
        document::check_version(self.version)?;
        if let Some(name) = &self.name {
            // It becomes part of the interface's alias and of tables in terminals.
            if !(1..=63).contains(&name.chars().count()) || name.chars().any(char::is_control) {
                return Err(RecordError::field(
                    "name",
                    "not 1 to 63 characters, none a control character",
                ));
            }
        }
        let texts = Texts::new(&self.attachment.validate()?, self.name.as_deref());
        let rest = Rest {
            requested: addresses("requested_addresses", &self.requested_addresses)?,
            labels: self.labels,
        };
        Ok(Endpoint {
            texts,
            addresses: addresses("addresses", &self.addresses)?.into(),
            mac: self
                .mac
                .map(|text| text.parse().map_err(|e| RecordError::field("mac", e)))
                .transpose()?,
            rest: (rest != Rest::default()).then(|| Box::new(rest)),
        })
    }
}

impl AttachmentDocument {
    fn validate(self) -> Result<Attachment, RecordError> {
        let field = "attachment.netns";
        let path = PathBuf::from(&self.netns);
        let plain = path.is_absolute()
            && self.netns.len() <= 4095
            && !self.netns.chars().any(char::is_control)
            && path.file_name().is_some()
            && self.netns[1..]
                .split('/')
                .all(|part| !matches!(part, "" | "." | ".."));
        if !plain {
            let shown: String = self.netns.chars().take(80).collect();
            let why = format!(
                "{shown:?} is not an absolute path without empty, '.' or '..' parts, such as /run/netns/web"
            );
            return Err(RecordError::field(field, why));
        }
        let ifname = match self.ifname.as_deref() {
            None => Ok(IfName::usual()),
            Some(given) => IfName::new(given),
        };
        let ifname = ifname.map_err(|e| RecordError::field("attachment.ifname", e))?;
        Ok(Attachment {
            netns: self.netns.into(),
            ifname,
        })
    }
}

fn addresses(field: &str, texts: &[String]) -> Result<Vec<IpAddr>, RecordError> {
    if texts.len() > MAX_ADDRESSES {
        return Err(RecordError::field(
            field,
            format!("{} addresses; at most {MAX_ADDRESSES} are allowed", texts.len()),
        ));
    }
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let at = || format!("{field}[{i}]");
        let address: IpAddr = text.parse().map_err(|_| {
            let shown: String = text.chars().take(80).collect();
            RecordError::field(
                at(),
                format!(
                    "{shown:?} is not an address such as 10.1.0.9 or fd00:1::9 (without a prefix length)"
                ),
            )
        })?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(RecordError::field(
                at(),
                format!("{address} is not a unicast address of a network"),
            ));
        }
        if addresses.contains(&address) {
            return Err(RecordError::field(at(), format!("{address} is named twice")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

impl Texts {
    fn new(attachment: &Attachment, name: Option<&str>) -> Self {
        let ifname = match attachment.ifname.as_str() {
            DEFAULT_IFNAME => "",
            other => other,
        };
        let name = name.unwrap_or_default();
        Self(format!("{}{BETWEEN}{ifname}{BETWEEN}{name}", attachment.netns).into())
    }

    fn get(&self) -> [&str; 3] {
        let mut parts = self.0.splitn(3, BETWEEN);
        [(); 3].map(|()| parts.next().unwrap_or_default())
    }
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}

impl Endpoint {
    /// A name for people.
    pub fn name(&self) -> Option<&str> {
        let [.., name] = self.texts.get();
        Some(name).filter(|name| !name.is_empty())
    }

    /// Addresses wished for.
    pub fn requested(&self) -> &[IpAddr] {
        self.rest.as_ref().map_or(&[], |rest| &rest.requested)
    }

    /// The operator's notes.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.rest.iter().flat_map(|rest| &rest.labels);
        all.map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Path of the container's network namespace.
    pub fn netns(&self) -> &str {
        let [netns, ..] = self.texts.get();
        netns
    }

    /// Where the interface is.
    pub fn attachment(&self) -> Attachment {
        let [netns, ifname, _] = self.texts.get();
        Attachment {
            netns: netns.into(),
            ifname: IfName::new(ifname).unwrap_or_else(|_| IfName::usual()),
        }
    }

    /// Decodes and validates a stored endpoint.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        document::decode::<EndpointDocument>(bytes)?.validate()
    }
}
