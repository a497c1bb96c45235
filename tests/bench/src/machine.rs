//! The machine a benchmark ran on, for whoever reads the figures elsewhere.

use std::{fmt, path::Path, time::SystemTime};

use anyhow::{Context, Result, ensure};

/// What the figures depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The processor's model.
    pub cpu: String,
    /// Number of processors this process may use.
    pub cores: usize,
    /// Memory, GiB.
    pub memory: u64,
    /// Release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This one; what cannot be found out is called unknown.
    #[must_use]
    pub fn here() -> Self {
        let field = |path: &str, name: &str| {
            let text = std::fs::read_to_string(path).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: (kib + (1 << 19)) >> 20,
            kernel: kernel.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
        }
    }

    /// The date, UTC.
    #[must_use]
    pub fn today() -> String {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        now.split('T').next().unwrap_or(&now).to_owned()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} × {}, {} GiB, Linux {}",
            self.cores, self.cpu, self.memory, self.kernel
        )
    }
}

/// What kind of file system a directory lies on, as `/proc/self/mountinfo` calls it.
///
/// # Errors
/// When the directory does not exist, or no mount can be found for it.
pub fn file_system(dir: &Path) -> Result<String> {
    let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let of_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?.to_owned();
        let kind = right.split(' ').next()?.to_owned();
        Some((point, kind))
    };
    text.lines()
        .filter_map(of_line)
        .filter(|(point, _)| dir.starts_with(point))
        // The last of the longest: mounts hide those before them.
        .max_by_key(|(point, _)| point.len())
        .map(|(_, kind)| kind)
        .with_context(|| format!("no mount holds {}", dir.display()))
}

/// Checks that writing to a directory reaches a disk; answers its file system.
///
/// # Errors
/// When it lies in memory, where fsync costs nothing.
pub fn on_disk(dir: &Path) -> Result<String> {
    let kind = file_system(dir)?;
    ensure!(
        kind != "tmpfs" && kind != "ramfs",
        "{} lies in memory ({kind}): etcd's fsync would cost nothing",
        dir.display()
    );
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.kernel != "unknown", "{machine}");
        let today = Machine::today();
        assert!(today.len() == 10 && today.starts_with("20"), "{today}");
    }

    #[test]
    fn memory_is_not_a_disk() {
        assert_eq!(file_system(Path::new("/proc")).unwrap(), "proc");
        if Path::new("/dev/shm").is_dir() {
            let error = on_disk(Path::new("/dev/shm")).unwrap_err().to_string();
            assert!(error.contains("tmpfs"), "{error}");
        }
    }
}
