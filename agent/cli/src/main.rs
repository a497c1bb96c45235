//! `weft`, the operator's command: sees and changes weft's networks through the agent of this host.
//!
//! In: the command line. Out: tables or JSON, and an exit status that programs can rely on. It talks gRPC to
//! the agent's Unix socket and knows neither etcd nor the kernel.

mod args;
mod audit;
mod client;
mod failure;
#[cfg(test)]
mod golden;
mod output;
mod progress;
mod removal;
mod report;
mod resync;
mod run;
mod subnet;
mod table;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::args::{Cli, Format};
use crate::failure::Failure;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(why) => return unparsed(&why),
    };
    let format = cli.output;
    match run::run(cli).await {
        Ok(code) => code,
        Err(failure) => failed(&failure, format),
    }
}

fn failed(failure: &Failure, format: Format) -> ExitCode {
    output::complain(&match format {
        Format::Table => failure.text(),
        Format::Json => failure.json(),
    });
    ExitCode::from(failure.code.exit())
}

/// Help and version are asked for; anything else is a mistake, told as JSON to whoever asks for JSON.
fn unparsed(why: &clap::Error) -> ExitCode {
    let asked_for = matches!(why.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !asked_for && wants_json(std::env::args_os()) {
        return failed(&Failure::arguments(why), Format::Json);
    }
    // Nobody reads: there is nobody to tell.
    let _ = why.print();
    if asked_for {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    }
}

/// Whether a command line that cannot be parsed asks for JSON.
fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut before = OsString::new();
    for argument in arguments {
        let json = argument == "json" && (before == "-o" || before == "--output");
        if json || argument == "-ojson" || argument == "-o=json" || argument == "--output=json" {
            return true;
        }
        before = argument;
    }
    false
}
