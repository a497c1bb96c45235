//! What the store is told at the start: where etcd is, who we are there, and how patient to be.
//!
//! Checked as far as it can be without a connection; etcd being down is never an error of configuration.

use std::{fmt, path::PathBuf, time::Duration};

use weft_store_schema::{NodeName, Prefix};

/// Everything [`Store::open`](crate::Store::open) needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// etcd's client URLs, `http://host:port` or `https://host:port`; without a scheme, https if `tls` is
    /// given and http otherwise. At least one.
    pub endpoints: Vec<String>,
    /// Prefix of all keys.
    pub prefix: Prefix,
    /// This node: whose endpoints [`Scope::OwnEndpoints`](weft_core::record::Scope::OwnEndpoints) means and
    /// whose presence is kept.
    pub node: NodeName,
    /// Certificates; none for the system's roots (with https URLs) or no encryption (with http URLs).
    pub tls: Option<Tls>,
    /// User and password; none where etcd's authentication is off or by client certificate.
    pub user: Option<User>,
    /// Intervals and bounds of time.
    pub timing: Timing,
    /// Bounds of size.
    pub limits: Limits,
}

impl Config {
    /// A configuration without encryption and user, with default timing and limits.
    pub fn new(endpoints: Vec<String>, prefix: Prefix, node: NodeName) -> Self {
        Self {
            endpoints,
            prefix,
            node,
            tls: None,
            user: None,
            timing: Timing::default(),
            limits: Limits::default(),
        }
    }
}

/// Files for the encrypted connection. They are read again whenever a connection is made anew, so that
/// renewed certificates need no restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities that may sign etcd's certificate; the system's roots without it.
    pub ca: Option<PathBuf>,
    /// PEM files of our own certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name to expect in etcd's certificate; the URL's host without it.
    pub domain: Option<String>,
}

/// An etcd user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Secret,
}

/// A text that no log and no debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Intervals and bounds of time. The defaults are right outside tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Longest time to establish a TCP connection.
    pub connect: Duration,
    /// Interval of HTTP/2 pings; with `ping_timeout` it bounds how long a frozen member goes unnoticed. Not below
    /// etcd's `--grpc-keepalive-min-time` (5 s by default): it ends connections that ping more often.
    pub ping: Duration,
    /// How long the answer to a ping may take.
    pub ping_timeout: Duration,
    /// Longest time one member is given for one request while there are others to ask.
    pub attempt: Duration,
    /// Longest time for one listing of all that needs listing.
    pub list: Duration,
    /// First pause before something that failed is tried again; doubled each time, jittered.
    pub retry_first: Duration,
    /// Longest pause before connecting again. Bounds how soon after etcd's return we are back.
    pub reconnect_most: Duration,
    /// Longest pause before listing again what etcd refused or compacted.
    pub relist_most: Duration,
    /// A watch that was quiet for this long is asked for a sign of life.
    pub progress: Duration,
    /// After a change or a commit, how long to wait before asking up to which revision all is known.
    pub settle: Duration,
    /// A watch that gave no sign for this long is replaced.
    pub silence: Duration,
    /// Interval of listing everything again although nothing is known to be missing, ±10 %; zero for never.
    pub relist: Duration,
    /// Time to live of the presence lease; up to a sixth is added by chance so that leases do not all expire
    /// together. Whole seconds.
    pub lease: Duration,
    /// Shortest interval between two writes of the status.
    pub report: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            ping: Duration::from_secs(6),
            ping_timeout: Duration::from_secs(2),
            attempt: Duration::from_millis(1500),
            list: Duration::from_secs(30),
            retry_first: Duration::from_millis(100),
            reconnect_most: Duration::from_secs(1),
            relist_most: Duration::from_secs(10),
            progress: Duration::from_secs(10),
            settle: Duration::from_millis(500),
            silence: Duration::from_secs(25),
            relist: Duration::from_secs(600),
            lease: Duration::from_secs(30),
            report: Duration::from_secs(1),
        }
    }
}

/// Bounds of size. The defaults are right outside tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Keys in one page of a listing.
    pub page: i64,
    /// Largest message taken from etcd, in bytes: a watch that resumes far back gets all it missed in one.
    pub message: usize,
    /// Events that wait for the reader before the watch is read no further.
    pub queue: usize,
    /// Bytes of keys and values that wait beside the queue before the watch is read no further.
    pub backlog: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            page: 10_000,
            message: 256 << 20,
            queue: 64,
            backlog: 16 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let mut config = Config::new(vec![], Prefix::default(), NodeName::new("host1").unwrap());
        config.user = Some(User {
            name: "weft".to_owned(),
            password: Secret::new("hunter2"),
        });
        let text = format!("{config:?} {config:#?}");
        assert!(text.contains("weft") && !text.contains("hunter2"), "{text}");
    }
}
