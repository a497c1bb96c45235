//! `weftd`, the weft agent: config → wiring → the reconcile loop → status. A library only so that tests/fuzz can hand
//! bytes to what reads requests, and tests/bench run many loops without kernels; nothing else has a use for it.

mod chore_book;
mod config;
mod control;
mod cooldown;
mod dead;
mod detachments;
mod drift;
mod health;
mod history;
mod kernel_thread;
mod look;
mod metrics;
mod node;
mod own_records;
mod problems;
mod reconcile;
mod repeats;
mod simulated;
mod sole;
mod state_file;
mod view;
mod wiring;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use config::{Args, Config, LogFormat};
#[doc(hidden)]
pub use control::Pretend;
#[doc(hidden)]
pub use simulated::{Simulated, simulate};

/// What the program does.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let teardown = args.teardown;
    match run(args, teardown) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What ends the agent is told once, here, with all its causes.
            eprintln!("weftd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args, teardown: bool) -> anyhow::Result<()> {
    weft_kernel::memory::keep_little();
    let config = Config::load(args)?;
    start_log(&config)?;
    if teardown {
        return wiring::teardown(&config);
    }
    // Two threads, so that the store's and the API's work goes on beside the loop. The kernel has a thread of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // On those threads, and not on this one: what the store tells is then taken in where it was read, without another
    // thread to be woken.
    let agent = runtime.spawn(wiring::run(config));
    let result = match runtime.block_on(agent) {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    // Not waited for: a look at a path that hangs.
    runtime.shutdown_background();
    result
}

/// A level is that of weft itself: libraries that tell of each frame they send would bury what it says. Whoever wants to hear
/// them writes directives. `EnvFilter`, which knows more of these, costs a megabyte of regular expressions.
fn log_filter(level: &str) -> anyhow::Result<Targets> {
    if let Ok(of_weft) = level.parse::<LevelFilter>() {
        let of_libraries = of_weft.min(LevelFilter::INFO);
        return Ok(Targets::new()
            .with_default(of_libraries)
            .with_target("weft", of_weft));
    }
    let mut directives = level.split(',');
    let wrong = directives.find(|one| !one.contains('=') && one.parse::<LevelFilter>().is_err());
    let filter = wrong.is_none().then(|| level.parse().ok()).flatten();
    filter.with_context(|| {
        format!(
            "setting log.level: {:?} is none of error, warn, info, debug and trace, nor directives such as info,h2=debug",
            wrong.unwrap_or(level)
        )
    })
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = log_filter(&config.log_level)?;
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Text => {
            // journald and files want no colour, and systemd adds its own time; a terminal gets both.
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry
                .with(
                    fmt::layer()
                        .with_writer(std::io::stderr)
                        .with_ansi(terminal)
                        .with_target(false),
                )
                .init();
        }
        LogFormat::Json => registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .init(),
    }
    Ok(())
}

#[test]
fn a_level_is_wefts_own() {
    use tracing::Level;

    let heard = |level: &str, target: &str, at: Level| log_filter(level).unwrap().would_enable(target, &at);
    assert!(heard("info", "weft_store::watch", Level::INFO));
    assert!(!heard("info", "weftd", Level::DEBUG));
    assert!(heard("DEBUG", "weft_store::watch", Level::DEBUG) && heard("DEBUG", "weftd", Level::DEBUG));
    assert!(heard("debug", "h2", Level::INFO) && !heard("debug", "h2", Level::DEBUG));
    assert!(heard("warn", "h2", Level::WARN) && !heard("warn", "weftd", Level::INFO));
    assert!(heard("info,h2=debug", "h2", Level::DEBUG) && heard("info,h2=debug", "weftd", Level::INFO));
    for wrong in ["verbose", "info,verbose", "h2=loud"] {
        let told = log_filter(wrong).unwrap_err().to_string();
        assert!(told.contains("setting log.level"), "{told}");
    }
}
