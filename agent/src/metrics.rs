//! What the agent counts, and how it is told to Prometheus.
//!
//! In: what the loop has done, counted here as it happens; at each question, the state of the loop and of the
//! store. Out: one text in the OpenMetrics format. The names are documented in docs/operations.md, which a test
//! holds against this module. Labels have few values, all known here: neither networks nor endpoints are among them.
//! Nothing here waits for whoever asks: counting touches atomics, and the loop answers a question about its state as it
//! answers any other.

mod arrivals;
mod page;
mod process;
mod serve;

use std::time::Duration;

use prometheus_client::metrics::{counter::Counter, family::Family, histogram::Histogram};
use weft_kernel::KernelError;

pub(crate) use arrivals::Arrivals;
pub(crate) use page::{Figures, Page};
pub(crate) use serve::serve;

use crate::drift::Kind;

/// Upper bounds of the convergence histogram, in seconds: from a single record on an idle host, below a millisecond, to
/// trouble.
const CONVERGENCE: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Names and values of labels.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// How much a pass was about.
const PART: Labels<1> = [("scope", "part")];
const FULL: Labels<1> = [("scope", "full")];

/// What the agent was doing when the kernel failed it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum During {
    /// Looking at what is there.
    Look,
    /// Changing it.
    Apply,
}

impl During {
    fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Apply => "apply",
        }
    }
}

/// Kinds of trouble with the kernel.
const TROUBLES: [&str; 7] = [
    "refused",
    "lost",
    "socket",
    "gone",
    "namespace",
    "attachment",
    "other",
];

/// One of [`TROUBLES`].
fn trouble(error: &KernelError) -> &'static str {
    match error {
        KernelError::Refused { .. } => "refused",
        KernelError::Lost { .. } => "lost",
        KernelError::Socket { .. } => "socket",
        KernelError::NoInterface { .. } | KernelError::NoNamespace { .. } => "gone",
        KernelError::Namespace { .. } => "namespace",
        KernelError::Attachment { .. } | KernelError::InterfaceExists { .. } => "attachment",
        KernelError::Rights { .. } | KernelError::Directory { .. } | KernelError::Underlay { .. } => "other",
    }
}

/// What the loop counts. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    passes: Family<Labels<1>, Counter>,
    netlink_writes: Counter,
    changes: Family<Labels<1>, Counter>,
    drift: Family<Labels<1>, Counter>,
    errors: Family<Labels<2>, Counter>,
    overruns: Counter,
    convergence: Histogram,
}

impl Metrics {
    /// Everything at zero, and there: a rate needs to have seen the first of its kind coming.
    pub(crate) fn new() -> Self {
        let metrics = Self {
            passes: Family::default(),
            netlink_writes: Counter::default(),
            changes: Family::default(),
            drift: Family::default(),
            errors: Family::default(),
            overruns: Counter::default(),
            convergence: Histogram::new(CONVERGENCE),
        };
        for scope in [PART, FULL] {
            drop(metrics.passes.get_or_create(&scope));
        }
        for kind in Kind::of_kernel() {
            drop(metrics.changes.get_or_create(&of(kind)));
        }
        for kind in Kind::ALL {
            drop(metrics.drift.get_or_create(&of(kind)));
        }
        for during in [During::Look, During::Apply] {
            for error in TROUBLES {
                let labels = [("during", during.name()), ("error", error)];
                drop(metrics.errors.get_or_create(&labels));
            }
        }
        metrics
    }

    /// A pass has planned, over everything or a part.
    pub(crate) fn passed(&self, everything: bool) {
        let scope = if everything { FULL } else { PART };
        self.passes.get_or_create(&scope).inc();
    }

    /// So many netlink messages that change something were sent.
    pub(crate) fn wrote(&self, messages: u64) {
        self.netlink_writes.inc_by(messages);
    }

    /// An operation was done.
    pub(crate) fn changed(&self, kind: Kind) {
        self.changes.get_or_create(&of(kind)).inc();
    }

    /// What somebody else had changed was repaired.
    pub(crate) fn repaired(&self, kind: Kind) {
        self.drift.get_or_create(&of(kind)).inc();
    }

    /// The kernel failed the agent.
    pub(crate) fn failed(&self, during: During, error: &KernelError) {
        let labels = [("during", during.name()), ("error", trouble(error))];
        self.errors.get_or_create(&labels).inc();
    }

    /// Notifications of the kernel were lost.
    pub(crate) fn overran(&self) {
        self.overruns.inc();
    }

    /// What an event asked for is in the kernel, so long after it came.
    pub(crate) fn converged(&self, after: Duration) {
        self.convergence.observe(after.as_secs_f64());
    }

    /// Passes that planned so far, and of them those over everything.
    pub(crate) fn passes(&self) -> (u64, u64) {
        let of = |scope: Labels<1>| self.passes.get_or_create(&scope).get();
        let (part, full) = (of(PART), of(FULL));
        (part + full, full)
    }

    /// Netlink messages sent that change something, and namespaces made or removed.
    pub(crate) fn writes(&self) -> u64 {
        self.netlink_writes.get()
    }

    /// Operations done so far, of those kinds of which there was any.
    pub(crate) fn changes(&self) -> Vec<(Kind, u64)> {
        counts(&self.changes, Kind::of_kernel())
    }

    /// Repairs so far, of those kinds of which there was any.
    pub(crate) fn drift(&self) -> Vec<(Kind, u64)> {
        counts(&self.drift, Kind::ALL)
    }
}

fn of(kind: Kind) -> Labels<1> {
    [("kind", kind.name())]
}

fn counts(family: &Family<Labels<1>, Counter>, kinds: impl IntoIterator<Item = Kind>) -> Vec<(Kind, u64)> {
    let count = |kind| (kind, family.get_or_create(&of(kind)).get());
    kinds.into_iter().map(count).filter(|(_, n)| *n > 0).collect()
}
