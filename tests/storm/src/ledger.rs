//! Every revision of the store, one after the other: checked as it is taken in, and kept as far as it says which
//! container held which address when. Pure: fed with the events of a watch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use weft_lab::KeyEvent;

use crate::records::{Endpoint, Name, Records};

/// How many changes are kept in words, for the report of a failure.
const REMEMBERED: usize = 20_000;

/// What a record said of a container, and while it did.
#[derive(Debug, Clone)]
struct Life {
    name: Name,
    addresses: BTreeSet<IpAddr>,
    from: i64,
    /// The revision at which it was something else.
    until: Option<i64>,
}

/// The history so far.
#[derive(Debug, Default)]
pub struct Ledger {
    records: Records,
    by_hand: BTreeSet<String>,
    revision: i64,
    revisions: u64,
    lives: BTreeMap<String, Vec<Life>>,
    changes: VecDeque<String>,
    /// From which revision to which, both included, records are mended by hand.
    mended: Vec<(i64, i64)>,
}

impl Ledger {
    /// One who knows nothing yet of a store in which these networks are written by hand.
    #[must_use]
    pub fn new(by_hand: BTreeSet<String>) -> Self {
        Self {
            by_hand,
            ..Self::default()
        }
    }

    /// The revision up to which it knows everything; 0 before the first.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// How many revisions were checked.
    #[must_use]
    pub fn revisions(&self) -> u64 {
        self.revisions
    }

    /// The records at [`Ledger::revision`].
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Takes in events, whole revisions in order, and answers what does not hold at one of them. Events that are known
    /// already, because another watch has told them before, are passed over.
    pub fn take(&mut self, events: &[KeyEvent]) -> Vec<String> {
        let mut wrong = Vec::new();
        let known = self.revision;
        let fresh: Vec<_> = events.iter().filter(|e| e.kv.mod_revision > known).collect();
        for revision in fresh.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision) {
            let number = revision[0].kv.mod_revision;
            for event in revision {
                self.apply(event);
            }
            self.revision = number;
            self.revisions += 1;
            let violations = self.violations(number, &self.records);
            wrong.extend(
                violations
                    .into_iter()
                    .map(|why| format!("at revision {number}: {why}")),
            );
        }
        wrong
    }

    /// What does not hold of the records of a revision.
    #[must_use]
    pub fn violations(&self, revision: i64, records: &Records) -> Vec<String> {
        if self.is_mended(revision, revision) {
            records.doubles()
        } else {
            records.violations(&self.by_hand)
        }
    }

    /// From here on somebody deletes records that are in use, of any network, and writes them again. All that is held of
    /// them meanwhile is that no address is of two.
    pub fn begin_mending(&mut self) {
        self.mended.push((self.revision, i64::MAX));
    }

    /// At this revision all records are again what agents go by.
    pub fn end_mending(&mut self, revision: i64) {
        if let Some((_, until)) = self.mended.last_mut() {
            *until = revision;
        }
    }

    /// Whether records were mended by hand at any revision from `from` to `to`.
    #[must_use]
    pub fn is_mended(&self, from: i64, to: i64) -> bool {
        self.mended
            .iter()
            .any(|(begin, end)| *begin <= to && from <= *end)
    }

    fn apply(&mut self, event: &KeyEvent) {
        let (key, revision) = (&event.kv.key, event.kv.mod_revision);
        if event.deleted {
            self.records.delete(key);
        } else {
            self.records.put(key, &event.kv.value, event.kv.create_revision);
        }
        let value = if event.deleted {
            "deleted".into()
        } else {
            String::from_utf8_lossy(&event.kv.value)
        };
        if !key.contains("/status/") {
            self.changes.push_back(format!("{revision} {key} {value}"));
        }
        if self.changes.len() > REMEMBERED {
            self.changes.pop_front();
        }
        let mut parts = key.split('/').skip(3);
        let (Some("endpoints"), Some(network), Some(node), Some(id)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let name = Name {
            network: network.to_owned(),
            node: node.to_owned(),
            id: id.to_owned(),
        };
        for life in self.lives.values_mut().flatten() {
            if life.name == name && life.until.is_none() {
                life.until = Some(revision);
            }
        }
        if let Some(Endpoint { netns, addresses, .. }) = self.records.endpoints.get(&name) {
            self.lives.entry(netns.clone()).or_default().push(Life {
                addresses: addresses.clone(),
                from: revision,
                until: None,
                name,
            });
        }
    }

    /// Whether, at any revision from `from` to `to`, an endpoint of a network in this container held the address.
    #[must_use]
    pub fn held(&self, network: &str, netns: &str, address: IpAddr, from: i64, to: i64) -> bool {
        self.lives.get(netns).into_iter().flatten().any(|life| {
            life.name.network == network
                && life.addresses.contains(&address)
                && life.from <= to
                && life.until.is_none_or(|until| until > from)
        })
    }

    /// The last changes in words that name any of these, oldest first: the evidence of a failure.
    #[must_use]
    pub fn about(&self, words: &[String], most: usize) -> Vec<String> {
        let found = self.changes.iter().rev();
        let mut found: Vec<String> = found
            .filter(|change| words.iter().any(|word| change.contains(word)))
            .take(most)
            .cloned()
            .collect();
        found.reverse();
        found
    }

    /// All changes that are remembered, in words, oldest first.
    pub fn changes(&self) -> impl Iterator<Item = &str> {
        self.changes.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_lab::KeyValue;

    fn event(revision: i64, key: &str, value: Option<&str>) -> KeyEvent {
        KeyEvent {
            deleted: value.is_none(),
            kv: KeyValue {
                key: format!("/weft/v1/{key}"),
                value: value.unwrap_or_default().into(),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: 0,
            },
        }
    }

    fn attach(revision: i64, id: &str) -> [KeyEvent; 2] {
        let record = r#"{"attachment":{"netns":"/run/netns/c"},"addresses":["10.1.0.2"]}"#;
        let claim = format!(r#"{{"endpoint":"host1/{id}"}}"#);
        [
            event(revision, &format!("endpoints/blue/host1/{id}"), Some(record)),
            event(revision, "addresses/blue/10.1.0.2", Some(&claim)),
        ]
    }

    fn detach(revision: i64, id: &str) -> [KeyEvent; 2] {
        [
            event(revision, &format!("endpoints/blue/host1/{id}"), None),
            event(revision, "addresses/blue/10.1.0.2", None),
        ]
    }

    #[test]
    fn knows_who_held_what_when() {
        let mut ledger = Ledger::default();
        let events = [attach(5, "a"), detach(9, "a"), attach(12, "b")].concat();
        assert_eq!(ledger.take(&events), Vec::<String>::new());
        assert_eq!((ledger.revision(), ledger.revisions()), (12, 3));
        let held = |from, to| ledger.held("blue", "/run/netns/c", "10.1.0.2".parse().unwrap(), from, to);
        assert!(!held(1, 4) && held(1, 5) && held(8, 20) && held(8, 8));
        assert!(!held(9, 11), "deleted at 9");
        assert!(held(9, 12));
        let address = "10.1.0.2".parse().unwrap();
        assert!(!ledger.held("red", "/run/netns/c", address, 5, 5));
        assert!(!ledger.held("blue", "/run/netns/d", address, 5, 5));
        assert_eq!(ledger.about(&["host1/b".to_owned()], 9).len(), 2);
    }

    #[test]
    fn while_records_are_mended_only_doubles_are_wrong() {
        let mut ledger = Ledger::default();
        ledger.take(&attach(5, "a"));
        ledger.begin_mending();
        assert_eq!(ledger.take(&detach(6, "a")[..1]), Vec::<String>::new());
        assert_eq!(ledger.take(&attach(7, "a")[..1]), Vec::<String>::new());
        assert!(ledger.take(&attach(8, "b"))[0].contains("of both"));
        ledger.take(&detach(9, "b")[..1]);
        ledger.end_mending(9);
        assert!(ledger.is_mended(1, 5) && ledger.is_mended(9, 12) && !ledger.is_mended(10, 12));
        assert!(!ledger.is_mended(1, 4));
        assert!(ledger.take(&attach(10, "c")[..1])[0].contains("of both"));
    }

    #[test]
    fn half_of_a_transaction_is_found_at_its_revision_and_told_once() {
        let mut ledger = Ledger::default();
        let half = &attach(5, "a")[..1];
        let wrong = ledger.take(half);
        assert!(wrong[0].starts_with("at revision 5: "), "{wrong:?}");
        assert_eq!(ledger.take(half), Vec::<String>::new());
    }
}
