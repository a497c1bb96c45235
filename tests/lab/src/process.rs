//! Processes of a lab: started inside a namespace, recorded on disk before they run, ended by number and only when
//! the number is still theirs. Knows nothing of what the programs do.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::{Namespace, eventually};

/// A process number that cannot be mistaken for a later process with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process number.
    pub pid: u32,
    /// When it started, clock ticks since boot.
    pub started: u64,
}

impl Identity {
    /// Who has this number now; `None` when nobody has, or only a zombie.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let (identity, state) = parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        (state != 'Z' && state != 'X').then_some(identity)
    }

    /// Whether exactly this process runs.
    #[must_use]
    pub fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).context("process number")?;
        match kill(Pid::from_raw(pid), signal) {
            // Ended between the check and the signal.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("sending {signal} to {pid}")),
        }
    }

    /// Kills it at once and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after ten seconds.
    pub(crate) fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_gone(Duration::from_secs(10))
    }

    fn wait_gone(self, deadline: Duration) -> Result<()> {
        eventually(deadline, &format!("process {} ends", self.pid), || {
            ensure!(!self.is_running(), "it runs");
            Ok(())
        })
    }
}

/// The first line of `/proc/<pid>/stat`: number and start (fields 1 and 22), and the state (field 3).
fn parse_stat(line: &str) -> Option<(Identity, char)> {
    let (pid, rest) = line.split_once(' ')?;
    // The name may hold blanks and brackets; what follows the last bracket starts at field 3.
    let mut fields = rest.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((
        Identity {
            pid: pid.parse().ok()?,
            started: fields.nth(18)?.parse().ok()?,
        },
        state,
    ))
}

/// The identities recorded in a directory of process records.
pub(crate) fn recorded(dir: &Path) -> Vec<Identity> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|text| Some(parse_stat(&text)?.0))
        .collect()
}

/// This boot's id, empty when the kernel does not tell.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// One long-running program of a lab, running or not.
#[derive(Debug)]
pub(crate) struct Process {
    record: PathBuf,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// A program with its record `<run_dir>/pids/<name>` and its log.
    pub(crate) fn new(run_dir: &Path, name: &str, log: PathBuf) -> Self {
        Self {
            record: run_dir.join("pids").join(name),
            log,
            child: Mutex::new(None),
        }
    }

    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// Starts it in a namespace; output is appended to the log.
    pub(crate) fn start(
        &self,
        netns: &Namespace,
        program: &Path,
        args: &[String],
        env: &[(&str, &str)],
    ) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("{} runs already as process {pid}", program.display());
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = Command::new("sh");
        // The process records itself before it becomes the program: a lab killed at any moment leaves no process that
        // the next sweep could not find.
        command
            .args([
                "-c",
                r#"read -r stat </proc/$$/stat && printf '%s\n' "$stat" >"$0" && exec "$@""#,
            ])
            .arg(&self.record)
            // Whoever waits for signals blocks them, and who is started inherits that: a SIGTERM would never arrive.
            .args(["env", "--default-signal", "nsenter"])
            .arg(format!("--net={}", netns.path().display()))
            .arg(program)
            .args(args);
        for (name, _) in std::env::vars_os() {
            // Settings meant for one agent by hand must not reach all of them.
            if name.as_encoded_bytes().starts_with(b"WEFT_") || name.as_encoded_bytes().starts_with(b"ETCD") {
                command.env_remove(name);
            }
        }
        let child = {
            use std::os::unix::process::CommandExt as _;
            command
                .envs(env.iter().copied())
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(dup(&log)?)
                .stderr(dup(&log)?)
                // Ctrl-C in the terminal is for the lab, which then ends these in order.
                .process_group(0)
                .spawn()
                .with_context(|| format!("starting {}", program.display()))?
        };
        *self.lock() = Some(child);
        Ok(())
    }

    /// The number of the running process.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self.lock().as_mut() {
            Some(child) => matches!(child.try_wait(), Ok(None)).then(|| child.id()),
            None => self.identity().map(|identity| identity.pid),
        }
    }

    fn identity(&self) -> Option<Identity> {
        let identity = parse_stat(&std::fs::read_to_string(&self.record).ok()?)?.0;
        identity.is_running().then_some(identity)
    }

    fn running(&self) -> Result<Identity> {
        let pid = self
            .pid()
            .ok_or_else(|| anyhow!("{} does not run", self.record.display()))?;
        Identity::of(pid).ok_or_else(|| anyhow!("process {pid} has ended"))
    }

    /// Sends a signal to it.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.running()?.signal(signal)
    }

    /// Kills it at once and waits for its end.
    pub(crate) fn kill9(&self) -> Result<()> {
        self.running()?.kill()?;
        self.reap();
        Ok(())
    }

    /// Asks it to end and waits. An error when it does not within `deadline`, or ends with a failure.
    pub(crate) fn terminate(&self, deadline: Duration) -> Result<()> {
        let identity = self.running()?;
        identity.signal(Signal::SIGTERM)?;
        identity.wait_gone(deadline)?;
        if let Some(mut child) = self.lock().take() {
            let status = child.wait().context("waiting for a process")?;
            ensure!(
                status.success(),
                "process {} ended with {status}:\n{}",
                identity.pid,
                self.log_tail()
            );
        }
        Ok(())
    }

    /// Kills it if it runs and collects its status.
    pub(crate) fn reap(&self) {
        if let Some(mut child) = self.lock().take() {
            // Both fail only when it has ended, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The end of its log, for the text of an error.
    pub(crate) fn log_tail(&self) -> String {
        crate::tools::tail(&self.log, 20).unwrap_or_else(|| "(nothing logged)".to_owned())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        // A test that panicked holding the lock must still be able to clean up.
        self.child
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn dup(file: &File) -> Result<File> {
    file.try_clone().context("duplicating the log's descriptor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_odd_names() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        assert_eq!(
            parse_stat(line),
            Some((
                Identity {
                    pid: 42,
                    started: 777
                },
                'S'
            ))
        );
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn own_process_is_running_and_a_reused_number_is_not_it() {
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.is_running());
        assert!(
            !Identity {
                started: me.started + 1,
                ..me
            }
            .is_running()
        );
    }
}
