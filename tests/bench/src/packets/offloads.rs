//! What of the work devices take over, as `ethtool` tells it: without it all figures are others.

use anyhow::{Context, Result};
use weft_lab::Namespace;

const FEATURES: [&str; 6] = [
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "tx-udp_tnl-segmentation",
    "tx-udp-segmentation",
];

/// A line for the report: what each device has on and off.
pub(crate) fn of(devices: &[(&str, &Namespace, &str)]) -> Result<String> {
    let mut parts = Vec::new();
    for (what, place, device) in devices {
        let told = place
            .exec(&["ethtool", "-k", device])
            .context("ethtool (Debian package ethtool)")?;
        let states: Vec<_> = FEATURES
            .into_iter()
            .filter_map(|feature| {
                let line = told
                    .lines()
                    .find_map(|line| line.trim().strip_prefix(feature)?.strip_prefix(": "))?;
                Some((feature, line.starts_with("on")))
            })
            .collect();
        let list = |wanted: bool| {
            let names = states
                .iter()
                .filter(|(_, on)| *on == wanted)
                .map(|(name, _)| *name);
            names.collect::<Vec<_>>().join(", ")
        };
        parts.push(format!("{what}: on {}; off {}", list(true), list(false)));
    }
    Ok(format!("Offloads (`ethtool -k`). {}.", parts.join(". ")))
}
