//! A minute of chaos, for every run of the tests. The long form is `make chaos`.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_chaos::{chaos, run};
use weft_storm::verdict::Verdict;

#[test]
fn a_minute_of_chaos_breaks_nothing() -> Result<()> {
    let verdict = Verdict::default();
    run(&chaos(2104, Duration::from_secs(40)), &verdict, &|text| {
        println!("{text}");
    })?;
    // That it did something at all.
    for (group, what) in [
        ("attach", "ok"),
        ("detach", "ok"),
        ("settled", "rounds"),
        ("looks", "revisions followed and checked"),
        ("settled", "audits"),
        ("settled", "pairs that talked"),
        ("traffic", "echo requests"),
    ] {
        ensure!(verdict.counted(group, what) > 0, "{group}: no {what}");
    }
    Ok(())
}
