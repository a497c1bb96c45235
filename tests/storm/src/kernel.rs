//! What is in the kernel, by `ip -json` and `bridge -json`: a [`Picture`] in the words of [`crate::oracle`].
//!
//! It knows names and aliases as docs/ARCHITECTURE.md tells them, and takes everything in a network's namespace for
//! weft's, as nobody else is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use weft_lab::{Host, Lab, Namespace};

use crate::oracle::{Picture, interface_words, port_words};

/// Between the answers of several programs.
const NEXT: &str = "--next--";

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn has_flag(value: &Value, wanted: &str) -> bool {
    rows(&value["flags"]).any(|flag| flag == wanted)
}

fn up(link: &Value) -> &'static str {
    if has_flag(link, "UP") { "up" } else { "down" }
}

/// Takes down what an object is like; an object that is there twice is like both.
fn put(picture: &mut Picture, object: String, words: String) {
    picture
        .entry(object)
        .and_modify(|there| *there = format!("{there} and {words}"))
        .or_insert(words);
}

/// Runs several programs in a namespace at once and answers what they print.
fn ask<const N: usize>(netns: &Namespace, programs: [&str; N]) -> Result<[String; N]> {
    let script = programs.join(&format!("\necho {NEXT}\n"));
    let said = netns.exec(&["sh", "-e", "-c", &script])?;
    let parts: Vec<String> = said
        .split(&format!("{NEXT}\n"))
        .map(|part| part.trim().to_owned())
        .collect();
    parts
        .try_into()
        .map_err(|parts| anyhow::anyhow!("{script} printed {parts:?}"))
}

fn json(text: &str) -> Result<Value> {
    // Some listings print nothing at all when they are empty.
    serde_json::from_str(if text.is_empty() { "[]" } else { text })
        .with_context(|| format!("no JSON: {text:?}"))
}

/// Everything of weft's on a host, outside of containers.
///
/// # Errors
/// When it cannot be listed, for example because a namespace has just gone.
pub fn on_host(host: &Host) -> Result<Picture> {
    let mut picture = Picture::new();
    let dir = host.dir().join("netns");
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let network = name.strip_prefix("weft-").unwrap_or(name).to_owned();
        in_network(&Namespace::at(&path), &network, &mut picture)
            .with_context(|| format!("{network} on {}", host.node()))?;
    }
    Ok(picture)
}

fn in_network(netns: &Namespace, network: &str, picture: &mut Picture) -> Result<()> {
    let [links, entries, neighbours, ipv6_off] = ask(
        netns,
        [
            "ip -json -details link show",
            "bridge -json -details fdb show",
            "ip -json -details neigh show nud all",
            "cat /proc/sys/net/ipv6/conf/br0/disable_ipv6 || echo no br0",
        ],
    )?;
    let (links, entries, neighbours) = (json(&links)?, json(&entries)?, json(&neighbours)?);
    let mut ports = BTreeMap::new();
    for link in rows(&links).filter(|link| link["ifname"] != "lo") {
        let name = text(link, "ifname");
        let endpoint = endpoint_of(text(link, "ifalias"));
        let object = match endpoint {
            Some(endpoint) if kind(link) == "veth" => format!("port of {endpoint}"),
            _ => name.to_owned(),
        };
        ports.insert(name, object.clone());
        put(
            picture,
            format!("{network}: {object}"),
            link_words(link, &ipv6_off),
        );
    }
    for row in rows(&entries) {
        let (mac, device) = (text(row, "mac"), text(row, "ifname"));
        // The devices' own addresses and groups are permanent; what is ours or was learned is not.
        if row["state"] == "permanent" {
            continue;
        }
        let whose = if has_flag(row, "extern_learn") {
            ""
        } else {
            ", not ours"
        };
        if row["master"].is_string() {
            let to = ports.get(device).map_or(device, String::as_str);
            let the = if to.starts_with("port of ") { "the " } else { "" };
            put(
                picture,
                format!("{network}: entry {mac} in the bridge"),
                format!("to {the}{to}{whose}"),
            );
        } else {
            put(
                picture,
                format!("{network}: entry {mac} in {device}"),
                format!("to {}{whose}", text(row, "dst")),
            );
        }
    }
    for row in rows(&neighbours) {
        let address = text(row, "dst");
        // The kernel's own, for multicast groups.
        if address.starts_with("ff") || address.starts_with("224.") {
            continue;
        }
        let stays = rows(&row["state"]).any(|state| state == "NOARP") && row.get("extern_learn").is_some();
        let (stays, ours) = (
            if stays { "for good" } else { "for a while" },
            if row["protocol"] == "87" {
                "ours"
            } else {
                "not ours"
            },
        );
        let device = text(row, "dev");
        let of = if device == "br0" {
            String::new()
        } else {
            format!(" of {device}")
        };
        put(
            picture,
            format!("{network}: neighbour{of} {address}"),
            format!("{}, {stays}, {ours}", text(row, "lladdr")),
        );
    }
    Ok(())
}

fn kind(link: &Value) -> &str {
    text(&link["linkinfo"], "info_kind")
}

/// The endpoint that an alias names.
fn endpoint_of(alias: &str) -> Option<&str> {
    alias.strip_prefix("weft ")?.split(' ').next()
}

fn link_words(link: &Value, ipv6_off: &str) -> String {
    let (info, slave) = (&link["linkinfo"], &link["linkinfo"]["info_slave_data"]);
    let port = if link["master"] == "br0" {
        port_words(|flag| slave[flag] == true)
    } else {
        "no port".to_owned()
    };
    let (mtu, up, data) = (&link["mtu"], up(link), &info["info_data"]);
    match kind(link) {
        "bridge" => {
            let snooping = if data["mcast_snooping"] == 0 { "off" } else { "on" };
            let ipv6 = if ipv6_off == "0" { "on" } else { "off" };
            let link_local = if link["inet6_addr_gen_mode"] == "none" {
                "off"
            } else {
                "on"
            };
            format!("bridge, mtu {mtu}, {up}, snooping {snooping}, IPv6 {ipv6}, link-local {link_local}")
        }
        "vxlan" => {
            let local = data["local"]
                .as_str()
                .or(data["local6"].as_str())
                .unwrap_or("nowhere");
            let learning = if data["learning"] == false { "off" } else { "on" };
            format!(
                "vxlan {} from {local} port {}, mtu {mtu}, {up}, learning {learning}, {port}",
                data["id"], data["port"]
            )
        }
        kind => format!(
            "{kind}, alias {:?}, mtu {mtu}, {up}, {port}",
            text(link, "ifalias")
        ),
    }
}

/// Everything in the containers of a lab but loopback.
///
/// # Errors
/// When it cannot be listed, for example because a container has just gone.
pub fn in_containers(lab: &Lab) -> Result<Picture> {
    let prefix = format!("{}c-", lab.record().prefix());
    let mut picture = Picture::new();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir("/run/netns").context("/run/netns")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            paths.push(entry.path());
        }
    }
    for path in paths {
        in_container(&path, &mut picture).with_context(|| path.display().to_string())?;
    }
    Ok(picture)
}

fn in_container(path: &Path, picture: &mut Picture) -> Result<()> {
    let [links, routes4, routes6] = ask(
        &Namespace::at(path),
        [
            "ip -json -details addr show",
            "ip -4 -json route show",
            "ip -6 -json route show",
        ],
    )?;
    let (links, routes4, routes6) = (json(&links)?, json(&routes4)?, json(&routes6)?);
    for link in rows(&links).filter(|link| link["ifname"] != "lo") {
        let name = text(link, "ifname");
        let addresses: BTreeSet<String> = rows(&link["addr_info"])
            .filter(|address| address["scope"] != "link")
            .map(|address| format!("{}/{}", text(address, "local"), address["prefixlen"]))
            .collect();
        let routes: BTreeSet<String> = rows(&routes4)
            .chain(rows(&routes6))
            .filter(|route| route["dev"] == name && route["protocol"] != "kernel")
            .map(|route| text(route, "dst").to_owned())
            .collect();
        let mut words = interface_words(
            text(link, "ifalias"),
            text(link, "address"),
            link["mtu"].as_u64().unwrap_or_default(),
            &addresses,
            &routes,
        );
        if up(link) == "down" {
            words = words.replace(", up, ", ", down, ");
        }
        put(picture, format!("{} {name}", path.display()), words);
    }
    Ok(())
}
