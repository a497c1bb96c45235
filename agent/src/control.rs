//! The API's calls, carried out: questions are answered from the loop's state; changes are written to the
//! store as records, and waited for until the loop has made them true.

mod addresses;
mod audit;
mod convergence;
mod endpoint_list;
mod endpoints;
mod errors;
mod look_up;
mod network_spec;
mod networks;
mod pretend;
mod questions;
mod removal;
mod republish;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use weft_api::{
    ApiError, AuditStream, Call, Control, EndpointFilter, EndpointList, EventHub, EventStream, RemovalStream,
    Subject,
};
use weft_core::{
    answer,
    claims::Refusal,
    fence::fenced,
    lost::Found,
    record::{Committed, Guard, Scope, Transaction},
};
use weft_proto::v1;
use weft_store::{Store, StoreError};
use weft_store_schema::{EndpointRef, Kind, NetworkName, NodeName};

use self::errors::{blocked, parse, record_error, refusal_error, stopping, store_error, subject};
pub use self::pretend::Pretend;
pub(crate) use self::questions::Questions;
use crate::{
    kernel_thread::KernelThread,
    node::VERSION,
    reconcile::{Asker, Reconciler},
    view,
};

/// A store that does not answer is given this long before a change is refused.
const STORE_PATIENCE: Duration = Duration::from_millis(2500);
/// Of that, for looking what became of a transaction whose answer was lost.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);

/// Implements the API's calls. Clones share everything.
#[derive(Clone)]
pub(crate) struct AgentControl {
    /// The loop.
    pub(crate) asker: Asker,
    /// The store, for what is not in the loop's view.
    pub(crate) store: Store,
    /// The kernel's thread, for questions about attachments.
    pub(crate) kernel: KernelThread,
    /// Where events come from.
    pub(crate) events: EventHub,
    /// This node.
    pub(crate) node: NodeName,
    /// Where the networks' namespaces are.
    pub(crate) netns_dir: PathBuf,
    /// Questions to other hosts that are about to be put.
    pub(crate) questions: Arc<Questions>,
    /// Taken by the audit that is under way: one holds all records in memory, which is enough.
    pub(crate) auditing: Arc<tokio::sync::Mutex<()>>,
    /// Reservations that are being made or given up.
    pub(crate) turns: Arc<addresses::Turns>,
}

/// An id for who gives none.
fn made_up_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..12].to_owned()
}

/// Time left until an instant, at most `most`.
fn until(deadline: Instant, most: Duration) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(most)
}

/// Keeps a network's records in view while it lives.
struct Pin {
    asker: Asker,
    network: NetworkName,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let (asker, network) = (self.asker.clone(), self.network.clone());
        // Dropped also when the client leaves, where nothing can be awaited.
        tokio::spawn(async move { asker.ask(move |r| r.unpin(&network)).await });
    }
}

/// A transaction of which other choices of this agent take account while this lives.
struct UnderWay {
    asker: Asker,
    transaction: Transaction,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let (asker, transaction) = (self.asker.clone(), std::mem::take(&mut self.transaction));
        // Dropped also when the client leaves, where nothing can be awaited.
        tokio::spawn(async move { asker.ask(move |r| r.book.end_claims(&transaction)).await });
    }
}

impl AgentControl {
    async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Reconciler) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.asker.ask(f).await.ok_or_else(stopping)
    }

    /// Asks again and again, each time something has changed, until there is an answer.
    async fn wait<T: Send + 'static>(
        &self,
        deadline: Instant,
        f: impl Fn(&mut Reconciler) -> Option<T> + Clone + Send + 'static,
    ) -> Result<Option<T>, ApiError> {
        let mut changed = self.asker.changed.clone();
        loop {
            changed.mark_unchanged();
            if let Some(answer) = self.ask(f.clone()).await? {
                return Ok(Some(answer));
            }
            match timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopping()),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Brings a network's records into view and keeps them there.
    async fn view_of(&self, call: &Call, network: &NetworkName) -> Result<Pin, ApiError> {
        let (asker, network) = (self.asker.clone(), network.clone());
        // Made where it is pinned: the client may have left before that is answered.
        let pin = self
            .ask(move |r| {
                r.pin(&network);
                Pin { asker, network }
            })
            .await?;
        self.informed(call).await?;
        Ok(pin)
    }

    /// Waits until all that is wanted is in view.
    async fn informed(&self, call: &Call) -> Result<(), ApiError> {
        let patience = call.deadline.min(Instant::now() + STORE_PATIENCE);
        match self
            .wait(patience, |r| (r.is_connected() && r.is_informed()).then_some(()))
            .await?
        {
            Some(()) => Ok(()),
            None => Err(self.no_store().await),
        }
    }

    async fn no_store(&self) -> ApiError {
        let why = self
            .ask(|r| match r.connection() {
                Some(weft_core::record::Connection::Down { why }) => why.clone(),
                _ => "it has not answered yet".to_owned(),
            })
            .await
            .unwrap_or_else(|_| "the agent is stopping".to_owned());
        ApiError::Unavailable {
            what: "the store".to_owned(),
            why,
        }
    }

    /// Makes transactions from the view until one happens, and returns that one. `make` is called in the loop
    /// with the view as it is then, and with how often another writer was faster.
    async fn write(
        &self,
        call: &Call,
        what: &Subject,
        make: impl Fn(&Reconciler, u32) -> Result<Transaction, Refusal> + Clone + Send + 'static,
    ) -> Result<Transaction, ApiError> {
        let mut pause = Duration::from_millis(1);
        let mut lost = 0;
        let begun_in = self.ask(|r| r.incarnation().to_owned()).await?;
        loop {
            let make = make.clone();
            let asker = self.asker.clone();
            let life = begun_in.clone();
            let made = self
                .ask(move |r| {
                    if let Some(why) = r.fenced() {
                        return Err(why.to_owned());
                    }
                    if r.incarnation() != life {
                        return Err(
                            "this node was removed from the cluster meanwhile; see weft status".to_owned(),
                        );
                    }
                    Ok(make(r, lost).map(|transaction| {
                        let transaction = fenced(&r.snapshot, transaction);
                        r.book.begin_claims(&transaction);
                        UnderWay { asker, transaction }
                    }))
                })
                .await?;
            let made = made.map_err(|why| ApiError::Conflict {
                what: what.clone(),
                why,
            })?;
            let under_way: UnderWay = match made {
                Ok(under_way) => under_way,
                Err(Refusal::Taken { network, address, .. })
                    if self.is_given_up(call, network.clone(), address).await? =>
                {
                    continue;
                }
                Err(refusal) => return Err(refusal_error(refusal, what)),
            };
            let transaction = &under_way.transaction;
            let silent_at = Instant::now() + STORE_PATIENCE;
            let patience = until(call.deadline, STORE_PATIENCE - LOOK_PATIENCE);
            let result = self.store.commit(transaction, patience).await;
            let ended = transaction.clone();
            let committed = match result {
                Ok(committed) => committed,
                Err(error) => {
                    let found = match error {
                        StoreError::Unknown { .. } => {
                            let left = until(call.deadline.min(silent_at), STORE_PATIENCE);
                            self.has_happened(transaction, left).await
                        }
                        _ => Found::Not,
                    };
                    match found {
                        Found::Not => return Err(store_error(&error)),
                        Found::Somewhen => return Ok(ended),
                        Found::At(revision) => Committed::Yes { revision },
                    }
                }
            };
            match committed {
                Committed::Yes { revision } => {
                    return self
                        .ask(move |r| {
                            let changes = answer::own_changes(&r.snapshot, &ended, revision);
                            r.learn(&changes);
                            ended
                        })
                        .await;
                }
                Committed::No { now, .. } => {
                    let occupied = transaction.guards.iter().zip(&now).find_map(|(guard, entry)| {
                        matches!(guard, Guard::Empty(_)).then_some(entry.as_ref()?)
                    });
                    let occupied = occupied.map(|entry| String::from_utf8_lossy(&entry.key).into_owned());
                    self.ask(move |r| {
                        let news = answer::news(&ended, now);
                        r.learn(&news);
                    })
                    .await?;
                    if let Some(key) = occupied {
                        let why = format!("it is in use: {key} exists; detach or delete it first");
                        return Err(blocked("force", what, why));
                    }
                }
            }
            if Instant::now() + pause >= call.deadline {
                return Err(ApiError::DeadlineExceeded {
                    what: what.clone(),
                    waited: call.started.elapsed(),
                    why: "other writers kept changing the same records".to_owned(),
                });
            }
            lost += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn endpoint(&self, network: &str, node: Option<&str>, id: &str) -> Result<EndpointRef, ApiError> {
        Ok(EndpointRef {
            network: parse("network", network)?,
            node: node.map_or_else(|| Ok(self.node.clone()), |node| parse("node", node))?,
            id: parse("id", id)?,
        })
    }
}

impl Control for AgentControl {
    async fn create_network(
        &self,
        call: Call,
        name: String,
        spec: v1::NetworkSpec,
    ) -> Result<v1::CreateNetworkResponse, ApiError> {
        self.make_network(call, name, spec).await
    }

    async fn list_networks(&self, call: Call) -> Result<Vec<v1::Network>, ApiError> {
        self.has_read(&call, Scope::Networks).await?;
        let netns_dir = self.netns_dir.clone();
        self.ask(move |r| {
            r.snapshot
                .networks()
                .filter_map(|(name, slot)| view::network(r, name, slot, &netns_dir))
                .collect()
        })
        .await
    }

    async fn get_network(&self, call: Call, name: String) -> Result<v1::Network, ApiError> {
        let name: NetworkName = parse("name", &name)?;
        self.has_read(&call, Scope::Networks).await?;
        let (what, netns_dir) = (Subject::network(name.as_str()), self.netns_dir.clone());
        let found = self
            .ask(move |r| view::network(r, &name, r.snapshot.network(&name)?, &netns_dir))
            .await?;
        found.ok_or(ApiError::NotFound { what })
    }

    async fn update_network(
        &self,
        call: Call,
        request: v1::UpdateNetworkRequest,
    ) -> Result<v1::UpdateNetworkResponse, ApiError> {
        self.change_network(call, request).await
    }

    async fn delete_network(
        &self,
        call: Call,
        name: String,
        force: bool,
    ) -> Result<Vec<v1::HeldEndpoint>, ApiError> {
        self.remove_network(call, parse("name", &name)?, force).await
    }

    async fn attach_endpoint(
        &self,
        call: Call,
        request: v1::AttachEndpointRequest,
    ) -> Result<v1::AttachEndpointResponse, ApiError> {
        self.attach(call, request).await
    }

    async fn wait_networks(
        &self,
        call: Call,
        network: Option<String>,
    ) -> Result<Vec<v1::Convergence>, ApiError> {
        let (networks, what) = match network {
            Some(name) => {
                let name: NetworkName = parse("network", &name)?;
                let what = Subject::network(name.as_str());
                self.look_up_network(&call, &name).await?;
                let known = name.clone();
                if !self.ask(move |r| r.snapshot.network(&known).is_some()).await? {
                    return Err(ApiError::NotFound { what });
                }
                (vec![name], what)
            }
            None => {
                self.has_read(&call, Scope::Networks).await?;
                let all = |r: &mut Reconciler| r.snapshot.networks().map(|(n, _)| n.clone()).collect();
                (self.ask(all).await?, Subject::new("networks", ""))
            }
        };
        let _pins = self.view_of_all(&call, &networks).await?;
        let (converged, behind) = self.converge_all(&call, networks).await?;
        if behind.is_empty() {
            Ok(converged)
        } else {
            Err(convergence::behind_error(&call, what, "", &behind))
        }
    }

    async fn detach_endpoint(
        &self,
        call: Call,
        network: String,
        id: String,
    ) -> Result<v1::DetachEndpointResponse, ApiError> {
        self.detach(call, network, id).await
    }

    async fn list_endpoints(&self, call: Call, filter: EndpointFilter) -> Result<EndpointList, ApiError> {
        self.endpoints(call, filter).await
    }

    async fn get_endpoint(
        &self,
        call: Call,
        network: String,
        node: Option<String>,
        id: String,
    ) -> Result<v1::Endpoint, ApiError> {
        self.one_endpoint(call, network, node, id).await
    }

    async fn reserve_addresses(
        &self,
        call: Call,
        request: v1::ReserveRequest,
    ) -> Result<v1::ReserveResponse, ApiError> {
        self.make_reservation(call, request).await
    }

    async fn unreserve_addresses(
        &self,
        call: Call,
        network: String,
        id: String,
    ) -> Result<v1::UnreserveResponse, ApiError> {
        self.give_reservation_up(call, &network, &id).await
    }

    async fn list_addresses(
        &self,
        call: Call,
        network: String,
        released: bool,
    ) -> Result<Vec<v1::Address>, ApiError> {
        self.addresses_of(call, &network, released).await
    }

    async fn list_peers(&self, call: Call) -> Result<Vec<v1::Peer>, ApiError> {
        self.has_read(&call, Scope::Peers).await?;
        let connected = self.ask(|r| r.is_connected()).await?;
        // Presence is not watched: nothing but this answer needs it.
        let directory = self.store.prefix().all(Kind::Alive);
        let patience = until(call.deadline, STORE_PATIENCE);
        let alive = match connected {
            true => match self.store.list(&directory, patience).await {
                Ok(listing) => Some(listing.entries),
                Err(error) if error.is_temporary() => None,
                Err(error) => return Err(store_error(&error)),
            },
            false => None,
        };
        self.ask(move |r| {
            let present = alive.map(|alive| view::present(r, &alive));
            view::peers(r, present.as_ref())
        })
        .await
    }

    async fn holdings(&self, call: Call, node: String) -> Result<v1::HoldingsResponse, ApiError> {
        self.holdings_of(call, parse("node", &node)?).await
    }

    async fn remove_peer(
        &self,
        call: Call,
        request: v1::RemovePeerRequest,
    ) -> Result<RemovalStream, ApiError> {
        let node = parse("node", &request.node)?;
        self.start_removal(call, node, request.force).await
    }

    async fn status(&self, _: Call) -> Result<v1::AgentStatus, ApiError> {
        self.ask(|r| view::status(r)).await
    }

    async fn accept_deletions(&self, call: Call) -> Result<v1::AcceptDeletionsResponse, ApiError> {
        let acknowledged = self.ask(Reconciler::acknowledge_removal).await?;
        if !acknowledged {
            self.has_compared(&call).await?;
        }
        let held = self.ask(Reconciler::accept_deletions).await?;
        // An agent that is killed now is not to hold it again. If it cannot be written, that is told in the log.
        let _ = self.ask(Reconciler::history_written).await?.await;
        Ok(v1::AcceptDeletionsResponse {
            removal_acknowledged: acknowledged,
            count: held.unwrap_or_default() as u64,
            was_holding: held.is_some(),
        })
    }

    async fn republish(&self, call: Call) -> Result<v1::RepublishResponse, ApiError> {
        self.republish_lost(call).await
    }

    async fn audit(&self, call: Call, repair: bool) -> Result<AuditStream, ApiError> {
        self.start_audit(call, repair).await
    }

    fn version(&self) -> v1::VersionResponse {
        v1::VersionResponse {
            version: VERSION.to_owned(),
            node: self.node.to_string(),
            api: "weft.v1".to_owned(),
        }
    }

    async fn watch_events(&self, _: Call) -> Result<EventStream, ApiError> {
        Ok(self.events.subscribe())
    }
}
