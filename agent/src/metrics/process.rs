//! What the kernel says of this process, under the names that all exporters use.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// The process at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_files: u64,
    pub(super) most_files: u64,
}

impl Process {
    /// Reads /proc; what cannot be read is 0.
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Behind the name, which may hold anything: fields 3 and up of proc(5).
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
        let field = |number: usize| -> u64 {
            fields
                .get(number - 3)
                .and_then(|text| text.parse().ok())
                .unwrap_or_default()
        };
        let system = |variable| {
            sysconf(variable)
                .ok()
                .flatten()
                .and_then(|n| u64::try_from(n).ok())
        };
        let ticks = system(SysconfVar::CLK_TCK).unwrap_or(100);
        let page = system(SysconfVar::PAGE_SIZE).unwrap_or(4096);
        Self {
            cpu_seconds: (field(14) + field(15)) as f64 / ticks as f64,
            resident_bytes: field(24) * page,
            virtual_bytes: field(23),
            threads: field(20),
            // One of them is that of the directory itself.
            open_files: fs::read_dir("/proc/self/fd")
                .map_or(0, |files| files.count() as u64)
                .saturating_sub(1),
            most_files: system(SysconfVar::OPEN_MAX).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let process = Process::read();
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.threads >= 1 && process.open_files >= 3, "{process:?}");
        assert!(process.most_files >= process.open_files, "{process:?}");
    }
}
