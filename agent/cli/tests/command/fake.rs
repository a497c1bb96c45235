//! A made-up agent: fails by the name of what is asked for, and otherwise echoes.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, iter};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use weft_proto::v1::addresses_server::{Addresses, AddressesServer};
use weft_proto::v1::endpoints_server::{Endpoints, EndpointsServer};
use weft_proto::v1::events_server::{Events, EventsServer};
use weft_proto::v1::networks_server::{Networks, NetworksServer};
use weft_proto::v1::peers_server::{Peers, PeersServer};
use weft_proto::v1::records_server::{Records, RecordsServer};
use weft_proto::v1::status_server::{self, StatusServer};
use weft_proto::v1::{self, EndpointState, Event, EventKind, audit_response::Part};

/// How many endpoints there are; several pages of them, and more than a pipe holds.
pub(crate) const ENDPOINTS: usize = 2500;

/// How many of them come at a time.
const PAGE: usize = 1000;

/// A running agent; it ends when this is dropped.
pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
    _directory: TempDir,
    server: JoinHandle<()>,
}

impl Agent {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("weftd.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = tokio::spawn(async move {
            Server::builder()
                .add_service(NetworksServer::new(Fake))
                .add_service(EndpointsServer::new(Fake))
                .add_service(AddressesServer::new(Fake))
                .add_service(PeersServer::new(Fake))
                .add_service(StatusServer::new(Fake))
                .add_service(RecordsServer::new(Fake))
                .add_service(EventsServer::new(Fake))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .expect("it serves");
        });
        Self {
            socket,
            _directory: directory,
            server,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Fake;

/// A status as the agent makes them.
fn status(code: Code, reason: &str, message: &str, more: impl FnOnce(&mut ErrorDetails)) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "weft", [("what".to_owned(), "the store".to_owned())]);
    more(&mut details);
    Status::with_error_details(code, message, details)
}

fn about(name: &str) -> impl FnOnce(&mut ErrorDetails) {
    move |details| {
        details.set_resource_info("network", name, "", "");
    }
}

#[tonic::async_trait]
impl Networks for Fake {
    async fn create(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Result<Response<v1::CreateNetworkResponse>, Status> {
        let v1::CreateNetworkRequest { name, spec } = request.into_inner();
        match name.as_str() {
            "blue" => Err(status(
                Code::AlreadyExists,
                "ALREADY_EXISTS",
                "network blue already exists",
                about("blue"),
            )),
            "odd" => {
                let message = "spec.subnets[0].cidr: is odd";
                Err(status(
                    Code::InvalidArgument,
                    "INVALID_ARGUMENT",
                    message,
                    |details| {
                        details.add_bad_request_violation("spec.subnets[0].cidr", "is odd");
                    },
                ))
            }
            _ => {
                let (vni, mtu) = spec.as_ref().map_or((0, 0), |spec| (spec.vni(), spec.mtu()));
                let network = v1::Network {
                    name,
                    vni,
                    mtu,
                    spec,
                    ..Default::default()
                };
                Ok(Response::new(v1::CreateNetworkResponse {
                    network: Some(network),
                    warnings: warnings(mtu),
                }))
            }
        }
    }

    async fn list(
        &self,
        _request: Request<v1::ListNetworksRequest>,
    ) -> Result<Response<v1::ListNetworksResponse>, Status> {
        Ok(Response::new(v1::ListNetworksResponse::default()))
    }

    async fn get(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Result<Response<v1::GetNetworkResponse>, Status> {
        let name = request.into_inner().name;
        match name.as_str() {
            "blue" => {
                let network = v1::Network {
                    name,
                    vni: 7,
                    ..Default::default()
                };
                Ok(Response::new(v1::GetNetworkResponse {
                    network: Some(network),
                }))
            }
            "broken" => Err(status(
                Code::Internal,
                "INTERNAL",
                "reading it failed: EIO",
                |_| {},
            )),
            _ => {
                let message = format!("network {name} does not exist");
                Err(status(Code::NotFound, "NOT_FOUND", &message, about(&name)))
            }
        }
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::WaitResponse>, Status> {
        let v1::WaitRequest { network, timeout } = request.into_inner();
        assert!(timeout.is_some(), "the command always says how long");
        let hosts = |hosts: &[&str]| hosts.iter().map(ToString::to_string).collect();
        let passed = |network: &str, names: &[&str]| v1::Convergence {
            network: network.to_owned(),
            revision: 7,
            hosts: hosts(names),
            unannounced: vec![],
        };
        let networks = match network.as_str() {
            "" => vec![passed("blue", &["host1", "host2"]), passed("red", &["host1"])],
            "empty" => vec![],
            "strange" => vec![v1::Convergence {
                unannounced: hosts(&["host9"]),
                ..passed("strange", &["host1"])
            }],
            "late" => {
                let message =
                    "network late: not done after 0.5 s: not caught up: host3 (its agent is not running)";
                let mut details = ErrorDetails::new();
                let hosts = [("hosts".to_owned(), "host3".to_owned())];
                details.set_error_info("DEADLINE_EXCEEDED", "weft", hosts);
                return Err(Status::with_error_details(
                    Code::DeadlineExceeded,
                    message,
                    details,
                ));
            }
            name => vec![passed(name, &["host1", "host2"])],
        };
        Ok(Response::new(v1::WaitResponse { networks }))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateNetworkRequest>,
    ) -> Result<Response<v1::UpdateNetworkResponse>, Status> {
        let request = request.into_inner();
        if request.name == "used" {
            let message = "network used cannot change so, for these addresses are held: 10.1.0.2";
            return Err(status(
                Code::FailedPrecondition,
                "CONFLICT",
                message,
                about("used"),
            ));
        }
        let mtu = request.mtu.unwrap_or(9999);
        let network = v1::Network {
            name: request.name,
            spec: Some(v1::NetworkSpec {
                subnets: request.add_subnets,
                labels: request.labels,
                cooldown: request.cooldown,
                options: [("removed".to_owned(), request.remove_subnets.join(","))].into(),
                ..Default::default()
            }),
            mtu,
            ..Default::default()
        };
        Ok(Response::new(v1::UpdateNetworkResponse {
            network: Some(network),
            warnings: warnings(mtu),
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteNetworkRequest>,
    ) -> Result<Response<v1::DeleteNetworkResponse>, Status> {
        let v1::DeleteNetworkRequest { name, force } = request.into_inner();
        if force {
            let detached = vec![held(&name, "host2", "web", &["10.1.0.5", "fd00::5"])];
            return Ok(Response::new(v1::DeleteNetworkResponse { detached }));
        }
        Err(match name.as_str() {
            "blue" => status(
                Code::FailedPrecondition,
                "CONFLICT",
                "network blue: it has 1 endpoint",
                about("blue"),
            ),
            _ => status(
                Code::Unavailable,
                "UNAVAILABLE",
                "the store is not available: no leader",
                |_| {},
            ),
        })
    }
}

#[tonic::async_trait]
impl Endpoints for Fake {
    async fn attach(
        &self,
        request: Request<v1::AttachEndpointRequest>,
    ) -> Result<Response<v1::AttachEndpointResponse>, Status> {
        let request = request.into_inner();
        let timeout = request
            .timeout
            .and_then(|timeout| Duration::try_from(timeout).ok())
            .expect("a time-out");
        let attachment = request.attachment.expect("an attachment");
        if attachment.netns.ends_with("slow") {
            tokio::time::sleep(timeout).await;
            let message = "endpoint blue: not done after 0.5 s: no carrier";
            return Err(status(
                Code::DeadlineExceeded,
                "DEADLINE_EXCEEDED",
                message,
                |_| {},
            ));
        }
        let converged = request.wait.then(|| v1::Convergence {
            network: request.network.clone(),
            revision: 7,
            hosts: vec!["host1".to_owned(), "host2".to_owned()],
            unannounced: vec![],
        });
        let endpoint = v1::Endpoint {
            network: request.network,
            id: request.id,
            name: request.name,
            attachment: Some(attachment),
            requested_addresses: request.requested_addresses,
            mac: request.mac,
            labels: request.labels,
            message: format!("timeout {timeout:?}"),
            ..Default::default()
        };
        Ok(Response::new(v1::AttachEndpointResponse {
            endpoint: Some(endpoint),
            converged,
        }))
    }

    async fn detach(
        &self,
        request: Request<v1::DetachEndpointRequest>,
    ) -> Result<Response<v1::DetachEndpointResponse>, Status> {
        let v1::DetachEndpointRequest { network, id, .. } = request.into_inner();
        let note = match network.as_str() {
            "blue" => String::new(),
            other => format!("there is no network {other}"),
        };
        Ok(Response::new(v1::DetachEndpointResponse {
            existed: id == "web",
            record_pending: false,
            note,
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        let request = request.into_inner();
        let first: usize = request.page_token.parse().unwrap_or(0);
        let end = (first + PAGE).min(ENDPOINTS);
        let endpoints = (first..end)
            .map(|number| v1::Endpoint {
                network: "blue".to_owned(),
                node: "host1".to_owned(),
                id: format!("e{number:05}"),
                state: EndpointState::Ready.into(),
                ..Default::default()
            })
            .collect();
        let next_page_token = if end < ENDPOINTS {
            end.to_string()
        } else {
            String::new()
        };
        Ok(Response::new(v1::ListEndpointsResponse {
            endpoints,
            next_page_token,
            unknown_networks: match request.node.as_str() {
                "away" => vec!["green".to_owned(), "red".to_owned()],
                _ => Vec::new(),
            },
        }))
    }

    async fn get(
        &self,
        _request: Request<v1::GetEndpointRequest>,
    ) -> Result<Response<v1::GetEndpointResponse>, Status> {
        Err(Status::not_found("no such endpoint"))
    }
}

fn warnings(mtu: u32) -> Vec<String> {
    let too_much = (mtu == 8000).then(|| "MTU 8000 is more than host2 carries".to_owned());
    too_much.into_iter().collect()
}

fn held(network: &str, node: &str, id: &str, addresses: &[&str]) -> v1::HeldEndpoint {
    v1::HeldEndpoint {
        network: network.to_owned(),
        node: node.to_owned(),
        id: id.to_owned(),
        name: String::new(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
    }
}

#[tonic::async_trait]
impl Addresses for Fake {
    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveResponse>, Status> {
        let request = request.into_inner();
        if request.id == "taken" {
            let message = "reservation blue/host1/taken already exists";
            return Err(status(
                Code::AlreadyExists,
                "ALREADY_EXISTS",
                message,
                |details| {
                    details.set_resource_info("reservation", "blue/host1/taken", "", "");
                },
            ));
        }
        let families = request.families().map(|family| family.as_str_name().to_owned());
        Ok(Response::new(v1::ReserveResponse {
            id: request.id.clone(),
            addresses: families.chain(request.requested_addresses.clone()).collect(),
            ends: request.ttl.map(|ttl| prost_types::Timestamp {
                seconds: ttl.seconds,
                nanos: 0,
            }),
        }))
    }

    async fn unreserve(
        &self,
        request: Request<v1::UnreserveRequest>,
    ) -> Result<Response<v1::UnreserveResponse>, Status> {
        let existed = request.into_inner().id == "r1";
        Ok(Response::new(v1::UnreserveResponse { existed }))
    }

    async fn list(
        &self,
        request: Request<v1::ListAddressesRequest>,
    ) -> Result<Response<v1::ListAddressesResponse>, Status> {
        let request = request.into_inner();
        let address = |address: &str, state: v1::AddressState| v1::Address {
            address: address.to_owned(),
            state: state.into(),
            ..Default::default()
        };
        let (addresses, next_page_token) = match (request.page_token.as_str(), request.released) {
            ("", released) => (
                vec![address("10.1.0.2/24", v1::AddressState::Held)],
                if released {
                    "more".to_owned()
                } else {
                    String::new()
                },
            ),
            _ => (
                vec![address("10.1.0.3/24", v1::AddressState::Released)],
                String::new(),
            ),
        };
        Ok(Response::new(v1::ListAddressesResponse {
            addresses,
            next_page_token,
        }))
    }
}

#[tonic::async_trait]
impl Peers for Fake {
    type RemoveStream = Pin<Box<dyn Stream<Item = Result<v1::RemovePeerResponse, Status>> + Send>>;

    async fn holdings(
        &self,
        request: Request<v1::HoldingsRequest>,
    ) -> Result<Response<v1::HoldingsResponse>, Status> {
        let node = request.into_inner().node;
        if node == "host9" {
            return Err(status(
                Code::NotFound,
                "NOT_FOUND",
                "peer host9 does not exist",
                |_| {},
            ));
        }
        Ok(Response::new(v1::HoldingsResponse {
            endpoints: vec![held("blue", "host3", "web", &["10.1.0.5"])],
            known: true,
            alive: node == "host3",
            local: node == "host1",
            ..Default::default()
        }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemovePeerRequest>,
    ) -> Result<Response<Self::RemoveStream>, Status> {
        let v1::RemovePeerRequest { node, force, .. } = request.into_inner();
        if !force {
            let message = format!("peer {node}: its agent is alive");
            return Err(status(Code::FailedPrecondition, "CONFLICT", &message, |_| {}));
        }
        let summary = v1::RemovalSummary {
            removed: true,
            endpoints: 1,
            stray_addresses: 0,
        };
        let parts = [
            v1::remove_peer_response::Part::Released(held("blue", &node, "web", &["10.1.0.5"])),
            v1::remove_peer_response::Part::Summary(summary),
        ];
        let parts = parts.map(|part| Ok(v1::RemovePeerResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(iter(parts))))
    }

    async fn list(
        &self,
        _request: Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::ListPeersResponse>, Status> {
        let peers = vec![v1::Peer {
            node: "host1".to_owned(),
            kind: v1::PeerKind::Agent.into(),
            ..Default::default()
        }];
        Ok(Response::new(v1::ListPeersResponse {
            peers,
            next_page_token: String::new(),
        }))
    }
}

#[tonic::async_trait]
impl status_server::Status for Fake {
    async fn get(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let problem = v1::Problem {
            key: "networks/red".to_owned(),
            field: "subnets[0]".to_owned(),
            message: "is odd".to_owned(),
            since: None,
        };
        let status = v1::AgentStatus {
            problems: vec![problem],
            ..Default::default()
        };
        Ok(Response::new(v1::GetStatusResponse { status: Some(status) }))
    }

    async fn accept_deletions(
        &self,
        _request: Request<v1::AcceptDeletionsRequest>,
    ) -> Result<Response<v1::AcceptDeletionsResponse>, Status> {
        Ok(Response::new(v1::AcceptDeletionsResponse {
            count: 3,
            was_holding: true,
            removal_acknowledged: false,
        }))
    }

    async fn republish(
        &self,
        _request: Request<v1::RepublishRequest>,
    ) -> Result<Response<v1::RepublishResponse>, Status> {
        let conflict = v1::Republished {
            key: "endpoints/blue/host1/web".to_owned(),
            outcome: v1::RepublishOutcome::Conflict.into(),
            message: "10.1.0.2 is taken".to_owned(),
        };
        Ok(Response::new(v1::RepublishResponse {
            records: vec![conflict],
            nodes: vec![],
        }))
    }

    async fn version(
        &self,
        _request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(v1::VersionResponse {
            version: "1.2.3".to_owned(),
            node: "host1".to_owned(),
            api: "weft.v1".to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl Records for Fake {
    type AuditStream = Pin<Box<dyn Stream<Item = Result<v1::AuditResponse, Status>> + Send>>;

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        let repair = request.into_inner().repair;
        let part = |part| Ok(v1::AuditResponse { part: Some(part) });
        let finding = v1::AuditFinding {
            key: "addresses/blue/10.1.0.9".to_owned(),
            kind: "claim_without_endpoint".to_owned(),
            message: "claimed for endpoint blue/host1/gone, which does not exist".to_owned(),
            remedy: "give it up".to_owned(),
            mendable: true,
            mended: repair,
        };
        let summary = v1::AuditSummary {
            revision: 812,
            endpoints: 12,
            claims: 24,
            networks: 2,
            findings: u64::from(!repair),
            mended: u64::from(repair),
            ..Default::default()
        };
        let progress = v1::AuditProgress {
            records: 1000,
            mended: 0,
        };
        Ok(Response::new(Box::pin(iter([
            part(Part::Progress(progress)),
            part(Part::Finding(finding)),
            part(Part::Summary(summary)),
        ]))))
    }
}

#[tonic::async_trait]
impl Events for Fake {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let event = |kind: EventKind| Event {
            kind: kind.into(),
            message: format!("kinds {:?} of {}", request.kinds, request.network),
            ..Default::default()
        };
        let stopping = "the agent is not available: it is stopping";
        Ok(Response::new(Box::pin(iter([
            Ok(event(EventKind::EndpointReady)),
            Ok(event(EventKind::DriftRepaired)),
            Err(status(Code::Unavailable, "UNAVAILABLE", stopping, |_| {})),
        ]))))
    }
}
