//! What was found, as rows, tables and pictures.

use std::fmt::Write as _;

use weft_bench::{Against, Figure, Goal, Row, quantile};

use crate::{
    Grows, NETWORKS, crowd,
    curve::{Line, Picture},
    fanout, real,
};

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// With real agents and kernels.
    pub(crate) real: Vec<(Grows, Vec<real::Point>)>,
    /// With simulated ones.
    pub(crate) crowds: Vec<crowd::Point>,
    /// Bare watches.
    pub(crate) fanout: Vec<fanout::Point>,
    /// Crowds that could not be measured, and why.
    pub(crate) beyond: Vec<String>,
}

/// A figure of a point: its name, its unit, how it is read.
type Of<P> = (&'static str, &'static str, fn(&P) -> f64);

const REAL: [Of<real::Point>; 6] = [
    ("delay of a change, p50", "ms", real::Point::p50),
    ("delay of a change, p99", "ms", real::Point::p99),
    ("agent's CPU for a change", "ms", |p| p.cpu),
    ("agent's memory", "MiB", |p| p.resident),
    ("agent's start, empty kernel", "ms", |p| p.start),
    ("agent's restart", "ms", |p| p.restart),
];

const CROWD: [Of<crowd::Point>; 9] = [
    ("delay of a change, p50", "ms", |p| quantile(&p.last, 0.5)),
    ("delay of a change, p99", "ms", |p| quantile(&p.last, 0.99)),
    ("etcd's CPU for a change", "ms", |p| p.etcd_cpu),
    ("sent by etcd for a change", "KiB", |p| p.sent),
    ("keys put for a change", "", |p| p.puts),
    ("etcd's memory", "MiB", |p| p.etcd_resident[1]),
    ("watches at etcd", "", |p| p.watchers),
    ("all join", "s", |p| p.join[0]),
    ("all start anew", "s", |p| p.anew[0]),
];

impl Found {
    /// Simulated agents of one kind, by number.
    fn crowd(&self, everything: bool) -> Vec<&crowd::Point> {
        let of_kind = |p: &&crowd::Point| p.interest.everything == everything;
        self.crowds.iter().filter(of_kind).collect()
    }

    /// How it was measured.
    pub(crate) fn method(&self, disk: &str, changes: u32) -> Vec<String> {
        vec![
            format!(
                "Networks, hosts, endpoints: hosts are network namespaces, each with weftd and a kernel of its own part; one \
                 real etcd with default fsync on {disk}. All of it shares this machine's processors, so that the last of many \
                 hosts waits for the others' CPU time. {changes} changes one after another, each an endpoint with its claim put \
                 in one transaction and then deleted; the delay is from before the put until the last kernel has told of \
                 forwarding entry and neighbour. CPU is the first host's agent's, over puts and deletions. Starts: median of 3."
            ),
            "Networks: on 2 hosts, each with an endpoint in every network; the change is in one of them. Hosts: all in one \
             network. Endpoints: of 64 hosts without agents, one agent."
                .to_owned(),
            format!(
                "Agents: weftd's own loop, etcd client and plans, all in one process, with a recorder in the kernel's place; each \
                 in 2 of {NETWORKS} networks, or following all of them besides. A change gives an endpoint another MAC; the delay \
                 is until the last agent that is concerned has its plan recorded."
            ),
            "A goal here is linear growth at most: the ratio of the value to that of the smallest size is not above the ratio of \
             the sizes."
                .to_owned(),
        ]
    }

    /// A row for each figure: the largest size beside the smallest.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (grows, points) in &self.real {
            for (name, unit, of) in REAL {
                let values = points.iter().map(|p| (grows.of(p.size), of(p)));
                rows.extend(row(name, unit, grows.name(), &values.collect::<Vec<_>>()));
            }
        }
        for everything in [false, true] {
            let points = self.crowd(everything);
            let what = if everything {
                "agents on all networks"
            } else {
                "agents"
            };
            for (name, unit, of) in CROWD {
                let values = points.iter().map(|p| (p.interest.agents as f64, of(p)));
                rows.extend(row(name, unit, what, &values.collect::<Vec<_>>()));
            }
            if let Some(most) = points.last() {
                let row = format!("changes a second sustained, {} {what}", most.interest.agents);
                rows.push(Row::new(
                    row,
                    "1/s",
                    &Figure::from(vec![most.sustained]),
                    None,
                    None,
                ));
            }
        }
        rows
    }

    /// The tables behind the curves, and the pictures.
    pub(crate) fn details(&self) -> String {
        let mut text = String::new();
        for (grows, points) in &self.real {
            let _ = writeln!(
                text,
                "\n| {} | delay p50, ms | p99, ms | put alone p50, ms | agent's CPU a change, ms | etcd's CPU a change, ms | keys put a change | agent, \
                 MiB | etcd, MiB | its database, MiB | watches | start, ms | restart, ms |\n|{}",
                grows.name(),
                "---|".repeat(13)
            );
            for p in points {
                let _ = writeln!(
                    text,
                    "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} | {:.1} | {} | {:.0} | {:.0} |",
                    grows.of(p.size),
                    p.p50(),
                    p.p99(),
                    quantile(&p.answers, 0.5),
                    p.cpu,
                    p.etcd_cpu,
                    p.puts,
                    p.resident,
                    p.etcd_resident,
                    p.database,
                    p.watchers,
                    p.start,
                    p.restart
                );
            }
            for kind in ["time", "memory"] {
                let _ = writeln!(
                    text,
                    "\n![{kind}]({})",
                    file(&format!("growth-{}-{kind}", grows.name()))
                );
            }
        }
        if !self.crowds.is_empty() {
            text.push_str("\nSimulated agents: tables and pictures in [scale.md](scale.md).\n");
        }
        text
    }

    /// The tables and pictures of docs/scale.md: one etcd and its agents.
    pub(crate) fn scale(&self) -> String {
        let proxies = match &self.fanout[..] {
            [] => String::new(),
            points => fanout::table(points),
        };
        if self.crowds.is_empty() {
            return proxies;
        }
        let mut text = String::from(
            "Each agent in 2 of 50 networks. *All*: each follows all networks besides. A change concerns as many agents as it \
             says; delays are from the put until the first and the last of them.\n\n",
        );
        text.push_str(
            "| agents | follow | watches | concerned | first p50, ms | last p50, ms | last p99, ms | etcd's CPU a change, \
             ms | agents' CPU a change, ms | sent a change, KiB | events a change | keys put a change | changes a second sustained |\n|",
        );
        text.push_str(&"---|".repeat(13));
        text.push('\n');
        for p in &self.crowds {
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} |",
                who(p),
                p.watchers,
                p.interested,
                quantile(&p.first, 0.5),
                quantile(&p.last, 0.5),
                quantile(&p.last, 0.99),
                p.etcd_cpu,
                p.cpu,
                p.sent,
                p.events,
                p.puts,
                p.sustained
            );
        }
        text.push_str(
            "\n| agents | follow | etcd without agents, MiB | with, MiB | an agent here, MiB | all join, s | CPU for that: etcd's, \
             s | agents', s | all start anew, s | etcd's, s | agents', s | reads | etcd at rest, % of a core | an agent at rest, % |\n|",
        );
        text.push_str(&"---|".repeat(14));
        text.push('\n');
        for p in &self.crowds {
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} | {:.3} |",
                who(p),
                p.etcd_resident[0],
                p.etcd_resident[1],
                p.resident,
                p.join[0],
                p.join[1],
                p.join[2],
                p.anew[0],
                p.anew[1],
                p.anew[2],
                p.anew_reads,
                p.rest[0],
                p.rest[1]
            );
        }
        text.push_str("\nDelay until the last has it as changes come faster, p50 / p99 in ms (and how many had not come to all after 2 s):\n\n");
        for p in &self.crowds {
            let rates: Vec<String> = p
                .rates
                .iter()
                .map(|(rate, p50, p99, lost)| match lost {
                    0 => format!("{rate}/s: {p50:.0} / {p99:.0}"),
                    lost => format!("{rate}/s: {p50:.0} / {p99:.0} ({lost} late)"),
                })
                .collect();
            let follow = if p.interest.everything { "all" } else { "their" };
            let slow = match p.slow {
                0.0 => String::new(),
                slow => format!("; etcd was behind with {slow} watches then"),
            };
            let _ = writeln!(
                text,
                "- {} agents on {follow} networks: {}{slow}",
                p.interest.agents,
                rates.join(", ")
            );
        }
        for why in &self.beyond {
            let _ = writeln!(text, "- not measured: {why}");
        }
        for name in ["delay", "cost", "memory", "starts"] {
            let _ = write!(text, "\n![{name}]({})\n", file(&format!("growth-agents-{name}")));
        }
        text + &proxies
    }

    /// The curves.
    pub(crate) fn pictures(&self) -> Vec<Picture> {
        let mut pictures = Vec::new();
        for (grows, points) in &self.real {
            let line = |name: &str, of: fn(&real::Point) -> f64| {
                Line::new(name, points.iter().map(|p| (grows.of(p.size), of(p))))
            };
            let (time, memory, axis) = match grows {
                Grows::Networks => (
                    "growth-networks-time",
                    "growth-networks-memory",
                    "networks per host",
                ),
                Grows::Hosts => ("growth-hosts-time", "growth-hosts-memory", "hosts"),
                Grows::Endpoints => (
                    "growth-endpoints-time",
                    "growth-endpoints-memory",
                    "remote endpoints",
                ),
            };
            pictures.push(Picture {
                name: time,
                title: format!("Time, as {} grow in number", grows.name()),
                axes: (axis, "ms"),
                lines: vec![
                    line("delay of a change, p50", real::Point::p50),
                    line("delay of a change, p99", real::Point::p99),
                    line("agent's CPU for a change", |p| p.cpu),
                    line("etcd's CPU for a change", |p| p.etcd_cpu),
                    line("start, empty kernel", |p| p.start),
                    line("restart", |p| p.restart),
                ],
            });
            pictures.push(Picture {
                name: memory,
                title: format!("Memory, as {} grow in number", grows.name()),
                axes: (axis, "MiB"),
                lines: vec![line("agent", |p| p.resident), line("etcd", |p| p.etcd_resident)],
            });
        }
        let line = |name: &str, everything: bool, of: fn(&crowd::Point) -> f64| {
            let of_it = self.crowd(everything);
            let points = of_it.into_iter().map(|p| (p.interest.agents as f64, of(p)));
            let follow = if everything {
                "all networks"
            } else {
                "their networks"
            };
            Line::new(format!("{name}, {follow}"), points.collect::<Vec<_>>())
        };
        let both = |name: &str, of: fn(&crowd::Point) -> f64| [line(name, false, of), line(name, true, of)];
        let picture = |name, title: &str, unit, lines: Vec<Line>| Picture {
            name,
            title: title.to_owned(),
            axes: ("agents", unit),
            lines,
        };
        let p50 = |p: &crowd::Point| quantile(&p.last, 0.5);
        let p99 = |p: &crowd::Point| quantile(&p.last, 0.99);
        pictures.push(picture(
            "growth-agents-delay",
            "From a put until the last agent has it",
            "ms",
            [both("p50", p50), both("p99", p99)].concat(),
        ));
        pictures.push(picture(
            "growth-agents-cost",
            "What a change costs etcd",
            "ms of CPU, KiB sent",
            [both("CPU", |p| p.etcd_cpu), both("sent", |p| p.sent)].concat(),
        ));
        pictures.push(picture(
            "growth-agents-memory",
            "etcd's memory and watches",
            "MiB, watches",
            [
                both("memory", |p| p.etcd_resident[1]),
                both("watches", |p| p.watchers),
            ]
            .concat(),
        ));
        pictures.push(picture(
            "growth-agents-starts",
            "All agents at once",
            "s",
            [both("join", |p| p.join[0]), both("start anew", |p| p.anew[0])].concat(),
        ));
        pictures
    }
}

/// The largest size beside the smallest.
fn row(name: &str, unit: &str, what: &str, values: &[(f64, f64)]) -> Option<Row> {
    let ((x0, y0), (x1, y1)) = (values.first()?, values.last()?);
    let small = Figure::from(vec![*y0]);
    let against = format!("with {x0}");
    Some(Row::new(
        format!("{name}, {x1} {what}"),
        unit,
        &Figure::from(vec![*y1]),
        Some(Against {
            what: &against,
            figure: &small,
        }),
        (x1 > x0).then(|| Goal::RatioAtMost((x1 / x0 * 100.0).round() / 100.0)),
    ))
}

fn who(p: &crowd::Point) -> String {
    let follow = if p.interest.everything { "all" } else { "their" };
    format!("{} | {follow}", p.interest.agents)
}

fn file(name: &str) -> String {
    format!("pictures/{name}.svg")
}
