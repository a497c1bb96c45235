//! A host's agent, called over its socket as the operator's command does, but over one connection: no program's start
//! is counted.

use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use weft_lab::{Container, Host};
use weft_proto::v1::{self, endpoints_client::EndpointsClient};

/// A connection to an agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    endpoints: EndpointsClient<Channel>,
    network: String,
}

/// An endpoint that was attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attached {
    pub(crate) id: String,
    pub(crate) address: IpAddr,
    pub(crate) mac: String,
}

impl Agent {
    /// Connects.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub(crate) async fn connect(host: &Host, network: &str) -> Result<Self> {
        let socket: PathBuf = host.socket();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not used; HTTP wants one.
        let channel = Endpoint::from_static("http://weftd")
            .connect_with_connector(connector)
            .await
            .with_context(|| format!("connecting to the agent on {}", host.node()))?;
        Ok(Self {
            endpoints: EndpointsClient::new(channel),
            network: network.to_owned(),
        })
    }

    /// Attaches a container, and how long the call took.
    ///
    /// # Errors
    /// When the agent refuses.
    pub(crate) async fn attach(&mut self, container: &Container, wait: bool) -> Result<(Attached, Duration)> {
        let request = v1::AttachEndpointRequest {
            network: self.network.clone(),
            id: container.name().to_owned(),
            attachment: Some(v1::Attachment {
                netns: container.path(),
                ifname: String::new(),
            }),
            wait,
            ..v1::AttachEndpointRequest::default()
        };
        let started = Instant::now();
        let answer = self.endpoints.attach(request).await;
        let took = started.elapsed();
        let answer = answer.with_context(|| format!("attaching {}", container.name()))?;
        let endpoint = answer
            .into_inner()
            .endpoint
            .context("no endpoint in the answer")?;
        let address = endpoint.addresses.first().context("no address in the answer")?;
        let (address, _) = address.split_once('/').context("no prefix length")?;
        let attached = Attached {
            id: endpoint.id,
            address: address.parse()?,
            mac: endpoint.mac,
        };
        Ok((attached, took))
    }

    /// Detaches it, and how long the call took.
    ///
    /// # Errors
    /// When the agent refuses.
    pub(crate) async fn detach(&mut self, id: &str) -> Result<Duration> {
        let request = v1::DetachEndpointRequest {
            network: self.network.clone(),
            id: id.to_owned(),
            timeout: None,
        };
        let started = Instant::now();
        let answer = self.endpoints.detach(request).await;
        let took = started.elapsed();
        answer.with_context(|| format!("detaching {id}"))?;
        Ok(took)
    }
}
