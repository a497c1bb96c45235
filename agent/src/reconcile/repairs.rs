//! What others do to the kernel, told: each repair to whoever watches events and in the counters, in the log as one line for
//! each cause. Somebody who empties a table of thousands of entries, or fights with this agent over one, is one cause.

use tokio::time::Instant;
use weft_core::plan::Op;
use weft_proto::v1::{self, EventKind};
use weft_store_schema::NetworkName;

use super::Reconciler;
use crate::drift::{self, Kind, Repair};

/// Repairs of one kind in one network that the log names one by one, within a minute.
pub(super) const REPAIRS_TOLD: u32 = 20;

/// Something that may happen again and again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// Somebody changes objects of a kind in a network.
    Drift(NetworkName, Kind),
    /// Somebody deletes claims of a network from the store.
    Claim(NetworkName),
    /// The kernel tells more than can be read.
    Overrun,
}

impl Reconciler {
    /// Tells that an operation put right what somebody else had changed.
    pub(super) fn repaired(&mut self, network: &NetworkName, op: &Op, repair: Repair) {
        let kind = drift::kind(op);
        let object = drift::object(network, op);
        if self
            .repeats
            .happens(&Cause::Drift(network.clone(), kind), Instant::now())
        {
            tracing::warn!(
                network = %network,
                kind = kind.name(),
                object,
                found = drift::or_nothing(&repair.found),
                wanted = drift::or_nothing(&repair.wanted),
                "repaired what was changed behind weft's back"
            );
        }
        let message = format!("repaired {object}: {repair}");
        self.announce_repair(network, kind, object, repair, message);
    }

    /// Counts a repair, and tells it to whoever watches events.
    pub(super) fn announce_repair(
        &self,
        network: &NetworkName,
        kind: Kind,
        object: String,
        repair: Repair,
        message: String,
    ) {
        self.metrics.repaired(kind);
        self.events.publish(v1::Event {
            kind: EventKind::DriftRepaired.into(),
            network: network.to_string(),
            node: self.node.name.to_string(),
            message,
            subject: Some(v1::event::Subject::Drift(v1::Drift {
                kind: kind.name().to_owned(),
                object,
                found: repair.found,
                wanted: repair.wanted,
            })),
            ..v1::Event::default()
        });
    }

    /// Tells that notifications of the kernel were lost.
    pub(super) fn overran(&mut self) {
        self.metrics.overran();
        if self.repeats.happens(&Cause::Overrun, Instant::now()) {
            tracing::warn!(
                "the kernel's notifications came faster than they could be read; looking at everything"
            );
        }
    }

    /// Tells how often it happened what was not told each time.
    pub(super) fn tell_rest(&mut self, now: Instant) {
        for (cause, more) in self.repeats.over(now) {
            match cause {
                Cause::Drift(network, kind) => tracing::warn!(
                    network = %network,
                    kind = kind.name(),
                    more,
                    "repaired more of the same that was changed behind weft's back"
                ),
                Cause::Claim(network) => tracing::warn!(
                    network = %network,
                    more,
                    "claimed more again that somebody had deleted from the store"
                ),
                Cause::Overrun => {
                    tracing::warn!(more, "the kernel's notifications were lost again and again");
                }
            }
        }
        self.problems.tell_rest(now);
    }
}
