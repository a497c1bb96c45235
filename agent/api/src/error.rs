//! Why a call failed, and how that travels: a gRPC status with typed details, so that programs need not read
//! prose.
//!
//! In: errors of the agent, each naming its subject. Out: [`tonic::Status`]. It must not know where they come
//! from.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `domain` of every `google.rpc.ErrorInfo` that an agent sends.
pub const ERROR_DOMAIN: &str = "weft";

/// The longest message sent, in bytes: clients drop answers whose headers exceed 16 KiB, and the text is in
/// there percent-encoded, and again within the details.
const LONGEST_TEXT: usize = 1000;

/// What a call is about: a kind of object and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The kind: "network", "endpoint", "peer", "address", …
    pub kind: &'static str,
    /// The name: "blue", "blue/host1/web", "10.1.0.5"; may be empty where there is only one of the kind.
    pub name: String,
}

impl Subject {
    /// An object of any kind.
    pub fn new(kind: &'static str, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }

    /// The network of that name.
    pub fn network(name: impl Into<String>) -> Self {
        Self::new("network", name)
    }

    /// The endpoint of that id; `node` may be empty for the agent's own.
    pub fn endpoint(network: &str, node: &str, id: &str) -> Self {
        Self::of_node("endpoint", network, node, id)
    }

    /// The reservation of that id; `node` may be empty for the agent's own.
    pub fn reservation(network: &str, node: &str, id: &str) -> Self {
        Self::of_node("reservation", network, node, id)
    }

    fn of_node(kind: &'static str, network: &str, node: &str, id: &str) -> Self {
        let parts: Vec<&str> = [network, node, id]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        Self::new(kind, parts.join("/"))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        Ok(())
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request cannot be right, whatever the state. gRPC: INVALID_ARGUMENT with BadRequest.
    #[error("{field}: {why}")]
    InvalidArgument {
        /// The field, as the .proto file names it: `spec.subnets[0].gateway`.
        field: String,
        /// What is wrong with it and what would be right.
        why: String,
    },
    /// There is no such object. gRPC: NOT_FOUND with ResourceInfo.
    #[error("{what} does not exist")]
    NotFound {
        /// The object.
        what: Subject,
    },
    /// There is such an object already, and not the one that is asked for. gRPC: ALREADY_EXISTS with
    /// ResourceInfo.
    #[error("{what} already exists")]
    AlreadyExists {
        /// The object.
        what: Subject,
    },
    /// The state does not allow it; someone has to change that first. gRPC: FAILED_PRECONDITION with
    /// PreconditionFailure and ResourceInfo.
    #[error("{what}: {why}")]
    Conflict {
        /// The object.
        what: Subject,
        /// What stands in the way, naming it.
        why: String,
    },
    /// As `Conflict`, and another value of a field of the request would do. gRPC: the same, with the field in the ErrorInfo.
    #[error("{what}: {why}")]
    Blocked {
        /// The object.
        what: Subject,
        /// What stands in the way, naming it.
        why: String,
        /// The field, as the .proto file names it: `attachment.ifname`, `force`.
        field: String,
    },
    /// There is nothing left to hand out. gRPC: RESOURCE_EXHAUSTED with QuotaFailure.
    #[error("{why}")]
    Full {
        /// The object that hands out.
        what: Subject,
        /// What it hands out from: "10.1.0.0/29".
        pool: String,
        /// How many are in use, at most 2^64 - 1.
        used: u64,
        /// How many can be in use, at most 2^64 - 1.
        capacity: u64,
        /// What is full, with its object and how full it is.
        why: String,
    },
    /// Something that is needed is away; the same call may succeed later. gRPC: UNAVAILABLE with RetryInfo.
    #[error("{what} is not available: {why}")]
    Unavailable {
        /// What is away: "the store", "the agent".
        what: String,
        /// Why, with its causes.
        why: String,
    },
    /// The deadline passed first; what was begun goes on. gRPC: DEADLINE_EXCEEDED.
    #[error("{what}: not done after {:.1} s: {why}", waited.as_secs_f64())]
    DeadlineExceeded {
        /// The object.
        what: Subject,
        /// How long was waited.
        waited: Duration,
        /// What was still missing.
        why: String,
    },
    /// The deadline passed before all hosts had caught up; what was begun goes on. gRPC: DEADLINE_EXCEEDED with the
    /// hosts in the ErrorInfo.
    #[error("{what}: not done after {:.1} s: {why}", waited.as_secs_f64())]
    Behind {
        /// What they were to catch up with.
        what: Subject,
        /// How long was waited.
        waited: Duration,
        /// What holds nevertheless, and the hosts with the reasons.
        why: String,
        /// The hosts' names.
        hosts: Vec<String>,
    },
    /// A failure of the agent or of the kernel. gRPC: INTERNAL.
    #[error("{what} failed")]
    Internal {
        /// The operation that failed, with its subject: "making veth ve0a01… of endpoint blue/host1/web".
        what: String,
        /// Its cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ApiError {
    /// A bad field of the request.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::InvalidArgument {
            field: field.into(),
            why: why.into(),
        }
    }

    /// A failed operation and its cause.
    pub fn internal(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Internal {
            what: what.into(),
            source: source.into(),
        }
    }

    /// The `reason` of the `google.rpc.ErrorInfo` that it travels with.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::AlreadyExists { .. } => "ALREADY_EXISTS",
            Self::Conflict { .. } | Self::Blocked { .. } => "CONFLICT",
            Self::Full { .. } => "FULL",
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::DeadlineExceeded { .. } | Self::Behind { .. } => "DEADLINE_EXCEEDED",
            Self::Internal { .. } => "INTERNAL",
        }
    }

    const fn code(&self) -> Code {
        match self {
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::Conflict { .. } | Self::Blocked { .. } => Code::FailedPrecondition,
            Self::Full { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::DeadlineExceeded { .. } | Self::Behind { .. } => Code::DeadlineExceeded,
            Self::Internal { .. } => Code::Internal,
        }
    }

    /// The message and those of its causes in one line: the socket is an edge of the agent.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let message = shortened(&error.chain());
        let mut metadata = HashMap::new();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                metadata.insert(key.to_owned(), shortened(value));
            }
        };
        let mut details = ErrorDetails::new();
        let about = |details: &mut ErrorDetails, what: &Subject, description: &str| {
            details.set_resource_info(what.kind, what.name.clone(), "", shortened(description));
        };
        match &error {
            ApiError::InvalidArgument { field, why } => {
                put("field", field);
                details.add_bad_request_violation(shortened(field), shortened(why));
            }
            ApiError::NotFound { what } => about(&mut details, what, "does not exist"),
            ApiError::AlreadyExists { what } => about(&mut details, what, "already exists"),
            ApiError::Conflict { what, why } | ApiError::Blocked { what, why, .. } => {
                if let ApiError::Blocked { field, .. } = &error {
                    put("field", field);
                }
                about(&mut details, what, why);
                details.add_precondition_failure_violation("CONFLICT", what.to_string(), shortened(why));
            }
            ApiError::Full {
                what,
                pool,
                used,
                capacity,
                why,
            } => {
                put("pool", pool);
                put("used", &used.to_string());
                put("capacity", &capacity.to_string());
                about(&mut details, what, "is full");
                details.add_quota_failure_violation(what.to_string(), shortened(why));
            }
            ApiError::Unavailable { what, .. } => {
                put("what", what);
                details.set_retry_info(Some(Duration::from_secs(1)));
            }
            ApiError::DeadlineExceeded { what, waited, why } => {
                put("waited_ms", &waited.as_millis().to_string());
                put("why", why);
                about(&mut details, what, "was not done in time");
            }
            ApiError::Behind {
                what,
                waited,
                why,
                hosts,
            } => {
                put("waited_ms", &waited.as_millis().to_string());
                put("why", why);
                put("hosts", &hosts.join(","));
                about(&mut details, what, "is not everywhere yet");
            }
            ApiError::Internal { what, .. } => put("what", what),
        }
        details.set_error_info(error.reason(), ERROR_DOMAIN, metadata);
        Self::with_error_details(error.code(), message, details)
    }
}

/// At most [`LONGEST_TEXT`] bytes of the text, whole characters, with a mark where it was cut.
fn shortened(text: &str) -> String {
    if text.len() <= LONGEST_TEXT {
        return text.to_owned();
    }
    let end = text
        .char_indices()
        .map(|(at, _)| at)
        .take_while(|at| *at <= LONGEST_TEXT)
        .last()
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_its_subject_and_its_causes() {
        let full = ApiError::Full {
            what: Subject::network("blue"),
            pool: "10.1.0.0/29".to_owned(),
            used: 5,
            capacity: 5,
            why: "network blue: 10.1.0.0/29 is full (5 of 5)".to_owned(),
        };
        assert_eq!(full.to_string(), "network blue: 10.1.0.0/29 is full (5 of 5)");
        let late = ApiError::DeadlineExceeded {
            what: Subject::endpoint("blue", "", "web"),
            waited: Duration::from_millis(2040),
            why: "no VNI yet".to_owned(),
        };
        assert_eq!(
            late.to_string(),
            "endpoint blue/web: not done after 2.0 s: no VNI yet"
        );
        let internal = ApiError::internal("making veth ve1", std::io::Error::other("EBUSY"));
        assert_eq!(internal.chain(), "making veth ve1 failed: EBUSY");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let cut = shortened(&"é".repeat(2000));
        assert!(
            cut.ends_with('…') && cut.len() <= LONGEST_TEXT + '…'.len_utf8(),
            "{} bytes",
            cut.len()
        );
    }
}
