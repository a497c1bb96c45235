//! What commands print that look at or change the cluster as a whole.

use serde::Serialize;
use weft_proto::v1;

use super::given;

/// What `network delete` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Deleted {
    pub(crate) deleted: String,
    /// The endpoints that were detached first.
    pub(crate) detached: Vec<Held>,
}

/// An endpoint that is gone, or is to go.
#[derive(Debug, Serialize)]
pub(crate) struct Held {
    pub(crate) network: String,
    pub(crate) node: String,
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    /// Without prefix length.
    pub(crate) addresses: Vec<String>,
}

impl From<v1::HeldEndpoint> for Held {
    fn from(held: v1::HeldEndpoint) -> Self {
        Self {
            network: held.network,
            node: held.node,
            id: held.id,
            name: given(held.name),
            addresses: held.addresses,
        }
    }
}

/// What `peer remove` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Removed {
    pub(crate) removed: String,
    /// The endpoints that were released.
    pub(crate) released: Vec<Held>,
    /// How many addresses were released that were claimed for endpoints that did not exist.
    pub(crate) stray_addresses: u64,
}

/// What `audit` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Audit {
    /// The revision at which all records were read.
    pub(crate) revision: i64,
    /// Whether nothing is wrong, or any more.
    pub(crate) clean: bool,
    pub(crate) networks: u64,
    pub(crate) endpoints: u64,
    /// Of them, those that their node's agent has yet to complete.
    pub(crate) pending_endpoints: u64,
    pub(crate) claims: u64,
    pub(crate) reservations: u64,
    pub(crate) vni_claims: u64,
    pub(crate) peers: u64,
    pub(crate) released_addresses: u64,
    /// What is wrong, and what was and has been mended.
    pub(crate) findings: Vec<Finding>,
}

/// Something that is wrong with the records.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) key: String,
    /// "claim_without_endpoint", …: a name for programs.
    pub(crate) kind: String,
    pub(crate) message: String,
    /// What a repair does if it is mendable, else what people have to do.
    pub(crate) remedy: String,
    pub(crate) mendable: bool,
    pub(crate) mended: bool,
}

impl Audit {
    /// Puts the parts of an answer together.
    pub(crate) fn new(findings: Vec<v1::AuditFinding>, summary: &v1::AuditSummary) -> Self {
        Self {
            revision: summary.revision,
            clean: summary.findings == 0,
            networks: summary.networks,
            endpoints: summary.endpoints,
            pending_endpoints: summary.pending_endpoints,
            claims: summary.claims,
            reservations: summary.reservations,
            vni_claims: summary.vni_claims,
            peers: summary.peers,
            released_addresses: summary.released_addresses,
            findings: findings.into_iter().map(Finding::from).collect(),
        }
    }
}

impl From<v1::AuditFinding> for Finding {
    fn from(finding: v1::AuditFinding) -> Self {
        Self {
            key: finding.key,
            kind: finding.kind,
            message: finding.message,
            remedy: finding.remedy,
            mendable: finding.mendable,
            mended: finding.mended,
        }
    }
}

/// What `resync --republish` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Republished {
    /// The records that were lost and are this host's to write.
    pub(crate) records: Vec<RepublishedRecord>,
    /// Other hosts whose records are still missing.
    pub(crate) nodes: Vec<String>,
}

/// A record that the store had lost.
#[derive(Debug, Serialize)]
pub(crate) struct RepublishedRecord {
    pub(crate) key: String,
    /// "written", "present" (somebody else has written it) or "conflict".
    pub(crate) outcome: String,
    /// What is in the way, of a conflict.
    pub(crate) message: Option<String>,
}

impl Republished {
    /// Whether some records could not be written.
    pub(crate) fn conflicts(&self) -> bool {
        self.records.iter().any(|record| record.outcome == "conflict")
    }
}

impl From<v1::RepublishResponse> for Republished {
    fn from(answer: v1::RepublishResponse) -> Self {
        let record = |record: v1::Republished| RepublishedRecord {
            outcome: match record.outcome() {
                v1::RepublishOutcome::Written => "written",
                v1::RepublishOutcome::Present => "present",
                v1::RepublishOutcome::Conflict => "conflict",
                v1::RepublishOutcome::Unspecified => "unknown",
            }
            .to_owned(),
            message: given(record.message),
            key: record.key,
        };
        Self {
            records: answer.records.into_iter().map(record).collect(),
            nodes: answer.nodes,
        }
    }
}
