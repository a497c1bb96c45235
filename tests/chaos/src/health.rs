//! How agents are after each round: how much memory they have, and what they log.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use weft_lab::{Host, Lab};
use weft_storm::verdict::Verdict;

/// The most memory that an agent may have at rest, in KiB. A built-for-tests one has 32 MiB with nothing to do.
const MOST_MEMORY: u64 = 96 << 10;
/// The most by which a process may grow from its first rest to any later one, in KiB.
const MOST_GROWTH: u64 = 24 << 10;
/// The most lines of a round at levels WARN and ERROR: there are a dozen causes a round, hundreds with a burst of
/// endpoints whose containers are not there, each told when it comes and when it goes.
const MOST_WARNINGS: usize = 1500;
/// The same at level ERROR.
const MOST_ERRORS: usize = 50;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Health {
    /// Memory of each process at its first rest, in KiB.
    first: BTreeMap<u32, u64>,
    /// How much of each host's log was read.
    read: BTreeMap<usize, usize>,
}

impl Health {
    /// Looks at all agents, at rest.
    ///
    /// # Errors
    /// When an agent that runs has no memory in `/proc`.
    pub fn check(&mut self, lab: &Lab, verdict: &Verdict) -> Result<()> {
        for host in lab.hosts() {
            self.memory(host, verdict)?;
            self.log(host, verdict);
        }
        Ok(())
    }

    fn memory(&mut self, host: &Host, verdict: &Verdict) -> Result<()> {
        // That it runs is for others to see.
        let Some(pid) = host.pid() else { return Ok(()) };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut lines = status.lines();
        let memory: u64 = lines
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse()
                    .ok()
            })
            .with_context(|| format!("no VmRSS in {status:?}"))?;
        let first = *self.first.entry(pid).or_insert(memory);
        verdict.at_most("memory", &format!("most KiB of {}'s agent", host.node()), memory);
        let growth = memory.saturating_sub(first);
        verdict.at_most("memory", "most KiB that a process has grown by", growth);
        if memory > MOST_MEMORY || growth > MOST_GROWTH {
            verdict.violated(format!(
                "the agent of {} has {memory} KiB at rest, {growth} more than at first; {MOST_MEMORY} and \
                 {MOST_GROWTH} are allowed",
                host.node()
            ));
        }
        Ok(())
    }

    fn log(&mut self, host: &Host, verdict: &Verdict) {
        let log = host.log();
        let read = self.read.entry(host.number()).or_default();
        let new = log.get(*read..).unwrap_or_default();
        *read = log.len();
        let count = |word: &str| new.lines().filter(|line| line.contains(word)).count();
        let (errors, warnings) = (count(" ERROR "), count(" WARN "));
        let tell = |what: &str, lines: usize| {
            verdict.count("logs", what, lines as u64);
            verdict.at_most(
                "logs",
                &format!("most {what} of an agent in a round"),
                lines as u64,
            );
        };
        tell("lines at WARN", warnings);
        tell("lines at ERROR", errors);
        let node = host.node();
        if let Some(panic) = new.lines().find(|line| line.contains("panicked")) {
            verdict.violated(format!("the agent of {node} panicked: {panic}"));
        }
        if errors > MOST_ERRORS || errors + warnings > MOST_WARNINGS {
            let mut by_text: BTreeMap<String, usize> = BTreeMap::new();
            for line in new.lines() {
                let text: String = line.chars().skip(28).take(80).collect();
                *by_text.entry(text).or_default() += 1;
            }
            let most = by_text.iter().max_by_key(|(_, count)| **count);
            verdict.violated(format!(
                "the agent of {node} logged {errors} errors and {warnings} warnings in one round; most often {most:?}"
            ));
        }
    }
}
