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
/// Without an underlay, or without a part of it, it is looked for this often.
const UNDERLAY_RETRY: Duration = Duration::from_secs(1);
/// How long a family is used on after its address has gone. An interface that goes down and up has its IPv6 address back only
/// once that was found to be nobody else's (RFC 4862 section 5.4), which takes seconds.
const FAMILY_GRACE: Duration = Duration::from_secs(10);

impl Reconciler {
    pub(crate) fn host(&self) -> Option<Host> {
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
                let found = self.with_kept_families(Underlay::new(found, &self.node));
                self.use_underlay(found);
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

    /// What was found, and the address of a family in use that has not been away for long.
    fn with_kept_families(&mut self, mut found: Underlay) -> Underlay {
        let (v4, v6) = self.underlay.as_ref().map_or((None, None), |u| (u.v4, u.v6));
        if (v4.is_none() || found.v4.is_some()) && (v6.is_none() || found.v6.is_some()) {
            self.family_away = None;
            return found;
        }
        let now = Instant::now();
        if *self.family_away.get_or_insert(now) + FAMILY_GRACE > now {
            found.v4 = found.v4.or(v4);
            found.v6 = found.v6.or(v6);
            self.underlay_due = Some(now + UNDERLAY_RETRY);
        }
        found
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
