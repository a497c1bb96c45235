//! `alive/<node>` and `status/<node>`: what an agent tells people about itself, under its lease. Nothing
//! is ever decided from these.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
