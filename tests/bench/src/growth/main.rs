//! `make bench-growth`: what delay, CPU time, memory and starts cost as networks, hosts, endpoints and agents grow in number,
//! as curves; and what many agents do to one etcd.

mod crowd;
mod curve;
mod fanout;
mod fleet;
mod process;
mod proxy;
mod real;
mod records;
mod server;
mod told;

use std::path::Path;

use anyhow::{Context, Result};
use weft_bench::{Bench, Form, Machine, Only, write_section};

use crate::{fleet::Interest, real::Size};

/// Networks of the simulated cluster; each agent is in two of them.
const NETWORKS: usize = 50;
/// Changes behind a percentile.
const CHANGES: [u32; 2] = [100, 400];

/// What is let grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grows {
    /// Networks per host, two hosts.
    Networks,
    /// Hosts in one network.
    Hosts,
    /// Endpoints of other hosts in one network.
    Endpoints,
}

impl Grows {
    const ALL: [Self; 3] = [Self::Networks, Self::Hosts, Self::Endpoints];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Networks => "networks",
            Self::Hosts => "hosts",
            Self::Endpoints => "endpoints",
        }
    }

    fn sizes(self, form: Form) -> Vec<Size> {
        let sizes = match self {
            Self::Networks => form.pick(&[1, 10, 100][..], &[1, 10, 100, 500][..]),
            Self::Hosts => form.pick(&[3, 10][..], &[3, 10, 30][..]),
            Self::Endpoints => form.pick(&[100, 1_000, 10_000][..], &[100, 1_000, 10_000, 100_000][..]),
        };
        let of = |number: usize| match self {
            Self::Networks => Size {
                hosts: 2,
                networks: number,
                endpoints: 0,
            },
            Self::Hosts => Size {
                hosts: number,
                networks: 1,
                endpoints: 0,
            },
            Self::Endpoints => Size {
                hosts: 1,
                networks: 1,
                endpoints: number,
            },
        };
        sizes.iter().map(|number| of(*number)).collect()
    }

    /// How much of it there is.
    pub(crate) fn of(self, size: Size) -> f64 {
        let number = match self {
            Self::Networks => size.networks,
            Self::Hosts => size.hosts,
            Self::Endpoints => size.endpoints,
        };
        number as f64
    }
}

fn main() -> Result<()> {
    let bench = Bench::begin("growth")?;
    let (form, progress) = (bench.form, bench.progress);
    let only = Only::of(&["networks", "hosts", "endpoints", "agents", "proxies"])?;
    let exactly: Option<usize> = match std::env::var("AGENTS").as_deref() {
        Ok("") | Err(_) => None,
        Ok(number) => Some(number.parse().with_context(|| format!("AGENTS={number}"))?),
    };
    let wanted = |name: &str| only.wants(name);
    // A few connections of each agent, here and at etcd, which inherits the limit.
    process::allow_files(form.pick(2_000, 8_000))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let base = &bench.base;

    let mut found = told::Found::default();
    let changes = form.pick(CHANGES[0], CHANGES[1]);
    for grows in Grows::ALL {
        if !wanted(grows.name()) {
            continue;
        }
        let mut points = Vec::new();
        for size in grows.sizes(form) {
            progress.say(format!("{} {}", grows.of(size), grows.name()));
            points.push(real::measure(size, changes, base)?);
        }
        found.real.push((grows, points));
    }
    let sizes = match exactly {
        Some(number) => vec![number],
        None => form.pick(vec![10, 100], vec![10, 100, 300, 1_000]),
    };
    let interest = |agents, everything| Interest {
        agents,
        networks: NETWORKS,
        everything,
    };
    let mut crowds: Vec<(usize, bool)> = Vec::new();
    if wanted("agents") {
        crowds.extend(
            sizes
                .iter()
                .flat_map(|agents| [(*agents, false), (*agents, true)]),
        );
    }
    for (agents, everything) in crowds {
        let interest = interest(agents, everything);
        match crowd::measure(interest, form, base, progress) {
            Ok(point) => found.crowds.push(point),
            // That so many cannot be served is a finding, too.
            Err(why) => {
                progress.say(format!("{why:#}"));
                found.beyond.push(format!("{why:#}"));
            }
        }
    }
    if wanted("proxies") {
        for watches in &sizes {
            for proxies in [0, 2] {
                progress.say(format!("{watches} bare watches, {proxies} proxies"));
                found
                    .fanout
                    .push(fanout::measure(*watches, proxies, form.pick(50, 300), base)?);
            }
        }
    }
    let mut report = bench.report(found.method(&bench.disk, changes), found.rows());
    report.details = found.details();
    if !only.is_all() || exactly.is_some() {
        // For looking closer: half a report would replace a whole one.
        report.print();
        println!("{}\n{}", report.details, found.scale());
        draw(&found, &base.join("pictures"))?;
        return Ok(());
    }
    draw(&found, &root.join("docs/pictures"))?;
    let head = format!("{}, {}. `{}`", Machine::today(), bench.machine, report.command);
    write_section(
        &root.join("docs/scale.md"),
        "growth",
        &format!("{head}\n\n{}", found.scale()),
    )?;
    report.publish(&bench.machine)
}

fn draw(found: &told::Found, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    found.pictures().iter().try_for_each(|picture| picture.draw(dir))
}
