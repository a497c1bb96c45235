//! What the tests of the failure table share. Each of them does one thing to a cluster while traffic runs through it, and
//! holds that what must not be lost is not.
//!
//! It sees the product from outside: records, the command line, the kernel's own listings.

mod churn;
mod loss;
mod settled;

pub use churn::Churn;
pub use loss::{
    ALL, ENDPOINTS, all_writes, holds, holds_nothing, records, records_are_copied, republish, two_networks,
    writes_all_again,
};
pub use settled::{caught_up, connected, forwards_as_recorded, log_lines};

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_e2e::{Cluster, Station};
use weft_lab::{Container, Host, Traffic};

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

/// What a host's kernel holds of a network, without what differs from one making to the next (indexes, random MACs):
/// devices with what is set on them, forwarding entries, neighbours.
///
/// # Errors
/// When the namespace is not there.
pub fn picture(host: &Host, network: &str) -> Result<String> {
    let namespace = host.netns_of(network);
    let links = namespace.ip_json(&["link", "show"])?;
    let mut links: Vec<String> = links.as_array().into_iter().flatten().map(of_link).collect();
    links.sort();
    let entries = (weft_e2e::fdb(&namespace)?, weft_e2e::neighbours(&namespace)?);
    Ok(format!("{links:#?}\n{entries:#?}"))
}

/// What a container has of its interface, addresses and routes, likewise.
///
/// # Errors
/// When the container is not there.
pub fn picture_inside(container: &Container) -> Result<String> {
    let lines = |argv: &[&str]| -> Result<Vec<String>> {
        let out = container.exec(argv)?;
        // The other end's index is another each time: eth0@if5.
        let mut lines: Vec<String> = out
            .lines()
            .map(|line| {
                let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
                format!("{} {}", name.split('@').next().unwrap_or(name), rest.trim())
            })
            .collect();
        // Those of the link itself come by themselves, and at their time.
        lines.retain(|line| !line.contains("fe80:") && !line.contains("ff00::/8"));
        lines.sort();
        Ok(lines)
    };
    let links = container.netns().ip_json(&["link", "show", "type", "veth"])?;
    let links: Vec<String> = links.as_array().into_iter().flatten().map(of_link).collect();
    let addresses = lines(&["ip", "-br", "addr", "show", "scope", "global"])?;
    let routes = (lines(&["ip", "route"])?, lines(&["ip", "-6", "route"])?);
    Ok(format!("{links:#?}\n{addresses:#?}\n{routes:#?}"))
}

/// Holds that two pictures are the same.
///
/// # Errors
/// When they are not; says which lines are in one of them only.
pub fn same(is: &str, wanted: &str) -> Result<()> {
    let only_in = |this: &str, other: &str| -> Vec<String> {
        let lines = this.lines().filter(|line| !other.lines().any(|l| l == *line));
        lines.map(|line| line.trim().to_owned()).collect()
    };
    let (more, less) = (only_in(is, wanted), only_in(wanted, is));
    ensure!(is == wanted, "too much: {more:#?}\nmissing: {less:#?}");
    Ok(())
}

fn of_link(link: &Value) -> String {
    let info = &link["linkinfo"];
    let (data, port) = (&info["info_data"], &info["info_slave_data"]);
    let of_port: Vec<String> = [
        "learning",
        "flood",
        "mcast_flood",
        "bcast_flood",
        "neigh_suppress",
    ]
    .iter()
    .map(|flag| format!("{flag}={}", port[flag]))
    .collect();
    let mut flags: Vec<&str> = link["flags"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    flags.retain(|flag| ["UP", "LOWER_UP", "NO-CARRIER"].contains(flag));
    format!(
        "{} mtu={} master={} alias={} {flags:?} vxlan={}/{}/{}/{}/{} snooping={} {of_port:?}",
        link["ifname"],
        link["mtu"],
        link["master"],
        link["ifalias"],
        data["id"],
        data["local"],
        data["local6"],
        data["port"],
        data["learning"],
        data["mcast_snooping"],
    )
}

/// Starts an agent once more, and holds that it finds everything as it should be: it writes nothing.
///
/// # Errors
/// When it writes, or has a problem.
pub fn writes_nothing_when_started_again(host: &Host) -> Result<()> {
    host.kill9()?;
    host.start_weftd()?;
    let status = weft_e2e::status(host)?;
    let written = &status["netlink_writes"]["total"];
    ensure!(*written == 0, "{} wrote after a restart: {status}", host.node());
    ensure!(
        status["problems"] == serde_json::json!([]),
        "{}: {}",
        host.node(),
        status["problems"]
    );
    Ok(())
}
