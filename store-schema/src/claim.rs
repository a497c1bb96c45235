//! `addresses/<network>/<address>` and `vnis/<vni>`: who holds what, created by compare-and-swap; and
//! `released/<network>/<address>`: who held it last.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{EndpointId, NetworkName, NodeName, RecordError, document};

/// The claim of an address as it is stored. The key's existence is the claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "addresses/<network>/<address>")]
pub struct AddressClaimDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// The endpoint in this network that holds the address: `<node>/<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Instead of an endpoint, the reservation that holds the address: `<node>/<id>`, of the node that made it. Such a
    /// claim lies under a lease, and is gone if no endpoint takes it over in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<String>,
}

/// A valid claim of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressClaim {
    /// What kind of thing holds the address.
    pub holder: Holder,
    /// The node of the endpoint that holds the address, or that reserved it.
    pub node: NodeName,
    /// The endpoint's or reservation's identity there.
    pub id: EndpointId,
}

/// What holds an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// An endpoint.
    Endpoint,
    /// A reservation: somebody who is about to make an endpoint.
    Reservation,
}

impl AddressClaimDocument {
    /// The claim of an endpoint.
    pub fn of(node: &NodeName, id: &EndpointId) -> Self {
        Self {
            endpoint: Some(format!("{node}/{id}")),
            ..Self::default()
        }
    }

    /// The claim of a reservation.
    pub fn reserved(node: &NodeName, id: &EndpointId) -> Self {
        Self {
            reservation: Some(format!("{node}/{id}")),
            ..Self::default()
        }
    }

    /// Validates the document.
    ///
    /// # Errors
    /// When the holder is not `<node>/<id>`, or there is none or more than one.
    pub fn validate(self) -> Result<AddressClaim, RecordError> {
        document::check_version(self.version)?;
        let (holder, field, text) = match (self.endpoint, self.reservation) {
            (Some(text), None) => (Holder::Endpoint, "endpoint", text),
            (None, Some(text)) => (Holder::Reservation, "reservation", text),
            (None, None) => return Err(RecordError::field("endpoint", "is missing")),
            (Some(_), Some(_)) => {
                return Err(RecordError::field(
                    "reservation",
                    "given beside an endpoint; one holder is allowed",
                ));
            }
        };
        let (node, id) = node_and_id(field, &text)?;
        Ok(AddressClaim { holder, node, id })
    }
}

fn node_and_id(field: &str, text: &str) -> Result<(NodeName, EndpointId), RecordError> {
    let (node, id) = text
        .split_once('/')
        .ok_or_else(|| RecordError::field(field, "not of the form <node>/<id>"))?;
    let node = NodeName::new(node).map_err(|e| RecordError::field(field, e))?;
    let id = EndpointId::new(id).map_err(|e| RecordError::field(field, e))?;
    Ok((node, id))
}

impl AddressClaim {
    /// Decodes and validates a stored claim.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        document::decode::<AddressClaimDocument>(bytes)?.validate()
    }
}

/// The trace of an address that was given up, as it is stored: the older, the sooner the address is given out again.
/// Deleted by whoever claims the address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "released/<network>/<address>")]
pub struct ReleasedDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// Who held it last: `<node>/<id>`. Informs people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl ReleasedDocument {
    /// The trace that an endpoint leaves.
    pub fn of(node: &NodeName, id: &EndpointId) -> Self {
        Self {
            version: None,
            endpoint: Some(format!("{node}/{id}")),
        }
    }

    /// Decodes and validates a stored trace.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let document = document::decode::<Self>(bytes)?;
        document::check_version(document.version)?;
        Ok(document)
    }
}

/// The claim of a VNI as it is stored. The key's existence is the claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "vnis/<vni>")]
pub struct VniClaimDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// The network that holds the VNI.
    pub network: String,
}

impl VniClaimDocument {
    /// The claim of a network.
    pub fn of(network: &NetworkName) -> Self {
        Self {
            version: None,
            network: network.to_string(),
        }
    }
}

/// A valid claim of a VNI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VniClaim {
    /// The network that holds the VNI.
    pub network: NetworkName,
}

impl VniClaim {
    /// Decodes and validates a stored claim.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let document = document::decode::<VniClaimDocument>(bytes)?;
        document::check_version(document.version)?;
        Ok(Self {
            network: NetworkName::new(&document.network).map_err(|e| RecordError::field("network", e))?,
        })
    }
}
