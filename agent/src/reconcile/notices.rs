//! What the kernel tells by itself: whether it is news, and where to look because of it.

use std::path::Path;

use tokio::time::Instant;
use weft_core::{desired::look_into, dirty::Dirty, ownership};
use weft_kernel::Notice;
use weft_store_schema::EndpointRef;

use super::{
    Reconciler,
    passes::{Because, Busy, FIRST_RETRY},
    underlay::UNDERLAY_PAUSE,
};

/// Notices that wait for the kernel's thread, at most, besides those of its own writes. Beyond that, looking at everything costs
/// less.
const MOST_TOLD: usize = 1 << 16;
/// What the kernel tells of an operation, at most: an entry in two tables.
const ECHOES: usize = 2;

impl Reconciler {
    pub(super) fn on_notices(&mut self, notices: Vec<Notice>) {
        self.took_much(notices.len());
        for notice in notices {
            match notice {
                Notice::Overrun => {
                    self.overran();
                    self.look_at_everything();
                }
                Notice::Underlay => {
                    self.underlay_due
                        .get_or_insert_with(|| Instant::now() + UNDERLAY_PAUSE);
                }
                Notice::Attachments(path) => self.on_attachment_dir(&path),
                notice => self.told.push(notice),
            }
        }
        if self.busy.is_none() {
            self.judge_notices();
            return;
        }
        let of_its_own = match &self.busy {
            Some(Busy::Applying { operations, .. }) => operations * ECHOES,
            _ => 0,
        };
        if self.told.len() > MOST_TOLD + of_its_own {
            Notice::keep_latest(&mut self.told);
            if self.told.len() > MOST_TOLD / 2 + of_its_own {
                self.told.clear();
                self.look_at_everything();
            }
        }
    }

    /// Marks for a look what was told and is not what is known. While the kernel's thread looks or writes, what is
    /// known is about to change, most of all by our own writes: so that is waited for.
    pub(super) fn judge_notices(&mut self) {
        let mut told = std::mem::take(&mut self.told);
        Notice::keep_latest(&mut told);
        for notice in told {
            if !notice.agrees_with(&self.observed) {
                notice.mark(&mut self.look, &self.node.name);
                self.look_because = Because::Noticed;
            }
        }
    }

    fn look_at_everything(&mut self) {
        self.look.everything = true;
        self.look_because = Because::Noticed;
    }

    /// A namespace came or went: whoever waits for it is tried at once, whoever lost it is looked at.
    fn on_attachment_dir(&mut self, path: &Path) {
        self.dead.hurry(Instant::now());
        let concerned: Vec<EndpointRef> = look_into(&self.snapshot, &Dirty::everything())
            .into_iter()
            .filter(|place| {
                Path::new(&*place.attachment.netns) == path
                    || path.file_name() == Path::new(&*place.attachment.netns).file_name()
            })
            .map(|place| EndpointRef {
                network: place.network,
                node: self.node.name.clone(),
                id: place.id,
            })
            .collect();
        for endpoint in concerned {
            // Not forgotten: the pass that succeeds takes its problem back. Only the pause starts anew.
            let of = (endpoint.network.clone(), Some(endpoint.id.clone()));
            if let Some(failure) = self.failures.get_mut(&of) {
                failure.pause = FIRST_RETRY;
            }
            self.look.endpoints.insert(endpoint);
        }
        if let Some(network) = path
            .file_name()
            .and_then(|name| ownership::network_of_namespace(name.to_str()?))
            && self.observed.networks.contains_key(&network)
            && path.parent() == Some(&self.node.netns_dir)
        {
            self.look.networks.insert(network);
            self.look_because = Because::Noticed;
        }
    }
}
