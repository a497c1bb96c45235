//! Which record writes are owed, which are under way, and when the rest are due. Time is an argument.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;
use weft_core::{
    chores::Chore,
    record::{Transaction, Write},
};
use weft_store_schema::{Key, NetworkName};

/// Between two agents' attempts at what is nobody's own: long enough for the first to be done and seen.
const RANK_PAUSE: Duration = Duration::from_millis(150);
/// No chore waits longer than this for its turn, however many agents there are.
const LONGEST_RANK_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Before another attempt at what something stands in the way of that this agent does not see. All agents make it, so
/// the pause doubles each time.
const HINDERED_PAUSE: Duration = Duration::from_secs(4);
const LONGEST_HINDERED_PAUSE: Duration = Duration::from_secs(300);

/// Writes under way at once: more would only wait in each other's way, and each knows of all those before it.
const MOST_UNDER_WAY: usize = 64;

/// What was not owed again for this long may be done at once.
const FORGET: Duration = Duration::from_secs(60);

/// The pause before something is done again that was done so many times lately.
fn again_pause(times: u32) -> Duration {
    match times.checked_sub(3) {
        None => Duration::ZERO,
        Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(12)).min(FORGET / 2),
    }
}

/// Whether somebody may undo it each time it is done. What clears away after a deletion is owed again only because there
/// was a new thing meanwhile, which somebody waits to see gone.
fn may_be_undone(chore: &Chore) -> bool {
    !matches!(chore, Chore::DetachEndpoint(_) | Chore::ReleaseAddress(..))
}

#[derive(Debug)]
struct Task {
    due: Instant,
    attempts: u32,
    /// How often another agent was faster.
    lost: u32,
    running: bool,
    /// Waits for the kernel, not for a time.
    withheld: bool,
    /// It became owed anew while it was under way: its success is not the end of it.
    anew: bool,
}

/// What is owed.
#[derive(Debug, Default)]
pub(crate) struct ChoreBook {
    tasks: BTreeMap<Chore, Task>,
    /// What was done lately, and how often in a row: somebody who undoes it each time is not to be answered
    /// as fast as the store allows.
    lately: BTreeMap<Chore, (Instant, u32)>,
    claiming: BTreeMap<NetworkName, BTreeMap<IpAddr, usize>>,
}

impl ChoreBook {
    /// Notes what is owed. What is noted already keeps its place, but its wait ends if it may now succeed: its record
    /// changed, or it has become this node's own.
    pub(crate) fn add(&mut self, chore: Chore, rank: usize, now: Instant) {
        let pause = RANK_PAUSE
            .saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX))
            .min(LONGEST_RANK_PAUSE);
        let lately = self.lately.get(&chore).filter(|(at, _)| *at + FORGET > now);
        let again = lately.map_or(0, |(_, times)| *times);
        let due = now + pause + again_pause(again);
        // These are noted again whatever changes: that is no sign that they would succeed now.
        let whatever = matches!(chore, Chore::PublishPeer | Chore::DetachEndpoint(_));
        let task = self.tasks.entry(chore).or_insert(Task {
            due,
            attempts: 0,
            lost: 0,
            running: false,
            withheld: false,
            anew: false,
        });
        task.anew = task.running;
        if rank == 0 && !(whatever && task.attempts > 0) {
            task.due = task.due.min(due);
        }
    }

    /// Whether this is owed.
    #[cfg(test)]
    pub(crate) fn contains(&self, chore: &Chore) -> bool {
        self.tasks.contains_key(chore)
    }

    /// Notes that it was done. It is looked at once more if it became owed anew meanwhile.
    pub(crate) fn succeeded(&mut self, chore: &Chore, now: Instant) {
        let anew = self.tasks.remove(chore).is_some_and(|task| task.anew);
        self.lately.retain(|_, (at, _)| *at + FORGET > now);
        if may_be_undone(chore) {
            let (at, times) = self.lately.entry(chore.clone()).or_insert((now, 0));
            *at = now;
            *times += 1;
        }
        if anew {
            self.add(chore.clone(), 0, now);
        }
    }

    /// How often one has failed.
    pub(crate) fn attempts(&self, chore: &Chore) -> u32 {
        self.tasks.get(chore).map_or(0, |task| task.attempts)
    }

    /// Notes that the store answers again: what failed is tried at once.
    pub(crate) fn reconnected(&mut self, now: Instant) {
        for task in self.tasks.values_mut().filter(|t| t.attempts > 0 && !t.running) {
            task.attempts = 0;
            task.due = task.due.min(now);
        }
    }

    /// How many there are.
    pub(crate) fn owed(&self) -> usize {
        self.tasks.len()
    }

    /// How many more may be under way.
    fn room(&self) -> usize {
        MOST_UNDER_WAY.saturating_sub(self.tasks.values().filter(|t| t.running).count())
    }

    /// When the next one is due. None while so many are under way that one of them has to end first.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.room() == 0 {
            return None;
        }
        let waiting = self.tasks.values().filter(|t| !t.running && !t.withheld);
        waiting.map(|t| t.due).min()
    }

    /// What is due, as far as there is room.
    pub(crate) fn due(&self, now: Instant) -> Vec<Chore> {
        self.tasks
            .iter()
            .filter(|(_, t)| !t.running && !t.withheld && t.due <= now)
            .take(self.room())
            .map(|(chore, _)| chore.clone())
            .collect()
    }

    /// Notes that a chore must wait until the kernel has done something first.
    pub(crate) fn withhold(&mut self, chore: &Chore) {
        if let Some(task) = self.tasks.get_mut(chore) {
            task.withheld = true;
        }
    }

    /// Notes that the kernel has done something: what waited for it is looked at again. Says whether anything did.
    pub(crate) fn release_withheld(&mut self) -> bool {
        let mut any = false;
        for task in self.tasks.values_mut().filter(|t| t.withheld) {
            task.withheld = false;
            any = true;
        }
        any
    }

    /// Notes that a chore is under way.
    pub(crate) fn started(&mut self, chore: &Chore) {
        if let Some(task) = self.tasks.get_mut(chore) {
            task.running = true;
            task.anew = false;
        }
    }

    /// Notes that nothing is owed any more.
    pub(crate) fn done(&mut self, chore: &Chore) {
        self.tasks.remove(chore);
    }

    /// Notes that it has to be tried again, ever less often.
    pub(crate) fn failed(&mut self, chore: &Chore, now: Instant) {
        if let Some(task) = self.tasks.get_mut(chore) {
            task.running = false;
            let pause = FIRST_PAUSE
                .saturating_mul(1 << task.attempts.min(16))
                .min(LONGEST_PAUSE);
            task.attempts += 1;
            task.due = now + pause;
        }
    }

    /// Notes that it is to be tried again at once: the view was out of date, and is not any more.
    pub(crate) fn retry(&mut self, chore: &Chore, now: Instant) {
        if let Some(task) = self.tasks.get_mut(chore) {
            task.running = false;
            // Losing again and again means a crowd: then even a fresh view is no reason to press on.
            let crowd = task.attempts.saturating_sub(3).min(8);
            task.attempts += 1;
            task.lost += 1;
            task.due = now + Duration::from_millis(u64::from((1_u32 << crowd) - 1));
        }
    }

    /// Notes that something is there that has to go first, which others do in their own time.
    pub(crate) fn hindered(&mut self, chore: &Chore, now: Instant) {
        if let Some(task) = self.tasks.get_mut(chore) {
            task.running = false;
            let pause = HINDERED_PAUSE.saturating_mul(1 << task.attempts.min(16));
            task.attempts += 1;
            task.due = now + pause.min(LONGEST_HINDERED_PAUSE);
        }
    }

    /// How often another agent was faster at this one.
    pub(crate) fn lost(&self, chore: &Chore) -> u32 {
        self.tasks.get(chore).map_or(0, |task| task.lost)
    }

    /// The networks whose endpoints and claims have to stay in view for what is owed.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &NetworkName> {
        self.tasks.keys().filter_map(|chore| match chore {
            Chore::ReleaseAddress(network, _) | Chore::ForgetReleased(network) => Some(network),
            Chore::CompleteEndpoint(endpoint) | Chore::DetachEndpoint(endpoint) => Some(&endpoint.network),
            Chore::PublishPeer | Chore::CompleteNetwork(_) | Chore::FreeVni(_) => None,
        })
    }

    /// Addresses of a network that are to be given up.
    pub(crate) fn releases(&self, network: &NetworkName) -> impl Iterator<Item = IpAddr> {
        self.tasks.keys().filter_map(move |chore| match chore {
            Chore::ReleaseAddress(of, address) if of == network => Some(*address),
            _ => None,
        })
    }

    /// Addresses of a network that transactions under way are claiming.
    pub(crate) fn claiming(&self, network: &NetworkName) -> BTreeSet<IpAddr> {
        self.claiming
            .get(network)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .copied()
            .collect()
    }

    /// Notes that a transaction is under way.
    pub(crate) fn begin_claims(&mut self, transaction: &Transaction) {
        for (network, address) in claims(transaction) {
            *self
                .claiming
                .entry(network.clone())
                .or_default()
                .entry(address)
                .or_default() += 1;
        }
    }

    /// Notes that it has come to its end.
    pub(crate) fn end_claims(&mut self, transaction: &Transaction) {
        for (network, address) in claims(transaction) {
            if let Some(addresses) = self.claiming.get_mut(network) {
                if let Some(count) = addresses.get_mut(&address) {
                    *count -= 1;
                    if *count == 0 {
                        addresses.remove(&address);
                    }
                }
                if addresses.is_empty() {
                    self.claiming.remove(network);
                }
            }
        }
    }
}

fn claims(transaction: &Transaction) -> impl Iterator<Item = (&NetworkName, IpAddr)> {
    transaction.writes.iter().filter_map(|write| match write {
        Write::Put(Key::Address(network, address), _)
        | Write::PutLeased(Key::Address(network, address), ..) => Some((network, *address)),
        _ => None,
    })
}
