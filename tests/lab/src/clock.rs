//! A time of day of a host's agent's own, which jumps on demand: the machine's clock is not touched. libfaketime, which is
//! loaded before the C library, answers the agent's questions for the time of day with another one; what counts from boot
//! is left as it is, as it is when a clock is set.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::Host;

/// The clock of one agent, that [`Host::spawn_weftd_in`] is started with.
#[derive(Debug)]
pub struct Clock {
    library: String,
    file: PathBuf,
    text: String,
}

impl Clock {
    /// A clock for a host's agent, right at first.
    ///
    /// # Errors
    /// When libfaketime is not installed, or the file that it reads cannot be written.
    pub fn of(host: &Host) -> Result<Self> {
        let dirs = std::fs::read_dir("/usr/lib").context("/usr/lib")?;
        let mut candidates =
            dirs.filter_map(|dir| Some(dir.ok()?.path().join("faketime/libfaketimeMT.so.1")));
        let library = candidates
            .find(|path| path.is_file())
            .context("libfaketime is not there: run `make setup` (package libfaketime)")?;
        let file = host.dir().join("clock");
        let clock = Self {
            library: library.display().to_string(),
            text: file.display().to_string(),
            file,
        };
        clock.set("+0")?;
        Ok(clock)
    }

    /// Puts it off by so much, in the words of libfaketime: `+7h`, `-30h`, `+10y`, `+0`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, offset: &str) -> Result<()> {
        // At once or not at all: the agent may read it at any moment.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset}\n"))
            .and_then(|()| std::fs::rename(&new, &self.file))
            .with_context(|| format!("setting the clock {}", self.text))
    }

    /// What the agent's environment has to say for it.
    #[must_use]
    pub fn env(&self) -> [(&str, &str); 6] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", &self.text),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DONT_RESET", "1"),
        ]
    }
}
