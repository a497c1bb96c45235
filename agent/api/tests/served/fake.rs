//! A made-up agent and a running server for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use weft_api::{
    ApiError, AuditStream, Call, Caller, Control, EndpointFilter, EndpointList, EventHub, EventStream,
    Limits, Listener, ListenerConfig, NodeFilter, RemovalStream, ServeError, Subject, serve,
};
use weft_proto::v1;

/// Fails by the name of what is asked for, and otherwise echoes.
pub(crate) struct Fake {
    pub(crate) hub: EventHub,
    pub(crate) caller: std::sync::Mutex<Option<Caller>>,
    /// Notified when a call that never ends has begun.
    pub(crate) stuck: tokio::sync::Notify,
}

impl Control for Fake {
    async fn create_network(
        &self,
        call: Call,
        name: String,
        spec: v1::NetworkSpec,
    ) -> Result<v1::CreateNetworkResponse, ApiError> {
        *self.caller.lock().expect("no test failed with it locked") = call.caller;
        if name == "twice" {
            return Err(ApiError::AlreadyExists {
                what: Subject::network(name),
            });
        }
        let network = v1::Network {
            name,
            vni: spec.vni.unwrap_or(100),
            spec: Some(spec),
            ..Default::default()
        };
        Ok(v1::CreateNetworkResponse {
            network: Some(network),
            warnings: vec![],
        })
    }

    async fn list_networks(&self, _call: Call) -> Result<Vec<v1::Network>, ApiError> {
        let named = |name: &str| v1::Network {
            name: name.to_owned(),
            ..Default::default()
        };
        Ok(vec![named("red"), named("blue"), named("green")])
    }

    async fn get_network(&self, call: Call, name: String) -> Result<v1::Network, ApiError> {
        let what = Subject::network(&name);
        match name.as_str() {
            "invalid" => Err(ApiError::invalid("name", "is odd")),
            "conflict" => Err(ApiError::Conflict {
                what,
                why: "it has 2 endpoints".to_owned(),
            }),
            "blocked" => Err(ApiError::Blocked {
                what,
                why: "VNI 7 belongs to network red".to_owned(),
                field: "spec.vni".to_owned(),
            }),
            "full" => Err(ApiError::Full {
                what,
                pool: "10.1.0.0/29".to_owned(),
                used: 5,
                capacity: 5,
                why: "network full: 10.1.0.0/29 is full (5 of 5)".to_owned(),
            }),
            "away" => Err(ApiError::Unavailable {
                what: "the store".to_owned(),
                why: "no leader".to_owned(),
            }),
            "broken" => Err(ApiError::internal("reading it", std::io::Error::other("EIO"))),
            "wordy" => Err(ApiError::invalid("name", "ü".repeat(100_000))),
            "late" => {
                tokio::time::sleep_until(call.deadline).await;
                let waited = call.deadline - call.started;
                Err(ApiError::DeadlineExceeded {
                    what,
                    waited,
                    why: "no carrier".to_owned(),
                })
            }
            "stuck" => {
                self.stuck.notify_one();
                std::future::pending().await
            }
            _ => Err(ApiError::NotFound { what }),
        }
    }

    async fn update_network(
        &self,
        _call: Call,
        request: v1::UpdateNetworkRequest,
    ) -> Result<v1::UpdateNetworkResponse, ApiError> {
        let v1::UpdateNetworkRequest { name, labels, .. } = request;
        if name == "used" {
            return Err(ApiError::Conflict {
                what: Subject::network(name),
                why: "10.1.0.2 is held".to_owned(),
            });
        }
        let network = v1::Network {
            name,
            spec: Some(v1::NetworkSpec {
                labels,
                ..Default::default()
            }),
            ..Default::default()
        };
        Ok(v1::UpdateNetworkResponse {
            network: Some(network),
            warnings: vec![],
        })
    }

    async fn delete_network(
        &self,
        _call: Call,
        name: String,
        force: bool,
    ) -> Result<Vec<v1::HeldEndpoint>, ApiError> {
        if force {
            return Ok(vec![v1::HeldEndpoint::default()]);
        }
        Err(ApiError::NotFound {
            what: Subject::network(name),
        })
    }

    async fn attach_endpoint(
        &self,
        call: Call,
        request: v1::AttachEndpointRequest,
    ) -> Result<v1::AttachEndpointResponse, ApiError> {
        let left = call.deadline.saturating_duration_since(Instant::now());
        let converged = request.wait.then(|| v1::Convergence {
            unannounced: vec![],
            network: request.network.clone(),
            revision: 7,
            hosts: vec!["host1".to_owned()],
        });
        let endpoint = v1::Endpoint {
            network: request.network,
            id: request.id,
            message: left.as_secs_f64().round().to_string(),
            ..Default::default()
        };
        Ok(v1::AttachEndpointResponse {
            endpoint: Some(endpoint),
            converged,
        })
    }

    async fn wait_networks(
        &self,
        call: Call,
        network: Option<String>,
    ) -> Result<Vec<v1::Convergence>, ApiError> {
        match network {
            None => Ok(Vec::new()),
            Some(network) if network == "late" => Err(ApiError::Behind {
                what: Subject::network(network),
                waited: call.deadline - call.started,
                why: "not caught up: host2 (its agent is not running), host3".to_owned(),
                hosts: vec!["host2".to_owned(), "host3".to_owned()],
            }),
            Some(network) => Ok(vec![v1::Convergence {
                unannounced: vec![],
                network,
                revision: 7,
                hosts: vec!["host1".to_owned(), "host2".to_owned()],
            }]),
        }
    }

    async fn detach_endpoint(
        &self,
        _call: Call,
        _network: String,
        id: String,
    ) -> Result<v1::DetachEndpointResponse, ApiError> {
        Ok(v1::DetachEndpointResponse {
            note: String::new(),
            existed: id == "web",
            record_pending: false,
        })
    }

    async fn list_endpoints(&self, _call: Call, filter: EndpointFilter) -> Result<EndpointList, ApiError> {
        let node = match filter.node {
            NodeFilter::Any => "any".to_owned(),
            NodeFilter::Local => "local".to_owned(),
            NodeFilter::Named(node) => node,
        };
        let network = filter.network.unwrap_or_default();
        let web = v1::Endpoint {
            network,
            node,
            id: "web".to_owned(),
            ..Default::default()
        };
        Ok(EndpointList {
            endpoints: vec![web],
            unknown: ["green", "red"].map(str::to_owned).into(),
        })
    }

    async fn get_endpoint(
        &self,
        _call: Call,
        network: String,
        node: Option<String>,
        id: String,
    ) -> Result<v1::Endpoint, ApiError> {
        let node = node.unwrap_or_else(|| "here".to_owned());
        Ok(v1::Endpoint {
            network,
            node,
            id,
            ..Default::default()
        })
    }

    async fn reserve_addresses(
        &self,
        _call: Call,
        request: v1::ReserveRequest,
    ) -> Result<v1::ReserveResponse, ApiError> {
        if request.id == "taken" {
            return Err(ApiError::AlreadyExists {
                what: Subject::reservation(&request.network, "host1", &request.id),
            });
        }
        Ok(v1::ReserveResponse {
            id: request.id,
            addresses: request.requested_addresses,
            ends: None,
        })
    }

    async fn unreserve_addresses(
        &self,
        _call: Call,
        _network: String,
        id: String,
    ) -> Result<v1::UnreserveResponse, ApiError> {
        Ok(v1::UnreserveResponse { existed: id == "r1" })
    }

    async fn list_addresses(
        &self,
        _call: Call,
        _network: String,
        released: bool,
    ) -> Result<Vec<v1::Address>, ApiError> {
        let address = |address: &str, state: v1::AddressState, revision| v1::Address {
            address: address.to_owned(),
            state: state.into(),
            revision,
            ..Default::default()
        };
        let mut all = vec![
            address("fd00::5/64", v1::AddressState::Held, 7),
            address("10.1.0.10/24", v1::AddressState::Reserved, 9),
            address("10.1.0.9/24", v1::AddressState::Held, 12),
        ];
        if released {
            all.push(address("10.1.0.2/24", v1::AddressState::Released, 11));
            all.push(address("10.1.0.3/24", v1::AddressState::Released, 3));
        }
        Ok(all)
    }

    async fn list_peers(&self, _call: Call) -> Result<Vec<v1::Peer>, ApiError> {
        Ok(vec![v1::Peer {
            node: "host1".to_owned(),
            ..Default::default()
        }])
    }

    async fn holdings(&self, _call: Call, node: String) -> Result<v1::HoldingsResponse, ApiError> {
        Err(ApiError::NotFound {
            what: Subject::new("peer", node),
        })
    }

    async fn remove_peer(
        &self,
        _call: Call,
        request: v1::RemovePeerRequest,
    ) -> Result<RemovalStream, ApiError> {
        if !request.force {
            return Err(ApiError::Conflict {
                what: Subject::new("peer", request.node),
                why: "its agent is alive".to_owned(),
            });
        }
        let summary = v1::RemovalSummary::default();
        let part = Some(v1::remove_peer_response::Part::Summary(summary));
        Ok(Box::pin(futures::stream::iter([Ok(v1::RemovePeerResponse {
            part,
        })])))
    }

    async fn status(&self, _call: Call) -> Result<v1::AgentStatus, ApiError> {
        Ok(v1::AgentStatus {
            node: "host1".to_owned(),
            ..Default::default()
        })
    }

    async fn accept_deletions(&self, _call: Call) -> Result<v1::AcceptDeletionsResponse, ApiError> {
        Ok(v1::AcceptDeletionsResponse {
            count: 3,
            was_holding: true,
            removal_acknowledged: false,
        })
    }

    async fn republish(&self, _call: Call) -> Result<v1::RepublishResponse, ApiError> {
        Ok(v1::RepublishResponse {
            nodes: vec!["host2".to_owned()],
            ..Default::default()
        })
    }

    async fn audit(&self, _call: Call, repair: bool) -> Result<AuditStream, ApiError> {
        let part = |part| Ok(v1::AuditResponse { part: Some(part) });
        let finding = v1::AuditFinding {
            key: "vnis/5".to_owned(),
            mended: repair,
            ..Default::default()
        };
        let away = ApiError::Unavailable {
            what: "the store".to_owned(),
            why: "no leader".to_owned(),
        };
        let parts = [
            part(v1::audit_response::Part::Progress(v1::AuditProgress::default())),
            part(v1::audit_response::Part::Finding(finding)),
            Err(away),
        ];
        Ok(Box::pin(futures::stream::iter(parts)))
    }

    fn version(&self) -> v1::VersionResponse {
        v1::VersionResponse {
            version: "1.2.3".to_owned(),
            ..Default::default()
        }
    }

    async fn watch_events(&self, _call: Call) -> Result<EventStream, ApiError> {
        Ok(self.hub.subscribe())
    }
}

/// A running server in a directory of its own.
pub(crate) struct Served {
    pub(crate) directory: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) fake: Arc<Fake>,
    /// What the agent says of its health; well at first.
    pub(crate) healthy: watch::Sender<bool>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("weftd.sock");
        let listener = Listener::bind(&config(&path)).expect("a socket");
        let mut limits = Limits {
            drain: Duration::from_millis(200),
            ..Default::default()
        };
        change(&mut limits);
        let fake = Arc::new(Fake {
            hub: EventHub::new(16),
            caller: std::sync::Mutex::default(),
            stuck: tokio::sync::Notify::new(),
        });
        let shutdown = CancellationToken::new();
        let (healthy, told) = watch::channel(true);
        let server = tokio::spawn(serve(listener, limits, Arc::clone(&fake), told, shutdown.clone()));
        Self {
            directory,
            path,
            fake,
            healthy,
            shutdown,
            server,
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        connect(&self.path).await.expect("a connection")
    }
}

pub(crate) fn config(path: &Path) -> ListenerConfig {
    ListenerConfig {
        path: path.to_owned(),
        group: None,
    }
}

pub(crate) async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("unix:{}", path.display()))?
        .connect()
        .await
}

/// What it gives, or a failure if that takes longer than a healthy machine could need.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("done within 20 s")
}
