//! Removing labs, completely and from their record alone, so that any process can do it at any time.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};

use crate::labs_dir;
use crate::process::{Identity, boot_id, recorded};
use crate::record::{LabRecord, labs};

/// What a sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Ids of the labs whose owner was dead.
    pub labs: Vec<String>,
}

/// Removes every lab whose owner no longer runs. Labs that persist and labs of living processes are left alone.
///
/// # Errors
/// When something of a lab could not be removed; the others are removed all the same.
pub fn sweep() -> Result<Swept> {
    if !labs_dir().exists() {
        return Ok(Swept::default());
    }
    // One sweep at a time: two would take the same things apart.
    let lock = File::create(labs_dir().join(".sweep")).context("opening the lock of sweeps")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("locking sweeps")?;
    remove_drafts();
    let mut swept = Swept::default();
    let mut failures = Vec::new();
    for lab in labs()?.into_iter().filter(LabRecord::is_abandoned) {
        match remove(&lab) {
            Ok(()) => swept.labs.push(lab.id),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(swept)
}

/// Takes one lab down by its id, whoever owns it.
///
/// # Errors
/// When there is none, or something could not be removed.
pub fn down(id: &str) -> Result<()> {
    remove(&LabRecord::load(id)?)
}

/// Ends its processes, unmounts and deletes its namespaces, deletes its directories. Tries everything, reports all
/// that failed. The record goes last: what is left is found again.
pub(crate) fn remove(lab: &LabRecord) -> Result<()> {
    let mut failures = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    };
    let run = lab.run_dir();
    // Numbers of another boot mean other processes.
    if lab.boot_id == boot_id() {
        for identity in recorded(&run.join("pids")) {
            note(identity.kill());
        }
    }
    for mount in mounts_under(&run) {
        note(unmount(&mount));
    }
    for name in namespaces(&lab.prefix()) {
        let path = Path::new("/run/netns").join(name);
        note(unmount(&path));
        note(gone(std::fs::remove_file(&path), &path));
    }
    note(gone(remove_tree(&lab.data_dir), &lab.data_dir));
    if failures.is_empty() {
        gone(remove_tree(&run), &run)
    } else {
        bail!("removing lab {}: {}", lab.id, failures.join("; "))
    }
}

/// Deletes a directory that nobody writes into any more. Not one that is still a mount's parent: see `remove`.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    if path.as_os_str().is_empty() {
        Ok(())
    } else {
        std::fs::remove_dir_all(path)
    }
}

fn gone(result: std::io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not mounted, or gone: as wanted.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", path.display())),
    }
}

/// Mount points below a directory, the last mounted first.
fn mounts_under(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    points.reverse();
    points
}

/// Names in `/run/netns` that start with `prefix`.
fn namespaces(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Removes records that a process was killed in the middle of writing: `.new-<pid>-<started>-<id>`.
fn remove_drafts() {
    let Ok(entries) = std::fs::read_dir(labs_dir()) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let mut parts = name.to_str().unwrap_or_default().split('-');
        if parts.next() != Some(".new") {
            continue;
        }
        let pid = parts.next().and_then(|text| text.parse().ok());
        let started = parts.next().and_then(|text| text.parse().ok());
        if let (Some(pid), Some(started)) = (pid, started)
            && !(Identity { pid, started }).is_running()
        {
            // Nothing hangs on a draft; the next sweep tries again.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
