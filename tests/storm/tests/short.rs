//! The short form of the storm, for every run of the tests. The long form is `make storm`.

use anyhow::{Result, ensure};
use weft_storm::verdict::Verdict;
use weft_storm::{Storm, run};

#[test]
fn a_short_storm_breaks_nothing() -> Result<()> {
    let verdict = Verdict::default();
    // In its rounds agents are killed, paused with their leases gone and cut off, and leaders of etcd killed and paused.
    run(&Storm::short(2104), &verdict, &|text| println!("{text}"))?;
    // That it did something at all.
    for (group, what) in [
        ("attach", "ok"),
        ("detach", "ok"),
        ("faults", "kill -9 of an agent"),
        ("looks", "addresses judged"),
        ("looks", "revisions followed and checked"),
        ("settled", "pairs that talked"),
    ] {
        ensure!(verdict.counted(group, what) > 0, "{group}: no {what}");
    }
    Ok(())
}
