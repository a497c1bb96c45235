//! Everything that is wrong now, from all sources, each told once when it comes and once when it goes.
//!
//! In: the problems that a source sees, whole or one by one. Out: the present set, a log line and an event
//! for each change. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use tokio::time::Instant;
use weft_api::EventHub;
use weft_core::problem::Problem;
use weft_proto::v1;

use crate::repeats::Repeats;

/// Comings and goings of one key's problems that are told one by one. A record that turns bad and good a hundred times a
/// second is one cause.
const TOLD_AT_ONCE: u32 = 10;

/// Who sees a problem. The same key may have one from each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The record cannot be understood.
    Record,
    /// The records contradict one another.
    Assessment,
    /// The record cannot be completed.
    Claim,
    /// The store refuses what is owed to it.
    Store,
    /// The kernel refuses.
    Kernel,
    /// This host lacks something.
    Host,
    /// This node's name is another host's.
    Identity,
    /// Its container is gone.
    Attachment,
}

impl Source {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Record,
        Self::Assessment,
        Self::Claim,
        Self::Store,
        Self::Kernel,
        Self::Host,
        Self::Identity,
        Self::Attachment,
    ];

    /// Its name in logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Assessment => "assessment",
            Self::Claim => "claim",
            Self::Store => "store",
            Self::Kernel => "kernel",
            Self::Host => "host",
            Self::Identity => "identity",
            Self::Attachment => "attachment",
        }
    }
}

/// Everything that is wrong now.
#[derive(Debug)]
pub(crate) struct Problems {
    present: BTreeMap<(Source, String), (Problem, SystemTime)>,
    /// Keys that were told of lately.
    told: Repeats<String>,
    events: EventHub,
}

impl Problems {
    /// No problems; changes are published to the hub.
    pub(crate) fn new(events: EventHub) -> Self {
        Self {
            present: BTreeMap::new(),
            told: Repeats::telling(TOLD_AT_ONCE),
            events,
        }
    }

    /// Sets or clears what a source says of a key.
    pub(crate) fn set(&mut self, source: Source, key: &str, problem: Option<Problem>) {
        let at = (source, key.to_owned());
        // Who wants to complete a record and who judges it see the same cause; it is told once.
        let twin = match source {
            Source::Assessment => Some(Source::Claim),
            Source::Claim => Some(Source::Assessment),
            _ => None,
        };
        let problem = problem.filter(|problem| {
            let told = twin.and_then(|twin| self.seen_by(twin, key));
            problem.field.is_none() || told.is_none_or(|told| told.field != problem.field)
        });
        match problem {
            Some(problem) => {
                let since = match self.present.get(&at) {
                    Some((before, _)) if *before == problem => return,
                    Some((_, since)) => *since,
                    None => SystemTime::now(),
                };
                if self.told.happens(&at.1, Instant::now()) {
                    let source = source.name();
                    tracing::warn!(key, field = problem.field, source, "{}", problem.message);
                }
                self.publish(v1::EventKind::ProblemAppeared, &problem, since);
                self.present.insert(at, (problem, since));
            }
            None => {
                if let Some((problem, since)) = self.present.remove(&at) {
                    if self.told.happens(&at.1, Instant::now()) {
                        tracing::info!(key, source = source.name(), "no longer: {}", problem.message);
                    }
                    self.publish(v1::EventKind::ProblemCleared, &problem, since);
                }
            }
        }
    }

    /// Sets all that a source says; what it does not say any more is cleared.
    pub(crate) fn replace<'a>(&mut self, source: Source, problems: impl IntoIterator<Item = &'a Problem>) {
        let wanted: BTreeMap<&str, &Problem> = problems.into_iter().map(|p| (p.key.as_str(), p)).collect();
        let gone: Vec<String> = self
            .keys_of(source)
            .filter(|key| !wanted.contains_key(key.as_str()))
            .cloned()
            .collect();
        for key in gone {
            self.set(source, &key, None);
        }
        for (key, problem) in wanted {
            self.set(source, key, Some(problem.clone()));
        }
    }

    /// Tells how it is with keys whose problems came and went too often to be told each time.
    pub(crate) fn tell_rest(&mut self, now: Instant) {
        for (key, changes) in self.told.over(now) {
            match self.of(&key).next() {
                Some(problem) => {
                    tracing::warn!(
                        key,
                        field = problem.field,
                        changes,
                        "{}; it comes and goes",
                        problem.message
                    );
                }
                None => tracing::info!(key, changes, "nothing is wrong any more; it came and went"),
            }
        }
    }

    /// When [`Self::tell_rest`] has something to tell.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.told.next_due()
    }

    /// The keys a source has something to say of.
    fn keys_of(&self, source: Source) -> impl Iterator<Item = &String> {
        self.present
            .range((source, String::new())..)
            .map(|(at, _)| at)
            .take_while(move |(s, _)| *s == source)
            .map(|(_, key)| key)
    }

    /// The keys of records that are wrong by themselves or beside others, whatever the kernel does.
    pub(crate) fn bad_records(&self) -> BTreeSet<String> {
        let present = self.present.keys();
        present
            .filter(|(source, _)| matches!(source, Source::Record | Source::Assessment | Source::Claim))
            .map(|(_, key)| key.clone())
            .collect()
    }

    /// What is wrong with one key; the most telling first.
    pub(crate) fn of(&self, key: &str) -> impl Iterator<Item = &Problem> {
        self.since(key).map(|(problem, _)| problem)
    }

    /// The same, as the API shows it.
    pub(crate) fn of_to_proto(&self, key: &str) -> Vec<v1::Problem> {
        self.since(key)
            .map(|(problem, since)| proto(problem, *since))
            .collect()
    }

    fn since(&self, key: &str) -> impl Iterator<Item = &(Problem, SystemTime)> {
        let by = |source| self.present.get(&(source, key.to_owned()));
        Source::ALL.into_iter().filter_map(by)
    }

    /// What one source says of a key.
    pub(crate) fn seen_by(&self, source: Source, key: &str) -> Option<&Problem> {
        self.present
            .get(&(source, key.to_owned()))
            .map(|(problem, _)| problem)
    }

    /// How many a source sees.
    pub(crate) fn count(&self, source: Source) -> usize {
        self.keys_of(source).count()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.present.len()
    }

    /// All, by source and key.
    pub(crate) fn to_proto(&self) -> Vec<v1::Problem> {
        self.present
            .values()
            .map(|(problem, since)| proto(problem, *since))
            .collect()
    }

    /// All, by source and key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.present.values().map(|(problem, _)| problem)
    }

    fn publish(&self, kind: v1::EventKind, problem: &Problem, since: SystemTime) {
        self.events.publish(v1::Event {
            kind: kind.into(),
            message: problem.to_string(),
            subject: Some(v1::event::Subject::Problem(proto(problem, since))),
            ..v1::Event::default()
        });
    }
}

fn proto(problem: &Problem, since: SystemTime) -> v1::Problem {
    v1::Problem {
        key: problem.key.clone(),
        field: problem.field.clone().unwrap_or_default(),
        message: problem.message.clone(),
        since: Some(since.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_bad_and_good_in_turns_is_not_told_each_time() {
        let mut problems = Problems::new(EventHub::new(1));
        let bad = Problem::new("networks/blue", "is bad");
        for _ in 0..1000 {
            problems.set(Source::Record, "networks/blue", Some(bad.clone()));
            problems.set(Source::Record, "networks/blue", None);
        }
        problems.set(
            Source::Record,
            "networks/red",
            Some(Problem::new("networks/red", "is bad")),
        );
        let due = problems.next_due().expect("the rest");
        assert_eq!(
            problems.told.over(due),
            [("networks/blue".to_owned(), 2000 - u64::from(TOLD_AT_ONCE))]
        );
        tokio::time::advance(Duration::from_secs(120)).await;
        problems.tell_rest(Instant::now());
        assert_eq!(problems.next_due(), None);
        assert_eq!(problems.count(Source::Record), 1);
    }

    #[tokio::test]
    async fn a_problem_is_as_old_as_its_cause_whatever_is_said_of_it() {
        let mut problems = Problems::new(EventHub::new(1));
        let key = "networks/blue";
        let full = |count: u32| Problem::new(key, format!("is full ({count} of 5)"));
        let since = |problems: &Problems| problems.of_to_proto(key)[0].since.expect("a time");
        problems.set(Source::Claim, key, Some(full(4)));
        let first = since(&problems);
        problems.set(Source::Claim, key, Some(full(5)));
        let in_field = Problem::field(key, "subnets", "is full");
        problems.replace(Source::Claim, [&in_field]);
        assert_eq!((since(&problems), problems.len()), (first, 1));
        assert_eq!(problems.of(key).next(), Some(&in_field));
        problems.set(Source::Claim, key, None);
        problems.set(Source::Claim, key, Some(full(4)));
        assert!(since(&problems) != first);
    }
}
