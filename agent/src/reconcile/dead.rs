//! Looks whether the containers of this host's endpoints still have their namespaces; says which have not had one for
//! a while, or detaches these endpoints, if that is wanted.

use std::{collections::BTreeSet, path::Path, time::Duration};

use tokio::time::Instant;
use weft_core::problem::Problem;
use weft_store_schema::{EndpointRef, Key};

use crate::{problems::Source, reconcile::Reconciler};

/// An endpoint, and the path of its container's namespace that leads nowhere.
pub(super) type Gone = (EndpointRef, Box<str>);

impl Reconciler {
    /// Looks, if it is time.
    pub(super) fn look_for_dead(&mut self, now: Instant) {
        if self.dead_search.is_some() || now < self.dead.next_look() {
            return;
        }
        self.dead.looks(now);
        let mut places: Vec<Gone> = Vec::new();
        for (network, _) in self.snapshot.all_members() {
            for (id, _) in self.snapshot.own_endpoints(network) {
                let endpoint = self.own_endpoint(network, id);
                if let Some(netns) = self.place_of(&endpoint) {
                    places.push((endpoint, netns.into()));
                }
            }
        }
        // Paths may lie on anything, and hang: neither in the loop's thread, nor waited for by it.
        self.dead_search = Some(tokio::task::spawn_blocking(move || {
            places.retain(|(_, netns)| weft_kernel::is_gone(Path::new(&**netns)));
            places
        }));
    }

    /// Where the container of an endpoint is, if its record is not in trouble: where it is may be another question by
    /// now.
    fn place_of(&self, endpoint: &EndpointRef) -> Option<&str> {
        let slot = self.snapshot.endpoint(endpoint)?;
        let told = !slot.bad && !slot.held && !self.snapshot.awaits_detach(endpoint);
        let value = slot.value.as_ref().filter(|_| told)?;
        Some(value.netns())
    }

    /// What was found; none if only a panic or the runtime's end kept it away.
    pub(super) fn on_dead(&mut self, gone: Option<Vec<Gone>>) {
        let mut gone = gone.unwrap_or_default();
        // Records may have changed meanwhile.
        gone.retain(|(endpoint, netns)| self.place_of(endpoint) == Some(netns));
        let now = Instant::now();
        let dead = self
            .dead
            .looked(gone.iter().map(|(endpoint, _)| endpoint.clone()), now);
        let dead: BTreeSet<EndpointRef> = dead.into_iter().collect();
        let problems: Vec<Problem> = gone
            .iter()
            .filter(|(endpoint, _)| dead.contains(endpoint))
            .map(|(endpoint, netns)| told(endpoint, netns, self.dead.grace()))
            .collect();
        // What is released is told of first: whoever misses it finds in the log why.
        self.problems.replace(Source::Attachment, &problems);
        if self.node.release_dead && self.is_connected() && self.adopted {
            for endpoint in &dead {
                self.release_dead(endpoint);
            }
        }
        self.bump();
    }

    fn release_dead(&mut self, endpoint: &EndpointRef) {
        tracing::warn!(%endpoint, "detached: its container's namespace is gone");
        self.detach(endpoint);
        // If it cannot be written, that is told there; the endpoint may come back if the agent ends now.
        drop(self.remember_detach(endpoint));
        let key = Key::Endpoint(endpoint.clone()).to_string();
        self.problems.set(Source::Attachment, &key, None);
    }
}

fn told(endpoint: &EndpointRef, netns: &str, grace: Duration) -> Problem {
    let message = format!(
        "its namespace {netns} has been gone for more than {}; detach it with 'weft endpoint detach {} {}', or set \
         endpoints.release_dead",
        humantime::format_duration(grace),
        endpoint.network,
        endpoint.id
    );
    Problem::field(Key::Endpoint(endpoint.clone()), "attachment.netns", message)
}
