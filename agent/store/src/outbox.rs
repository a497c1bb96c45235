//! Events on their way to the reader. A slow reader fills the outbox, a full outbox stops the reading from
//! etcd, and etcd keeps the rest: memory stays bounded and nothing is dropped.

use std::{collections::VecDeque, sync::Arc};

use tokio::{sync::mpsc, time::Instant};
use weft_core::record::{Change, Entry, Scope, StoreEvent};

use crate::interest::{Generation, Interest};

/// An event and what it was made for.
#[derive(Debug)]
pub(crate) struct Parcel {
    event: StoreEvent,
    /// The scope's generation; for news about all scopes, the newest one there was.
    generation: Generation,
    /// When it, or the first part of it, came from etcd.
    arrived: Instant,
}

/// Changes that are put together into one event, at most: the reader takes an event in as a whole, and has other things to
/// do. What etcd tells at once stays together however much it is: it may be of one revision.
const MOST_CHANGES: usize = 1024;

#[derive(Debug)]
pub(crate) struct Outbox {
    parcels: VecDeque<Parcel>,
    bytes: usize,
    most_bytes: usize,
    sender: mpsc::Sender<Parcel>,
}

fn weight_of(entry: &Entry) -> usize {
    entry.key.len() + entry.value.len() + 64
}

fn weight(event: &StoreEvent) -> usize {
    match event {
        StoreEvent::Listed { entries, .. } => entries.iter().map(weight_of).sum(),
        StoreEvent::Changed { changes, .. } => changes
            .iter()
            .map(|change| match change {
                Change::Put(entry) => weight_of(entry),
                Change::Deleted { key, .. } => key.len() + 64,
            })
            .sum(),
        StoreEvent::Progress { .. } | StoreEvent::Connection(_) => 64,
    }
}

impl Outbox {
    pub(crate) fn new(sender: mpsc::Sender<Parcel>, most_bytes: usize) -> Self {
        Self {
            parcels: VecDeque::new(),
            bytes: 0,
            most_bytes,
            sender,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parcels.is_empty()
    }

    /// Whether more may be read from etcd.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.most_bytes
    }

    pub(crate) fn push(&mut self, event: StoreEvent, generation: Generation) {
        self.bytes += weight(&event);
        let event = match event {
            // Neighbours of one scope go as one: a reader that falls behind gets fewer, larger events.
            StoreEvent::Changed { scope, changes } => match self.parcels.back_mut() {
                Some(Parcel {
                    event:
                        StoreEvent::Changed {
                            scope: last,
                            changes: before,
                        },
                    generation: of,
                    ..
                }) if *last == scope && *of == generation && before.len() + changes.len() <= MOST_CHANGES => {
                    before.extend(changes);
                    return;
                }
                _ => StoreEvent::Changed { scope, changes },
            },
            other => other,
        };
        self.parcels.push_back(Parcel {
            event,
            generation,
            arrived: Instant::now(),
        });
    }

    /// Waits until the reader takes one; cancelling loses nothing. False when there is no reader any more.
    pub(crate) async fn deliver(&mut self) -> bool {
        let Ok(permit) = self.sender.reserve().await else {
            return false;
        };
        if let Some(parcel) = self.parcels.pop_front() {
            self.bytes = self.bytes.saturating_sub(weight(&parcel.event));
            permit.send(parcel);
        }
        true
    }
}

/// The reader's end: everything the store has to tell, in order.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Parcel>,
    interest: Arc<Interest>,
    arrived: Instant,
}

impl Events {
    pub(crate) fn new(receiver: mpsc::Receiver<Parcel>, interest: Arc<Interest>) -> Self {
        Self {
            receiver,
            interest,
            arrived: Instant::now(),
        }
    }

    /// The next event; none once the store has been shut down. Cancelling loses nothing.
    ///
    /// Nothing of a scope is returned after the [`want`](crate::Store::want) that dropped it.
    pub async fn recv(&mut self) -> Option<StoreEvent> {
        loop {
            let parcel = self.receiver.recv().await?;
            if self.admits(&parcel.event, parcel.generation) {
                self.arrived = parcel.arrived;
                return Some(parcel.event);
            }
        }
    }

    /// When the event that was returned last came from etcd; of changes that were put together on their way, the
    /// first.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The next event if one is there already.
    pub fn try_recv(&mut self) -> Option<StoreEvent> {
        while let Ok(parcel) = self.receiver.try_recv() {
            if self.admits(&parcel.event, parcel.generation) {
                self.arrived = parcel.arrived;
                return Some(parcel.event);
            }
        }
        None
    }

    fn admits(&self, event: &StoreEvent, generation: Generation) -> bool {
        let of = |scope: &Scope| self.interest.admits(scope, generation);
        match event {
            StoreEvent::Listed { scope, .. } | StoreEvent::Changed { scope, .. } => of(scope),
            // About all scopes of its time: void if one was added since.
            StoreEvent::Progress { .. } => generation == self.interest.newest(),
            StoreEvent::Connection(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_put_together_up_to_a_turns_worth() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender, 1 << 20);
        let scope = Scope::Networks;
        let mut push = |count: usize| {
            let deleted = |n: usize| Change::Deleted {
                key: format!("/weft/v1/networks/n{n}").into_bytes(),
                mod_revision: 7,
            };
            let changes = (0..count).map(deleted).collect();
            let scope = scope.clone();
            outbox.push(StoreEvent::Changed { scope, changes }, 1);
        };
        // What etcd tells at once is never taken apart.
        for count in [1, 1000, 23, 1, MOST_CHANGES * 2, 1] {
            push(count);
        }
        let lengths = outbox.parcels.iter().map(|parcel| match &parcel.event {
            StoreEvent::Changed { changes, .. } => changes.len(),
            _ => 0,
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [1024, 1, MOST_CHANGES * 2, 1]);
    }
}
