//! What every benchmark needs: rows, samples and their spread, what a process used, the machine, and the report.
//!
//! In: figures, each measured beside its peer or limit in the same run. Out: a table, `target/bench/NAME.json`
//! and the benchmark's section in `docs/benchmarks.md`. Nothing here knows what is measured, and nothing
//! fails because a figure is bad: a goal that is missed is a row that says so.

mod bare;
mod bench;
mod claimer;
mod docker;
mod ears;
mod machine;
mod only;
mod pace;
mod report;
mod row;
mod sample;
mod tally;
mod usage;

pub use bare::{BARE, Bare, Request, Shape};
pub use bench::Bench;
pub use claimer::{Claimed, Claimer, endpoint};
pub use docker::Docker;
pub use ears::{Ears, Entries};
pub use machine::{Machine, file_system, on_disk};
pub use only::Only;
pub use pace::{Pace, Paced};
pub use report::{Report, write_section};
pub use row::{Against, Goal, Row};
pub use sample::{Figure, median, quantile, rotated};
pub use tally::Tally;
pub use usage::{Memory, Process, Usage, resident_bytes};

use std::time::Instant;

/// Which form of a benchmark is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Under two minutes.
    Short,
    /// As long as steady figures need.
    Long,
}

impl Form {
    /// The long one if the variable `LONG` is set to something other than 0.
    #[must_use]
    pub fn wanted() -> Self {
        match std::env::var("LONG").as_deref() {
            Err(_) | Ok("" | "0") => Self::Short,
            Ok(_) => Self::Long,
        }
    }

    /// One of two values, by form.
    pub fn pick<T>(self, short: T, long: T) -> T {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }
}

/// Tells on standard error what is going on, with the time since the start.
#[derive(Debug, Clone, Copy)]
pub struct Progress(Instant);

impl Progress {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Says it.
    pub fn say(&self, what: impl std::fmt::Display) {
        eprintln!("[{:6.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}
