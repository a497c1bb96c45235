//! What can go wrong, in words for people, and the reading of etcd's answers: did it surely not happen, may
//! it have happened, or was it refused for good?

use std::{error::Error as _, fmt, io, path::PathBuf, time::Duration};

use thiserror::Error;
use tonic::{Code, ConnectError, Status};

/// Why the store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The configuration names no endpoint.
    #[error("no etcd endpoint is configured; give at least one, such as http://10.0.0.1:2379")]
    NoEndpoint,
    /// An endpoint's URL or the TLS material for it cannot be used.
    #[error("etcd endpoint {url:?} cannot be used: {why}")]
    Endpoint {
        /// The URL as configured.
        url: String,
        /// The reason.
        why: String,
    },
    /// A TLS file cannot be read.
    #[error("cannot read the {role} file {}", path.display())]
    TlsFile {
        /// What the file is for.
        role: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A TLS file holds something else.
    #[error("the {role} file {} holds no PEM block of that kind", path.display())]
    TlsContent {
        /// What the file is for.
        role: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// No endpoint answered in time; nothing was changed.
    #[error("{what}: no etcd endpoint answered within {} ms; nothing was changed", waited.as_millis())]
    Unavailable {
        /// What was being done, and to which key.
        what: String,
        /// How long it was tried.
        waited: Duration,
        /// The last failure.
        #[source]
        source: Cause,
    },
    /// The answer was lost: it may have happened, or may still happen. Look at the records before going on.
    #[error("{what}: etcd's answer was lost; it may have happened or not, the records will tell")]
    Unknown {
        /// What was being done, and to which key.
        what: String,
        /// The failure that lost the answer.
        #[source]
        source: Cause,
    },
    /// etcd's access control forbids it; nothing was changed.
    #[error("{what}: etcd does not permit this; grant the role of {user} access to the key")]
    Denied {
        /// What was being done, and to which key.
        what: String,
        /// The user, or what stands in for one.
        user: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// etcd does not accept user and password, or wants some; nothing was changed.
    #[error("{what}: etcd does not accept {user}; check the configured user and password")]
    Credentials {
        /// What was being done, and to which key.
        what: String,
        /// The user, or what stands in for one.
        user: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// etcd's database is full; nothing was changed. Reading goes on.
    #[error("{what}: etcd's database is full; compact and defragment it, then `etcdctl alarm disarm`")]
    Full {
        /// What was being done, and to which key.
        what: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// etcd refuses for another reason; nothing was changed.
    #[error("{what}: etcd refuses")]
    Refused {
        /// What was being done, and to which key.
        what: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// The lease under which something was to be written has expired or was revoked; nothing was changed.
    #[error("{what}: the lease that it was to lie under is gone")]
    LeaseGone {
        /// What was being done, and to which key.
        what: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// The transaction cannot be sent as it is; nothing was changed.
    #[error("{what}: {why}")]
    Transaction {
        /// What was to be written.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The agent is stopping; nothing was changed.
    #[error("{what}: not done, the agent is stopping")]
    Stopping {
        /// What was to be done.
        what: String,
    },
}

impl StoreError {
    /// Whether trying again later, unchanged, may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::Unknown { .. } | Self::Full { .. }
        )
    }
}

/// One endpoint's failure, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{endpoint}: {text}")]
pub struct Cause {
    /// The endpoint.
    pub endpoint: String,
    /// What happened there.
    pub text: String,
}

/// What a failure says about the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It never left, or was turned away before anything happened: ask another endpoint.
    NotDone,
    /// It may have happened: the answer is missing.
    Lost,
    /// etcd does not permit it.
    Denied,
    /// User, password or token are not accepted.
    Credentials,
    /// The database is full.
    Full,
    /// The revision asked for is compacted away.
    Compacted,
    /// The lease that was named does not exist.
    LeaseGone,
    /// Refused in any other way that asking again does not change.
    Refused,
}

/// A failed request to one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) verdict: Verdict,
    pub(crate) cause: Cause,
}

impl Failure {
    pub(crate) fn new(verdict: Verdict, endpoint: &str, text: impl fmt::Display) -> Self {
        let cause = Cause {
            endpoint: endpoint.to_owned(),
            text: text.to_string(),
        };
        Self { verdict, cause }
    }

    /// Always the same words: by them it is known whether a cause is news.
    pub(crate) fn timeout(endpoint: &str) -> Self {
        Self::new(Verdict::Lost, endpoint, "no answer in time")
    }

    pub(crate) fn read(endpoint: &str, error: &etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => {
                Self::new(judge(status), endpoint, describe_status(status))
            }
            etcd_client::Error::TransportError(error) => {
                let verdict = if refused_connection(error) {
                    Verdict::NotDone
                } else {
                    Verdict::Lost
                };
                Self::new(verdict, endpoint, innermost(error))
            }
            other => Self::new(Verdict::Lost, endpoint, other),
        }
    }

    /// The error to hand out for what was being done.
    pub(crate) fn into_error(self, what: String, user: Option<&str>, waited: Duration) -> StoreError {
        let source = self.cause;
        let user = user.map_or_else(
            || "a client without a user".to_owned(),
            |name| format!("user {name:?}"),
        );
        match self.verdict {
            Verdict::NotDone => StoreError::Unavailable { what, waited, source },
            Verdict::Lost => StoreError::Unknown { what, source },
            Verdict::Denied => StoreError::Denied { what, user, source },
            Verdict::Credentials => StoreError::Credentials { what, user, source },
            Verdict::Full => StoreError::Full { what, source },
            Verdict::LeaseGone => StoreError::LeaseGone { what, source },
            Verdict::Compacted | Verdict::Refused => StoreError::Refused { what, source },
        }
    }
}

/// etcd's own refusals are recognised by their text: one code stands for several of them.
fn judge(status: &Status) -> Verdict {
    let message = status.message();
    match status.code() {
        Code::PermissionDenied => Verdict::Denied,
        Code::Unauthenticated => Verdict::Credentials,
        // "user name is empty" is said to a client without a token once authentication is on.
        Code::InvalidArgument if message.contains("authentication") || message.contains("user name") => {
            Verdict::Credentials
        }
        Code::ResourceExhausted if message.contains("space exceeded") => Verdict::Full,
        Code::ResourceExhausted if message.contains("too many requests") => Verdict::NotDone,
        Code::OutOfRange if message.contains("compacted") => Verdict::Compacted,
        Code::NotFound if message.contains("lease not found") => Verdict::LeaseGone,
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Unimplemented
        | Code::ResourceExhausted => Verdict::Refused,
        // Said before a proposal is made: the member knows of no leader, or is not one that may propose.
        Code::Unavailable if message == "etcdserver: no leader" || message == "etcdserver: not capable" => {
            Verdict::NotDone
        }
        _ if status.source().is_some_and(refused_connection) => Verdict::NotDone,
        _ => Verdict::Lost,
    }
}

/// Whether a connection could not even be made: then no request was sent.
fn refused_connection(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(current) = error {
        if current.is::<ConnectError>() {
            return true;
        }
        error = current.source();
    }
    false
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

fn describe_status(status: &Status) -> String {
    let inner = status.source().map(innermost).unwrap_or_default();
    let message = status.message().trim_start_matches("etcdserver: ");
    match (message, inner.as_str()) {
        ("", "") => status.code().to_string(),
        ("", inner) => inner.to_owned(),
        (message, "") => message.to_owned(),
        (message, inner) if message.contains(inner) => message.to_owned(),
        (message, inner) => format!("{message}: {inner}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: Code, message: &str) -> Verdict {
        judge(&Status::new(code, message))
    }

    #[test]
    fn only_what_surely_did_not_happen_is_called_so() {
        assert_eq!(
            judged(Code::Unavailable, "etcdserver: no leader"),
            Verdict::NotDone
        );
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unknown, "transport error"),
            (Code::Cancelled, ""),
            (Code::DeadlineExceeded, ""),
            (Code::Internal, "h2 protocol error"),
        ] {
            assert_eq!(judged(code, message), Verdict::Lost, "{code:?} {message}");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        for (code, message, want) in [
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                Verdict::Denied,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                Verdict::Credentials,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: user name is empty",
                Verdict::Credentials,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Verdict::Credentials,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
                Verdict::Refused,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                Verdict::Full,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                Verdict::NotDone,
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                Verdict::Compacted,
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                Verdict::LeaseGone,
            ),
        ] {
            assert_eq!(judged(code, message), want, "{message}");
        }
    }
}
