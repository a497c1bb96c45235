//! The long form of the model: millions of schedules on all processors.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use weft_model::{Failure, Fault, Runner, Tally, known};

/// Runs schedules of the claim protocol until one shows something wrong.
#[derive(Parser)]
struct Options {
    /// How many schedules.
    #[arg(long, default_value_t = 1_000_000)]
    schedules: u64,
    /// The first one's seed; the others count up from it. A random one when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// How many at a time; as many as there are processors when absent.
    #[arg(long)]
    jobs: Option<usize>,
    /// Files with schedules that are run first; a directory for all in it.
    #[arg(long, default_value = "tests/model/regressions")]
    first: PathBuf,
    /// A fault to put in, by its name (`?` for a list): the schedules are to find it.
    #[arg(long)]
    fault: Option<String>,
}

/// Schedules are handed out by so many.
const PORTION: u64 = 256;

fn fault_of(name: Option<&str>) -> Result<Fault, String> {
    let Some(name) = name else { return Ok(Fault::None) };
    let mut all = Fault::ALL.iter();
    let names = || Fault::ALL.map(|fault| format!("{fault:?}")).join(", ");
    let found = all.find(|fault| format!("{fault:?}").eq_ignore_ascii_case(name));
    found
        .copied()
        .ok_or_else(|| format!("the faults are: {}", names()))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("weft-model: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool, String> {
    let fault = fault_of(options.fault.as_deref())?;
    let known = known(&options.first)?;
    let mut runner = Runner::new(fault)?;
    for (file, schedule) in &known {
        if let Err(failure) = runner.run_given(schedule) {
            println!("{}: {failure}", file.display());
            return Ok(false);
        }
    }
    let jobs = options
        .jobs
        .or_else(|| thread::available_parallelism().ok().map(Into::into));
    let first = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 53));
    println!(
        "{} known schedules are right; {} more, with seeds from {first}",
        known.len(),
        options.schedules
    );
    let shared = Shared {
        next: AtomicU64::new(0),
        over: AtomicBool::new(false),
        result: Mutex::new((None, Tally::default())),
    };
    let started = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.unwrap_or(1).max(1))
            .map(|_| scope.spawn(|| work(&shared, options.schedules, first, fault)))
            .collect();
        let mut told = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(20));
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let done = shared.next.load(Ordering::Relaxed).min(options.schedules);
                let rate = done as f64 / started.elapsed().as_secs_f64();
                println!("{done} of {}, {rate:.0} a second", options.schedules);
            }
        }
    });
    let done = shared.next.load(Ordering::Relaxed).min(options.schedules);
    let (failure, tally) = shared
        .result
        .into_inner()
        .map_err(|_| "a worker died".to_owned())?;
    if let Some(failure) = failure {
        println!("{failure}");
        return Ok(false);
    }
    let rate = done as f64 / started.elapsed().as_secs_f64();
    println!("{done} schedules are right, {rate:.0} a second\n{tally:#?}");
    Ok(true)
}

struct Shared {
    next: AtomicU64,
    over: AtomicBool,
    result: Mutex<(Option<Box<Failure>>, Tally)>,
}

fn work(shared: &Shared, schedules: u64, first: u64, fault: Fault) {
    let Ok(mut runner) = Runner::new(fault) else {
        return;
    };
    let mut found = None;
    'all: while !shared.over.load(Ordering::Relaxed) {
        let from = shared.next.fetch_add(PORTION, Ordering::Relaxed);
        if from >= schedules {
            break;
        }
        for seed in from..(from + PORTION).min(schedules) {
            if let Err(failure) = runner.run_seed(first.wrapping_add(seed)) {
                shared.over.store(true, Ordering::Relaxed);
                found = Some(failure);
                break 'all;
            }
        }
    }
    if let Ok(mut result) = shared.result.lock() {
        result.0 = result.0.take().or(found);
        result.1.add(&runner.tally);
    }
}
