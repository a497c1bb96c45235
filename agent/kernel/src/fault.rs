//! Faults on purpose: a test can have this process killed, or the kernel's answer spoiled, at any step.
//!
//! In: the file that the environment names (`WEFT_FAULT_FILE`), with one line `<step> <number> <what>`. Its number
//! counts steps of its kind from when the line was written, from 0; `*` means each. At that step it happens, and the
//! file is removed, so that whoever wrote it knows. Steps are
//! - `change`: one send that changes something, one namespace's file made, mounted or removed, one setting written;
//! - `question`: one send that asks for something, a dump or a single object;
//!
//! and what happens is
//! - `die`: SIGKILL, before the step;
//! - `refuse EBUSY` (any error number's name): the kernel is not asked, and said to have answered that;
//! - `lose`: the kernel does it, and its answer is not read;
//! - `interrupt`: a dump is said to have been interrupted by changes (`NLM_F_DUMP_INTR`).
//!
//! Nothing of this is in a build without debug assertions, which every release is: there no step has a fault.

use std::io;

use crate::channel::Refusal;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Change,
    Question,
}

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(debug_assertions),
    expect(dead_code, reason = "a release has no faults on purpose")
)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It is refused, with this error number.
    Refuse(i32),
    /// It is done, and the answer lost.
    Lose,
    /// The dump is not of one moment.
    Interrupt,
}

impl Fault {
    /// To be asked before the step.
    pub(crate) fn refusal(self) -> Result<(), Refusal> {
        match self {
            Self::Refuse(errno) => Err(Refusal::Errno(errno, None)),
            _ => Ok(()),
        }
    }

    /// To be asked when the request is sent.
    pub(crate) fn loss(self) -> Result<(), Refusal> {
        match self {
            Self::Lose => Err(Refusal::Lost),
            _ => Ok(()),
        }
    }
}

/// A change that is no netlink message. Its answer cannot be lost.
pub(crate) fn change() -> io::Result<()> {
    match at(Step::Change) {
        Fault::Refuse(errno) => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

/// What goes wrong now.
#[cfg(not(debug_assertions))]
pub(crate) fn at(_: Step) -> Fault {
    Fault::None
}

#[cfg(debug_assertions)]
pub(crate) use on_purpose::at;

#[cfg(debug_assertions)]
mod on_purpose {
    use std::{
        env, fs,
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };

    use nix::{
        errno::Errno,
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::{Fault, Step};

    static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os("WEFT_FAULT_FILE").map(Into::into));
    /// The line in force, and the steps of its kind since it was written.
    static COUNT: Mutex<(String, u64)> = Mutex::new((String::new(), 0));

    /// What goes wrong now.
    pub(crate) fn at(step: Step) -> Fault {
        let Some(file) = &*FILE else { return Fault::None };
        let line = fs::read_to_string(file).unwrap_or_default();
        let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
        if count.0 != line {
            *count = (line, 0);
        }
        let words: Vec<&str> = count.0.split_whitespace().collect();
        let [of, number, what @ ..] = words.as_slice() else {
            return Fault::None;
        };
        let is_of = match step {
            Step::Change => *of == "change",
            Step::Question => *of == "question",
        };
        if !is_of {
            return Fault::None;
        }
        let happens = *number == "*" || number.parse() == Ok(count.1);
        let fault = match what {
            _ if !happens => Fault::None,
            ["die"] => die(),
            ["refuse", name] => Fault::Refuse(number_of(name)),
            ["lose"] => Fault::Lose,
            ["interrupt"] => Fault::Interrupt,
            other => unreachable!("{} says {other:?}", file.display()),
        };
        if fault != Fault::None && *number != "*" {
            tracing::info!(line = count.0.trim(), "a fault on purpose");
            let _ = fs::remove_file(file);
        }
        count.1 += 1;
        fault
    }

    fn die() -> Fault {
        if let Some(file) = &*FILE {
            let _ = fs::remove_file(file);
        }
        let _ = kill(Pid::this(), Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }

    fn number_of(name: &str) -> i32 {
        let named = (1..134).find(|n| format!("{:?}", Errno::from_raw(*n)) == name);
        named.unwrap_or_else(|| unreachable!("{name} is no error number's name"))
    }
}
