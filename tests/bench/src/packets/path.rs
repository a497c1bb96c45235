//! A way between two containers on two hosts, whoever made it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use weft_lab::Namespace;

/// From where to where is sent.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// Whose it is.
    pub(crate) name: &'static str,
    /// The sender's namespace.
    pub(crate) from: Namespace,
    /// The receiver's.
    pub(crate) to: Namespace,
    /// The receiver's address there.
    pub(crate) address: IpAddr,
}

/// Runs a script in a namespace, with a `/sys` of that namespace.
///
/// # Errors
/// When it fails.
pub(crate) fn script(place: &Namespace, text: &str) -> Result<String> {
    let text = format!("mount -t sysfs sysfs /sys\n{text}");
    place
        .exec(&["unshare", "--mount", "sh", "-euc", &text])
        .with_context(|| format!("in {}: {text}", place.path().display()))
}

/// Switches off that frames in bridges go through the host's packet filter, as is done wherever that is not wanted.
///
/// # Errors
/// When it cannot be.
pub(crate) fn bridges_alone(place: &Namespace) -> Result<()> {
    // Without br_netfilter there is nothing to switch off.
    let text =
        "for f in /proc/sys/net/bridge/bridge-nf-call-*tables; do [ ! -e \"$f\" ] || echo 0 >\"$f\"; done";
    script(place, text).map(drop)
}
