//! Endpoints attached, detached and looked up.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use weft_api::{ApiError, Call};
use weft_core::{claims, record::Change};
use weft_proto::v1;
use weft_store_schema::{
    AttachmentDocument, Endpoint, EndpointDocument, EndpointId, EndpointRef, Key, check_room,
};

use super::{
    AgentControl, STORE_PATIENCE, convergence,
    errors::{blocked, field_asked_for, parse, record_error, stopping, store_error, subject},
    made_up_id, until,
};
use crate::{reconcile::chain, view};

/// A detachment waits this long for the store to agree before it returns without.
const DETACH_PATIENCE: Duration = Duration::from_millis(1000);

/// What the store says of a record that is not in view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unseen {
    /// It is there.
    Found,
    /// It is not.
    Absent,
    /// The store does not answer. It is asked later: an attach may have happened of which nobody has told.
    Unknown,
}

/// The record that an attachment asks for, as it is stored and as it is used.
pub(super) fn asked_for(
    request: v1::AttachEndpointRequest,
) -> Result<(EndpointDocument, Endpoint), ApiError> {
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
    let valid = document.clone().validate();
    let valid = valid.and_then(|valid| check_room(&document).map(|()| valid));
    Ok((document, valid.map_err(|e| record_error(e, ""))?))
}

/// The reservation that an attachment takes over, if any.
pub(super) fn reservation(text: &str) -> Result<Option<EndpointId>, ApiError> {
    match text {
        "" => Ok(None),
        given => parse("reservation", given).map(Some),
    }
}

impl AgentControl {
    /// See [`weft_api::Control::attach_endpoint`].
    pub(super) async fn attach(
        &self,
        call: Call,
        request: v1::AttachEndpointRequest,
    ) -> Result<v1::AttachEndpointResponse, ApiError> {
        let wait = request.wait;
        let id = if request.id.is_empty() {
            made_up_id()
        } else {
            request.id.clone()
        };
        let reservation = reservation(&request.reservation)?;
        let name = self.endpoint(&request.network, None, &id)?;
        let (document, valid) = asked_for(request)?;
        let place = valid.attachment();
        let checking = place.clone();
        let checked = self
            .kernel
            .run(move |kernel| kernel.check_attachment(&checking))
            .await
            .map_err(|_| stopping())?;
        checked.map_err(|error| ApiError::invalid("attachment.netns", chain(&error)))?;

        let what = subject(&name);
        self.look_up_network(&call, &name.network).await?;
        let pin = self.view_of(&call, &name.network).await?;
        self.has_been_detached(&call, &name).await?;
        let (same, wanted) = (name.clone(), valid.clone());
        let before = self
            .ask(move |r| {
                let there = r
                    .snapshot
                    .endpoint(&same)
                    .filter(|_| !r.snapshot.is_done_for(&same));
                let there = there?.value.as_ref()?;
                Some(
                    there.attachment() == wanted.attachment()
                        && wanted.requested().iter().all(|a| there.addresses.contains(a)),
                )
            })
            .await?;
        match before {
            Some(false) => return Err(ApiError::AlreadyExists { what }),
            Some(true) => {}
            None => {
                let (made, attachment) = (name.clone(), place.clone());
                let taken = self
                    .ask(move |r| r.snapshot.owner_of_attachment(&attachment).cloned())
                    .await?;
                if let Some(owner) = taken {
                    let why = format!("{} in {} belongs to endpoint {owner}", place.ifname, place.netns);
                    return Err(blocked("attachment.ifname", &what, why));
                }
                let lease = match &reservation {
                    Some(reservation) => self.lease_of(&call, &name.network, reservation).await?,
                    None => None,
                };
                let written = self.write(&call, &what, move |r, lost| {
                    let choosing = r.choosing(&made.network, lost);
                    claims::attach(
                        &r.snapshot,
                        &made,
                        document.clone(),
                        reservation.as_ref(),
                        &choosing,
                    )
                });
                let written = written.await;
                if let Err(ApiError::Unavailable { .. }) = &written {
                    // It may have happened, or happen yet.
                    self.undo(&name).await?;
                }
                written?;
                let anew = name.clone();
                self.ask(move |r| r.judge_anew(&anew)).await?;
                self.end_lease(lease);
            }
        }

        let wanted = name.clone();
        // Where the answer to the transaction was lost, it takes a while until the watch tells of the record.
        let seen = Arc::new(AtomicBool::new(false));
        let arriving = self.wait(call.deadline, move |r| match r.state_of(&wanted) {
            _ if r.snapshot.endpoint(&wanted).is_none() => seen.load(Ordering::Relaxed).then_some(Ok(None)),
            (v1::EndpointState::Ready, _) => Some(Ok(view::endpoint_by_name(r, &wanted))),
            (v1::EndpointState::Failed, why) => Some(Err((why, r.fault_of(&wanted)))),
            _ => {
                seen.store(true, Ordering::Relaxed);
                None
            }
        });
        // The others are asked at once: they need not wait until the veth pair is made here.
        let mut converging = pin!(async {
            match wait {
                true => self.converge_attached(&call, &name).await.map(Some),
                false => Ok(None),
            }
        });
        let mut arriving = pin!(arriving);
        let mut converged = None;
        let arrived = loop {
            tokio::select! {
                arrived = &mut arriving => break arrived?,
                done = &mut converging, if converged.is_none() => converged = Some(done),
            }
        };
        match arrived {
            Some(Ok(Some(endpoint))) => {
                let converged = match converged {
                    Some(done) => done?,
                    None => converging.await?,
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
                if before.is_none() {
                    self.undo(&name).await?;
                }
                Err(match failed {
                    Some(Err((why, field))) => match field.and_then(|f| field_asked_for(&f, &valid)) {
                        Some(field) => ApiError::Blocked { what, why, field },
                        None => ApiError::Conflict { what, why },
                    },
                    _ => ApiError::DeadlineExceeded {
                        what,
                        waited: call.started.elapsed(),
                        why: "this host's data plane does not carry it yet; see weft status".to_owned(),
                    },
                })
            }
        }
    }

    /// Waits until the store has been told of an earlier detachment: the next life of an endpoint begins after that.
    async fn has_been_detached(&self, call: &Call, name: &EndpointRef) -> Result<(), ApiError> {
        let earlier = name.clone();
        let patience = call.deadline.min(Instant::now() + STORE_PATIENCE);
        let over = self
            .wait(patience, move |r| {
                // One that the store has lost is over without it.
                let waits = r.snapshot.detaching().contains_key(&earlier);
                (!waits || r.snapshot.is_done_for(&earlier)).then_some(())
            })
            .await?;
        over.ok_or_else(|| ApiError::Unavailable {
            what: "the store".to_owned(),
            why: format!("it has not been told yet that endpoint {name} was detached before"),
        })
    }

    /// Takes back an attach that failed, or of which nobody knows whether it did: who is told so must not find it there,
    /// now or when the store answers again.
    async fn undo(&self, name: &EndpointRef) -> Result<(), ApiError> {
        let undone = name.clone();
        self.ask(move |r| r.detach(&undone)).await?;
        if let Err(error) = self.remember_detach(name).await {
            tracing::warn!(endpoint = %name, error = %chain(&error), "a failed attach may come back");
        }
        Ok(())
    }

    /// See [`weft_api::Control::detach_endpoint`].
    pub(super) async fn detach(
        &self,
        call: Call,
        network: String,
        id: String,
    ) -> Result<v1::DetachEndpointResponse, ApiError> {
        let name = self.endpoint(&network, None, &id)?;
        if let Some(why) = self.ask(|r| r.fenced().map(str::to_owned)).await? {
            return Err(ApiError::Conflict {
                what: subject(&name),
                why,
            });
        }
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
        let unseen = match seen {
            true => Unseen::Absent,
            false => self.detach_unseen(&call, &name).await?,
        };
        let existed = seen || in_kernel || unseen == Unseen::Found;
        if (existed && unseen != Unseen::Found) || unseen == Unseen::Unknown {
            let gone = name.clone();
            self.ask(move |r| r.detach(&gone)).await?;
        }
        if !existed {
            let record_pending = unseen == Unseen::Unknown;
            if record_pending {
                self.remember_detach(&name).await?;
            }
            let note = match unseen {
                Unseen::Absent => self.instead_of(&call, &name).await?,
                _ => None,
            };
            return Ok(v1::DetachEndpointResponse {
                existed,
                record_pending,
                note: note.unwrap_or_default(),
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
                note: String::new(),
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
            .wait(agreed, move |r| r.snapshot.has_left(&watched).then_some(()))
            .await?;
        if deleted.is_none() {
            self.remember_detach(&name).await?;
        }
        Ok(v1::DetachEndpointResponse {
            existed,
            record_pending: deleted.is_none(),
            note: String::new(),
        })
    }

    /// See [`weft_api::Control::get_endpoint`].
    pub(super) async fn one_endpoint(
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

    /// Detaches an endpoint that is not in view, if the store has it.
    async fn detach_unseen(&self, call: &Call, name: &EndpointRef) -> Result<Unseen, ApiError> {
        if !self.ask(|r| r.is_connected()).await? {
            return Ok(Unseen::Unknown);
        }
        let patience = until(call.deadline, DETACH_PATIENCE);
        let Ok(fetched) = self.store.get(&Key::Endpoint(name.clone()), patience).await else {
            return Ok(Unseen::Unknown);
        };
        let Some(entry) = fetched.entry else {
            return Ok(Unseen::Absent);
        };
        let gone = name.clone();
        self.ask(move |r| {
            // In this order: seen first, it would be completed first. It is this one that is meant, and not whatever was there
            // when somebody asked before, of which the store's answer may be on its way: that none was.
            r.detach_life(&gone, entry.create_revision);
            r.learn(&[Change::Put(entry)]);
        })
        .await?;
        Ok(Unseen::Found)
    }

    async fn remember_detach(&self, name: &EndpointRef) -> Result<(), ApiError> {
        let remembered = name.clone();
        let remembered = self.ask(move |r| r.remember_detach(&remembered)).await?;
        remembered
            .on_disk()
            .await
            .map_err(|error| ApiError::internal(format!("detaching {name}"), error))
    }
}
