//! Names that become part of keys, paths, interface names and messages: parsed once, then trusted.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use thiserror::Error;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} {text:?} is not valid: {rule}")]
pub struct NameError {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

impl NameError {
    fn new(kind: &'static str, text: &str, rule: &'static str) -> Self {
        // A name is shown in logs and in terminals: neither its length nor its bytes may do harm there.
        let text = text.chars().take(80).collect();
        Self { kind, text, rule }
    }
}

const NAME_RULE: &str = "use 1 to 63 of A-Z a-z 0-9 '_' '.' '-', the first a letter or a digit";

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

const IFNAME_RULE: &str = "use 1 to 15 printable ASCII characters without space, '/', ':' or '%', and none of \".\", \"..\", \"lo\", \"all\", \"default\"";

/// The kernel's `dev_valid_name` (net/core/dev.c), narrowed to what a person can type and a log can show.
/// `all` and `default` are taken in /proc/sys/net/ipv4/conf.
fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
        && !matches!(text, "." | ".." | "lo" | "all" | "default")
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $valid:ident, $rule:ident) => {
        $(#[$doc])*
        ///
        /// Cloning shares the text.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Parses a name.
            ///
            /// # Errors
            /// When the text breaks the rule that the error states.
            pub fn new(text: &str) -> Result<Self, NameError> {
                if $valid(text) { Ok(Self(text.into())) } else { Err(NameError::new($kind, text, $rule)) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A network's name: part of keys and of the name of its namespace on every host.
    NetworkName, "network name", is_name, NAME_RULE
);
name!(
    /// A node's name: one host that runs an agent, or an external VTEP.
    NodeName, "node name", is_name, NAME_RULE
);
name!(
    /// An endpoint's identity, unique within its network and node.
    EndpointId, "endpoint id", is_name, NAME_RULE
);
name!(
    /// A network interface's name as the kernel accepts it, at most 15 bytes.
    IfName, "interface name", is_ifname, IFNAME_RULE
);

impl IfName {
    /// [`crate::DEFAULT_IFNAME`]: one text for all who have it.
    pub(crate) fn usual() -> Self {
        static USUAL: LazyLock<IfName> = LazyLock::new(|| IfName(crate::DEFAULT_IFNAME.into()));
        USUAL.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in [
            "",
            "/",
            "a/b",
            "..",
            ".",
            "-a",
            "_a",
            "a b",
            "a\0",
            "a\n",
            "ä",
            &"x".repeat(64),
            "../../etc",
        ] {
            assert!(NetworkName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "blue", "Blue_1.test-x", "0", &"x".repeat(63)] {
            assert_eq!(NetworkName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for bad in [
            "",
            ".",
            "..",
            "lo",
            "all",
            "default",
            "eth 0",
            "eth/0",
            "eth:0",
            "a%d",
            "0123456789abcdef",
            "é",
        ] {
            assert!(IfName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["eth0", "ens3.100", "0123456789abcde", "wlp2s0", "a@b"] {
            assert!(IfName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn an_error_shows_a_long_name_shortened() {
        let text = NetworkName::new(&"y/".repeat(5000)).unwrap_err().to_string();
        assert!(text.len() < 300, "{text}");
    }
}
