//! `make bench-reach`: how soon what changes is reachable from every host. Convergence beside bare watchers of the same
//! etcd; attaching, one at a time and many, beside Docker 20.10 and the bare transaction.

mod agent;
mod attach;
mod convergence;
mod hosts;
mod storm;
mod watchers;

use std::time::Duration;

use anyhow::{Context, Result};
use weft_bench::{Bench, Docker, Form, Only, Progress, Row};
use weft_lab::Lab;

use hosts::Hosts;

/// The parts, as they are written after `ONLY=`.
const PARTS: [&str; 4] = ["convergence", "convergence/3", "attach", "storm"];

fn main() -> Result<()> {
    let bench = Bench::begin("reach")?;
    let (form, progress) = (bench.form, bench.progress);
    let only = Only::of(&PARTS)?;
    let wanted = |part: &str| only.wants(part) || (part == "convergence" && only.names("convergence/3"));

    let method = format!(
        "Hosts are network namespaces with a real agent each; one real etcd with default fsync, its data on {}.",
        bench.disk
    );
    let mut report = bench.report(vec![method], Vec::new());
    if wanted("convergence") {
        for hosts in convergence::HOSTS {
            if only.names("convergence/3") && hosts != 3 {
                continue;
            }
            let found = convergence::measure(hosts, &bench.base, form, progress)?;
            report.rows.extend(found.rows());
            report.method.push(found.method());
        }
    }
    if wanted("attach") || wanted("storm") {
        let docker = match Docker::start(&bench.base, 10, progress) {
            Ok(docker) => Some(docker),
            Err(why) => {
                progress.say(format!("Docker 20.10 is left out: {why:#}"));
                report.method.push(format!("Docker 20.10 was left out: {why:#}."));
                None
            }
        };
        let lab = Hosts::build(&bench.base)?;
        // All threads of the runtime begin on the first host then.
        let netns = lab.host(1).netns().clone();
        let parts = [wanted("attach"), wanted("storm")];
        let (rows, method) = netns.within(|| attaching(lab, docker.as_ref(), parts, form, progress))??;
        report.rows.extend(rows);
        report.method.extend(method);
    }
    if only.is_all() {
        return report.publish(&bench.machine);
    }
    // For looking closer: half a report would replace a whole one.
    report.print();
    Ok(())
}

fn attaching(
    lab: Lab,
    docker: Option<&Docker>,
    [attach, storm]: [bool; 2],
    form: Form,
    progress: Progress,
) -> Result<(Vec<Row>, Vec<String>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    progress.say("two hosts with agents");
    let mut hosts = runtime.block_on(Hosts::start(lab))?;
    let (mut rows, mut method) = (Vec::new(), Vec::new());
    if attach {
        let found = attach::measure(&runtime, &mut hosts, docker, form, progress)?;
        rows.extend(found.rows());
        method.extend(found.method());
    }
    if storm {
        let connects = docker.map(|docker| docker.connects_a_second(form.pick(3, 7), progress));
        let connects = match connects.transpose() {
            Ok(connects) => connects,
            Err(why) => {
                progress.say(format!("Docker 20.10: {why:#}"));
                method.push(format!("Docker 20.10 was left out of the storm: {why:#}."));
                None
            }
        };
        let found = storm::measure(&runtime, &mut hosts, form, progress)?;
        rows.extend(found.rows(connects.as_ref()));
        method.push(found.method());
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    hosts.lab.close()?;
    Ok((rows, method))
}
