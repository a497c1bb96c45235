//! Up to which revision is everything known? Judged from etcd's answers to progress requests.
//!
//! Two traps are in those answers. Up to etcd 3.4.30 and 3.5.12 an answer may overtake events that wait for
//! being sent, or be wrong about watches that are still catching up. There, one answer is not
//! believed; two are, if some time lies between them and no event: whatever waited when the first was sent
//! is sent before the second, as etcd has nothing else to send until we ask again. And an answer to a question
//! asked before a watch was created says nothing about that watch; such answers are counted and passed over.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Everything up to this revision has been received.
    Certain(i64),
    /// Ask again, at this time.
    AskAgain(Instant),
    /// It says nothing new.
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Progress {
    trusted: bool,
    gap: Duration,
    /// Questions not answered yet, and how many of these answers are void.
    open: u32,
    void: u32,
    asked_at: Option<Instant>,
    candidate: Option<(i64, Instant)>,
    certain: i64,
}

impl Progress {
    /// For a new stream to a server of this version.
    pub(crate) fn new(version: Option<&str>, gap: Duration) -> Self {
        Self {
            trusted: version.is_some_and(answers_in_order),
            gap,
            open: 0,
            void: 0,
            asked_at: None,
            candidate: None,
            certain: 0,
        }
    }

    /// Whether an answer may move the revision that a watch is resumed from.
    pub(crate) fn trusted(&self) -> bool {
        self.trusted
    }

    /// Until when an answer is waited for before asking again, if one is.
    ///
    /// After that long none will come: etcd passes over a question while a watch is catching up.
    pub(crate) fn waits_until(&mut self, now: Instant, patience: Duration) -> Option<Instant> {
        let until = self.asked_at.filter(|_| self.open > 0)? + patience;
        if now < until {
            return Some(until);
        }
        self.open = 0;
        self.void = 0;
        None
    }

    pub(crate) fn asked(&mut self, now: Instant) {
        self.open += 1;
        self.asked_at = Some(now);
    }

    /// A watch is being created.
    pub(crate) fn created(&mut self) {
        self.void = self.open;
        self.candidate = None;
        // What was certain before was not said of this watch.
        self.certain = 0;
    }

    /// Events arrived.
    pub(crate) fn events(&mut self) {
        self.candidate = None;
    }

    pub(crate) fn answered(&mut self, revision: i64, now: Instant) -> Answer {
        self.open = self.open.saturating_sub(1);
        if self.void > 0 {
            self.void -= 1;
            return Answer::Nothing;
        }
        if revision <= self.certain {
            return Answer::Nothing;
        }
        if self.trusted {
            self.certain = revision;
            return Answer::Certain(revision);
        }
        match self.candidate {
            Some((candidate, since)) if now >= since + self.gap => {
                self.candidate = (revision > candidate).then_some((revision, now));
                self.certain = candidate;
                Answer::Certain(candidate)
            }
            Some((_, since)) => Answer::AskAgain(since + self.gap),
            None => {
                self.candidate = Some((revision, now));
                Answer::AskAgain(now + self.gap)
            }
        }
    }
}

/// Whether this version of etcd sends progress answers in order with the events of all watches: from 3.4.31
/// and 3.5.13 on (etcd's pull requests 15237 and 17557).
fn answers_in_order(version: &str) -> bool {
    let mut parts = version
        .split(['.', '-', '+'])
        .map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next(), parts.next()) {
        (Some(3), Some(4), Some(patch)) => patch >= 31,
        (Some(3), Some(5), Some(patch)) => patch >= 13,
        (Some(3), Some(minor), _) => minor >= 6,
        (Some(major), ..) => major > 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(200);

    #[test]
    fn versions() {
        for (version, want) in [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0-rc.1", true),
            ("3.6.0", true),
            ("4.0.0", true),
            ("3.3.25", false),
            ("", false),
        ] {
            assert_eq!(answers_in_order(version), want, "{version}");
        }
    }

    #[test]
    fn an_old_server_is_believed_the_second_time() {
        let start = Instant::now();
        let mut progress = Progress::new(Some("3.4.23"), GAP);
        progress.asked(start);
        assert_eq!(progress.answered(7, start), Answer::AskAgain(start + GAP));
        progress.asked(start);
        assert_eq!(progress.answered(8, start + GAP), Answer::Certain(7));
        progress.asked(start);
        assert_eq!(progress.answered(8, start + GAP * 2), Answer::Certain(8));
        progress.asked(start);
        assert_eq!(progress.answered(8, start + GAP * 3), Answer::Nothing);
    }

    #[test]
    fn an_event_between_voids_the_first_answer() {
        let start = Instant::now();
        let mut progress = Progress::new(None, GAP);
        progress.asked(start);
        progress.answered(7, start);
        progress.events();
        progress.asked(start);
        assert_eq!(
            progress.answered(7, start + GAP),
            Answer::AskAgain(start + GAP * 2)
        );
    }

    #[test]
    fn answers_to_questions_from_before_a_watch_are_passed_over() {
        let start = Instant::now();
        let mut progress = Progress::new(Some("3.5.16"), GAP);
        progress.asked(start);
        progress.created();
        progress.asked(start);
        assert_eq!(progress.answered(9, start), Answer::Nothing);
        assert_eq!(progress.answered(9, start), Answer::Certain(9));
    }
    #[test]
    fn a_question_is_given_up_after_a_while() {
        let start = Instant::now();
        let mut progress = Progress::new(Some("3.5.16"), GAP);
        assert_eq!(progress.waits_until(start, GAP), None);
        progress.asked(start);
        progress.created();
        assert_eq!(progress.waits_until(start, GAP), Some(start + GAP));
        assert_eq!(progress.waits_until(start + GAP, GAP), None);
        progress.asked(start + GAP);
        assert_eq!(progress.answered(9, start + GAP), Answer::Certain(9));
    }
}
