//! Tells a person who waits what is being waited for.
//!
//! In: a future and what it does. Out: its result; meanwhile, after two seconds, a line on standard error if
//! that is a terminal.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::output::complain;

/// How long a wait is before it is worth a line.
const PATIENCE: Duration = Duration::from_secs(2);

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// Erases the line and puts the cursor at its start.
const ERASE: &str = "\r\u{1b}[K";

/// What the future gives, with a line about `what` ("attaching endpoint blue/web") while it takes long.
pub(crate) async fn waiting<T>(what: &str, work: impl Future<Output = T>) -> T {
    waiting_while(|| what.to_owned(), work).await
}

/// The same, where what is waited for changes meanwhile.
pub(crate) async fn waiting_while<T>(what: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let started = Instant::now();
    let mut ticks = interval_at(started + PATIENCE, Duration::from_millis(100));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut frames = FRAMES.iter().cycle();
    let mut shown = false;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                if shown {
                    complain(ERASE);
                }
                return done;
            }
            _ = ticks.tick() => {
                let frame = frames.next().unwrap_or(&"");
                complain(&format!("{ERASE}{frame} {} … {} s", what(), started.elapsed().as_secs()));
                shown = true;
            }
        }
    }
}
