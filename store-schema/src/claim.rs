//! `addresses/<network>/<address>` and `vnis/<vni>`: who holds what, created by compare-and-swap.

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
    /// The holder in this network: `<node>/<id>`.
    pub endpoint: String,
}

/// A valid claim of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressClaim {
    /// The node of the endpoint that holds the address.
    pub node: NodeName,
    /// The endpoint's identity there.
    pub id: EndpointId,
}

impl AddressClaimDocument {
    /// The claim of an endpoint.
    pub fn of(node: &NodeName, id: &EndpointId) -> Self {
        Self {
            version: None,
            endpoint: format!("{node}/{id}"),
        }
    }

    /// Validates the document.
    ///
    /// # Errors
    /// When the holder is not `<node>/<id>`.
    pub fn validate(self) -> Result<AddressClaim, RecordError> {
        document::check_version(self.version)?;
        let (node, id) = self
            .endpoint
            .split_once('/')
            .ok_or_else(|| RecordError::field("endpoint", "not of the form <node>/<id>"))?;
        Ok(AddressClaim {
            node: NodeName::new(node).map_err(|e| RecordError::field("endpoint", e))?,
            id: EndpointId::new(id).map_err(|e| RecordError::field("endpoint", e))?,
        })
    }
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
