//! Which record writes are owed, which are under way, and when the rest are due. Time is an argument.
//!
//! However much is owed, a question costs what it is answered: after a mass deletion that is tens of thousands, asked about at
//! the end of each.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
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
    stands: Stand,
    attempts: u32,
    /// How often another agent was faster.
    lost: u32,
    /// It became owed anew while it was under way: its success is not the end of it.
    anew: bool,
}

/// How it stands with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// It is due then.
    Due(Instant),
    /// It waits for the kernel, and was due then.
    Withheld(Instant),
    /// It is under way.
    Running,
}

impl Stand {
    fn no_later_than(self, at: Instant) -> Self {
        match self {
            Self::Due(due) => Self::Due(due.min(at)),
            Self::Withheld(due) => Self::Withheld(due.min(at)),
            Self::Running => Self::Running,
        }
    }
}

/// What stands how.
#[derive(Debug, Default)]
struct Queues {
    /// By when it is due.
    waiting: BTreeSet<(Instant, Chore)>,
    /// Of what is due, the first in this order comes first, not what is due longest: a node's own record is not to wait until
    /// thousands of addresses have been given up.
    ready: BTreeSet<Chore>,
    withheld: BTreeSet<Chore>,
    running: usize,
}

impl Queues {
    fn join(&mut self, chore: &Chore, stands: Stand) {
        match stands {
            Stand::Due(due) => drop(self.waiting.insert((due, chore.clone()))),
            Stand::Withheld(_) => drop(self.withheld.insert(chore.clone())),
            Stand::Running => self.running += 1,
        }
    }

    fn leave(&mut self, chore: &Chore, stands: Stand) {
        match stands {
            Stand::Due(due) if !self.ready.remove(chore) => drop(self.waiting.remove(&(due, chore.clone()))),
            Stand::Due(_) => {}
            Stand::Withheld(_) => drop(self.withheld.remove(chore)),
            Stand::Running => self.running -= 1,
        }
    }

    /// Moves what has become due.
    fn advance(&mut self, now: Instant) {
        while self.waiting.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, chore)) = self.waiting.pop_first()
        {
            self.ready.insert(chore);
        }
    }
}

/// What is owed.
#[derive(Debug, Default)]
pub(crate) struct ChoreBook {
    tasks: BTreeMap<Chore, Task>,
    queues: Queues,
    /// For how many tasks a network has to stay in view.
    in_view: BTreeMap<NetworkName, usize>,
    /// What was done lately, and how often in a row: somebody who undoes it each time is not to be answered
    /// as fast as the store allows.
    lately: BTreeMap<Chore, (Instant, u32)>,
    /// The same by time, with times that are out of date.
    done: VecDeque<(Instant, Chore)>,
    claiming: BTreeMap<NetworkName, BTreeMap<IpAddr, usize>>,
}

/// The network whose endpoints and claims have to stay in view for a chore.
fn network_of(chore: &Chore) -> Option<&NetworkName> {
    match chore {
        Chore::ReleaseAddress(network, _) | Chore::ForgetReleased(network) => Some(network),
        Chore::CompleteEndpoint(endpoint) | Chore::DetachEndpoint(endpoint) => Some(&endpoint.network),
        Chore::PublishPeer | Chore::CompleteNetwork(_) | Chore::FreeVni(_) => None,
    }
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
        if self.tasks.contains_key(&chore) {
            self.change(&chore, |task| {
                task.anew = task.stands == Stand::Running;
                if rank == 0 && !(whatever && task.attempts > 0) {
                    task.stands = task.stands.no_later_than(due);
                }
            });
            return;
        }
        if let Some(network) = network_of(&chore) {
            *self.in_view.entry(network.clone()).or_default() += 1;
        }
        let stands = Stand::Due(due);
        self.queues.join(&chore, stands);
        let task = Task {
            stands,
            attempts: 0,
            lost: 0,
            anew: false,
        };
        self.tasks.insert(chore, task);
    }

    /// Changes a task, and where it is found.
    fn change(&mut self, chore: &Chore, change: impl FnOnce(&mut Task)) {
        let Some(task) = self.tasks.get_mut(chore) else {
            return;
        };
        let before = task.stands;
        change(task);
        if task.stands != before {
            self.queues.leave(chore, before);
            self.queues.join(chore, task.stands);
        }
    }

    fn remove(&mut self, chore: &Chore) -> Option<Task> {
        let task = self.tasks.remove(chore)?;
        self.queues.leave(chore, task.stands);
        if let Some(network) = network_of(chore)
            && let Some(count) = self.in_view.get_mut(network)
        {
            *count -= 1;
            if *count == 0 {
                self.in_view.remove(network);
            }
        }
        Some(task)
    }

    /// Whether this is owed.
    pub(crate) fn contains(&self, chore: &Chore) -> bool {
        self.tasks.contains_key(chore)
    }

    /// Notes that it was done. It is looked at once more if it became owed anew meanwhile.
    pub(crate) fn succeeded(&mut self, chore: &Chore, now: Instant) {
        let anew = self.remove(chore).is_some_and(|task| task.anew);
        while self.done.front().is_some_and(|(at, _)| *at + FORGET <= now)
            && let Some((at, old)) = self.done.pop_front()
        {
            if self.lately.get(&old).is_some_and(|(last, _)| *last == at) {
                self.lately.remove(&old);
            }
        }
        if may_be_undone(chore) {
            let (at, times) = self.lately.entry(chore.clone()).or_insert((now, 0));
            *at = now;
            *times += 1;
            self.done.push_back((now, chore.clone()));
        }
        if anew {
            self.add(chore.clone(), 0, now);
        }
    }

    /// Notes that the store answers again: what failed is tried at once.
    pub(crate) fn reconnected(&mut self, now: Instant) {
        let failed = self.tasks.iter().filter(|(_, task)| task.attempts > 0);
        let failed: Vec<Chore> = failed.map(|(chore, _)| chore.clone()).collect();
        for chore in failed {
            self.change(&chore, |task| {
                if task.stands != Stand::Running {
                    task.attempts = 0;
                    task.stands = task.stands.no_later_than(now);
                }
            });
        }
    }

    /// How many there are.
    pub(crate) fn owed(&self) -> usize {
        self.tasks.len()
    }

    /// How many more may be under way.
    fn room(&self) -> usize {
        MOST_UNDER_WAY.saturating_sub(self.queues.running)
    }

    /// When the next one is due. None while so many are under way that one of them has to end first.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.room() == 0 {
            return None;
        }
        let ready = self.queues.ready.first().and_then(|chore| self.tasks.get(chore));
        match ready.map(|task| task.stands) {
            Some(Stand::Due(due)) => Some(due),
            _ => self.queues.waiting.first().map(|(due, _)| *due),
        }
    }

    /// What is due, as far as there is room.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Chore> {
        self.queues.advance(now);
        self.queues.ready.iter().take(self.room()).cloned().collect()
    }

    /// Notes that a chore must wait until the kernel has done something first.
    pub(crate) fn withhold(&mut self, chore: &Chore) {
        self.change(chore, |task| {
            if let Stand::Due(due) = task.stands {
                task.stands = Stand::Withheld(due);
            }
        });
    }

    /// Notes that the kernel has done something: what waited for it is looked at again. Says whether anything did.
    pub(crate) fn release_withheld(&mut self) -> bool {
        let withheld: Vec<Chore> = self.queues.withheld.iter().cloned().collect();
        for chore in &withheld {
            self.change(chore, |task| {
                if let Stand::Withheld(due) = task.stands {
                    task.stands = Stand::Due(due);
                }
            });
        }
        !withheld.is_empty()
    }

    /// Notes that a chore is under way.
    pub(crate) fn started(&mut self, chore: &Chore) {
        self.change(chore, |task| {
            task.stands = Stand::Running;
            task.anew = false;
        });
    }

    /// Notes that nothing is owed any more.
    pub(crate) fn done(&mut self, chore: &Chore) {
        self.remove(chore);
    }

    /// Notes that it has to be tried again, ever less often.
    pub(crate) fn failed(&mut self, chore: &Chore, now: Instant) {
        self.change(chore, |task| {
            let pause = FIRST_PAUSE
                .saturating_mul(1 << task.attempts.min(16))
                .min(LONGEST_PAUSE);
            task.attempts += 1;
            task.stands = Stand::Due(now + pause);
        });
    }

    /// Notes that it is to be tried again at once: the view was out of date, and is not any more.
    pub(crate) fn retry(&mut self, chore: &Chore, now: Instant) {
        self.change(chore, |task| {
            // Losing again and again means a crowd: then even a fresh view is no reason to press on.
            let crowd = task.attempts.saturating_sub(3).min(8);
            task.attempts += 1;
            task.lost += 1;
            task.stands = Stand::Due(now + Duration::from_millis(u64::from((1_u32 << crowd) - 1)));
        });
    }

    /// Notes that something is there that has to go first, which others do in their own time.
    pub(crate) fn hindered(&mut self, chore: &Chore, now: Instant) {
        self.change(chore, |task| {
            let pause = HINDERED_PAUSE.saturating_mul(1 << task.attempts.min(16));
            task.attempts += 1;
            task.stands = Stand::Due(now + pause.min(LONGEST_HINDERED_PAUSE));
        });
    }

    /// How often another agent was faster at this one.
    pub(crate) fn lost(&self, chore: &Chore) -> u32 {
        self.tasks.get(chore).map_or(0, |task| task.lost)
    }

    /// The networks whose endpoints and claims have to stay in view for what is owed.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &NetworkName> {
        self.in_view.keys()
    }

    /// Addresses of a network that are to be given up.
    pub(crate) fn releases(&self, network: &NetworkName) -> impl Iterator<Item = IpAddr> {
        let least = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let from = Chore::ReleaseAddress(network.clone(), least);
        self.tasks.range(from..).map_while(move |(chore, _)| match chore {
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
