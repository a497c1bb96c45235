//! What the kernel's listings and `weft status` say, in the shapes that tests compare.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{Host, Namespace};

/// One row of `bridge fdb show`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    /// The MAC address.
    pub mac: String,
    /// The device.
    pub dev: String,
    /// The VTEP, in a row of a VXLAN device.
    pub dst: Option<String>,
    /// Whether it is in the bridge's own table.
    pub master: bool,
}

/// Rows of forwarding tables that were not learned and are not the devices' own.
///
/// # Errors
/// When the namespace is not there.
pub fn fdb(namespace: &Namespace) -> Result<BTreeSet<Fdb>> {
    let rows = namespace.bridge_json(&["fdb", "show"])?;
    let text = |row: &Value, field: &str| row[field].as_str().map(str::to_owned);
    Ok(rows
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| {
            let flags = row["flags"].as_array().into_iter().flatten();
            flags.into_iter().any(|flag| flag == "extern_learn")
        })
        .filter_map(|row| {
            Some(Fdb {
                mac: text(row, "mac")?,
                dev: text(row, "ifname")?,
                dst: text(row, "dst"),
                master: row["master"].is_string(),
            })
        })
        .collect())
}

/// Rows of VXLAN devices, as pairs of MAC and VTEP.
///
/// # Errors
/// When the namespace is not there.
pub fn remote_fdb(namespace: &Namespace) -> Result<BTreeSet<(String, String)>> {
    let rows = fdb(namespace)?.into_iter();
    Ok(rows.filter_map(|row| Some((row.mac, row.dst?))).collect())
}

/// Neighbours of the bridge, as pairs of address and MAC.
///
/// # Errors
/// When the namespace is not there.
pub fn neighbours(namespace: &Namespace) -> Result<BTreeSet<(String, String)>> {
    let rows = namespace.ip_json(&["neigh", "show", "dev", "br0"])?;
    let text = |row: &Value, field: &str| row[field].as_str().map(str::to_owned);
    Ok(rows
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| Some((text(row, "dst")?, text(row, "lladdr")?)))
        .collect())
}

/// One link of a namespace, as `ip -d -j link` has it.
///
/// # Errors
/// When there is none of that name.
pub fn link(namespace: &Namespace, name: &str) -> Result<Value> {
    let links = namespace.ip_json(&["link", "show"])?;
    let found = links.as_array().into_iter().flatten();
    found
        .into_iter()
        .find(|link| link["ifname"] == name)
        .cloned()
        .with_context(|| format!("no {name} in {}", namespace.path().display()))
}

/// `weft status -o json` of a host.
///
/// # Errors
/// When its agent does not answer.
pub fn status(host: &Host) -> Result<Value> {
    host.weft_json(&["status"])
}

/// Messages by which the agent changed the kernel since its start.
///
/// # Errors
/// When the agent does not answer.
pub fn writes(host: &Host) -> Result<u64> {
    counter(host, "/netlink_writes/total")
}

/// A number in the agent's status, by its JSON pointer; 0 when it is not there.
///
/// # Errors
/// When the agent does not answer.
pub fn counter(host: &Host, pointer: &str) -> Result<u64> {
    Ok(status(host)?
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_default())
}

/// Problems of a key, as pairs of field (empty for none) and message.
///
/// # Errors
/// When the agent does not answer.
pub fn problems(host: &Host, key: &str) -> Result<Vec<(String, String)>> {
    let status = status(host)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(status["problems"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|problem| problem["key"] == key)
        .map(|problem| (text(&problem["field"]), text(&problem["message"])))
        .collect())
}

/// Checks that a key has a problem with this field and these words.
///
/// # Errors
/// When it has not; the text holds all problems of the host.
pub fn has_problem(host: &Host, key: &str, field: &str, words: &str) -> Result<()> {
    let found = problems(host, key)?;
    ensure!(
        found.iter().any(|(f, m)| f == field && m.contains(words)),
        "{} says of {key}: {found:?}, wanted field {field:?} and {words:?}; all: {}",
        host.node(),
        status(host)?["problems"]
    );
    Ok(())
}

/// Checks that a key has no problem.
///
/// # Errors
/// When it has one.
pub fn no_problem(host: &Host, key: &str) -> Result<()> {
    let found = problems(host, key)?;
    ensure!(found.is_empty(), "{} says of {key}: {found:?}", host.node());
    Ok(())
}
