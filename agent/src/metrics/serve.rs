//! HTTP for Prometheus: `GET /metrics`, on a Unix socket or a TCP port, within bounds that no client can exceed.
//!
//! In: where to listen, what to tell. Out: answers. It must not know what the figures mean.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::Either;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use weft_api::{Listener, ListenerConfig};
use weft_core::{complaint::Complaint, problem::Problem};

use super::Page;
use crate::{
    config::MetricsListen,
    problems::Source,
    reconcile::{Asker, chain},
};

/// The key of the problem that metrics cannot be served.
const KEY: &str = "(metrics)";
/// Clients at once; more wait to be accepted.
const CLIENTS: usize = 16;
/// How long a client may take to ask, also for the second time on a connection that it keeps.
const QUESTION: Duration = Duration::from_secs(60);
/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(3600);
/// Pause before listening is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be accepted, for want of descriptors.
const BREATH: Duration = Duration::from_millis(200);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

enum Socket {
    Unix {
        accepting: UnixListener,
        /// Removes the socket in the end.
        _listener: Listener,
    },
    Tcp(TcpListener),
}

/// Serves until the token is cancelled. Where nobody can listen, the agent works all the same: it is a problem, and tried
/// again.
pub(crate) async fn serve(at: MetricsListen, page: Page, asker: Asker, stop: CancellationToken) {
    let page = Arc::new(page);
    let serving = async {
        loop {
            match listen(&at).await {
                Ok(socket) => {
                    tell(&asker, None).await;
                    accept(socket, &page).await;
                }
                Err(why) => {
                    let why = format!("metrics cannot be served: {why}; tried again");
                    tell(&asker, Some(why)).await;
                }
            }
            sleep(AGAIN).await;
        }
    };
    tokio::select! {
        () = serving => {}
        () = stop.cancelled() => {}
    }
}

async fn tell(asker: &Asker, message: Option<String>) {
    let problem = message.map(|message| Problem::new(KEY, message));
    // Without a loop the agent is stopping.
    let _told = asker.ask(|r| r.problems.set(Source::Host, KEY, problem)).await;
}

async fn listen(at: &MetricsListen) -> Result<Socket, String> {
    match at {
        MetricsListen::Unix { path, group } => {
            let config = ListenerConfig {
                path: path.clone(),
                group: group.clone(),
            };
            let listener = Listener::bind(&config).map_err(|error| chain(&error))?;
            let accepting = listener.accepting().map_err(|error| chain(&error))?;
            tracing::info!(socket = %path.display(), "serving metrics");
            Ok(Socket::Unix {
                accepting,
                _listener: listener,
            })
        }
        MetricsListen::Tcp(address) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|error| format!("cannot listen on {address}: {error}"))?;
            let address: SocketAddr = listener.local_addr().unwrap_or(*address);
            tracing::info!(%address, "serving metrics");
            Ok(Socket::Tcp(listener))
        }
    }
}

async fn accept(socket: Socket, page: &Arc<Page>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut complaint = Complaint::default();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = match &socket {
            Socket::Unix { accepting, .. } => accepting.accept().await.map(|(io, _)| Either::Left(io)),
            Socket::Tcp(listener) => listener.accept().await.map(|(io, _)| Either::Right(io)),
        };
        match accepted {
            Ok(io) => {
                complaint.over();
                let page = Arc::clone(page);
                tokio::spawn(async move {
                    match io {
                        Either::Left(io) => connection(io, page).await,
                        Either::Right(io) => connection(io, page).await,
                    }
                    drop(place);
                });
            }
            Err(error) => {
                if complaint.is_news(&error.to_string()) {
                    tracing::warn!(%error, "a client of the metrics cannot be accepted");
                }
                sleep(BREATH).await;
            }
        }
    }
}

async fn connection(io: impl AsyncRead + AsyncWrite + Unpin, page: Arc<Page>) {
    let service = service_fn(move |request| {
        let page = Arc::clone(&page);
        async move { Ok::<_, Infallible>(answer(&request, &page).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(QUESTION)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(io), service);
    // A client that leaves half-way is nobody's trouble but its own.
    let _ended = timeout(CONNECTION, serving).await;
}

async fn answer(request: &Request<Incoming>, page: &Page) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, METRICS, page.render().await),
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, TEXT, "weftd: see /metrics\n".to_owned())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, TEXT, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
