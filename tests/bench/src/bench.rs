//! What each benchmark begins and ends with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{Form, Machine, Progress, Report, Row, on_disk};

/// A benchmark that has begun.
#[derive(Debug)]
pub struct Bench {
    /// Its name, as in `make bench-NAME`.
    pub name: &'static str,
    /// The form that is wanted.
    pub form: Form,
    /// What it runs on.
    pub machine: Machine,
    /// Who is told what goes on.
    pub progress: Progress,
    /// A directory for the data of etcd and others, on a disk: `target/bench`.
    pub base: PathBuf,
    /// Which disk that is, for the report.
    pub disk: String,
}

impl Bench {
    /// Begins, and says so.
    ///
    /// # Errors
    /// When there is no place for the data.
    pub fn begin(name: &'static str) -> Result<Self> {
        let (progress, form, machine) = (Progress::start(), Form::wanted(), Machine::here());
        progress.say(format!("{machine}; the {form:?} form"));
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
        std::fs::create_dir_all(&base).with_context(|| format!("making {}", base.display()))?;
        let disk = on_disk(&base)?;
        Ok(Self {
            name,
            form,
            machine,
            progress,
            base,
            disk,
        })
    }

    /// A report of it.
    #[must_use]
    pub fn report(&self, method: Vec<String>, rows: Vec<Row>) -> Report {
        Report {
            name: self.name,
            command: format!("{}make bench-{}", self.form.pick("", "LONG=1 "), self.name),
            method,
            rows,
            details: String::new(),
        }
    }
}
