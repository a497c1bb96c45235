//! Serves the API on a listening socket until told to stop, within bounds that one client cannot exceed for
//! the others.
//!
//! In: a [`Listener`], a [`Control`], [`Limits`] and a token for shutdown. Out: nothing, when all is served.
//! It must not know what the calls do.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use weft_proto::v1::addresses_server::AddressesServer;
use weft_proto::v1::endpoints_server::EndpointsServer;
use weft_proto::v1::events_server::EventsServer;
use weft_proto::v1::networks_server::NetworksServer;
use weft_proto::v1::peers_server::PeersServer;
use weft_proto::v1::records_server::RecordsServer;
use weft_proto::v1::status_server::StatusServer;

use crate::service::Service;
use crate::{Control, Listener};

/// How long clients have to take the answers to the calls that are given up at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What clients may take of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest request in bytes.
    pub request_bytes: usize,
    /// Connections open at once, at least 1; more wait to be accepted.
    pub connections: usize,
    /// Calls at once that only read, at least 1; more wait within their deadline.
    pub reads: usize,
    /// Calls at once that change something and may wait long, at least 1; more wait within their deadline.
    pub changes: usize,
    /// Streams of events at once, at least 1; more are refused.
    pub watches: usize,
    /// How long a call may take when the client does not say.
    pub default_timeout: Duration,
    /// The longest that a client may ask for.
    pub longest_timeout: Duration,
    /// How long after shutdown calls under way may go on before they are given up.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 1 << 20,
            connections: 512,
            reads: 64,
            changes: 256,
            watches: 64,
            default_timeout: Duration::from_secs(30),
            longest_timeout: Duration::from_secs(300),
            drain: Duration::from_secs(5),
        }
    }
}

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be used with this runtime.
    #[error("cannot serve {path}")]
    Register {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptors of the API cannot be read.
    #[error("cannot describe the API for reflection")]
    Describe(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server failed.
    #[error("serving {path} failed")]
    Serve {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Serves `control` until `shutdown` is cancelled. The health service says SERVING while `healthy` does, of the agent as a
/// whole and of each service; a client that is told otherwise may ask all the same. At shutdown it says NOT_SERVING:
/// then no call is accepted any more, streams of events end,
/// calls under way have `limits.drain` to finish, and the socket is removed.
pub async fn serve<C: Control>(
    listener: Listener,
    limits: Limits,
    control: Arc<C>,
    healthy: watch::Receiver<bool>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let path = listener.path().display().to_string();
    let incoming = listener.accepting().map_err(|source| ServeError::Register {
        path: path.clone(),
        source,
    })?;
    let (health, health_server) = tonic_health::server::health_reporter();
    tell_health::<C>(&health, false).await;
    tokio::spawn(follow_health::<C>(health, healthy, shutdown.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(weft_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|why| ServeError::Describe(why.into()))?;

    let bytes = limits.request_bytes;
    let connections = limits.connections.max(1);
    let drain = limits.drain;
    let cut = CancellationToken::new();
    let service = Service::new(control, limits, shutdown.clone(), cut.clone());
    let serving = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_max_header_list_size(16 * 1024)
        .add_service(health_server)
        .add_service(reflection)
        .add_service(NetworksServer::new(service.clone()).max_decoding_message_size(bytes))
        .add_service(EndpointsServer::new(service.clone()).max_decoding_message_size(bytes))
        .add_service(AddressesServer::new(service.clone()).max_decoding_message_size(bytes))
        .add_service(PeersServer::new(service.clone()).max_decoding_message_size(bytes))
        .add_service(StatusServer::new(service.clone()).max_decoding_message_size(bytes))
        .add_service(RecordsServer::new(service.clone()).max_decoding_message_size(bytes))
        .add_service(EventsServer::new(service).max_decoding_message_size(bytes))
        .serve_with_incoming_shutdown(accept(incoming, connections), shutdown.clone().cancelled_owned());

    tracing::info!(socket = %path, "serving the API");
    let drained = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain).await;
        cut.cancel();
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        done = serving => done.map_err(|source| ServeError::Serve { path: path.clone(), source })?,
        () = drained => tracing::warn!(socket = %path, "a client does not take its answers; it is left"),
    }
    drop(listener);
    tracing::info!(socket = %path, "the API is closed");
    Ok(())
}

/// Has the health service say how the agent is, until shutdown, and then that it is not.
async fn follow_health<C: Control>(
    health: HealthReporter,
    mut healthy: watch::Receiver<bool>,
    shutdown: CancellationToken,
) {
    let follow = async {
        loop {
            let now = *healthy.borrow_and_update();
            tell_health::<C>(&health, now).await;
            if healthy.changed().await.is_err() {
                // Whoever knew is gone.
                return;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown.cancelled() => {}
    }
    tell_health::<C>(&health, false).await;
}

async fn tell_health<C: Control>(health: &HealthReporter, healthy: bool) {
    let status = match healthy {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    for name in [
        // The agent as a whole.
        "",
        NetworksServer::<Service<C>>::NAME,
        EndpointsServer::<Service<C>>::NAME,
        AddressesServer::<Service<C>>::NAME,
        PeersServer::<Service<C>>::NAME,
        StatusServer::<Service<C>>::NAME,
        RecordsServer::<Service<C>>::NAME,
        EventsServer::<Service<C>>::NAME,
    ] {
        health.set_service_status(name, status).await;
    }
}

/// The connections to the socket, at most `most` open at a time.
///
/// A failed accept() (no file descriptors left) is no reason to stop serving: it is tried again after a
/// moment.
fn accept(listener: UnixListener, most: usize) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(most));
    futures::stream::unfold((listener, slots), |(listener, slots)| async {
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        let mut complained = false;
        let io = loop {
            match listener.accept().await {
                Ok((io, _)) => break io,
                Err(why) => {
                    // Tried again five times a second, told once until it works.
                    if !std::mem::replace(&mut complained, true) {
                        tracing::warn!(%why, "cannot accept connections to the API");
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        Some((Ok(Connection { io, _slot: slot }), (listener, slots)))
    })
}

/// A connection that counts as long as it is open.
struct Connection {
    io: UnixStream,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
