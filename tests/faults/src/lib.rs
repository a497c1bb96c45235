//! What the tests of the failure table share. Each of them does one thing to a cluster while traffic runs through it, and
//! holds that what must not be lost is not.
//!
//! It sees the product from outside: records, the command line, the kernel's own listings.

mod settled;

pub use settled::{caught_up, connected, forwards_as_recorded, log_lines};

use anyhow::Result;
use weft_e2e::{Cluster, Station};
use weft_lab::Traffic;

/// The subnets of the networks in these tests, one of each family.
pub const CIDRS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

/// A dual-stack network `blue` with one endpoint on each host, `a` on the first, `b` on the second and so on; all talk.
///
/// # Errors
/// When they do not within the time.
pub fn one_each(cluster: &Cluster) -> Result<Vec<Station>> {
    cluster.network("blue", &CIDRS)?;
    let hosts = cluster.hosts().iter();
    let mut stations = hosts
        .zip('a'..='z')
        .map(|(host, id)| cluster.endpoint("blue", host.number(), &id.to_string()))
        .collect::<Result<Vec<_>>>()?;
    cluster.up(&mut stations)?;
    Ok(stations)
}

/// Traffic between all stations on different hosts, in both directions, to every address.
///
/// # Errors
/// When a pair does not talk.
pub fn between(stations: &[Station]) -> Result<Traffic> {
    let pairs = stations
        .iter()
        .flat_map(|from| stations.iter().map(move |to| (from, to)));
    let apart = pairs.filter(|(from, to)| from.host != to.host && from.network == to.network);
    Traffic::start(apart.flat_map(|(from, to)| {
        let addresses = to.addresses.iter();
        addresses.map(|address| (&from.container, &to.container, *address))
    }))
}

/// Whether the long forms of these tests are asked for: `WEFT_FAULTS_LONG=1`. They hold faults for minutes where the short
/// ones hold them for as long as it takes until they are noticed.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("WEFT_FAULTS_LONG").is_some_and(|value| value != "0")
}
