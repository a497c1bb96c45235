//! The generated gRPC services on top of a [`Control`]: what is the same for every call is done here once.
//!
//! In: gRPC requests. Out: gRPC answers. Each call gets a deadline, its required fields checked, a place
//! among those under way and, if it fails, a status with details. It must not know how a call is carried out.

mod addresses;
mod bytes;
mod cluster;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use weft_proto::v1::{self, endpoints_server, events_server, networks_server, status_server};

#[doc(hidden)]
pub use self::bytes::Bytes;
use crate::events::Filter;
use crate::page::page;
use crate::{ApiError, Call, Caller, Control, EndpointFilter, EndpointList, Limits, NodeFilter, Subject};

/// How long past its deadline a call may still answer (with the reason why it is late) before it is dropped.
const GRACE: Duration = Duration::from_secs(1);

/// An answer in parts.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services' common state.
pub(crate) struct Service<C> {
    shared: Arc<Shared<C>>,
}

struct Shared<C> {
    control: Arc<C>,
    limits: Limits,
    reads: Semaphore,
    changes: Semaphore,
    watches: Arc<Semaphore>,
    /// Cancelled at shutdown: streams end.
    shutdown: CancellationToken,
    /// Cancelled when calls under way have had their time after shutdown: they end too.
    cut: CancellationToken,
}

// Not derived: that would ask for C: Clone.
impl<C> Clone for Service<C> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<C: Control> Service<C> {
    pub(crate) fn new(
        control: Arc<C>,
        limits: Limits,
        shutdown: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        let shared = Shared {
            reads: Semaphore::new(limits.reads.max(1)),
            changes: Semaphore::new(limits.changes.max(1)),
            watches: Arc::new(Semaphore::new(limits.watches.max(1))),
            control,
            limits,
            shutdown,
            cut,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn control(&self) -> &C {
        &self.shared.control
    }

    /// The circumstances of a call; `asked` is the time-out that the request itself names, if it has such a
    /// field.
    fn call<T>(&self, request: &Request<T>, asked: Option<Duration>) -> Call {
        let started = Instant::now();
        let limits = &self.shared.limits;
        let timeout = asked
            .unwrap_or(limits.default_timeout)
            .min(limits.longest_timeout);
        let timeout = grpc_timeout(request.metadata()).map_or(timeout, |grpc| {
            // Answer a little earlier than the client's own clock cuts the call: the reason is worth more
            // than the code.
            timeout.min(grpc - (grpc / 10).min(Duration::from_millis(100)))
        });
        let caller = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred.as_ref())
            .map(|who| Caller {
                uid: who.uid(),
                gid: who.gid(),
                pid: who.pid().filter(|pid| *pid != 0),
            });
        Call {
            deadline: started + timeout,
            started,
            caller,
        }
    }

    async fn read<T>(
        &self,
        call: Call,
        what: Subject,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, Status> {
        within(&self.shared.reads, &self.shared.cut, call, what, work).await
    }

    /// The parts of an answer as they come. The agent's end ends them with a failure.
    fn answers<T: Send + 'static>(
        &self,
        call: Call,
        what: Subject,
        parts: impl Stream<Item = Result<T, ApiError>> + Send + 'static,
    ) -> Answers<T> {
        let cut = self.shared.cut.clone();
        let is_cut = cut.clone();
        let goodbye = futures::stream::once(async move { is_cut.is_cancelled().then(|| Err(stopping())) });
        let all = parts
            .take_until(cut.cancelled_owned())
            .chain(goodbye.filter_map(futures::future::ready))
            .map(move |next| next.map_err(|why| refused(&what, call, why)));
        Box::pin(all)
    }

    async fn change<T>(
        &self,
        call: Call,
        what: Subject,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, Status> {
        within(&self.shared.changes, &self.shared.cut, call, what, work).await
    }
}

/// Carries out a call once there is a place for it, and no longer than it may take.
async fn within<T>(
    places: &Semaphore,
    cut: &CancellationToken,
    call: Call,
    what: Subject,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, Status> {
    let late = |why: &str| ApiError::DeadlineExceeded {
        what: what.clone(),
        waited: call.started.elapsed(),
        why: why.to_owned(),
    };
    let placed = async {
        let Ok(_place) = timeout_at(call.deadline, places.acquire()).await else {
            return Err(late("the agent is busy with other calls"));
        };
        match timeout_at(call.deadline + GRACE, work).await {
            Ok(done) => done,
            Err(_) => Err(late("the agent gave no answer in time")),
        }
    };
    let done = tokio::select! {
        done = placed => done,
        () = cut.cancelled() => Err(stopping()),
    };
    done.map_err(|why| refused(&what, call, why))
}

fn stopping() -> ApiError {
    ApiError::Unavailable {
        what: "the agent".to_owned(),
        why: "it is stopping".to_owned(),
    }
}

/// The status for a failed call, logged: what the agent is to blame for loudly, the rest on request.
fn refused(what: &Subject, call: Call, why: ApiError) -> Status {
    let uid = call.caller.map(|caller| caller.uid);
    let pid = call.caller.and_then(|caller| caller.pid);
    if matches!(why, ApiError::Internal { .. }) {
        tracing::error!(%what, uid, pid, error = why.chain(), "a call failed");
    } else {
        tracing::debug!(%what, uid, pid, error = why.chain(), "a call was refused");
    }
    why.into()
}

/// The `grpc-timeout` of a request; one that is malformed is as none, as the specification has it for unknown
/// headers.
fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The time-out that a request names. Errors: `InvalidArgument` unless it is more than 0 and at most
/// `longest`.
fn asked_timeout(
    asked: Option<prost_types::Duration>,
    longest: Duration,
) -> Result<Option<Duration>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    match Duration::try_from(asked) {
        Ok(asked) if !asked.is_zero() && asked <= longest => Ok(Some(asked)),
        _ => Err(ApiError::invalid(
            "timeout",
            format!("must be more than 0 s and at most {} s", longest.as_secs_f64()),
        )),
    }
}

fn required(field: &str, value: &str) -> Result<(), ApiError> {
    if value.is_empty() {
        Err(ApiError::invalid(field, "is required"))
    } else {
        Ok(())
    }
}

fn given(value: String) -> Option<String> {
    Some(value).filter(|value| !value.is_empty())
}

#[tonic::async_trait]
impl<C: Control> networks_server::Networks for Service<C> {
    async fn create(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Result<Response<v1::CreateNetworkResponse>, Status> {
        let call = self.call(&request, None);
        let v1::CreateNetworkRequest { name, spec } = request.into_inner();
        let work = async {
            required("name", &name)?;
            let spec = spec.ok_or_else(|| ApiError::invalid("spec", "is required"))?;
            self.control().create_network(call, name.clone(), spec).await
        };
        self.change(call, Subject::network(&name), work)
            .await
            .map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Result<Response<v1::ListNetworksResponse>, Status> {
        let call = self.call(&request, None);
        let v1::ListNetworksRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let work = async {
            let all = self.control().list_networks(call).await?;
            page(all, |network| [network.name.as_str()], page_size, &page_token)
        };
        let (networks, next_page_token) = self.read(call, Subject::new("networks", ""), work).await?;
        Ok(Response::new(v1::ListNetworksResponse {
            networks,
            next_page_token,
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Result<Response<v1::GetNetworkResponse>, Status> {
        let call = self.call(&request, None);
        let name = request.into_inner().name;
        let work = async {
            required("name", &name)?;
            self.control().get_network(call, name.clone()).await
        };
        let network = self.read(call, Subject::network(&name), work).await?;
        Ok(Response::new(v1::GetNetworkResponse {
            network: Some(network),
        }))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateNetworkRequest>,
    ) -> Result<Response<v1::UpdateNetworkResponse>, Status> {
        let call = self.call(&request, None);
        let request = request.into_inner();
        let what = Subject::network(&request.name);
        let work = async {
            required("name", &request.name)?;
            self.control().update_network(call, request).await
        };
        self.change(call, what, work).await.map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteNetworkRequest>,
    ) -> Result<Response<v1::DeleteNetworkResponse>, Status> {
        let call = self.call(&request, None);
        let v1::DeleteNetworkRequest { name, force } = request.into_inner();
        let work = async {
            required("name", &name)?;
            self.control().delete_network(call, name.clone(), force).await
        };
        let detached = self.change(call, Subject::network(&name), work).await?;
        Ok(Response::new(v1::DeleteNetworkResponse { detached }))
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::WaitResponse>, Status> {
        let asked = asked_timeout(request.get_ref().timeout, self.shared.limits.longest_timeout)?;
        let call = self.call(&request, asked);
        let network = given(request.into_inner().network);
        let what = network
            .as_ref()
            .map_or_else(|| Subject::new("networks", ""), Subject::network);
        let work = self.control().wait_networks(call, network);
        // It may take as long as a change, and must not keep others from looking.
        let networks = self.change(call, what, work).await?;
        Ok(Response::new(v1::WaitResponse { networks }))
    }
}

#[tonic::async_trait]
impl<C: Control> endpoints_server::Endpoints for Service<C> {
    async fn attach(
        &self,
        request: Request<v1::AttachEndpointRequest>,
    ) -> Result<Response<v1::AttachEndpointResponse>, Status> {
        let asked = asked_timeout(request.get_ref().timeout, self.shared.limits.longest_timeout)?;
        let call = self.call(&request, asked);
        let request = request.into_inner();
        let what = Subject::endpoint(&request.network, "", &request.id);
        let work = async {
            required("network", &request.network)?;
            required(
                "attachment.netns",
                request.attachment.as_ref().map_or("", |at| at.netns.as_str()),
            )?;
            self.control().attach_endpoint(call, request).await
        };
        self.change(call, what, work).await.map(Response::new)
    }

    async fn detach(
        &self,
        request: Request<v1::DetachEndpointRequest>,
    ) -> Result<Response<v1::DetachEndpointResponse>, Status> {
        let asked = asked_timeout(request.get_ref().timeout, self.shared.limits.longest_timeout)?;
        let call = self.call(&request, asked);
        let v1::DetachEndpointRequest { network, id, .. } = request.into_inner();
        let what = Subject::endpoint(&network, "", &id);
        let work = async {
            required("network", &network)?;
            required("id", &id)?;
            self.control().detach_endpoint(call, network, id).await
        };
        self.change(call, what, work).await.map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        let call = self.call(&request, None);
        let v1::ListEndpointsRequest {
            network,
            node,
            local,
            page_size,
            page_token,
        } = request.into_inner();
        let work = async {
            let node = match (given(node), local) {
                (None, false) => NodeFilter::Any,
                (None, true) => NodeFilter::Local,
                (Some(node), false) => NodeFilter::Named(node),
                (Some(_), true) => {
                    return Err(ApiError::invalid("node", "cannot be given together with local"));
                }
            };
            let filter = EndpointFilter {
                network: given(network),
                node,
            };
            let EndpointList { endpoints, unknown } = self.control().list_endpoints(call, filter).await?;
            let (endpoints, next_page_token) = page(
                endpoints,
                |at| [at.network.as_str(), at.node.as_str(), at.id.as_str()],
                page_size,
                &page_token,
            )?;
            Ok(v1::ListEndpointsResponse {
                endpoints,
                next_page_token,
                unknown_networks: unknown.into_iter().collect(),
            })
        };
        let listed = self.read(call, Subject::new("endpoints", ""), work).await?;
        Ok(Response::new(listed))
    }

    async fn get(
        &self,
        request: Request<v1::GetEndpointRequest>,
    ) -> Result<Response<v1::GetEndpointResponse>, Status> {
        let call = self.call(&request, None);
        let v1::GetEndpointRequest { network, node, id } = request.into_inner();
        let what = Subject::endpoint(&network, &node, &id);
        let work = async {
            required("network", &network)?;
            required("id", &id)?;
            self.control().get_endpoint(call, network, given(node), id).await
        };
        let endpoint = self.read(call, what, work).await?;
        Ok(Response::new(v1::GetEndpointResponse {
            endpoint: Some(endpoint),
        }))
    }
}

#[tonic::async_trait]
impl<C: Control> status_server::Status for Service<C> {
    async fn get(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let call = self.call(&request, None);
        let work = self.control().status(call);
        let status = self.read(call, Subject::new("status", ""), work).await?;
        Ok(Response::new(v1::GetStatusResponse { status: Some(status) }))
    }

    async fn accept_deletions(
        &self,
        request: Request<v1::AcceptDeletionsRequest>,
    ) -> Result<Response<v1::AcceptDeletionsResponse>, Status> {
        let call = self.call(&request, None);
        let work = self.control().accept_deletions(call);
        let response = self
            .change(call, Subject::new("held deletions", ""), work)
            .await?;
        Ok(Response::new(response))
    }

    async fn republish(
        &self,
        request: Request<v1::RepublishRequest>,
    ) -> Result<Response<v1::RepublishResponse>, Status> {
        let call = self.call(&request, Some(self.shared.limits.longest_timeout));
        let work = self.control().republish(call);
        let response = self.change(call, Subject::new("lost records", ""), work).await?;
        Ok(Response::new(response))
    }

    async fn version(
        &self,
        _request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(self.control().version()))
    }
}

#[tonic::async_trait]
impl<C: Control> events_server::Events for Service<C> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = self.call(&request, None);
        let filter = Filter::parse(request.into_inner())?;
        let Ok(place) = Arc::clone(&self.shared.watches).try_acquire_owned() else {
            return Err(ApiError::Unavailable {
                what: "another stream of events".to_owned(),
                why: format!("{} are open already", self.shared.limits.watches.max(1)),
            }
            .into());
        };
        let work = self.control().watch_events(call);
        let events = self.read(call, Subject::new("events", ""), work).await?;
        let shutdown = self.shared.shutdown.clone();
        let goodbye = futures::stream::once(async { Err(stopping()) });
        let stream = events
            .take_until(shutdown.cancelled_owned())
            .chain(goodbye)
            .filter(move |next| {
                // The place is kept as long as the stream is.
                let _ = &place;
                futures::future::ready(next.as_ref().map_or(true, |event| filter.wants(event)))
            })
            .map(|next| next.map_err(Status::from));
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_grpc_are_read_as_specified() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("a header value"));
            grpc_timeout(&metadata)
        };
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        for malformed in ["", "S", "2", "123456789S", "-1S", "2x", "1.5S"] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn timeouts_of_requests_are_bounded() {
        let longest = Duration::from_secs(300);
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        assert_eq!(asked_timeout(None, longest).expect("fine"), None);
        assert_eq!(asked_timeout(seconds(300), longest).expect("fine"), Some(longest));
        for bad in [0, 301, -1] {
            assert!(asked_timeout(seconds(bad), longest).is_err(), "{bad}");
        }
    }
}
