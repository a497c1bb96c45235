//! The agent, as this command calls it: one method per call, lists gathered from their pages.
//!
//! In: the socket's path and requests. Out: records, or a [`Failure`] that says what was asked for. It must
//! not know how anything is printed.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint as Destination};
use tonic::{Request, Status, Streaming};
use weft_proto::v1::addresses_client::AddressesClient;
use weft_proto::v1::endpoints_client::EndpointsClient;
use weft_proto::v1::events_client::EventsClient;
use weft_proto::v1::networks_client::NetworksClient;
use weft_proto::v1::peers_client::PeersClient;
use weft_proto::v1::records_client::RecordsClient;
use weft_proto::v1::status_client::StatusClient;
use weft_proto::v1::{self};

use crate::failure::{Failure, SocketAccess};

/// How long a call that does not wait for the data plane may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How much longer than the agent this side waits: the agent's own reason for being late is worth more than
/// ours.
const MARGIN: Duration = Duration::from_secs(2);

/// The longest answer that is taken, in bytes, where one may be longer than the 4 MiB that are taken by default.
const LARGE: usize = 64 << 20;

/// A connection to the agent.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
}

/// Thousands of endpoints may be written, one transaction each.
const REPUBLISH_TIMEOUT: Duration = Duration::from_secs(300);

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn failed(action: &str) -> impl Fn(Status) -> Failure {
    move |status| Failure::refused(action, &status)
}

/// What the agent must have put into its answer.
fn filled<T>(action: &str, value: Option<T>) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::refused(action, &Status::internal("the agent's answer is empty")))
}

impl Client {
    /// Connects to the agent at that socket.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, Failure> {
        // Connected here first, for the plain error of the socket; the channel takes that connection over.
        let first = UnixStream::connect(socket)
            .await
            .map_err(|why| Failure::unreachable(socket, &why, access(socket).as_ref()))?;
        let first = Arc::new(Mutex::new(Some(first)));
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let taken = first.lock().ok().and_then(|mut first| first.take());
            let path = path.clone();
            async move {
                match taken {
                    Some(stream) => Ok(TokioIo::new(stream)),
                    None => UnixStream::connect(path).await.map(TokioIo::new),
                }
            }
        });
        // The address is not used; HTTP wants one.
        let channel = Destination::from_static("http://weftd")
            .connect_with_connector(connector)
            .await;
        let channel = channel.map_err(|why| {
            Failure::unreachable(
                socket,
                &io::Error::other(format!("it does not speak gRPC ({why})")),
                None,
            )
        })?;
        Ok(Self { channel })
    }

    fn networks(&self) -> NetworksClient<Channel> {
        NetworksClient::new(self.channel.clone())
    }

    fn endpoints(&self) -> EndpointsClient<Channel> {
        EndpointsClient::new(self.channel.clone())
    }

    pub(crate) async fn create_network(
        &self,
        name: &str,
        spec: v1::NetworkSpec,
    ) -> Result<(v1::Network, Vec<String>), Failure> {
        let action = format!("create network {name}");
        let request = v1::CreateNetworkRequest {
            name: name.to_owned(),
            spec: Some(spec),
        };
        let answer = self
            .networks()
            .create(timed(request, CALL_TIMEOUT))
            .await
            .map_err(failed(&action))?
            .into_inner();
        Ok((filled(&action, answer.network)?, answer.warnings))
    }

    pub(crate) async fn list_networks(&self) -> Result<Vec<v1::Network>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = timed(
                v1::ListNetworksRequest {
                    page_size: 0,
                    page_token,
                },
                CALL_TIMEOUT,
            );
            let page = self
                .networks()
                .list(request)
                .await
                .map_err(failed("list the networks"))?
                .into_inner();
            all.extend(page.networks);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    pub(crate) async fn get_network(&self, name: &str) -> Result<v1::Network, Failure> {
        let action = format!("inspect network {name}");
        let request = timed(
            v1::GetNetworkRequest {
                name: name.to_owned(),
            },
            CALL_TIMEOUT,
        );
        let answer = self.networks().get(request).await.map_err(failed(&action))?;
        filled(&action, answer.into_inner().network)
    }

    pub(crate) async fn update_network(
        &self,
        request: v1::UpdateNetworkRequest,
    ) -> Result<(v1::Network, Vec<String>), Failure> {
        let action = format!("change network {}", request.name);
        let request = timed(request, CALL_TIMEOUT);
        let answer = self.networks().update(request).await.map_err(failed(&action))?;
        let answer = answer.into_inner();
        Ok((filled(&action, answer.network)?, answer.warnings))
    }

    pub(crate) async fn delete_network(
        &self,
        name: &str,
        force: bool,
    ) -> Result<Vec<v1::HeldEndpoint>, Failure> {
        let request = v1::DeleteNetworkRequest {
            name: name.to_owned(),
            force,
        };
        let answer = self
            .networks()
            .max_decoding_message_size(LARGE)
            .delete(timed(request, CALL_TIMEOUT))
            .await
            .map_err(failed(&format!("delete network {name}")))?;
        Ok(answer.into_inner().detached)
    }

    pub(crate) async fn attach_endpoint(
        &self,
        mut request: v1::AttachEndpointRequest,
        timeout: Duration,
    ) -> Result<(v1::Endpoint, Option<v1::Convergence>), Failure> {
        let netns = request.attachment.as_ref().map_or("", |at| at.netns.as_str());
        let action = format!("attach {netns} to network {}", request.network);
        request.timeout = prost_types::Duration::try_from(timeout).ok();
        let request = timed(request, timeout + MARGIN);
        let answer = self.endpoints().attach(request).await.map_err(failed(&action))?;
        let answer = answer.into_inner();
        Ok((filled(&action, answer.endpoint)?, answer.converged))
    }

    pub(crate) async fn wait(
        &self,
        network: Option<String>,
        timeout: Duration,
    ) -> Result<Vec<v1::Convergence>, Failure> {
        let action = match &network {
            Some(network) => format!("wait for network {network}"),
            None => "wait for the networks".to_owned(),
        };
        let request = v1::WaitRequest {
            network: network.unwrap_or_default(),
            timeout: prost_types::Duration::try_from(timeout).ok(),
        };
        let answer = self.networks().wait(timed(request, timeout + MARGIN)).await;
        Ok(answer.map_err(failed(&action))?.into_inner().networks)
    }

    pub(crate) async fn detach_endpoint(
        &self,
        network: &str,
        id: &str,
        timeout: Duration,
    ) -> Result<v1::DetachEndpointResponse, Failure> {
        let request = v1::DetachEndpointRequest {
            network: network.to_owned(),
            id: id.to_owned(),
            timeout: prost_types::Duration::try_from(timeout).ok(),
        };
        let request = timed(request, timeout + MARGIN);
        let answer = self.endpoints().detach(request).await;
        Ok(answer
            .map_err(failed(&format!("detach endpoint {network}/{id}")))?
            .into_inner())
    }

    /// The endpoints, and the networks whose endpoints are not known.
    pub(crate) async fn list_endpoints(
        &self,
        mut filter: v1::ListEndpointsRequest,
    ) -> Result<(Vec<v1::Endpoint>, BTreeSet<String>), Failure> {
        let (mut all, mut unknown) = (Vec::new(), BTreeSet::new());
        loop {
            let request = timed(filter.clone(), CALL_TIMEOUT);
            let page = self
                .endpoints()
                .list(request)
                .await
                .map_err(failed("list the endpoints"))?
                .into_inner();
            all.extend(page.endpoints);
            // The store may go away between two pages.
            unknown.extend(page.unknown_networks);
            filter.page_token = page.next_page_token;
            if filter.page_token.is_empty() {
                return Ok((all, unknown));
            }
        }
    }

    pub(crate) async fn get_endpoint(
        &self,
        network: &str,
        node: Option<&str>,
        id: &str,
    ) -> Result<v1::Endpoint, Failure> {
        let action = format!("inspect endpoint {network}/{id}");
        let request = v1::GetEndpointRequest {
            network: network.to_owned(),
            node: node.unwrap_or_default().to_owned(),
            id: id.to_owned(),
        };
        let answer = self
            .endpoints()
            .get(timed(request, CALL_TIMEOUT))
            .await
            .map_err(failed(&action))?;
        filled(&action, answer.into_inner().endpoint)
    }

    pub(crate) async fn list_addresses(
        &self,
        network: &str,
        released: bool,
    ) -> Result<Vec<v1::Address>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListAddressesRequest {
                network: network.to_owned(),
                released,
                page_size: 0,
                page_token,
            };
            let page = AddressesClient::new(self.channel.clone())
                .list(timed(request, CALL_TIMEOUT))
                .await;
            let action = format!("list the addresses of network {network}");
            let page = page.map_err(failed(&action))?.into_inner();
            all.extend(page.addresses);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    pub(crate) async fn reserve_addresses(
        &self,
        request: v1::ReserveRequest,
    ) -> Result<v1::ReserveResponse, Failure> {
        let action = format!("reserve addresses in network {}", request.network);
        let request = timed(request, CALL_TIMEOUT);
        let answer = AddressesClient::new(self.channel.clone()).reserve(request).await;
        Ok(answer.map_err(failed(&action))?.into_inner())
    }

    pub(crate) async fn unreserve_addresses(
        &self,
        network: &str,
        id: &str,
    ) -> Result<v1::UnreserveResponse, Failure> {
        let request = v1::UnreserveRequest {
            network: network.to_owned(),
            id: id.to_owned(),
        };
        let answer = AddressesClient::new(self.channel.clone())
            .unreserve(timed(request, CALL_TIMEOUT))
            .await;
        Ok(answer
            .map_err(failed(&format!("release reservation {network}/{id}")))?
            .into_inner())
    }

    pub(crate) async fn list_peers(&self) -> Result<Vec<v1::Peer>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = timed(
                v1::ListPeersRequest {
                    page_size: 0,
                    page_token,
                },
                CALL_TIMEOUT,
            );
            let page = PeersClient::new(self.channel.clone()).list(request).await;
            let page = page.map_err(failed("list the peers"))?.into_inner();
            all.extend(page.peers);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    pub(crate) async fn holdings(&self, node: &str) -> Result<v1::HoldingsResponse, Failure> {
        let request = v1::HoldingsRequest {
            node: node.to_owned(),
        };
        let mut client = PeersClient::new(self.channel.clone()).max_decoding_message_size(LARGE);
        let answer = client.holdings(timed(request, CALL_TIMEOUT)).await;
        Ok(answer
            .map_err(failed(&format!("see what peer {node} holds")))?
            .into_inner())
    }

    pub(crate) async fn remove_peer(
        &self,
        node: &str,
        force: bool,
        timeout: Duration,
    ) -> Result<Streaming<v1::RemovePeerResponse>, Failure> {
        let request = v1::RemovePeerRequest {
            node: node.to_owned(),
            force,
            timeout: prost_types::Duration::try_from(timeout).ok(),
        };
        let request = timed(request, timeout + MARGIN);
        let answer = PeersClient::new(self.channel.clone()).remove(request).await;
        Ok(answer
            .map_err(failed(&format!("remove peer {node}")))?
            .into_inner())
    }

    pub(crate) async fn status(&self) -> Result<v1::AgentStatus, Failure> {
        let action = "get the agent's status";
        let request = timed(v1::GetStatusRequest {}, CALL_TIMEOUT);
        // There may be very many problems.
        let mut client = StatusClient::new(self.channel.clone()).max_decoding_message_size(LARGE);
        let answer = client.get(request).await.map_err(failed(action))?;
        filled(action, answer.into_inner().status)
    }

    pub(crate) async fn accept_deletions(&self) -> Result<v1::AcceptDeletionsResponse, Failure> {
        let request = timed(v1::AcceptDeletionsRequest {}, CALL_TIMEOUT);
        let answer = StatusClient::new(self.channel.clone())
            .accept_deletions(request)
            .await;
        Ok(answer.map_err(failed("confirm the held deletions"))?.into_inner())
    }

    pub(crate) async fn republish(&self) -> Result<v1::RepublishResponse, Failure> {
        let request = timed(v1::RepublishRequest {}, REPUBLISH_TIMEOUT);
        // There may be very many records.
        let mut client = StatusClient::new(self.channel.clone()).max_decoding_message_size(LARGE);
        let answer = client.republish(request).await;
        Ok(answer
            .map_err(failed("write the lost records again"))?
            .into_inner())
    }

    pub(crate) async fn audit(
        &self,
        repair: bool,
        timeout: Duration,
    ) -> Result<Streaming<v1::AuditResponse>, Failure> {
        let request = v1::AuditRequest {
            repair,
            timeout: prost_types::Duration::try_from(timeout).ok(),
        };
        let request = timed(request, timeout + MARGIN);
        let answer = RecordsClient::new(self.channel.clone()).audit(request).await;
        Ok(answer.map_err(failed("audit the records"))?.into_inner())
    }

    pub(crate) async fn version(&self) -> Result<v1::VersionResponse, Failure> {
        let request = timed(v1::VersionRequest {}, CALL_TIMEOUT);
        let answer = StatusClient::new(self.channel.clone()).version(request).await;
        Ok(answer.map_err(failed("get the agent's version"))?.into_inner())
    }

    pub(crate) async fn watch_events(
        &self,
        request: v1::WatchEventsRequest,
    ) -> Result<Streaming<v1::Event>, Failure> {
        let answer = EventsClient::new(self.channel.clone()).watch(request).await;
        Ok(answer.map_err(failed("watch the events"))?.into_inner())
    }
}

/// Whose the socket is, if we may see that.
fn access(socket: &Path) -> Option<SocketAccess> {
    let found = std::fs::metadata(socket).ok()?;
    let owner = User::from_uid(Uid::from_raw(found.uid())).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(found.gid())).ok().flatten();
    Some(SocketAccess {
        owner: owner.map_or_else(|| found.uid().to_string(), |owner| owner.name),
        group: group.map_or_else(|| found.gid().to_string(), |group| group.name),
    })
}
