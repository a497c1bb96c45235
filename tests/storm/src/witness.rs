//! Those who look all the time: one follows every revision of the store, one reads it whole, one looks into the
//! containers.
//!
//! What must hold of a container **at every moment**, whatever is down, stopped or cut off:
//!
//! 1. No address is on the interfaces of two containers of one network at once.
//! 2. An address on a container's interface is held, in the store, by an endpoint of that container. Agents put the
//!    record and its claims first and the address on the interface after; they take it off first and give the record
//!    and its claims up after. So this holds through the death, the pause and the isolation of an agent: whatever it
//!    left in a container is still claimed for it, as nobody but itself gives up what it holds. (An operator who
//!    deletes records of endpoints by hand, or removes a dead node, breaks this on purpose; who does that in a storm
//!    says so: [`Ledger::begin_mending`].)
//!
//! What need not hold before everything is healed: that a held address is on an interface (its agent may be dead, or at
//! it), that a detached endpoint's record is gone (detaching works without the store), that what is on other hosts
//! (forwarding entries, neighbours) is up to date.
//!
//! A look takes time, and so does hearing of a revision. The second rule is therefore judged over a span of revisions:
//! from one that the store had reached before the look (the ledger had it) to one that a read answered which was begun
//! after the look. If no revision in the span gives the address to the container, none at the moment of the look did.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use weft_lab::{Lab, Watch};

use crate::containers::{self, Interface};
use crate::ledger::Ledger;
use crate::records::{PREFIX, Records};
use crate::verdict::{Verdict, lock};
use crate::worker::Place;

/// A watch that is this much behind a read is given up: its member is dead, frozen or cut off.
const BEHIND: Duration = Duration::from_millis(1500);
/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(2);
const BETWEEN_READS: Duration = Duration::from_millis(100);
const BETWEEN_LOOKS: Duration = Duration::from_millis(40);

const LOOKS: &str = "looks into all containers";
const JUDGED: &str = "of them judged";

/// The newest read that succeeded.
#[derive(Debug, Clone, Copy)]
struct Newest {
    begun: Instant,
    revision: i64,
}

/// What was on the interfaces of the containers in one look, still to be judged.
#[derive(Debug)]
struct Look {
    /// A revision that the store had reached before.
    from: i64,
    ended: Instant,
    /// Place and address.
    found: Vec<(usize, IpAddr)>,
}

/// What the witnesses share.
#[derive(Debug)]
pub struct Witness<'a> {
    lab: &'a Lab,
    places: &'a [Place],
    verdict: &'a Verdict,
    /// Every revision so far.
    pub ledger: Mutex<Ledger>,
    newest: Mutex<Option<Newest>>,
    looks: Mutex<VecDeque<Look>>,
}

impl<'a> Witness<'a> {
    /// One who has seen nothing yet. In some networks, records are written by hand.
    #[must_use]
    pub fn new(lab: &'a Lab, places: &'a [Place], by_hand: BTreeSet<String>, verdict: &'a Verdict) -> Self {
        Self {
            lab,
            places,
            ledger: Mutex::new(Ledger::new(by_hand)),
            verdict,
            newest: Mutex::default(),
            looks: Mutex::default(),
        }
    }

    /// Follows every revision until it is over.
    pub fn follow(&self, over: &(dyn Fn() -> bool + Sync)) {
        let mut member = 0;
        let mut watch: Option<Watch> = None;
        let mut heard = Instant::now();
        while !over() {
            let revision = lock(&self.ledger).revision();
            let Some(open) = &watch else {
                member = member % self.lab.etcd_members().len() + 1;
                match self.lab.etcd(member).watch(PREFIX, revision + 1) {
                    Ok(new) => watch = Some(new),
                    Err(error) => self
                        .verdict
                        .violated(format!("the storm itself failed: {error:#}")),
                }
                heard = Instant::now();
                self.verdict.count("looks", "watches", 1);
                continue;
            };
            match open.next(Duration::from_millis(200)) {
                Ok(events) if events.is_empty() => {
                    let behind = lock(&self.newest).is_some_and(|newest| newest.revision > revision);
                    if behind && heard.elapsed() > BEHIND {
                        watch = None;
                    } else if !behind {
                        heard = Instant::now();
                    }
                }
                Ok(events) => {
                    heard = Instant::now();
                    let wrong = lock(&self.ledger).take(&events);
                    wrong.into_iter().for_each(|why| self.verdict.violated(why));
                }
                Err(_) => watch = None,
            }
        }
        let revisions = lock(&self.ledger).revisions();
        self.verdict
            .count("looks", "revisions followed and checked", revisions);
    }

    /// Reads the records whole, again and again, each time at one revision, until it is over.
    pub fn read(&self, over: &(dyn Fn() -> bool + Sync)) {
        let mut member = 0;
        while !over() {
            member = member % self.lab.etcd_members().len() + 1;
            if self.read_once(member).is_err() {
                self.verdict.count("looks", "reads without an answer", 1);
            }
            // Not a wait for anything: how often it looks.
            std::thread::sleep(BETWEEN_READS);
        }
    }

    /// One read through a member, checked.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn read_once(&self, member: usize) -> Result<(i64, Records)> {
        let known = lock(&self.ledger).revision();
        let begun = Instant::now();
        let reading = self.lab.etcd(member).read(PREFIX, PATIENCE)?;
        let mut records = Records::default();
        for kv in &reading.keys {
            records.put(&kv.key, &kv.value, kv.create_revision);
        }
        let wrong = lock(&self.ledger).violations(reading.revision, &records);
        for why in wrong {
            self.verdict
                .violated(format!("read at revision {}: {why}", reading.revision));
        }
        self.verdict.count("looks", "reads of the store checked", 1);
        if reading.revision < known {
            // etcd's own fault, which no read of this kind should have: it says nothing of what was since.
            self.verdict
                .count("looks", "reads of the store from before they began", 1);
            return Ok((reading.revision, records));
        }
        let mut newest = lock(&self.newest);
        if newest.is_none_or(|newest| newest.begun < begun) {
            *newest = Some(Newest {
                begun,
                revision: reading.revision,
            });
        }
        Ok((reading.revision, records))
    }

    /// Looks into the containers, again and again, until it is over.
    pub fn look(&self, over: &(dyn Fn() -> bool + Sync)) {
        while !over() {
            if let Err(error) = self.look_once() {
                self.verdict
                    .violated(format!("the storm itself failed: {error:#}"));
            }
            self.judge();
            // Not a wait for anything: how often it looks.
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    fn look_once(&self) -> Result<()> {
        let from = lock(&self.ledger).revision();
        let mut seen: Vec<(&str, usize, Option<Interface>)> = Vec::new();
        for (number, place) in self.places.iter().enumerate() {
            seen.push((&place.network, number, containers::look(&place.container)?));
        }
        let ended = Instant::now();
        let doubles = containers::doubles(&seen, |number| containers::look(&self.places[number].container))?;
        for (network, address, one, other) in doubles {
            let evidence = self.evidence(address, &[one, other]);
            self.verdict.violated(format!(
                "{address} of {network} is in {} and in {} at once{evidence}",
                self.name(one),
                self.name(other)
            ));
        }
        let found: Vec<(usize, IpAddr)> = seen
            .into_iter()
            .filter_map(|(_, number, interface)| Some((number, interface?)))
            .flat_map(|(number, interface)| interface.addresses.into_iter().map(move |a| (number, a)))
            .collect();
        self.verdict.count("looks", LOOKS, 1);
        lock(&self.looks).push_back(Look { from, ended, found });
        Ok(())
    }

    /// Judges the looks of which all is known by now.
    fn judge(&self) {
        loop {
            let Some(newest) = *lock(&self.newest) else { return };
            let ledger = lock(&self.ledger);
            let mut looks = lock(&self.looks);
            let known = looks
                .front()
                .is_some_and(|look| newest.begun > look.ended && ledger.revision() >= newest.revision);
            let Some(look) = known.then(|| looks.pop_front()).flatten() else {
                return;
            };
            drop(looks);
            self.verdict.count("looks", JUDGED, 1);
            // Records that are deleted by a slip are held by agents until they come back.
            if ledger.is_mended(look.from, newest.revision) {
                continue;
            }
            let wrong: Vec<_> = look
                .found
                .iter()
                .filter(|(number, address)| {
                    let place = &self.places[*number];
                    let netns = place.container.path();
                    !ledger.held(&place.network, &netns, *address, look.from, newest.revision)
                })
                .collect();
            drop(ledger);
            self.verdict
                .count("looks", "addresses judged", look.found.len() as u64);
            for (number, address) in wrong {
                let evidence = self.evidence(*address, &[*number]);
                self.verdict.violated(format!(
                    "{} has {address}, which no endpoint of it held at any revision from {} to {}{evidence}",
                    self.name(*number),
                    look.from,
                    newest.revision
                ));
            }
        }
    }

    /// The revision up to which it has followed the store.
    #[must_use]
    pub fn revision(&self) -> i64 {
        lock(&self.ledger).revision()
    }

    /// What it has followed so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// How many looks were made.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.verdict.counted("looks", LOOKS)
    }

    /// How many of them were judged.
    #[must_use]
    pub fn judged(&self) -> u64 {
        self.verdict.counted("looks", JUDGED)
    }

    /// All calls of all workers, in words.
    #[must_use]
    pub fn calls(&self) -> String {
        let mut text = String::new();
        for (number, place) in self.places.iter().enumerate() {
            text.push_str(&format!(
                "{}\n  {}\n",
                self.name(number),
                lock(&place.calls).join("\n  ")
            ));
        }
        text
    }

    fn name(&self, number: usize) -> String {
        let place = &self.places[number];
        format!("{} on host{}", place.container.path(), place.host)
    }

    /// What the store and the workers said of an address and of containers.
    fn evidence(&self, address: IpAddr, places: &[usize]) -> String {
        let mut words = vec![format!("/{address} "), format!("\"{address}\"")];
        let mut text = String::new();
        for number in places {
            let place = &self.places[*number];
            words.extend(place.ids.iter().map(|id| format!("/host{}/{id} ", place.host)));
            let calls = lock(&place.calls);
            let from = calls.len().saturating_sub(6);
            text.push_str(&format!("\n    the last calls for {}:", self.name(*number)));
            for call in &calls[from..] {
                text.push_str(&format!("\n      {call}"));
            }
        }
        text.push_str("\n    the last changes in the store:");
        for change in lock(&self.ledger).about(&words, 24) {
            text.push_str(&format!("\n      {change}"));
        }
        text
    }
}
