//! This host's place on the underlay: what is looked for at the start, and whenever links or routes change.

use std::time::Duration;

use tokio::time::Instant;
use weft_core::{desired::Host, dirty::Dirty, problem::Problem};
use weft_kernel::KernelError;
use weft_store_schema::Key;

use super::{Reconciler, chain};
use crate::{node::Underlay, problems::Source};

/// Changes of the host's links and routes come in crowds.
pub(super) const UNDERLAY_PAUSE: Duration = Duration::from_millis(100);
/// Without an underlay, it is looked for this often.
const UNDERLAY_RETRY: Duration = Duration::from_secs(1);

impl Reconciler {
    pub(super) fn host(&self) -> Option<Host> {
        let underlay = self.underlay.as_ref()?;
        Some(Host {
            v4: underlay.v4,
            v6: underlay.v6,
            mtu: underlay.mtu,
            port: self.node.port,
        })
    }

    /// Has the kernel's thread look for it, when that has done what it has to do already.
    pub(super) fn find_underlay(&mut self) {
        self.underlay_due = None;
        let selection = self.node.underlay.clone();
        self.underlay_search = Some(self.kernel.run(move |kernel| kernel.underlay(&selection)));
    }

    pub(super) fn on_underlay(&mut self, found: Result<weft_kernel::Underlay, KernelError>) {
        let key = Key::Peer(self.node.name.clone()).to_string();
        match found {
            Ok(found) => {
                self.problems.set(Source::Host, &key, None);
                self.use_underlay(Underlay::new(found, &self.node));
            }
            Err(error) => {
                // What was found before is kept: an interface that is away for a moment takes nothing down.
                self.underlay_due = Some(Instant::now() + UNDERLAY_RETRY);
                let message = format!("{}; give underlay.interface or underlay.addresses", chain(&error));
                self.problems
                    .set(Source::Host, &key, Some(Problem::new(&key, message)));
            }
        }
    }

    pub(super) fn use_underlay(&mut self, underlay: Underlay) {
        if self.underlay.as_ref() == Some(&underlay) {
            return;
        }
        tracing::info!(%underlay, "underlay");
        self.underlay = Some(underlay);
        self.dirty.everything = true;
        self.settle_identity();
        // What became owed before was dropped: nothing could be written without a peer record to rest on.
        self.add_chores(&Dirty::everything());
        self.run_chores();
    }
}
