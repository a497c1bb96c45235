//! The corpus, and a few seconds of mutations of it. FUZZ_SECONDS and FUZZ_SEED for others.

use std::time::Duration;

use weft_fuzz::{Session, TARGETS};

#[test]
fn no_bytes_make_anything_panic() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    let seed: u64 = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
    println!("seed {seed}");
    let time = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(3)) / TARGETS.len() as u32;
    let mut failures = Vec::new();
    for target in TARGETS {
        let mut session = Session::new(target, seed);
        let tried = session
            .try_corpus()
            .and_then(|()| session.try_mutations(time, u64::MAX));
        println!(
            "{}: {} inputs, {} answers",
            target.name,
            session.runs(),
            session.answers()
        );
        failures.extend(tried.err().map(|failure| failure.to_string()));
        assert!(session.runs() > 10, "{} has hardly been tried", target.name);
    }
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
}

#[test]
fn what_panics_is_found_and_made_small() {
    fn fragile(bytes: &[u8]) -> u64 {
        assert!(!bytes.windows(2).any(|two| two == b"ab"), "cannot bear ab");
        u64::from(bytes.contains(&b'a'))
    }
    let target = weft_fuzz::Target {
        name: "keys",
        run: fragile,
        words: &[b"a", b"b"],
    };
    let find = || {
        let mut session = Session::new(target, 7);
        session.try_corpus().expect("no such file in the corpus");
        session
            .try_mutations(Duration::from_secs(60), u64::MAX)
            .expect_err("found")
    };
    let (first, again) = (find(), find());
    assert_eq!(first.input, b"ab");
    assert!(
        first.what.contains("cannot bear ab") && first.what.contains("short.rs"),
        "{first}"
    );
    assert_eq!(first.runs, again.runs);
}
