//! Up to which revision is everything known? Judged from etcd's answers to progress requests.
//!
//! Two traps are in those answers. Up to etcd 3.4.30 and 3.5.12 an answer may overtake events that wait for
//! being sent, or be wrong about watches that are still catching up. There, one answer is not
//! believed; two are, if some time lies between them and no event: whatever waited when the first was sent
//! is sent before the second, as etcd has nothing else to send until we ask again. And an answer to a question
//! asked before a watch was created says nothing about that watch; such answers are counted and passed over.
//!
//! Who waits for one revision need not wait for that. etcd hands the changes of all watches of a stream to one
//! queue, in the order of their revisions, except while a watch is catching up after it was created, or had no room
//! in the queue. So an event tells that everything before it has been sent, if no watch was created lately and the
//! stream is not so busy that the queue may have been full; if it is, a moment later.

use std::{collections::VecDeque, time::Duration};

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
    /// The newest revision that an event of this stream had.
    newest: i64,
    /// When the last watch was confirmed.
    confirmed_at: Option<Instant>,
    /// When the last messages with events came, [`CROWD`] at most.
    lately: VecDeque<Instant>,
    /// A revision that was passed, and when that was first seen.
    passed: Option<(i64, Instant)>,
}

/// etcd serves watches that are catching up every 100 ms.
const CATCH_UP: Duration = Duration::from_millis(250);
/// Messages within [`CROWD_TIME`] that are no more than fit into etcd's queue for a stream (128).
const CROWD: usize = 100;
const CROWD_TIME: Duration = Duration::from_millis(50);
/// etcd tries every 10 ms to get rid of what had no room in the queue.
const CROWD_PAUSE: Duration = Duration::from_millis(50);

/// Whether all up to a revision has been received, going by the order of events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum InOrder {
    /// Everything up to this revision, or more, has been received.
    Certain(i64),
    /// It can be said at this time.
    Later(Instant),
    /// Only etcd can say.
    Unknown,
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
            newest: 0,
            confirmed_at: None,
            lately: VecDeque::with_capacity(CROWD),
            passed: None,
        }
    }

    /// Whether an answer may move the revision that a watch is resumed from.
    pub(crate) fn trusted(&self) -> bool {
        self.trusted
    }

    /// Everything up to this revision is known to have been received.
    pub(crate) fn certain(&self) -> i64 {
        self.certain
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

    /// A watch was confirmed.
    pub(crate) fn confirmed(&mut self, now: Instant) {
        self.confirmed_at = Some(now);
    }

    /// A watch is being created.
    pub(crate) fn created(&mut self) {
        self.void = self.open;
        self.candidate = None;
        // What was certain before was not said of this watch.
        self.certain = 0;
    }

    /// A message with events arrived; the newest of these has this revision.
    pub(crate) fn events(&mut self, revision: i64, now: Instant) {
        self.candidate = None;
        self.newest = self.newest.max(revision);
        if self.lately.len() == CROWD {
            self.lately.pop_front();
        }
        self.lately.push_back(now);
    }

    /// Whether everything up to a revision has been received, as far as the events tell. Nothing for what is
    /// certain anyway.
    pub(crate) fn in_order(&mut self, revision: i64, now: Instant) -> InOrder {
        // What else was changed at the newest revision may be on its way.
        if revision <= self.certain || self.newest <= revision {
            return InOrder::Unknown;
        }
        let since = match self.passed {
            Some((of, since)) if of == revision => since,
            _ => now,
        };
        self.passed = Some((revision, since));
        let crowd = self.lately.len() == CROWD && self.lately[0] + CROWD_TIME > since;
        let caught_up = self.confirmed_at.map(|at| at + CATCH_UP);
        let calm = crowd.then_some(since + CROWD_PAUSE);
        match caught_up.max(calm).filter(|at| *at > now) {
            Some(at) => InOrder::Later(at),
            None => {
                // Of the newest itself, parts may be on their way: events of one transaction come watch by watch.
                self.certain = self.newest - 1;
                self.passed = None;
                InOrder::Certain(self.certain)
            }
        }
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
/// and 3.5.13 on (etcd-io/etcd#15237 and #17557).
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
        progress.events(7, start);
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

    #[test]
    fn an_event_tells_that_everything_before_it_has_come() {
        let start = Instant::now();
        let mut progress = Progress::new(Some("3.4.23"), GAP);
        progress.confirmed(start);
        let now = start + CATCH_UP;
        assert_eq!(progress.in_order(6, now), InOrder::Unknown, "nothing has come");
        progress.events(7, now);
        assert_eq!(
            progress.in_order(7, now),
            InOrder::Unknown,
            "a part of 7 may be missing"
        );
        assert_eq!(progress.in_order(6, now), InOrder::Certain(6));
        assert_eq!(progress.in_order(6, now), InOrder::Unknown, "said already");
    }

    #[test]
    fn an_event_tells_nothing_while_a_watch_may_be_catching_up() {
        let start = Instant::now();
        let mut progress = Progress::new(Some("3.4.23"), GAP);
        progress.confirmed(start);
        progress.events(7, start);
        assert_eq!(progress.in_order(6, start), InOrder::Later(start + CATCH_UP));
        progress.events(9, start + CATCH_UP / 2);
        progress.confirmed(start + CATCH_UP / 2);
        assert_eq!(
            progress.in_order(6, start + CATCH_UP),
            InOrder::Later(start + CATCH_UP * 3 / 2)
        );
        assert_eq!(
            progress.in_order(6, start + CATCH_UP * 3 / 2),
            InOrder::Certain(8)
        );
    }

    #[test]
    fn in_a_crowd_of_events_one_tells_a_moment_later() {
        let start = Instant::now();
        let mut progress = Progress::new(Some("3.4.23"), GAP);
        for revision in 1..=200 {
            progress.events(revision, start);
        }
        let later = start + CROWD_PAUSE;
        assert_eq!(progress.in_order(150, start), InOrder::Later(later));
        // More of them change nothing: what was passed stays passed.
        for revision in 201..=400 {
            progress.events(revision, start + CROWD_PAUSE / 2);
        }
        assert_eq!(
            progress.in_order(150, start + CROWD_PAUSE / 2),
            InOrder::Later(later)
        );
        assert_eq!(progress.in_order(150, later), InOrder::Certain(399));
    }
}
