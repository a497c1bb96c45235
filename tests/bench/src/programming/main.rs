//! `make bench-programming`: what it costs an agent to have the kernel follow the records. Apply alone, a whole start, a restart,
//! one change, memory, CPU; each beside the same kernel's and the same etcd's own pace in the same run.

mod agent;
mod apply;
mod records;
mod wire;

use std::time::Duration;

use anyhow::{Context, Result};
use weft_bench::{Against, Bench, Docker, Figure, Form, Goal, Only, Process, Progress, Row, rotated};
use weft_lab::Lab;

use agent::{Changes, Site, dir_of, idle, millis, percentile, rest};
use apply::Bed;
use records::{Bare, remotes};

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
/// What a change among 100,000 is held against.
const FEW: u32 = 100;
const PARTS: [&str; 4] = ["apply", "start", "change", "memory"];

fn main() -> Result<()> {
    let bench = Bench::begin("programming")?;
    let (form, progress) = (bench.form, bench.progress);
    let only = Only::of(&PARTS)?;
    // For looking closer, too: without the larger networks.
    let most = std::env::var("MOST").ok().filter(|most| !most.is_empty());
    let most = most.map_or(Ok(u32::MAX), |most| most.parse()).context("MOST")?;
    let sizes: Vec<u32> = SIZES.into_iter().filter(|size| *size <= most).collect();
    let wants = |part: &str| only.wants(part);

    // The hosts: without a network, then one for each size.
    let lab = Lab::builder().hosts(2 + sizes.len()).build()?;
    // Before anything is opened: all sockets and programs of this process are in the first host's namespace.
    lab.host(1).netns().enter()?;
    let dir = dir_of(&lab);
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let bare = Bare::connect(&lab.etcd_endpoints().swap_remove(0))?;
    let mut bed = Bed::make(&dir, [10, 99, 0, 1].into())?;
    let mut rows = Vec::new();

    if wants("apply") {
        for count in sizes.iter().copied() {
            rows.extend(apply::measure(&mut bed, count, form.pick(3, 9), progress)?);
        }
    }
    let mut method = method();
    if !only.names("apply") {
        // While etcd has nothing else: what an agent without a network needs.
        let empty = empty(&lab, form, progress)?;
        bare.put_nodes()?;
        let mut sites = Vec::new();
        for (number, count) in (2..).zip([FEW].into_iter().chain(sizes)) {
            progress.say(format!("a network with {count} endpoints elsewhere"));
            sites.push(Site::prepare(&lab, number, count, &bare)?);
        }
        for site in &sites {
            site.host.stop()?;
        }
        let mut memory = vec![(0, empty)];
        for site in sites.iter().skip(1) {
            let (of_starts, used) = starts(site, &bare, &mut bed, form, progress)?;
            rows.extend(of_starts);
            memory.push((site.count, used));
        }
        if wants("change")
            && let [few, _, some, many] = &mut sites[..]
        {
            rows.extend(changes(few, many, &bare, form, progress)?);
            let (time, rate) = (Duration::from_secs(form.pick(10, 60)), 100);
            many.host.stop()?;
            few.host.stop()?;
            some.host.start_weftd()?;
            rest(progress);
            let used = idle(&some.process()?, time)?;
            let goal = Some(Goal::AtMost(0.1));
            let figure = Figure::from(vec![used]);
            rows.push(Row::new(
                "CPU idle, 10000 endpoints",
                "% of a core",
                &figure,
                None,
                goal,
            ));
            progress.say("100 changes a second");
            let figure = Figure::from(vec![some.churn(&bare, rate, time)?]);
            let row = "CPU at 100 changes/s among 10000";
            rows.push(Row::new(row, "% of a core", &figure, None, None));
            some.restore(&bare)?;
            some.host.stop()?;
        }
        rows.extend(memory_rows(&memory, &bench, &mut method));
    }
    bed.remove()?;
    lab.close()?;
    let report = bench.report(method, rows);
    if !only.is_all() || most < u32::MAX {
        // For looking closer: half a report would replace a whole one.
        report.print();
        return Ok(());
    }
    report.publish(&bench.machine)
}

fn method() -> Vec<String> {
    let lines = [
        "An endpoint elsewhere is two keys in etcd (its record, its claim; as its node's agent writes them) and three rows in the \
         kernel: the tunnel's table and the bridge's (one message), and a neighbour (another). An entry is a message. \
         The endpoints are on ten hosts; the measured host has one endpoint of its own in the network.",
        "Apply alone: one namespace for all; `Kernel::apply` with a ready plan, the same messages by hand (128 a send, an \
         acknowledgement for the last), and the two batch programs, in turns, into tables emptied entry by entry. \
         The tables held exactly what they should after each.",
        "A start is measured from starting the program until it says READY; then the kernel held exactly what it should. Beside it, in the \
         same round: etcd's answer to a bare client for the same keys in the same pages, not decoded, and raw netlink into another \
         namespace of the host (for a restart: raw dumps of the same tables, not looked at).",
        "A restart wrote nothing to the kernel, and nothing to etcd but its presence.",
        "A change: another endpoint, put with its claim in one transaction; timed from sending it until the kernel has told that it has \
         the neighbour. One after another, in turns in the network of 100 and of 100,000. CPU time is all of the agent's threads'.",
        "Memory: resident, two seconds after a start with an empty kernel, which leaves the most behind. Proportional (PSS) beside it: without what is \
         shared with other processes.",
        "etcd's data lie in memory, so its fsync hides nothing.",
    ];
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .to_vec()
}

/// Memory of an agent in a cluster without anything, bytes.
fn empty(lab: &Lab, form: Form, progress: Progress) -> Result<Used> {
    progress.say("an agent without a network");
    let host = lab.host(1);
    let mut used = Used::default();
    for _ in 0..form.pick(2, 5) {
        host.start_weftd()?;
        rest(progress);
        used.note(&Process(host.pid().context("weftd has ended")?))?;
        host.stop()?;
    }
    Ok(used)
}

/// Memory over the rounds, MB.
#[derive(Debug, Default)]
struct Used {
    resident: Figure,
    proportional: Figure,
}

impl Used {
    fn note(&mut self, process: &Process) -> Result<()> {
        let memory = process.memory()?;
        self.resident.push(memory.resident as f64 / 1e6);
        self.proportional.push(memory.proportional as f64 / 1e6);
        Ok(())
    }
}

/// Starts with an empty kernel and with everything in place, and what memory they leave.
fn starts(
    site: &Site<'_>,
    bare: &Bare,
    bed: &mut Bed,
    form: Form,
    progress: Progress,
) -> Result<(Vec<Row>, Used)> {
    let count = site.count;
    let remotes = remotes(count);
    let mut used = Used::default();
    let (mut anew, mut again) = (Vec::new(), Vec::new());
    let (mut limit_anew, mut limit_again) = (Vec::new(), Vec::new());
    for round in 0..form.pick(3, 7) {
        progress.say(format!("starts among {count}, round {}", round + 1));
        for who in rotated(2, round) {
            if who == 0 {
                anew.push(site.start_anew()?);
                rest(progress);
                used.note(&site.process()?)?;
                progress.say(site.spent()?);
                site.host.stop()?;
                again.push(site.start_again(bare)?);
                progress.say(site.spent()?);
                limit_again.push(site.time_dump()? + bare.time_list(&site.network)?.0);
                site.host.stop()?;
            } else {
                limit_anew.push(bare.time_list(&site.network)?.0 + bed.raw(&remotes)?);
                bed.empty(&remotes)?;
            }
        }
    }
    let row = |name: &str, what, took: &[Duration], limit: &[Duration], goal| {
        let figure = &millis(limit);
        Row::new(
            format!("{name}, {count} endpoints"),
            "ms",
            &millis(took),
            Some(Against { what, figure }),
            goal,
        )
    };
    let rows = vec![
        row(
            "whole start",
            "etcd list + raw apply",
            &anew,
            &limit_anew,
            Some(Goal::RatioAtMost(2.0)),
        ),
        row(
            "restart, nothing changed",
            "etcd list + raw dump",
            &again,
            &limit_again,
            (count == 100_000).then_some(Goal::RatioAtMost(1.5)),
        ),
    ];
    Ok((rows, used))
}

/// One change among many beside one among few.
fn changes<'l>(
    few: &mut Site<'l>,
    many: &mut Site<'l>,
    bare: &Bare,
    form: Form,
    progress: Progress,
) -> Result<Vec<Row>> {
    few.host.start_weftd()?;
    many.host.start_weftd()?;
    rest(progress);
    let mut figures = [const { (Vec::new(), Vec::new(), Vec::new()) }; 2];
    for round in 0..form.pick(5, 15) {
        progress.say(format!("changes, round {}", round + 1));
        for who in rotated(2, round) {
            let site = if who == 0 { &mut *few } else { &mut *many };
            let mut changes = Changes::default();
            site.change(bare, 100, &mut changes)?;
            let (cpu, half, most) = &mut figures[who];
            cpu.push(changes.cpu);
            half.push(percentile(&changes.latencies, 0.5));
            most.push(percentile(&changes.latencies, 0.99));
        }
    }
    few.restore(bare)?;
    many.restore(bare)?;
    let [of_few, of_many] = figures.map(|(a, b, c)| [a, b, c].map(Figure::from));
    let names = ["CPU time of the agent", "latency p50", "latency p99"];
    let rows = names
        .into_iter()
        .zip(of_many.iter().zip(&of_few))
        .map(|(name, (many, few))| {
            let against = Against {
                what: "among 100",
                figure: few,
            };
            let row = format!("one change among 100000, {name}");
            Row::new(row, "µs", many, Some(against), Some(Goal::RatioAtMost(1.5)))
        });
    Ok(rows.collect())
}

fn memory_rows(memory: &[(u32, Used)], bench: &Bench, method: &mut Vec<String>) -> Vec<Row> {
    let progress = bench.progress;
    let docker = Docker::start(&bench.base, 0, progress)
        .and_then(|docker| Ok(docker.memory()?.resident as f64 / 1e6))
        .map(|megabytes| Figure::from(vec![megabytes]));
    if let Err(why) = &docker {
        progress.say(format!("Docker 20.10 is left out: {why:#}"));
        method.push(format!("Docker 20.10 was left out: {why:#}."));
    }
    let mut rows = Vec::new();
    for (count, used) in memory {
        let docker = docker.as_ref().ok().filter(|_| *count == 0);
        let against = docker.map(|figure| Against {
            what: "dockerd without a container",
            figure,
        });
        let goal = match count {
            0 => Some(Goal::AtMost(12.0)),
            100_000 => Some(Goal::AtMost(60.0)),
            _ => None,
        };
        let name = |what: &str| format!("memory of the agent, {count} endpoints elsewhere{what}");
        rows.push(Row::new(name(""), "MB", &used.resident, against, goal));
        rows.push(Row::new(name(", PSS"), "MB", &used.proportional, None, None));
    }
    rows
}
