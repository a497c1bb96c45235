//! `weft-storm`: the long form of the storm. What it does is told by the library.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use weft_storm::verdict::Verdict;
use weft_storm::{Storm, run};

/// Attaches and detaches on several hosts while agents and members of etcd are killed, stopped and cut off; checks all
/// the time that no address is used twice and that the kernel is what the records say.
#[derive(Debug, Parser)]
#[command(name = "weft-storm")]
struct Args {
    /// Decides all choices. Default: one of the clock's.
    #[arg(long)]
    seed: Option<u64>,
    /// For how long rounds of faults are begun.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Number of hosts.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=50))]
    hosts: u8,
}

fn main() -> ExitCode {
    match storm(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        // As a shell has it for a program that was interrupted: nothing was found, nor was it looked for to the end.
        Ok(false) => ExitCode::from(130),
        Err(error) => {
            eprintln!("storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it came to its end.
fn storm(args: &Args) -> Result<bool> {
    // Before any thread, as all inherit it: signals are for the thread below alone.
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    let verdict = Arc::new(Verdict::default());
    let ending = Arc::clone(&verdict);
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("{signal}: healing and removing everything");
            ending.end();
        }
    });
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(0..1_000_000));
    let storm = Storm {
        hosts: usize::from(args.hosts),
        ..Storm::long(seed, Duration::from_secs(args.seconds))
    };
    run(&storm, &verdict, &|text| println!("{text}"))?;
    Ok(!verdict.is_over())
}
