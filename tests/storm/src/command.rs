//! What the commands of storms share: a seed, a time, and an end by Ctrl-C that leaves nothing behind.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::verdict::Verdict;

/// What can be said on the command line.
#[derive(Debug, clap::Args)]
pub struct SeedAndTime {
    /// Decides all choices. Default: one of the clock's.
    #[arg(long)]
    seed: Option<u64>,
    /// For how long rounds of faults are begun.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs a storm from its seed and for its time; SIGINT, SIGTERM and SIGHUP end it early, healed and removed.
pub fn main(
    args: &SeedAndTime,
    storm: impl FnOnce(u64, Duration, &Verdict, &(dyn Fn(&str) + Sync)) -> Result<()>,
) -> ExitCode {
    match until_it_ends(args, storm) {
        Ok(true) => ExitCode::SUCCESS,
        // As a shell has it for a program that was interrupted: nothing was found, nor was it looked for to the end.
        Ok(false) => ExitCode::from(130),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it came to its end.
fn until_it_ends(
    args: &SeedAndTime,
    storm: impl FnOnce(u64, Duration, &Verdict, &(dyn Fn(&str) + Sync)) -> Result<()>,
) -> Result<bool> {
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
    let lasts = Duration::from_secs(args.seconds);
    // Whoever reads it may have gone; everything is removed all the same.
    storm(seed, lasts, &verdict, &|text| {
        drop(writeln!(std::io::stdout(), "{text}"));
    })?;
    Ok(!verdict.is_over())
}
