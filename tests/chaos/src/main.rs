//! `weft-chaos`: chaos for as long as asked. What it does is told by the library.

use std::process::ExitCode;

use clap::Parser as _;
use weft_chaos::{chaos, names, run_only};
use weft_storm::{Storm, command};

/// Lets every kind of fault strike a cluster of agents, several at once, while many attach and detach and steady traffic
/// runs; checks after each round that the kernel of every host is what the records say, that all talk, and that no
/// traffic was lost which no fault concerned.
#[derive(Debug, clap::Parser)]
#[command(name = "weft-chaos")]
struct Args {
    #[command(flatten)]
    chaos: command::SeedAndTime,
    /// Number of hosts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=20))]
    hosts: u8,
    /// Faults of this name alone; may be repeated.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(names()))]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    command::main(&args.chaos, |seed, lasts, verdict, say| {
        let chaos = Storm {
            hosts: usize::from(args.hosts),
            ..chaos(seed, lasts)
        };
        run_only(&chaos, &args.only, verdict, say)
    })
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory as _;
    Args::command().debug_assert();
}
