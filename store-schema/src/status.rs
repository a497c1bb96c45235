//! What agents say under leases: `alive/<node>` and `status/<node>` about themselves, from which nothing is ever
//! decided; `barriers/…` and `passed/…` to ask, and tell, how far all who take part in a network have got.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{RecordError, document};

/// A node's presence; gone when the agent's lease ends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "alive/<node>")]
pub struct AliveDocument {
    /// The kernel's boot id of the host.
    pub boot_id: String,
    /// When the agent started, seconds since 1970-01-01 UTC.
    pub since: u64,
    /// Version of the agent.
    pub agent_version: String,
}

/// A node's report, rewritten at most once a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "status/<node>")]
pub struct StatusDocument {
    /// The store revision up to which every record is in the kernel.
    pub applied_revision: i64,
    /// Networks on this host.
    pub networks: u64,
    /// Endpoints on this host.
    pub local_endpoints: u64,
    /// Endpoints elsewhere that this host forwards to.
    pub remote_endpoints: u64,
    /// What is wrong, an entry an object; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<StatusProblem>,
    /// Problems in all, also those beyond the first 100.
    pub problem_count: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusProblem {
    /// The record's key, without the prefix.
    pub key: String,
    /// The record's field, if one is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// A question to all who take part in a network: have you programmed everything up to this record's revision?
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "barriers/<network>/<node>/<id>")]
pub struct BarrierDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// The lease of whoever asks; the answers are put under it too.
    pub lease: i64,
}

impl BarrierDocument {
    /// Decodes and validates a stored question.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let document = document::decode::<Self>(bytes)?;
        document::check_version(document.version)?;
        Ok(document)
    }
}

/// The answer: yes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "passed/<node>/<id>/<node>")]
pub struct PassedDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// The store revision up to which every record is in the answering host's kernel.
    pub applied_revision: i64,
}
