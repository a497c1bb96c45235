//! `make bench-addresses`: claims of addresses per second and attempts per claim, beside the same etcd's bare
//! rate in the same run.

mod choice;
mod network;
mod rates;

use std::time::Duration;

use anyhow::{Context, Result};
use weft_bench::{Bench, Docker};
use weft_lab::Lab;

fn main() -> Result<()> {
    let bench = Bench::begin("addresses")?;
    let (form, progress) = (bench.form, bench.progress);
    let only = rates::only(std::env::var("ONLY").ok().as_deref())?;
    let large = match only {
        None => {
            progress.say("choosing in large subnets");
            // First of all: later the allocator has memory left over from something else.
            choice::rows(form)?
        }
        Some(_) => Vec::new(),
    };
    let lab = Lab::builder().hosts(1).data_base(&bench.base).build()?;
    let url = lab.etcd_endpoints().swap_remove(0);
    let etcd = lab.etcd(1).pid().context("etcd has ended")?;
    // All threads of the runtime begin on the host then; this one stays where Docker can be downloaded.
    let found = lab.host(1).netns().within(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?;
        let found = runtime.block_on(rates::measure(&url, etcd, form, only, progress));
        runtime.shutdown_timeout(Duration::from_secs(5));
        found
    })??;
    let mut report = bench.report(found.method(&bench.disk), found.rows());
    report.details = found.details(&bench.machine);
    lab.close()?;
    if only.is_none() {
        report.rows.extend(large);
        let docker = Docker::start(&bench.base, 10, progress);
        match docker.and_then(|docker| docker.connects_a_second(form.pick(3, 7), progress)) {
            Ok(connects) => report.rows.extend(found.beside_docker(&connects)),
            Err(why) => {
                progress.say(format!("Docker 20.10 is left out: {why:#}"));
                report.method.push(format!("Docker 20.10 was left out: {why:#}."));
            }
        }
    }
    if only.is_some() {
        // For looking closer: half a report would replace a whole one.
        report.print();
        println!("{}", report.details);
        return Ok(());
    }
    report.publish(&bench.machine)
}
