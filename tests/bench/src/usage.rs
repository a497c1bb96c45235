//! What processes used of the machine, read from the kernel.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
    unistd::{SysconfVar, sysconf},
};

/// CPU time of this process and of another one (the server that is being asked), user and system together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// This process, all threads.
    pub own: Duration,
    /// The other process, all threads.
    pub other: Duration,
}

impl Usage {
    /// What both have used so far.
    ///
    /// # Errors
    /// When the other process is gone.
    pub fn now(other: u32) -> Result<Self> {
        let own = getrusage(UsageWho::RUSAGE_SELF).context("asking for the CPU time of this process")?;
        let micros = own.user_time().num_microseconds() + own.system_time().num_microseconds();
        Ok(Self {
            own: Duration::from_micros(micros.unsigned_abs()),
            other: cpu_of(other)?,
        })
    }

    /// What was used since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            own: self.own.saturating_sub(before.own),
            other: self.other.saturating_sub(before.other),
        }
    }
}

fn cpu_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let ticks = ticks_of(&text).with_context(|| format!("{path} holds {text:?}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|ticks| u32::try_from(ticks).ok())
        .unwrap_or(100);
    Ok(Duration::from_secs(ticks) / per_second)
}

/// Fields 14 and 15; the second field is a name that may hold anything, in parentheses.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of this process that is in use now, bytes.
///
/// # Errors
/// When the kernel does not tell.
pub fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("reading /proc/self/statm")?;
    let pages: u64 = text
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|field| field.parse().ok())
        .with_context(|| format!("/proc/self/statm holds {text:?}"))?;
    let page = sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096);
    Ok(pages * page)
}

/// Another process, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(pub u32);

/// Memory of a process, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In RAM, whoever shares it.
    pub resident: u64,
    /// The same with each page divided by the number of processes that share it.
    pub proportional: u64,
}

impl Process {
    /// CPU time of all threads that run now, to the nanosecond: ticks are too coarse for little work.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let tasks = format!("/proc/{}/task", self.0);
        let mut nanos = 0;
        for task in std::fs::read_dir(&tasks).with_context(|| tasks.clone())? {
            // One that ends just now is counted no more.
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let ran = text.split_ascii_whitespace().next();
            nanos += ran
                .and_then(|field| field.parse::<u64>().ok())
                .with_context(|| format!("a schedstat in {tasks} holds {text:?}"))?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// What it has in RAM now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/smaps_rollup", self.0);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
            kib.map(|kib| kib << 10)
                .with_context(|| format!("{path} has no {name}"))
        };
        Ok(Memory {
            resident: bytes("Rss:")?,
            proportional: bytes("Pss:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_a_stat_line() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 9 0 100 0 0";
        assert_eq!(ticks_of(line), Some(175));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let before = Usage::now(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Usage::now(std::process::id()).unwrap().since(before).own < Duration::from_millis(2) {
            sum = (0..10_000).fold(sum, u64::wrapping_add);
        }
        assert!(sum > 0 && resident_bytes().unwrap() > 0);
        let process = Process(std::process::id());
        let memory = process.memory().unwrap();
        assert!(process.cpu().unwrap() > Duration::ZERO && memory.proportional <= memory.resident);
    }
}
