//! A target under mutations of its corpus, from a seed: the same seed and number of runs are the same inputs.

use std::{
    any::Any,
    cell::RefCell,
    collections::HashSet,
    fmt,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook},
    path::PathBuf,
    sync::Once,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::{Target, corpus, mutate::mutate};

/// Inputs that answered something new and are built on.
const MOST_KEPT: usize = 5000;
/// Nothing may take as long as this, on the slowest machine.
const TOO_LONG: Duration = Duration::from_secs(5);
/// Tries to make a failing input smaller.
const SHRINKING: usize = 4000;

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Bytes that a target could not bear.
#[derive(Debug)]
pub struct Failure {
    /// The target's name.
    pub target: &'static str,
    /// What happened, and where.
    pub what: String,
    /// The bytes, made as small as could be.
    pub input: Vec<u8>,
    /// The file of the corpus; none if they are a mutation.
    pub file: Option<PathBuf>,
    /// After how many runs of the session.
    pub runs: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, with {} bytes: {}",
            self.target,
            self.what,
            self.input.len(),
            self.input.escape_ascii()
        )?;
        match &self.file {
            Some(file) => write!(f, " ({})", file.display()),
            None => write!(f, " (run {})", self.runs),
        }
    }
}

/// A target being tried.
pub struct Session {
    target: Target,
    rng: Rng,
    kept: Vec<Vec<u8>>,
    seen: HashSet<u64>,
    runs: u64,
}

impl Session {
    /// A target and the chance that makes its inputs.
    #[must_use]
    pub fn new(target: Target, seed: u64) -> Self {
        Self {
            // Each target has its own chance, whether or not others are tried beside it.
            rng: Rng::with_seed(target.name.bytes().fold(seed, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })),
            target,
            kept: Vec::new(),
            seen: HashSet::new(),
            runs: 0,
        }
    }

    /// How many inputs there were.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// How many of them answered something that none before had.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.seen.len()
    }

    /// Tries the corpus as it is. To be called first.
    ///
    /// # Errors
    /// The first file that the target cannot bear, or an unreadable corpus.
    pub fn try_corpus(&mut self) -> Result<(), Box<Failure>> {
        let files = corpus(&self.target).map_err(|error| {
            Box::new(Failure {
                target: self.target.name,
                what: format!("its corpus cannot be read: {error}"),
                input: Vec::new(),
                file: None,
                runs: 0,
            })
        })?;
        for (file, input) in files {
            self.try_one(&input).map_err(|what| {
                Box::new(Failure {
                    target: self.target.name,
                    what,
                    input: input.clone(),
                    file: Some(file),
                    runs: self.runs,
                })
            })?;
            self.kept.push(input);
        }
        Ok(())
    }

    /// Tries mutations until the time is over or there were so many runs.
    ///
    /// # Errors
    /// The first that the target cannot bear, made smaller.
    pub fn try_mutations(&mut self, time: Duration, most_runs: u64) -> Result<(), Box<Failure>> {
        let end = Instant::now() + time;
        while self.runs < most_runs && Instant::now() < end {
            let mut input = self.pick();
            let other = self.pick();
            mutate(&mut self.rng, &mut input, &other, self.target.words);
            let seen = self.seen.len();
            if let Err(what) = self.try_one(&input) {
                let runs = self.runs;
                let (what, input) = self.shrink(what, input);
                return Err(Box::new(Failure {
                    target: self.target.name,
                    what,
                    input,
                    file: None,
                    runs,
                }));
            }
            if self.seen.len() > seen && self.kept.len() < MOST_KEPT {
                self.kept.push(input);
            }
        }
        Ok(())
    }

    fn pick(&mut self) -> Vec<u8> {
        // The newest are the least explored.
        let all = self.kept.len();
        let from = if self.rng.bool() {
            all.saturating_sub(50)
        } else {
            0
        };
        match all {
            0 => Vec::new(),
            _ => self.kept[self.rng.usize(from..all)].clone(),
        }
    }

    fn try_one(&mut self, input: &[u8]) -> Result<(), String> {
        self.runs += 1;
        let begun = Instant::now();
        let answer = quietly(|| (self.target.run)(input))?;
        let took = begun.elapsed();
        if took > TOO_LONG {
            return Err(format!("took {took:?}"));
        }
        self.seen.insert(answer);
        Ok(())
    }

    /// Leaves parts out as long as it still fails.
    fn shrink(&self, mut what: String, mut input: Vec<u8>) -> (String, Vec<u8>) {
        let (mut size, mut tries) = (input.len().div_ceil(2), 0);
        while size > 0 && tries < SHRINKING {
            let mut at = 0;
            while at < input.len() && tries < SHRINKING {
                let mut less = input.clone();
                less.drain(at..(at + size).min(input.len()));
                tries += 1;
                match quietly(|| (self.target.run)(&less)) {
                    Err(still) => (what, input) = (still, less),
                    Ok(_) => at += size,
                }
            }
            size /= 2;
        }
        (what, input)
    }
}

/// Runs something that may panic, and says how it did, without a word on standard error.
fn quietly(run: impl FnOnce() -> u64) -> Result<u64, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let wanted = PANIC.with_borrow_mut(|panic| match panic {
                Some(text) => {
                    *text = info.to_string().replace('\n', " ");
                    true
                }
                None => false,
            });
            if !wanted {
                usual(info);
            }
        }));
    });
    PANIC.set(Some(String::new()));
    let done: Result<u64, Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(run));
    let told = PANIC.take().unwrap_or_default();
    done.map_err(|_| told)
}
