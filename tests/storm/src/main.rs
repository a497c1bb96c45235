//! `weft-storm`: the long form of the storm. What it does is told by the library.

use std::process::ExitCode;

use clap::Parser as _;
use weft_storm::{Storm, command, run};

/// Attaches and detaches on several hosts while agents and members of etcd are killed, stopped and cut off; checks all
/// the time that no address is used twice and that the kernel is what the records say.
#[derive(Debug, clap::Parser)]
#[command(name = "weft-storm")]
struct Args {
    #[command(flatten)]
    storm: command::SeedAndTime,
    /// Number of hosts.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=50))]
    hosts: u8,
}

fn main() -> ExitCode {
    let args = Args::parse();
    command::main(&args.storm, |seed, lasts, verdict, say| {
        let storm = Storm {
            hosts: usize::from(args.hosts),
            ..Storm::long(seed, lasts)
        };
        run(&storm, verdict, say)
    })
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory as _;
    Args::command().debug_assert();
}
