//! Schedules run by the thousand, and what is left of one that shows something wrong.

use std::{
    cell::RefCell,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use crate::{
    deed::{Deed, Schedule, Start},
    fault::Fault,
    world::{Tally, World, starts},
};

/// A schedule that shows something wrong.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed that it comes from; none if it was given.
    pub seed: Option<u64>,
    /// The schedule, as small as it could be made.
    pub schedule: Schedule,
    /// What is wrong.
    pub what: String,
    /// What happened, deed by deed.
    pub story: Vec<String>,
}

/// Runs schedules, one after the other.
pub struct Runner {
    starts: Vec<(Start, World)>,
    fault: Fault,
    /// How often what happened.
    pub tally: Tally,
}

thread_local! {
    /// Where the last panic was.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics kept for [`Runner`] instead of printed, in the threads that run schedules.
fn keep_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let kept = PANIC.with_borrow_mut(|kept| match kept {
                Some(text) => {
                    *text = info.to_string();
                    true
                }
                None => false,
            });
            if !kept {
                usual(info);
            }
        }));
    });
}

impl Runner {
    /// Gets ready. `fault` is put in on purpose.
    ///
    /// # Errors
    /// When not even the start is right.
    pub fn new(fault: Fault) -> Result<Self, String> {
        keep_panics();
        Ok(Self {
            starts: starts()?,
            fault,
            tally: Tally::default(),
        })
    }

    /// Runs a schedule.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run(&mut self, schedule: &Schedule) -> Result<(), String> {
        let (result, world) = self.play(schedule, false);
        if let Some(world) = world {
            self.tally.add(&world.tally);
        }
        result
    }

    fn play(&self, schedule: &Schedule, told: bool) -> (Result<(), String>, Option<World>) {
        let start = self.starts.iter().find(|(start, _)| *start == schedule.start);
        let Some((_, start)) = start else {
            return (Ok(()), None);
        };
        let mut world = start.clone();
        world.fault = self.fault;
        world.tally = Tally::default();
        world.story = told.then(Vec::new);
        PANIC.set(Some(String::new()));
        let mut result = catch_unwind(AssertUnwindSafe(|| world.run(schedule)));
        let panic = PANIC.take().unwrap_or_default();
        let result = match &mut result {
            Ok(result) => std::mem::replace(result, Ok(())),
            Err(_) => Err(panic),
        };
        (result, Some(world))
    }

    /// Runs the schedule of a seed; what is left of it if it shows something wrong.
    ///
    /// # Errors
    /// The failure.
    pub fn run_seed(&mut self, seed: u64) -> Result<(), Box<Failure>> {
        let schedule = Schedule::of(seed);
        match self.run(&schedule) {
            Ok(()) => Ok(()),
            Err(_) => Err(Box::new(self.reduce(Some(seed), schedule))),
        }
    }

    /// Runs a given schedule; what is left of it if it shows something wrong.
    ///
    /// # Errors
    /// The failure.
    pub fn run_given(&mut self, schedule: &Schedule) -> Result<(), Box<Failure>> {
        match self.run(schedule) {
            Ok(()) => Ok(()),
            Err(_) => Err(Box::new(self.reduce(None, schedule.clone()))),
        }
    }

    /// Leaves out what is not needed for something to be wrong.
    fn reduce(&self, seed: Option<u64>, mut schedule: Schedule) -> Failure {
        let fails = |schedule: &Schedule| self.play(schedule, false).0.is_err();
        loop {
            let before = schedule.clone();
            let mut chunk = schedule.deeds.len().div_ceil(2);
            while chunk > 0 {
                let mut at = 0;
                while at < schedule.deeds.len() {
                    let mut smaller = schedule.clone();
                    smaller.deeds.drain(at..(at + chunk).min(schedule.deeds.len()));
                    if fails(&smaller) {
                        schedule = smaller;
                    } else {
                        at += chunk;
                    }
                }
                chunk /= 2;
            }
            for at in 0..schedule.deeds.len() {
                for simpler in simpler(&schedule.deeds[at]) {
                    let mut smaller = schedule.clone();
                    smaller.deeds[at] = simpler;
                    if fails(&smaller) {
                        schedule = smaller;
                        break;
                    }
                }
            }
            if schedule == before {
                break;
            }
        }
        let (result, world) = self.play(&schedule, true);
        Failure {
            seed,
            schedule,
            what: result.err().unwrap_or_default(),
            story: world.and_then(|world| world.story).unwrap_or_default(),
        }
    }
}

/// The schedules in files, by their paths: in one, or in all of a directory.
///
/// # Errors
/// When one cannot be read.
pub fn known(path: &Path) -> Result<Vec<(PathBuf, Schedule)>, String> {
    let fail = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut files = if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| fail(path, &e))?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .collect()
    } else {
        vec![path.to_owned()]
    };
    files.sort();
    let read = |file: PathBuf| {
        let text = fs::read(&file).map_err(|e| fail(&file, &e))?;
        let schedule = serde_json::from_slice(&text).map_err(|e| fail(&file, &e))?;
        Ok((file, schedule))
    };
    files.into_iter().map(read).collect()
}

/// Deeds that are less.
fn simpler(deed: &Deed) -> Vec<Deed> {
    match deed {
        Deed::Step(n, k, times) if *times > 1 => (1..*times).map(|fewer| Deed::Step(*n, *k, fewer)).collect(),
        Deed::News(n, ..) => vec![Deed::AllNews(*n)],
        Deed::Chore(n, k) if *k > 0 => vec![Deed::Chore(*n, 0)],
        _ => Vec::new(),
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.what)?;
        if let Some(seed) = self.seed {
            writeln!(f, "\nseed {seed}")?;
        }
        writeln!(f, "\nwhat happened:")?;
        for line in &self.story {
            writeln!(f, "  {line}")?;
        }
        let schedule = serde_json::to_string(&self.schedule).map_err(|_| std::fmt::Error)?;
        write!(
            f,
            "\nthe schedule, for a file in tests/model/regressions:\n{schedule}"
        )
    }
}
