//! `weft-fuzz`: the long form. What is tried is told by the library.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use weft_fuzz::{Failure, Session, TARGETS, Target};

/// Hands arbitrary bytes to everything that reads bytes of others, until something panics or the time is over.
#[derive(Parser)]
#[command(name = "weft-fuzz")]
struct Args {
    /// For how long, over all targets.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Decides all inputs. Default: one by chance.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this target; repeatable.
    #[arg(long = "target")]
    targets: Vec<String>,
    /// At most so many inputs for each target.
    #[arg(long, default_value_t = u64::MAX)]
    runs: u64,
    /// Where an input that something could not bear is written.
    #[arg(long, default_value = "target/fuzz")]
    findings: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(0..1_000_000));
    let wanted = |target: &&Target| args.targets.is_empty() || args.targets.iter().any(|t| t == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    if targets.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("weft-fuzz: the targets are {}", names.join(", "));
        return ExitCode::from(2);
    }
    println!("seed {seed}");
    let time = Duration::from_secs(args.seconds) / u32::try_from(targets.len()).unwrap_or(1);
    let mut failed = false;
    for target in targets {
        match try_out(*target, seed, time, args.runs) {
            Ok(line) => println!("{line}"),
            Err(failure) => {
                failed = true;
                println!("FAILED with seed {seed}: {failure}");
                keep(&args.findings, &failure);
            }
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn try_out(target: Target, seed: u64, time: Duration, runs: u64) -> Result<String, Box<Failure>> {
    let mut session = Session::new(target, seed);
    session.try_corpus()?;
    session.try_mutations(time, runs)?;
    let rate = session.runs() as f64 / time.as_secs_f64().max(0.001);
    Ok(format!(
        "{:14} {:9} inputs, {rate:8.0}/s, {:6} different answers",
        target.name,
        session.runs(),
        session.answers()
    ))
}

fn keep(directory: &PathBuf, failure: &Failure) {
    let path = directory.join(format!("{}-{}", failure.target, failure.runs));
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(&path, &failure.input));
    match written {
        Ok(()) => println!(
            "its input is in {}; once mended, it belongs into tests/fuzz/corpus/{}",
            path.display(),
            failure.target
        ),
        Err(error) => println!("its input cannot be written to {}: {error}", path.display()),
    }
}
