//! The API's calls, carried out: questions are answered from the loop's state; changes are written to the
//! store as records, and waited for until the loop has made them true.

mod addresses;
mod audit;
mod convergence;
mod lost;
mod network_spec;
mod networks;
mod questions;
mod removal;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use weft_api::{
    ApiError, AuditStream, Call, Control, EndpointFilter, EventHub, EventStream, NodeFilter, RemovalStream,
    Subject,
};
use weft_core::{
    answer,
    claims::{self, Refusal},
    fence::fenced,
    record::{Change, Committed, Entry, Guard, Transaction},
};
use weft_proto::v1;
use weft_store::{Store, StoreError};
use weft_store_schema::{
    AttachmentDocument, Endpoint, EndpointDocument, EndpointId, EndpointRef, Key, Kind, NetworkName,
    NodeName, RecordError,
};

use self::lost::{Found, Telling};
pub(crate) use self::questions::Questions;
use crate::{
    kernel_thread::KernelThread,
    node::VERSION,
    reconcile::{Asker, Reconciler, chain},
    view,
};

/// A store that does not answer is given this long before a change is refused.
const STORE_PATIENCE: Duration = Duration::from_millis(2500);
/// A detachment waits this long for the store to agree before it returns without.
const DETACH_PATIENCE: Duration = Duration::from_millis(1000);

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

fn stopping() -> ApiError {
    ApiError::Unavailable {
        what: "the agent".to_owned(),
        why: "it is stopping".to_owned(),
    }
}

fn store_error(error: &StoreError) -> ApiError {
    ApiError::Unavailable {
        what: "the store".to_owned(),
        why: chain(error),
    }
}

fn record_error(error: RecordError, within: &str) -> ApiError {
    match error {
        RecordError::Field { field, why } => ApiError::invalid(format!("{within}{field}"), why),
        other => ApiError::invalid(within.trim_end_matches('.'), other.to_string()),
    }
}

fn refusal_error(refusal: Refusal, what: &Subject) -> ApiError {
    let why = refusal.to_string();
    match refusal {
        Refusal::NoNetwork(network) => ApiError::NotFound {
            what: Subject::network(network.as_str()),
        },
        Refusal::NetworkExists(network) => ApiError::AlreadyExists {
            what: Subject::network(network.as_str()),
        },
        Refusal::VniTaken { .. } => ApiError::Conflict {
            what: what.clone(),
            why,
        },
        Refusal::Exists(e) => ApiError::AlreadyExists { what: subject(&e) },
        Refusal::NoEndpoint(e) => ApiError::NotFound { what: subject(&e) },
        Refusal::Outside { .. } | Refusal::Reserved { .. } => ApiError::invalid("requested_addresses", why),
        Refusal::Taken { .. } | Refusal::MacTaken { .. } => ApiError::Conflict {
            what: what.clone(),
            why,
        },
        Refusal::Full { network, subnets, .. } => {
            let pool: Vec<String> = subnets.iter().map(|s| s.net.to_string()).collect();
            let few = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
            ApiError::Full {
                what: Subject::network(network.as_str()),
                pool: pool.join(", "),
                used: few(subnets.iter().map(|s| s.used).sum()),
                capacity: few(subnets.iter().map(|s| s.size).sum()),
                why,
            }
        }
        Refusal::InUse(network) | Refusal::Strands { network, .. } => ApiError::Conflict {
            what: Subject::network(network.as_str()),
            // The subject is told before it.
            why: why
                .strip_prefix(&format!("network {network} "))
                .map_or(why.clone(), str::to_owned),
        },
        Refusal::NoReservation(..) => ApiError::Conflict {
            what: what.clone(),
            why,
        },
        Refusal::ReservationExists(network, (node, id)) => ApiError::AlreadyExists {
            what: Subject::reservation(network.as_str(), node.as_str(), id.as_str()),
        },
        Refusal::NoSuchFamily(..) => ApiError::invalid("families", why),
        Refusal::Invalid { field, why, .. } => ApiError::invalid(field, why),
    }
}

fn subject(endpoint: &EndpointRef) -> Subject {
    Subject::endpoint(
        endpoint.network.as_str(),
        endpoint.node.as_str(),
        endpoint.id.as_str(),
    )
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|error: T::Err| ApiError::invalid(field, error.to_string()))
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
        let name = network.clone();
        self.ask(move |r| r.pin(&name)).await?;
        let pin = Pin {
            asker: self.asker.clone(),
            network: network.clone(),
        };
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
                    if r.incarnation() != life {
                        return None;
                    }
                    Some(make(r, lost).map(|transaction| {
                        let transaction = fenced(&r.snapshot, transaction);
                        r.book.begin_claims(&transaction);
                        UnderWay { asker, transaction }
                    }))
                })
                .await?;
            let Some(made) = made else {
                return Err(ApiError::Conflict {
                    what: what.clone(),
                    why: "this node was removed from the cluster meanwhile; see weft status".to_owned(),
                });
            };
            let under_way: UnderWay = made.map_err(|refusal| refusal_error(refusal, what))?;
            let transaction = &under_way.transaction;
            let result = self
                .store
                .commit(transaction, until(call.deadline, STORE_PATIENCE))
                .await;
            let ended = transaction.clone();
            let committed = match result {
                Ok(committed) => committed,
                Err(error) => {
                    let found = match error {
                        StoreError::Unknown { .. } => self.has_happened(call, transaction).await,
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
                        return Err(ApiError::Conflict {
                            what: what.clone(),
                            why,
                        });
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

    /// Whether a transaction whose answer was lost has happened, as far as the store tells now.
    async fn has_happened(&self, call: &Call, transaction: &Transaction) -> Found {
        let Some(telling) = Telling::of(transaction) else {
            return Found::Not;
        };
        let patience = until(call.deadline, STORE_PATIENCE);
        match self.store.get(telling.key, patience).await {
            Ok(fetched) => telling.judge(fetched.entry.as_ref(), fetched.lease),
            Err(_) => Found::Not,
        }
    }

    /// A network that somebody made a moment ago, on another host, may not have come by the watch yet.
    async fn look_up_network(&self, call: &Call, name: &NetworkName) -> Result<(), ApiError> {
        let known = name.clone();
        if self.ask(move |r| r.snapshot.network(&known).is_some()).await? {
            return Ok(());
        }
        let patience = until(call.deadline, STORE_PATIENCE);
        let fetched = self.store.get(&Key::Network(name.clone()), patience).await;
        let entry = fetched.map_err(|error| store_error(&error))?.entry;
        self.ask(move |r| r.learn(&entry.map(Change::Put).into_iter().collect::<Vec<_>>()))
            .await
    }

    /// Waits for all hosts after an attach, which holds whatever comes of this.
    async fn converge_attached(&self, call: &Call, name: &EndpointRef) -> Result<v1::Convergence, ApiError> {
        const HOLDS: &str = "it is attached and works on this host";
        match self.converge(call, &name.network).await {
            Ok(Ok(converged)) => Ok(converged),
            Ok(Err(behind)) => {
                let behind = BTreeMap::from([(name.network.clone(), behind)]);
                let done = format!("{HOLDS}; ");
                Err(convergence::behind_error(call, subject(name), &done, &behind))
            }
            Err(ApiError::Unavailable { what, why }) => Err(ApiError::Unavailable {
                what,
                why: format!("{why}; {}: {HOLDS}", subject(name)),
            }),
            Err(error) => Err(error),
        }
    }

    /// Detaches an endpoint that is not in view, if the store has it. A store that does not answer has none:
    /// detaching works without it.
    async fn detach_unseen(&self, call: &Call, name: &EndpointRef) -> Result<bool, ApiError> {
        if !self.ask(|r| r.is_connected()).await? {
            return Ok(false);
        }
        let patience = until(call.deadline, DETACH_PATIENCE);
        let Ok(fetched) = self.store.get(&Key::Endpoint(name.clone()), patience).await else {
            return Ok(false);
        };
        let Some(entry) = fetched.entry else {
            return Ok(false);
        };
        let gone = name.clone();
        self.ask(move |r| {
            // In this order: seen first, it would be completed first.
            r.detach(&gone);
            r.learn(&[Change::Put(entry)]);
        })
        .await?;
        Ok(true)
    }

    async fn remember_detach(&self, name: &EndpointRef) -> Result<(), ApiError> {
        let remembered = name.clone();
        self.ask(move |r| r.remember_detach(&remembered))
            .await?
            .map_err(|error| ApiError::internal(format!("detaching {name}"), error))
    }

    fn endpoint(&self, network: &str, node: Option<&str>, id: &str) -> Result<EndpointRef, ApiError> {
        Ok(EndpointRef {
            network: parse("network", network)?,
            node: node.map_or_else(|| Ok(self.node.clone()), |node| parse("node", node))?,
            id: parse("id", id)?,
        })
    }

    /// Endpoint records of networks that this host does not take part in are not in view: they are read.
    async fn read_endpoints(
        &self,
        call: &Call,
        network: &NetworkName,
    ) -> Result<Vec<(EndpointRef, Endpoint, i64)>, ApiError> {
        let directory = self.store.prefix().endpoints_of(network);
        let listing = self
            .store
            .list(&directory, until(call.deadline, STORE_PATIENCE))
            .await
            .map_err(|e| store_error(&e))?;
        let parse = |entry: Entry| {
            let Ok(Key::Endpoint(name)) = self.store.prefix().parse(&entry.key) else {
                return None;
            };
            Some((name, Endpoint::decode(&entry.value).ok()?, entry.mod_revision))
        };
        Ok(listing.entries.into_iter().filter_map(parse).collect())
    }
}

impl Control for AgentControl {
    async fn create_network(
        &self,
        call: Call,
        name: String,
        spec: v1::NetworkSpec,
    ) -> Result<v1::Network, ApiError> {
        let name: NetworkName = parse("name", &name)?;
        let document = network_spec::document(spec)?;
        let subject = Subject::network(name.as_str());
        let made = name.clone();
        self.write(&call, &subject, move |r, _| {
            claims::create_network(&r.snapshot, &made, &document)
        })
        .await?;
        let (netns_dir, wanted) = (self.netns_dir.clone(), name.clone());
        let done = self
            .wait(call.deadline, move |r| {
                let slot = r.snapshot.network(&wanted)?;
                slot.value.as_ref()?.vni?;
                view::network(r, &wanted, slot, &netns_dir)
            })
            .await?;
        done.ok_or_else(|| ApiError::DeadlineExceeded {
            what: subject,
            waited: call.started.elapsed(),
            why: "the record is written, but no VNI has been claimed for it yet".to_owned(),
        })
    }

    async fn list_networks(&self, _: Call) -> Result<Vec<v1::Network>, ApiError> {
        let netns_dir = self.netns_dir.clone();
        self.ask(move |r| {
            r.snapshot
                .networks()
                .filter_map(|(name, slot)| view::network(r, name, slot, &netns_dir))
                .collect()
        })
        .await
    }

    async fn get_network(&self, _: Call, name: String) -> Result<v1::Network, ApiError> {
        let name: NetworkName = parse("name", &name)?;
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
    ) -> Result<v1::Network, ApiError> {
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
        let wait = request.wait;
        let id = if request.id.is_empty() {
            made_up_id()
        } else {
            request.id
        };
        let reservation: Option<EndpointId> = match request.reservation.as_str() {
            "" => None,
            given => Some(parse("reservation", given)?),
        };
        let name = self.endpoint(&request.network, None, &id)?;
        let attachment = request.attachment.unwrap_or_default();
        let document = EndpointDocument {
            version: None,
            name: (!request.name.is_empty()).then_some(request.name),
            attachment: AttachmentDocument {
                netns: attachment.netns,
                ifname: (!attachment.ifname.is_empty()).then_some(attachment.ifname),
            },
            requested_addresses: request.requested_addresses,
            addresses: Vec::new(),
            mac: (!request.mac.is_empty()).then_some(request.mac),
            labels: request.labels.into_iter().collect(),
        };
        let valid = document.clone().validate().map_err(|e| record_error(e, ""))?;
        let place = valid.attachment.clone();
        let checked = self
            .kernel
            .run(move |kernel| kernel.check_attachment(&place))
            .await
            .map_err(|_| stopping())?;
        checked.map_err(|error| ApiError::invalid("attachment.netns", chain(&error)))?;

        let what = subject(&name);
        self.look_up_network(&call, &name.network).await?;
        let pin = self.view_of(&call, &name.network).await?;
        let (same, wanted) = (name.clone(), valid.clone());
        let before = self
            .ask(move |r| {
                let there = r.snapshot.endpoint(&same)?.value.as_ref()?;
                Some(
                    there.attachment == wanted.attachment
                        && wanted.requested.iter().all(|a| there.addresses.contains(a)),
                )
            })
            .await?;
        match before {
            Some(false) => return Err(ApiError::AlreadyExists { what }),
            Some(true) => {}
            None => {
                let (made, attachment) = (name.clone(), valid.attachment.clone());
                let taken = self
                    .ask(move |r| r.snapshot.owner_of_attachment(&attachment).cloned())
                    .await?;
                if let Some(owner) = taken {
                    let why = format!(
                        "{} in {} belongs to endpoint {owner}",
                        valid.attachment.ifname, valid.attachment.netns
                    );
                    return Err(ApiError::Conflict { what, why });
                }
                let lease = match &reservation {
                    Some(reservation) => self.lease_of(&call, &name.network, reservation).await?,
                    None => None,
                };
                self.write(&call, &what, move |r, lost| {
                    let choosing = r.choosing(&made.network, lost);
                    claims::attach(
                        &r.snapshot,
                        &made,
                        document.clone(),
                        reservation.as_ref(),
                        &choosing,
                    )
                })
                .await?;
                self.end_lease(lease);
            }
        }

        let wanted = name.clone();
        // Where the answer to the transaction was lost, it takes a while until the watch tells of the record.
        let seen = Arc::new(AtomicBool::new(false));
        let arrived = self
            .wait(call.deadline, move |r| match r.state_of(&wanted) {
                _ if r.snapshot.endpoint(&wanted).is_none() => {
                    seen.load(Ordering::Relaxed).then_some(Ok(None))
                }
                (v1::EndpointState::Ready, _) => Some(Ok(view::endpoint_by_name(r, &wanted))),
                (v1::EndpointState::Failed, why) => Some(Err(why)),
                _ => {
                    seen.store(true, Ordering::Relaxed);
                    None
                }
            })
            .await?;
        match arrived {
            Some(Ok(Some(endpoint))) => {
                let converged = match wait {
                    true => Some(self.converge_attached(&call, &name).await?),
                    false => None,
                };
                drop(pin);
                Ok(v1::AttachEndpointResponse {
                    endpoint: Some(endpoint),
                    converged,
                })
            }
            Some(Ok(None)) => Err(ApiError::Conflict {
                what,
                why: "it was deleted while it was being attached".to_owned(),
            }),
            failed => {
                // Who is told that it failed must not find it half there.
                if before.is_none() {
                    let undone = name.clone();
                    self.ask(move |r| r.detach(&undone)).await?;
                    if let Err(error) = self.remember_detach(&name).await {
                        tracing::warn!(endpoint = %name, error = %chain(&error), "a failed attach may come back");
                    }
                }
                Err(match failed {
                    Some(Err(why)) => ApiError::Conflict { what, why },
                    _ => ApiError::DeadlineExceeded {
                        what,
                        waited: call.started.elapsed(),
                        why: "this host's data plane does not carry it yet; see weft status".to_owned(),
                    },
                })
            }
        }
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
        let name = self.endpoint(&network, None, &id)?;
        let known = name.clone();
        let (seen, in_kernel) = self
            .ask(move |r| {
                let port = weft_core::ownership::port_name(&known);
                let network = r.observed.networks.get(&known.network);
                let in_kernel = network.is_some_and(|n| n.ports.contains_key(&port));
                // Before the records are known, what is not seen may well exist.
                (
                    r.snapshot.endpoint(&known).is_some(),
                    in_kernel || !r.is_informed(),
                )
            })
            .await?;
        // What was recorded a moment ago, by hand or by an attach whose answer was lost, may not have come by the
        // watch yet.
        let unseen = !seen && self.detach_unseen(&call, &name).await?;
        let existed = seen || in_kernel || unseen;
        if existed && !unseen {
            let gone = name.clone();
            self.ask(move |r| r.detach(&gone)).await?;
        }
        if !existed {
            return Ok(v1::DetachEndpointResponse {
                existed,
                record_pending: false,
            });
        }
        if !self.ask(|r| r.is_connected() && r.is_adopted()).await? {
            self.remember_detach(&name).await?;
        }
        if !self.ask(|r| r.is_adopted()).await? {
            // Nothing is written to the kernel before the records are known; then this comes first.
            return Ok(v1::DetachEndpointResponse {
                existed,
                record_pending: true,
            });
        }
        let watched = name.clone();
        let port = weft_core::ownership::port_name(&name);
        let rid = self
            .wait(call.deadline, move |r| {
                let there = r
                    .observed
                    .networks
                    .get(&watched.network)
                    .is_some_and(|n| n.ports.contains_key(&port));
                (!there).then_some(())
            })
            .await?;
        if rid.is_none() {
            return Err(ApiError::DeadlineExceeded {
                what: subject(&name),
                waited: call.started.elapsed(),
                why: "this host's data plane is not rid of it yet; it goes on by itself, see weft status"
                    .to_owned(),
            });
        }
        let agreed = call.deadline.min(Instant::now() + DETACH_PATIENCE);
        let watched = name.clone();
        let deleted = self
            .wait(agreed, move |r| {
                let pending = r.snapshot.awaits_detach(&watched);
                (!pending).then_some(())
            })
            .await?;
        if deleted.is_none() {
            self.remember_detach(&name).await?;
        }
        Ok(v1::DetachEndpointResponse {
            existed,
            record_pending: deleted.is_none(),
        })
    }

    async fn list_endpoints(
        &self,
        call: Call,
        filter: EndpointFilter,
    ) -> Result<Vec<v1::Endpoint>, ApiError> {
        let network: Option<NetworkName> = filter
            .network
            .as_deref()
            .map(|n| parse("network", n))
            .transpose()?;
        let node = match filter.node {
            NodeFilter::Any => None,
            NodeFilter::Local => Some(self.node.clone()),
            NodeFilter::Named(node) => Some(parse("node", &node)?),
        };
        let own_only = node.as_ref() == Some(&self.node);
        let (wanted, wanted_node) = (network.clone(), node.clone());
        let (mut endpoints, unknown) = self
            .ask(move |r| {
                let mut unknown = Vec::new();
                for (name, _) in r.snapshot.networks() {
                    let in_view = own_only || r.snapshot.takes_part(name) && r.snapshot.knows_members(name);
                    if wanted.as_ref().is_none_or(|w| w == name) && !in_view {
                        unknown.push(name.clone());
                    }
                }
                let seen = view::endpoints(r, wanted.as_ref(), wanted_node.as_ref(), &unknown);
                (seen, unknown)
            })
            .await?;
        if let Some(network) = network
            && endpoints.is_empty()
            && unknown.is_empty()
        {
            let asked = network.clone();
            if !self.ask(move |r| r.snapshot.network(&asked).is_some()).await? {
                return Err(ApiError::NotFound {
                    what: Subject::network(network.as_str()),
                });
            }
        }
        for network in unknown {
            let read = self.read_endpoints(&call, &network).await?;
            let node = node.clone();
            endpoints.extend(
                self.ask(move |r| {
                    read.iter()
                        .filter(|(name, ..)| node.as_ref().is_none_or(|n| *n == name.node))
                        .map(|(name, endpoint, revision)| view::endpoint(r, name, endpoint, *revision))
                        .collect::<Vec<_>>()
                })
                .await?,
            );
        }
        Ok(endpoints)
    }

    async fn get_endpoint(
        &self,
        call: Call,
        network: String,
        node: Option<String>,
        id: String,
    ) -> Result<v1::Endpoint, ApiError> {
        let name = self.endpoint(&network, node.as_deref(), &id)?;
        let wanted = name.clone();
        if let Some(found) = self.ask(move |r| view::endpoint_by_name(r, &wanted)).await? {
            return Ok(found);
        }
        let what = subject(&name);
        let key = Key::Endpoint(name.clone());
        let fetched = self
            .store
            .get(&key, until(call.deadline, STORE_PATIENCE))
            .await
            .map_err(|e| store_error(&e))?;
        let Some(entry) = fetched.entry else {
            return Err(ApiError::NotFound { what });
        };
        let endpoint = Endpoint::decode(&entry.value).map_err(|e| ApiError::Conflict {
            what,
            why: e.to_string(),
        })?;
        self.ask(move |r| view::endpoint(r, &name, &endpoint, entry.mod_revision))
            .await
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
        let directory = self.store.prefix().all(Kind::Alive);
        let connected = self.ask(|r| r.is_connected()).await?;
        // Presence is not watched: nothing but this answer needs it.
        let alive = if connected {
            self.store
                .list(&directory, until(call.deadline, STORE_PATIENCE))
                .await
                .map(|l| l.entries)
                .unwrap_or_default()
        } else {
            Vec::new()
        };
        self.ask(move |r| view::peers(r, &alive)).await
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

    async fn accept_deletions(&self, _: Call) -> Result<v1::AcceptDeletionsResponse, ApiError> {
        let acknowledged = self.ask(Reconciler::acknowledge_removal).await?;
        let held = self.ask(Reconciler::accept_deletions).await?;
        Ok(v1::AcceptDeletionsResponse {
            removal_acknowledged: acknowledged,
            count: held.unwrap_or_default() as u64,
            was_holding: held.is_some(),
        })
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
