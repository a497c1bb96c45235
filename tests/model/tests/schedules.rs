//! The short form of the model: known schedules first, then some thousands of new ones; and that it notices what is
//! broken on purpose. The long form is `make model`.

use std::path::Path;

use weft_model::{Failure, Fault, Runner, Schedule, known};

/// Schedules of the short form.
const SCHEDULES: u64 = 2500;
/// A fault is to be found within so many.
const TO_FIND: u64 = 100_000;

fn fail(name: &str, failure: &Failure) -> ! {
    panic!("{name}: {failure}");
}

#[test]
fn what_was_found_once_stays_mended() {
    let mut runner = Runner::new(Fault::None).unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for (file, schedule) in known(&directory).unwrap() {
        runner
            .run_given(&schedule)
            .unwrap_or_else(|failure| fail(&file.display().to_string(), &failure));
    }
}

#[test]
fn what_must_hold_holds_in_thousands_of_schedules() {
    let mut runner = Runner::new(Fault::None).unwrap();
    // Others each time; a failure names its seed, and `make model SEED=…` runs it again.
    let first = fastrand::u64(..1 << 53);
    for seed in first..first + SCHEDULES {
        runner
            .run_seed(seed)
            .unwrap_or_else(|failure| fail("a schedule", &failure));
    }
    let tally = &runner.tally;
    let all = [
        tally.happened,
        tally.refused,
        tally.lost,
        tally.found_out,
        tally.unknown,
        tally.crashes,
        tally.late,
        tally.full,
        tally.expired,
        tally.removed,
    ];
    assert!(
        all.iter().all(|count| *count > 0),
        "hardly anything happens: {tally:?}"
    );
}

/// A seed from which it does not take long, for what takes something rare to show.
fn near(fault: Fault) -> u64 {
    match fault {
        Fault::ForgetDetaches => 9_700,
        Fault::ReleaseAnybodys => 2_100,
        Fault::VniWhatIsTaken => 1_000,
        _ => 0,
    }
}

/// A model that cannot fail shows nothing.
#[test]
fn whatever_is_broken_is_found() {
    for fault in Fault::ALL {
        let mut runner = Runner::new(fault).unwrap();
        let from = near(fault);
        let found = (from..from + TO_FIND).find(|seed| runner.run(&Schedule::of(*seed)).is_err());
        assert!(found.is_some(), "{fault:?} is not found in {TO_FIND} schedules");
    }
}
