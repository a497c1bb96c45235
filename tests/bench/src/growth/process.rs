//! What processes use, as the kernel counts it: CPU time to the nanosecond, resident memory. And how many files may be
//! open here.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// CPU time that a process has used so far, all threads, user and system.
///
/// # Errors
/// When it is gone.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let clock = Pid::from_raw(i32::try_from(pid).context("process number")?);
    let time = ClockId::pid_cpu_clock_id(clock)
        .and_then(clock_gettime)
        .with_context(|| format!("CPU time of process {pid}"))?;
    Ok(Duration::from(time))
}

/// Its memory in RAM, MiB.
///
/// # Errors
/// When it is gone.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let figure = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = figure.with_context(|| format!("VmRSS in {path}"))?.parse()?;
    Ok(kib / 1024.0)
}

/// Allows this process, and those that it starts, as many open files as may be.
///
/// # Errors
/// When those are fewer than `needed`.
pub(crate) fn allow_files(needed: u64) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("asking how many files may be open")?;
    // More than the limit says only with rights that root in a container has not.
    if most >= needed || setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, most, most).context("allowing more open files")?;
        ensure!(
            most >= needed,
            "only {most} files may be open, {needed} have to be: raise `ulimit -Hn`"
        );
    }
    Ok(())
}
