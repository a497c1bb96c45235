//! What the agent implements to be driven through the API: one method per call.
//!
//! In: requests whose required fields are there, a deadline and who asks. Out: records or an [`ApiError`].
//! It must not know gRPC, sockets, etcd or netlink.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;

use futures::Stream;
use tokio::time::Instant;
use weft_proto::v1;

use crate::ApiError;

/// The process at the other end of the socket, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its effective user id when it connected.
    pub uid: u32,
    /// Its effective group id when it connected.
    pub gid: u32,
    /// Its process id when it connected, as seen from the agent; not given if it is in a namespace out of
    /// sight.
    pub pid: Option<i32>,
}

/// The circumstances of one call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// When the answer must be there. Work that waits gives up at this instant with
    /// [`ApiError::DeadlineExceeded`], saying what it waited for; shortly after it the call is dropped.
    pub deadline: Instant,
    /// When the call arrived.
    pub started: Instant,
    /// Who asks; not given where the kernel does not say.
    pub caller: Option<Caller>,
}

/// Which endpoints are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointFilter {
    /// Only those of this network.
    pub network: Option<String>,
    /// Only those of this node.
    pub node: NodeFilter,
}

/// Which nodes' endpoints are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeFilter {
    /// Every node's.
    #[default]
    Any,
    /// Those of the agent's own host.
    Local,
    /// Those of this node.
    Named(String),
}

/// The endpoints asked for, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointList {
    /// Those that are, in any order.
    pub endpoints: Vec<v1::Endpoint>,
    /// Networks of which they are not known, because the agent does not follow them and the store is away.
    pub unknown: BTreeSet<String>,
}

/// A stream of events, endless until the agent stops. [`crate::EventHub`] makes them.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<v1::Event, ApiError>> + Send>>;

/// The parts of an audit's answer; ends after the summary or an error.
pub type AuditStream = Pin<Box<dyn Stream<Item = Result<v1::AuditResponse, ApiError>> + Send>>;

/// The parts of the answer to a removal; ends after the summary or an error.
pub type RemovalStream = Pin<Box<dyn Stream<Item = Result<v1::RemovePeerResponse, ApiError>> + Send>>;

/// The agent, as far as the API drives it.
///
/// Every method may be called many times at once. A call's future is dropped at any of its awaits when the
/// client leaves or the deadline is well past, so what it has begun must be complete or found again by the
/// reconcile loop.
///
/// Required strings and messages of a request are there (not empty); their *content* is the implementor's to
/// check, with [`ApiError::InvalidArgument`] naming the field as the .proto file does
/// (`spec.subnets[0].cidr`).
pub trait Control: Send + Sync + 'static {
    /// Writes a new network; returns it with its VNI claimed.
    ///
    /// Errors: `InvalidArgument`, `AlreadyExists`, `Conflict` (the wished VNI is another's), `Unavailable`.
    fn create_network(
        &self,
        call: Call,
        name: String,
        spec: v1::NetworkSpec,
    ) -> impl Future<Output = Result<v1::CreateNetworkResponse, ApiError>> + Send;

    /// All networks, in any order, as last known. Errors: `Unavailable` if they have never been.
    fn list_networks(&self, call: Call) -> impl Future<Output = Result<Vec<v1::Network>, ApiError>> + Send;

    /// One network, as last known. Errors: `NotFound`, `Unavailable` if the networks have never been known.
    fn get_network(
        &self,
        call: Call,
        name: String,
    ) -> impl Future<Output = Result<v1::Network, ApiError>> + Send;

    /// Changes a network's record; returns it as it is then.
    ///
    /// Errors: `InvalidArgument`, `NotFound`, `Conflict` naming the addresses that it would strand,
    /// `Unavailable`, `DeadlineExceeded` if others keep being faster.
    fn update_network(
        &self,
        call: Call,
        request: v1::UpdateNetworkRequest,
    ) -> impl Future<Output = Result<v1::UpdateNetworkResponse, ApiError>> + Send;

    /// Removes a network, by force with its endpoints, which are returned. Errors: `NotFound`, `Conflict` while it
    /// has endpoints, `Unavailable`, `DeadlineExceeded`.
    fn delete_network(
        &self,
        call: Call,
        name: String,
        force: bool,
    ) -> impl Future<Output = Result<Vec<v1::HeldEndpoint>, ApiError>> + Send;

    /// Makes an endpoint on this host; returns when the local data plane carries it. `request.timeout` is
    /// already in `call.deadline`. Idempotent for the same request with an id.
    ///
    /// Errors: `InvalidArgument`, `NotFound` (the network), `AlreadyExists` (the id, for another request),
    /// `Conflict` (the interface or a wished address is another's; no such reservation), `Full`, `Unavailable`,
    /// `DeadlineExceeded`, `Behind` (attached, but not everywhere).
    fn attach_endpoint(
        &self,
        call: Call,
        request: v1::AttachEndpointRequest,
    ) -> impl Future<Output = Result<v1::AttachEndpointResponse, ApiError>> + Send;

    /// Waits until every host that takes part in a network, or in any network if none is named, has programmed what
    /// was written before; in any order.
    ///
    /// Errors: `NotFound` (the network), `Unavailable`, `Behind`.
    fn wait_networks(
        &self,
        call: Call,
        network: Option<String>,
    ) -> impl Future<Output = Result<Vec<v1::Convergence>, ApiError>> + Send;

    /// Removes an endpoint of this host, if there is one; returns when the local data plane is rid of it,
    /// with or without the store. Errors: `DeadlineExceeded`, `Internal`.
    fn detach_endpoint(
        &self,
        call: Call,
        network: String,
        id: String,
    ) -> impl Future<Output = Result<v1::DetachEndpointResponse, ApiError>> + Send;

    /// The endpoints asked for, as last known. Errors: `NotFound` (the network), `Unavailable` if the store is away and the
    /// records have never been known, or those of the one network that is asked for are not.
    fn list_endpoints(
        &self,
        call: Call,
        filter: EndpointFilter,
    ) -> impl Future<Output = Result<EndpointList, ApiError>> + Send;

    /// One endpoint; `node` not given means this host. Errors: `NotFound`, `Unavailable`.
    fn get_endpoint(
        &self,
        call: Call,
        network: String,
        node: Option<String>,
        id: String,
    ) -> impl Future<Output = Result<v1::Endpoint, ApiError>> + Send;

    /// Reserves addresses for this host. Idempotent for the same request with an id.
    ///
    /// Errors: `InvalidArgument`, `NotFound` (the network), `AlreadyExists` (the id, for another request),
    /// `Conflict` (a wished address is another's), `Full`, `Unavailable`, `DeadlineExceeded`. Then nothing stays
    /// reserved.
    fn reserve_addresses(
        &self,
        call: Call,
        request: v1::ReserveRequest,
    ) -> impl Future<Output = Result<v1::ReserveResponse, ApiError>> + Send;

    /// Gives a reservation of this host up, if there is one. Errors: `NotFound` (the network), `Unavailable`,
    /// `DeadlineExceeded`.
    fn unreserve_addresses(
        &self,
        call: Call,
        network: String,
        id: String,
    ) -> impl Future<Output = Result<v1::UnreserveResponse, ApiError>> + Send;

    /// A network's addresses that are held or reserved, and those that were if `released`, in any order. Errors:
    /// `NotFound` (the network), `Unavailable` if they are not in view and the store is away.
    fn list_addresses(
        &self,
        call: Call,
        network: String,
        released: bool,
    ) -> impl Future<Output = Result<Vec<v1::Address>, ApiError>> + Send;

    /// All peers, this host included, in any order; as last known, and without who is alive, if the store does not
    /// answer. Errors: `Unavailable` if they have never been known.
    fn list_peers(&self, call: Call) -> impl Future<Output = Result<Vec<v1::Peer>, ApiError>> + Send;

    /// What a node holds. Errors: `NotFound`, `Unavailable`.
    fn holdings(
        &self,
        call: Call,
        node: String,
    ) -> impl Future<Output = Result<v1::HoldingsResponse, ApiError>> + Send;

    /// Removes a node from the cluster with all that it holds. `request.timeout` is already in `call.deadline`.
    /// What was begun may be repeated. Errors: `NotFound`, `Conflict` (this host, or the node is alive),
    /// `Unavailable`; on the stream also `DeadlineExceeded`.
    fn remove_peer(
        &self,
        call: Call,
        request: v1::RemovePeerRequest,
    ) -> impl Future<Output = Result<RemovalStream, ApiError>> + Send;

    /// How the agent is. Answers without the store; what is not known without it is not given.
    fn status(&self, call: Call) -> impl Future<Output = Result<v1::AgentStatus, ApiError>> + Send;

    /// Confirms that what the store no longer has may go. Errors: `Unavailable` if the records have never been known.
    fn accept_deletions(
        &self,
        call: Call,
    ) -> impl Future<Output = Result<v1::AcceptDeletionsResponse, ApiError>> + Send;

    /// Writes again what the store has lost and this host still has. May be repeated. Errors: `Unavailable`,
    /// `DeadlineExceeded`.
    fn republish(&self, call: Call) -> impl Future<Output = Result<v1::RepublishResponse, ApiError>> + Send;

    /// Judges all records of the cluster, and mends what can be mended if that is asked for. What was begun ends
    /// when the stream is dropped. Errors: `Unavailable`; on the stream also `DeadlineExceeded`.
    fn audit(&self, call: Call, repair: bool) -> impl Future<Output = Result<AuditStream, ApiError>> + Send;

    /// Which agent this is.
    fn version(&self) -> v1::VersionResponse;

    /// All events from now on; the API filters them as the client asked and ends the stream at shutdown.
    fn watch_events(&self, call: Call) -> impl Future<Output = Result<EventStream, ApiError>> + Send;
}
