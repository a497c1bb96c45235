//! Looks whether the containers of this host's endpoints still have their namespaces; says which have not had one for
//! a while, or detaches these endpoints, if that is wanted.

use std::{collections::BTreeSet, path::Path, time::Duration};

use tokio::time::Instant;
use weft_core::problem::Problem;
use weft_store_schema::{EndpointRef, Key};

use crate::{
    problems::Source,
    reconcile::{Reconciler, chain},
};

impl Reconciler {
    /// Looks, if it is time.
    pub(super) async fn look_for_dead(&mut self) {
        if Instant::now() < self.dead.next_look() {
            return;
        }
        let mut places: Vec<(EndpointRef, Box<str>)> = Vec::new();
        for (network, _) in self.snapshot.all_members() {
            for (id, slot) in self.snapshot.own_endpoints(network) {
                let endpoint = EndpointRef {
                    network: network.clone(),
                    node: self.node.name.clone(),
                    id: id.clone(),
                };
                // Not one whose record is in trouble: where its container is may be another question by now.
                if let Some(value) = &slot.value
                    && !slot.bad
                    && !slot.held
                    && !self.snapshot.awaits_detach(&endpoint)
                {
                    places.push((endpoint, value.attachment.netns.clone()));
                }
            }
        }
        // Paths may lie on anything: not in the loop's thread.
        let looked = tokio::task::spawn_blocking(move || {
            places.retain(|(_, netns)| weft_kernel::is_gone(Path::new(&**netns)));
            places
        });
        // Only a panic or the runtime's end keeps the answer away; then the next look is as good.
        let gone = looked.await.unwrap_or_default();
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
        if let Err(error) = self.remember_detach(endpoint) {
            tracing::warn!(%endpoint, error = %chain(&error), "it may come back if the agent ends now");
        }
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
