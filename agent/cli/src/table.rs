//! Lists for people: columns without borders, headings in capitals, one line an object.
//!
//! In: views. Out: text. What is not known is "-". It must not know where the text goes.

use comfy_table::{Table, presets};

use crate::output::{Paint, Tone, plain};
use crate::view::{Address, Endpoint, Network, Peer, Problem};

/// A table of lines, each with a tone.
pub(crate) struct Lines {
    table: Table,
    tones: Vec<Tone>,
}

impl Lines {
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut lines = Self {
            table: Table::new(),
            tones: Vec::new(),
        };
        lines.table.load_style(presets::NOTHING);
        if !headings.is_empty() {
            lines.row(
                Tone::Heading,
                &headings
                    .iter()
                    .map(|heading| (*heading).to_owned())
                    .collect::<Vec<_>>(),
            );
        }
        lines
    }

    pub(crate) fn row(&mut self, tone: Tone, cells: &[String]) {
        self.table
            .add_row(cells.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
        self.tones.push(tone);
    }

    pub(crate) fn render(mut self, paint: Paint) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        let tones = self.tones.into_iter().chain(std::iter::repeat(Tone::Neutral));
        let mut text = String::new();
        for (line, tone) in self.table.lines().zip(tones) {
            text.push_str(&paint.text(tone, line.trim_end()));
            text.push('\n');
        }
        text
    }
}

pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

fn number_or_dash(number: Option<u32>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn joined(parts: &[String]) -> String {
    or_dash(Some(&parts.join(",")))
}

/// A time for people: whole seconds.
pub(crate) fn seconds(time: Option<&str>) -> String {
    // RFC 3339 in UTC: 2026-11-21T03:36:00[.123]Z.
    time.map_or_else(
        || "-".to_owned(),
        |time| match time.split_once('.') {
            Some((whole, _)) => format!("{whole}Z"),
            None => time.to_owned(),
        },
    )
}

/// What the record says, else what is in force here; both where the kernel has not followed.
fn mtu(network: &Network) -> String {
    match (network.mtu_set, network.mtu) {
        (Some(set), Some(now)) if set != now => format!("{set} (now {now})"),
        (set, now) => number_or_dash(set.or(now)),
    }
}

pub(crate) fn networks(networks: &[Network], paint: Paint) -> String {
    let mut lines = Lines::new(&["NAME", "VNI", "SUBNETS", "MTU", "LOCAL", "REMOTE", "PROBLEMS"]);
    for network in networks {
        let tone = if network.problems.is_empty() {
            Tone::Neutral
        } else {
            Tone::Bad
        };
        let subnets: Vec<String> = network.subnets.iter().map(|subnet| subnet.cidr.clone()).collect();
        lines.row(
            tone,
            &[
                network.name.clone(),
                number_or_dash(network.vni),
                joined(&subnets),
                mtu(network),
                network.local_endpoints.to_string(),
                number_or_dash(network.remote_endpoints),
                network.problems.len().to_string(),
            ],
        );
    }
    lines.render(paint)
}

pub(crate) fn endpoint_tone(endpoint: &Endpoint) -> Tone {
    match endpoint.state {
        "ready" => Tone::Neutral,
        "failed" => Tone::Bad,
        _ => Tone::Wait,
    }
}

pub(crate) fn endpoints(endpoints: &[Endpoint], paint: Paint) -> String {
    let headings = [
        "NETWORK",
        "ID",
        "NAME",
        "NODE",
        "STATE",
        "ADDRESSES",
        "MAC",
        "VETH",
        "NAMESPACE:IFNAME",
    ];
    let mut lines = Lines::new(&headings);
    for endpoint in endpoints {
        let at = endpoint
            .attachment
            .as_ref()
            .map(|at| format!("{}:{}", at.netns, at.ifname));
        lines.row(
            endpoint_tone(endpoint),
            &[
                endpoint.network.clone(),
                endpoint.id.clone(),
                or_dash(endpoint.name.as_deref()),
                endpoint.node.clone(),
                endpoint.state.to_owned(),
                joined(&endpoint.addresses),
                or_dash(endpoint.mac.as_deref()),
                or_dash(endpoint.veth.as_ref().map(|veth| veth.name.as_str())),
                or_dash(at.as_deref()),
            ],
        );
    }
    lines.render(paint)
}

pub(crate) fn addresses(addresses: &[Address], paint: Paint) -> String {
    let mut lines = Lines::new(&["ADDRESS", "STATE", "HOLDER"]);
    for address in addresses {
        let holder = match (&address.node, &address.id) {
            (Some(node), Some(id)) => Some(format!("{node}/{id}")),
            _ => None,
        };
        let tone = match address.state {
            "held" | "released" => Tone::Neutral,
            "reserved" => Tone::Wait,
            _ => Tone::Bad,
        };
        lines.row(
            tone,
            &[
                address.address.clone(),
                address.state.to_owned(),
                or_dash(holder.as_deref()),
            ],
        );
    }
    lines.render(paint)
}

pub(crate) fn peers(peers: &[Peer], paint: Paint) -> String {
    let mut lines = Lines::new(&["NODE", "KIND", "ALIVE", "SINCE", "VTEPS", "MTU", "VERSION"]);
    for peer in peers {
        // An external peer has no agent that could be alive.
        let alive = match (peer.kind, peer.alive) {
            ("external", _) => "-",
            (_, Some(true)) => "yes",
            (_, Some(false)) => "no",
            (_, None) => "?",
        };
        let tone = match alive {
            "no" => Tone::Bad,
            "?" => Tone::Wait,
            _ => Tone::Neutral,
        };
        lines.row(
            tone,
            &[
                if peer.local {
                    format!("{} *", peer.node)
                } else {
                    peer.node.clone()
                },
                peer.kind.to_owned(),
                alive.to_owned(),
                seconds(peer.alive_since.as_deref()),
                joined(&peer.vteps),
                number_or_dash(peer.mtu),
                or_dash(peer.version.as_deref()),
            ],
        );
    }
    lines.render(paint)
}

pub(crate) fn problems(problems: &[Problem], paint: Paint) -> String {
    let mut lines = Lines::new(&["KEY", "FIELD", "SINCE", "PROBLEM"]);
    for problem in problems {
        lines.row(
            Tone::Bad,
            &[
                problem.key.clone(),
                or_dash(problem.field.as_deref()),
                seconds(problem.since.as_deref()),
                problem.message.clone(),
            ],
        );
    }
    lines.render(paint)
}
