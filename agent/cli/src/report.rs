//! One object, or the agent, in full for people: a line for each thing to know.
//!
//! In: views. Out: text. It must not know where the text goes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::output::{Paint, Tone, plain};
use crate::table::{Lines, endpoint_tone, or_dash, problems, seconds};
use crate::view::{Converged, Endpoint, Event, Network, Reservation, Status, Subject, Tally, Versions};

/// "Name:  value" lines.
struct Sheet {
    lines: Lines,
}

impl Sheet {
    fn new() -> Self {
        Self {
            lines: Lines::new(&[]),
        }
    }

    fn line(&mut self, name: &str, value: impl Into<String>) {
        self.toned(Tone::Neutral, name, value);
    }

    fn toned(&mut self, tone: Tone, name: &str, value: impl Into<String>) {
        self.lines.row(tone, &[format!("{name}:"), value.into()]);
    }

    fn if_given(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.line(name, value);
        }
    }

    fn map(&mut self, name: &str, map: &BTreeMap<String, String>) {
        let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
        self.if_given(name, Some(pairs.join(", ")).filter(|pairs| !pairs.is_empty()));
    }

    fn render(self, paint: Paint) -> String {
        self.lines.render(paint)
    }
}

/// Who has caught up with a network.
pub(crate) fn converged(converged: &Converged) -> String {
    let hosts = match &converged.hosts[..] {
        [] => "nobody".to_owned(),
        hosts => hosts.join(", "),
    };
    let mut text = plain(&format!("network {}: caught up: {hosts}", converged.network)) + "\n";
    if !converged.unannounced.is_empty() {
        let nobody = converged.unannounced.join(", ");
        let why = "no peer record: no agent runs there (yet), or the node was removed";
        text.push_str(&(plain(&format!("  not waited for: {nobody} ({why})")) + "\n"));
    }
    text
}

pub(crate) fn network(network: &Network, paint: Paint) -> String {
    let mut sheet = Sheet::new();
    sheet.line("Network", network.name.clone());
    sheet.line(
        "VNI",
        network
            .vni
            .map_or_else(|| "none claimed yet".to_owned(), |vni| vni.to_string()),
    );
    for subnet in &network.subnets {
        let mut text = subnet.cidr.clone();
        if let Some(gateway) = &subnet.gateway {
            text.push_str(&format!(", gateway {gateway}"));
        }
        if let Some(range) = &subnet.range {
            text.push_str(&format!(", range {range}"));
        }
        if !subnet.reserved.is_empty() {
            text.push_str(&format!(", reserved {}", subnet.reserved.join(" ")));
        }
        if let (Some(used), Some(size)) = (subnet.used, subnet.size) {
            text.push_str(&format!("; {used} of {size} in use"));
        }
        sheet.line("Subnet", text);
    }
    let mtu = match (network.mtu, network.mtu_set) {
        (Some(now), Some(set)) if now != set => Some(format!("{now} bytes; {set} by its record")),
        (now, set) => now.or(set).map(|mtu| format!("{mtu} bytes")),
    };
    sheet.if_given("MTU", mtu);
    let cooldown = Duration::from_secs(network.cooldown_seconds);
    sheet.line(
        "Cool-down",
        if cooldown.is_zero() {
            "none".to_owned()
        } else {
            humantime::format_duration(cooldown).to_string()
        },
    );
    sheet.line("Multicast", if network.multicast { "replicated" } else { "off" });
    sheet.line(
        "Endpoints",
        match network.remote_endpoints {
            Some(remote) => format!("{} here, {remote} on other hosts", network.local_endpoints),
            None => format!(
                "{} here; those on other hosts are not known here",
                network.local_endpoints
            ),
        },
    );
    sheet.line("Namespace", or_dash(network.namespace.as_deref()));
    sheet.map("Labels", &network.labels);
    sheet.map("Options", &network.options);
    sheet.line("Revision", network.revision.to_string());
    let mut text = sheet.render(paint);
    if !network.problems.is_empty() {
        text.push('\n');
        text.push_str(&problems(&network.problems, paint));
    }
    text
}

pub(crate) fn reservation(reservation: &Reservation, paint: Paint) -> String {
    let mut sheet = Sheet::new();
    sheet.line(
        "Reservation",
        format!("{}/{}", reservation.network, reservation.id),
    );
    sheet.line("Addresses", or_dash(Some(&reservation.addresses.join(", "))));
    sheet.line("Until", seconds(reservation.ends.as_deref()));
    sheet.render(paint)
}

pub(crate) fn endpoint(endpoint: &Endpoint, paint: Paint) -> String {
    let mut sheet = Sheet::new();
    sheet.line(
        "Endpoint",
        format!("{}/{}/{}", endpoint.network, endpoint.node, endpoint.id),
    );
    sheet.if_given("Name", endpoint.name.clone());
    let state = match &endpoint.message {
        Some(message) => format!("{}: {message}", endpoint.state),
        None => endpoint.state.to_owned(),
    };
    sheet.toned(endpoint_tone(endpoint), "State", state);
    sheet.line("Addresses", or_dash(Some(&endpoint.addresses.join(", "))));
    let wished = Some(endpoint.requested_addresses.join(", ")).filter(|wished| !wished.is_empty());
    sheet.if_given("Requested", wished);
    sheet.line("MAC", or_dash(endpoint.mac.as_deref()));
    if let Some(at) = &endpoint.attachment {
        sheet.line("Container end", format!("{} in {}", at.ifname, at.netns));
    }
    if let Some(veth) = &endpoint.veth {
        let mut text = veth.name.clone();
        if let Some(namespace) = &veth.namespace {
            text.push_str(&format!(" in {namespace}"));
        }
        sheet.line("Host end", text);
    }
    sheet.line("Tunnel to", or_dash(endpoint.vtep.as_deref()));
    sheet.if_given("MTU", endpoint.mtu.map(|mtu| format!("{mtu} bytes")));
    sheet.map("Labels", &endpoint.labels);
    sheet.line("Revision", endpoint.revision.to_string());
    sheet.render(paint)
}

/// "12 (fdb 7, link 5)", or "0".
fn tally(tally: &Tally) -> String {
    if tally.by_kind.is_empty() {
        return tally.total.to_string();
    }
    let kinds: Vec<String> = tally
        .by_kind
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    format!("{} ({})", tally.total, kinds.join(", "))
}

/// The two largest units of a time: "3days 4h".
fn rough(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

pub(crate) fn status(status: &Status, paint: Paint) -> String {
    let mut sheet = Sheet::new();
    sheet.line(
        "Node",
        format!(
            "{}, weftd {}, up {}",
            status.node,
            status.version,
            rough(status.uptime_seconds)
        ),
    );
    let store = &status.store;
    let at = store.endpoints.join(", ");
    if store.connected {
        let cluster = store
            .cluster_id
            .as_ref()
            .map(|id| format!(", cluster {id}"))
            .unwrap_or_default();
        let since = store
            .since
            .as_deref()
            .map(|since| format!(" since {}", seconds(Some(since))));
        sheet.line(
            "Store",
            format!(
                "connected to {at}{}, revision {}{cluster}",
                since.unwrap_or_default(),
                store.revision
            ),
        );
    } else {
        let since = store
            .since
            .as_deref()
            .map(|since| format!(" since {}", seconds(Some(since))));
        let text = format!(
            "NOT CONNECTED to {at}{}; forwarding goes on",
            since.unwrap_or_default()
        );
        sheet.toned(Tone::Bad, "Store", text);
    }
    if let Some(error) = &store.last_error {
        let when = store
            .last_error_time
            .as_deref()
            .map(|when| format!(" ({})", seconds(Some(when))));
        sheet.line("Last failure", format!("{error}{}", when.unwrap_or_default()));
    }
    if status.counts.networks.is_none() {
        let text = "NOT KNOWN YET: this agent has not read them from etcd since it started";
        sheet.toned(Tone::Bad, "Records", text);
    }
    let behind = store.revision > status.applied_revision;
    let tone = if behind { Tone::Wait } else { Tone::Neutral };
    let applied = match status.applied_revision {
        0 => "nothing yet".to_owned(),
        revision => format!("up to revision {revision}"),
    };
    sheet.toned(tone, "Applied", applied);
    let counts = &status.counts;
    let number = |known: Option<u64>| known.map_or_else(|| "?".to_owned(), |number| number.to_string());
    sheet.line(
        "Networks",
        format!(
            "{}, {} carried here",
            number(counts.networks),
            counts.local_networks
        ),
    );
    let here = counts.local_endpoints.unwrap_or_default();
    let waiting = here.saturating_sub(counts.ready_endpoints.unwrap_or_default());
    sheet.toned(
        if waiting > 0 { Tone::Wait } else { Tone::Neutral },
        "Endpoints",
        format!(
            "{} here, {} ready; {} on other hosts",
            number(counts.local_endpoints),
            number(counts.ready_endpoints),
            number(counts.remote_endpoints)
        ),
    );
    sheet.line("Peers", number(counts.peers));
    sheet.line(
        "Programmed",
        format!(
            "{} FDB entries, {} neighbours",
            counts.fdb_entries, counts.neighbours
        ),
    );
    sheet.line("Netlink writes", tally(&status.netlink_writes));
    sheet.line("Drift repaired", tally(&status.drift_repaired));
    sheet.line(
        "Passes",
        format!("{}, {} of them full", status.passes.total, status.passes.full),
    );
    if let Some(held) = &status.held_deletions {
        let since = held
            .since
            .as_deref()
            .map(|since| format!(" since {}", seconds(Some(since))));
        let text = format!(
            "{} deletions{}: {}",
            held.count,
            since.unwrap_or_default(),
            held.reason
        );
        sheet.toned(Tone::Bad, "Held back", text);
    }
    let tone = if status.problems.is_empty() {
        Tone::Neutral
    } else {
        Tone::Bad
    };
    sheet.toned(
        tone,
        "Problems",
        if status.problems.is_empty() {
            "none".to_owned()
        } else {
            status.problems.len().to_string()
        },
    );
    let mut text = sheet.render(paint);
    if !status.problems.is_empty() {
        text.push('\n');
        text.push_str(&problems(&status.problems, paint));
    }
    text
}

/// One line: when, what, about which object, and what there is to say.
pub(crate) fn event(event: &Event, paint: Paint) -> String {
    let about: Vec<&str> = [&event.network, &event.node, &event.endpoint_id]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let mut said = event.message.clone().unwrap_or_default();
    if said.is_empty() {
        said = match &event.subject {
            Some(Subject::Problem(problem)) => {
                let field = problem
                    .field
                    .as_ref()
                    .map(|field| format!(" {field}"))
                    .unwrap_or_default();
                format!("{}{field}: {}", problem.key, problem.message)
            }
            Some(Subject::Drift {
                kind, object, found, ..
            }) => match found {
                Some(found) => format!("{kind} {object} was {found}"),
                None => format!("{kind} {object} was missing"),
            },
            Some(Subject::Endpoint(endpoint)) => endpoint.addresses.join(", "),
            Some(Subject::Lost(lost)) => format!("{lost} events are missing"),
            _ => String::new(),
        };
    }
    let tone = match event.kind.as_str() {
        "problem_appeared" | "endpoint_failed" | "store_lost" => Tone::Bad,
        "drift_repaired" | "events_lost" => Tone::Wait,
        _ => Tone::Neutral,
    };
    let line = format!(
        "{}  {:<16}  {}",
        seconds(event.time.as_deref()),
        event.kind.replace('_', "-"),
        [about.join("/"), said]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("  "),
    );
    paint.text(tone, plain(&line).trim_end()) + "\n"
}

pub(crate) fn versions(versions: &Versions) -> String {
    let mut text = format!("weft   {}\n", versions.client.version);
    if let Some(agent) = &versions.agent {
        let line = format!("weftd  {} on {} ({})", agent.version, agent.node, agent.api);
        text.push_str(&(plain(&line) + "\n"));
    }
    text
}
