//! What can go wrong with the kernel, in words for people.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why something could not be seen or done.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The process lacks a right.
    #[error("{what} needs {capability}; run as root, or give the service that capability")]
    Rights {
        /// What was tried.
        what: &'static str,
        /// The capability.
        capability: &'static str,
    },
    /// A netlink socket cannot be made or used.
    #[error("netlink socket {place}")]
    Socket {
        /// The namespace it is for.
        place: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {what}{}", hint.as_deref().map(|h| format!(" (kernel: {h})")).unwrap_or_default())]
    Refused {
        /// What was tried, and on which object.
        what: String,
        /// The kernel's extended acknowledgement, if it gave one.
        hint: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// Answers were lost (`ENOBUFS`, a time-out): what the kernel did is not known, only a fresh look tells.
    #[error("{what}: the kernel's answer was lost")]
    Lost {
        /// What was tried.
        what: String,
    },
    /// A namespace cannot be made, opened, entered or removed.
    #[error("cannot {action} network namespace {}", path.display())]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// The namespace's file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A directory that is needed cannot be made or opened.
    #[error("cannot use directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// An attachment is not one that weft may use.
    #[error("{path}: {why}")]
    Attachment {
        /// The path as given.
        path: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The container has an interface of that name, and it is not the endpoint's.
    #[error(
        "{netns} has an interface {ifname} already, which is not this endpoint's; choose another ifname, or remove it"
    )]
    InterfaceExists {
        /// The container's namespace.
        netns: String,
        /// The name.
        ifname: String,
    },
    /// A device that was to be changed is not there.
    #[error("{place} has no interface {ifname}")]
    NoInterface {
        /// The namespace.
        place: String,
        /// The name.
        ifname: String,
    },
    /// A network's namespace that was to be changed is not there.
    #[error("network namespace {place} is gone")]
    NoNamespace {
        /// Its name.
        place: String,
    },
    /// No usable underlay.
    #[error("no usable underlay: {why}")]
    Underlay {
        /// What was looked for and what was found.
        why: String,
    },
}

impl KernelError {
    /// Whether the kernel's state is unknown after this, so that it has to be looked at.
    pub fn needs_look(&self) -> bool {
        matches!(self, Self::Lost { .. }) || self.is_gone()
    }

    /// Whether what was to be changed was there when it was looked at, and is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::NoInterface { .. } | Self::NoNamespace { .. } => true,
            Self::Refused { source, .. } => source.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32),
            _ => false,
        }
    }
}
