//! Waiting for a condition with a deadline. Knows nothing of labs.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Calls `check` until it succeeds, every 10 ms at first and every 100 ms later, and answers its value.
///
/// # Errors
/// When `deadline` has passed: the text holds `what`, the time, the number of tries and the last failure.
pub fn eventually<T>(deadline: Duration, what: &str, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let mut tries = 0_u32;
    loop {
        tries += 1;
        let failure = match check() {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        if start.elapsed() >= deadline {
            return Err(anyhow!(
                "not within {deadline:?} ({tries} tries): {what}; at last: {failure:#}"
            ));
        }
        std::thread::sleep(Duration::from_millis(if tries < 100 { 10 } else { 100 }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn succeeds_when_the_condition_comes_true() {
        let mut calls = 0;
        let value = eventually(Duration::from_secs(5), "three calls", || {
            calls += 1;
            anyhow::ensure!(calls >= 3, "only {calls}");
            Ok(calls)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn failure_names_the_condition_and_the_last_reason() {
        let error = eventually::<()>(Duration::ZERO, "the moon is blue", || anyhow::bail!("it is grey"));
        let text = format!("{:#}", error.unwrap_err());
        assert!(
            text.contains("the moon is blue") && text.contains("it is grey"),
            "{text}"
        );
    }
}
