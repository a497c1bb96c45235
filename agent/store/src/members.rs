//! The endpoints: one client each, and requests that move on from one that fails to the next.
//!
//! Not etcd-client's balanced channel: it spreads requests over all endpoints, dead ones too, neither retries
//! nor says which one failed. Here one endpoint is preferred by everyone until it fails.

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, ResponseHeader, TlsOptions};
use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use weft_core::problem::chain;

use crate::{
    Config, StoreError, Tls,
    backoff::Backoff,
    error::{Failure, Verdict},
    health::HealthCell,
};

#[derive(Default)]
struct Slot {
    /// Grows with each client made, so that a late complaint does not throw away its successor.
    generation: u64,
    client: Option<Client>,
}

struct Member {
    url: String,
    slot: Mutex<Slot>,
}

/// A client of one endpoint, and what is needed to complain about it.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) client: Client,
    pub(crate) url: String,
    member: usize,
    generation: u64,
}

pub(crate) struct Members {
    config: Config,
    members: Vec<Member>,
    preferred: AtomicUsize,
    pub(crate) health: HealthCell,
    /// Tells whoever pauses after a failure that etcd answers again.
    pub(crate) back: Notify,
    stop: CancellationToken,
}

/// How a request was answered in the end, or failed.
pub(crate) struct Outcome<T> {
    pub(crate) result: Result<T, Failure>,
    /// The first failure on the way after which the request may have happened.
    pub(crate) lost: Option<Failure>,
}

impl Members {
    /// Checks the configuration as far as possible without a connection.
    pub(crate) async fn new(config: Config, stop: CancellationToken) -> Result<Self, StoreError> {
        if config.endpoints.is_empty() {
            return Err(StoreError::NoEndpoint);
        }
        let mut members = Vec::new();
        for url in &config.endpoints {
            let url = full_url(url, config.tls.is_some());
            make_client(&config, &url).await?;
            members.push(Member {
                url,
                slot: Mutex::default(),
            });
        }
        // Agents start on different members.
        let preferred = AtomicUsize::new(fastrand::usize(..members.len()));
        let health = HealthCell::new(members.iter().map(|member| member.url.clone()).collect());
        Ok(Self {
            config,
            members,
            preferred,
            health,
            back: Notify::new(),
            stop,
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn user(&self) -> Option<&str> {
        self.config.user.as_ref().map(|user| user.name.as_str())
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    pub(crate) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed) % self.members.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn url(&self, member: usize) -> &str {
        &self.members[member % self.members.len()].url
    }

    /// Moves everyone on to the endpoint after this one, unless they have moved already.
    pub(crate) fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        let _ = self
            .preferred
            .compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The endpoint's client, logged in if there is a user. Not bounded in time: the caller does that.
    pub(crate) async fn line(&self, member: usize) -> Result<Line, Failure> {
        let member = member % self.members.len();
        let Member { url, slot } = &self.members[member];
        let mut slot = slot.lock().await;
        let client = if let Some(client) = &slot.client {
            client.clone()
        } else {
            // Rarely done, and large: not on the stack of everyone who asks something.
            let client = Box::pin(self.log_in(url)).await?;
            slot.generation += 1;
            slot.client = Some(client.clone());
            client
        };
        Ok(Line {
            client,
            url: url.clone(),
            member,
            generation: slot.generation,
        })
    }

    async fn log_in(&self, url: &str) -> Result<Client, Failure> {
        let mut client = make_client(&self.config, url)
            .await
            .map_err(|error| Failure::new(Verdict::NotDone, url, chain(&error)))?;
        if let Some(user) = &self.config.user {
            let credentials = (user.name.clone(), user.password.reveal().to_owned());
            if let Err(error) = client.update_user(Some(credentials)).await {
                let failure = Failure::read(url, &error);
                // An operator may turn authentication off and on under running agents.
                if failure.cause.text.contains("authentication is not enabled") {
                    return Ok(client);
                }
                // Whatever became of the login, the request itself was not sent.
                let verdict = match failure.verdict {
                    Verdict::Lost => Verdict::NotDone,
                    other => other,
                };
                return Err(Failure { verdict, ..failure });
            }
        }
        Ok(client)
    }

    /// Forgets a client whose connection is not to be used again.
    pub(crate) async fn discard(&self, line: &Line) {
        let mut slot = self.members[line.member].slot.lock().await;
        if slot.generation == line.generation {
            slot.client = None;
        }
    }

    /// Sends a request to one endpoint after another until it is answered, refused, or the time is up.
    ///
    /// `again` decides after a lost answer whether the request may be sent once more.
    pub(crate) async fn ask<T, F>(
        &self,
        deadline: Duration,
        again: bool,
        mut request: impl FnMut(Client) -> F,
    ) -> Outcome<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
        T: Headed,
    {
        let timing = &self.config.timing;
        let end = Instant::now() + deadline;
        let mut backoff = Backoff::new(timing.retry_first / 4, timing.retry_first * 4);
        let mut lost: Option<Failure> = None;
        let mut logged_in_again = false;
        let mut tries = 0_usize;
        loop {
            let member = self.preferred();
            let left = end.saturating_duration_since(Instant::now());
            // With nobody else to ask, all the time is this one's.
            let bound = if self.len() > 1 {
                left.min(timing.attempt)
            } else {
                left
            };
            let failure = match self.attempt(member, bound, &mut request).await {
                Ok(value) => {
                    self.health.seen(value.header());
                    return Outcome {
                        result: Ok(value),
                        lost,
                    };
                }
                Err(failure) => failure,
            };
            tries += 1;
            // That the past is over is an answer, which whoever asks for it knows what to do with.
            if failure.verdict != Verdict::Compacted {
                self.health.failed(failure.cause.to_string());
            }
            let retry = match failure.verdict {
                Verdict::NotDone => true,
                Verdict::Lost => {
                    lost.get_or_insert_with(|| failure.clone());
                    again
                }
                // A token expires, or is unknown to a member that was restarted.
                Verdict::Credentials => !std::mem::replace(&mut logged_in_again, true),
                _ => false,
            };
            if matches!(failure.verdict, Verdict::NotDone | Verdict::Lost) {
                self.leave(member);
            }
            let pause = if tries.is_multiple_of(self.len()) {
                backoff.pause()
            } else {
                Duration::ZERO
            };
            if !retry || Instant::now() + pause >= end || self.stop.is_cancelled() {
                return Outcome {
                    result: Err(failure),
                    lost,
                };
            }
            self.health.lock().retries += 1;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn attempt<T, F>(
        &self,
        member: usize,
        bound: Duration,
        request: &mut impl FnMut(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let url = self.url(member);
        let started = Instant::now();
        let line = match timeout(bound, self.line(member)).await {
            Ok(line) => line?,
            Err(_) => {
                let failure = Failure::timeout(url);
                return Err(Failure {
                    verdict: Verdict::NotDone,
                    ..failure
                });
            }
        };
        let left = bound.saturating_sub(started.elapsed());
        let failure = match timeout(left, request(line.client.clone())).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Failure::read(url, &error),
            Err(_) => Failure::timeout(url),
        };
        if matches!(
            failure.verdict,
            Verdict::NotDone | Verdict::Lost | Verdict::Credentials
        ) {
            self.discard(&line).await;
        }
        Err(failure)
    }
}

/// An answer that carries etcd's header.
pub(crate) trait Headed {
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! headed {
    ($($type:ty),*) => {$(
        impl Headed for $type {
            fn header(&self) -> Option<&ResponseHeader> {
                self.header()
            }
        }
    )*};
}

headed!(
    etcd_client::GetResponse,
    etcd_client::TxnResponse,
    etcd_client::LeaseGrantResponse,
    etcd_client::LeaseRevokeResponse,
    etcd_client::LeaseKeepAliveResponse,
    etcd_client::StatusResponse
);

fn full_url(url: &str, tls: bool) -> String {
    let url = url.trim();
    match url.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.trim_end_matches('/')),
        None if tls => format!("https://{url}"),
        None => format!("http://{url}"),
    }
}

async fn make_client(config: &Config, url: &str) -> Result<Client, StoreError> {
    let bad = |why: &str| StoreError::Endpoint {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let timing = &config.timing;
    let mut options = ConnectOptions::new()
        // Without these, a frozen member is never noticed.
        .with_keep_alive(timing.ping, timing.ping_timeout)
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(timing.connect)
        .with_tcp_keepalive(Duration::from_secs(30))
        // A member cut off from the others must not serve us the past.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    let https = match url.split_once("://") {
        Some(("https", rest)) if !rest.is_empty() => true,
        Some(("http", rest)) if !rest.is_empty() => false,
        _ => return Err(bad("it must be http://host:port or https://host:port")),
    };
    if https {
        options = options.with_tls(tls_options(config.tls.as_ref()).await?);
    } else if config.tls.is_some() {
        return Err(bad(
            "certificates are configured, but the URL says http; write https",
        ));
    }
    Client::connect([url], Some(options))
        .await
        .map_err(|error| match &error {
            etcd_client::Error::TransportError(error) => bad(&chain(error)),
            other => bad(&other.to_string()),
        })
}

async fn tls_options(tls: Option<&Tls>) -> Result<TlsOptions, StoreError> {
    let mut options = TlsOptions::new();
    let Some(tls) = tls else {
        return Ok(options.with_enabled_roots());
    };
    options = match &tls.ca {
        Some(path) => options.ca_certificate(Certificate::from_pem(
            read_pem("certificate authority", path, "CERTIFICATE").await?,
        )),
        None => options.with_enabled_roots(),
    };
    if let Some((certificate, key)) = &tls.identity {
        options = options.identity(Identity::from_pem(
            read_pem("client certificate", certificate, "CERTIFICATE").await?,
            read_pem("private key", key, "PRIVATE KEY").await?,
        ));
    }
    if let Some(domain) = &tls.domain {
        options = options.domain_name(domain);
    }
    Ok(options)
}

async fn read_pem(role: &'static str, path: &std::path::Path, block: &str) -> Result<Vec<u8>, StoreError> {
    let text = tokio::fs::read(path)
        .await
        .map_err(|source| StoreError::TlsFile {
            role,
            path: path.to_owned(),
            source,
        })?;
    let wanted = format!("{block}-----");
    if text
        .windows(wanted.len())
        .any(|window| window == wanted.as_bytes())
    {
        Ok(text)
    } else {
        Err(StoreError::TlsContent {
            role,
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use weft_store_schema::Prefix;

    use super::*;

    #[tokio::test]
    async fn a_past_that_is_compacted_is_no_failure_of_the_store() {
        let url = "http://127.0.0.1:1".to_owned();
        let config = Config::new(vec![url], Prefix::default(), "host1".parse().unwrap());
        let members = Members::new(config, CancellationToken::new()).await.unwrap();
        let answer = async |status: Status| {
            let request = |_| {
                let status = status.clone();
                async { Err::<etcd_client::GetResponse, _>(etcd_client::Error::GRpcStatus(status)) }
            };
            let outcome = members.ask(Duration::from_secs(5), true, request).await;
            let verdict = outcome.result.err().map(|failure| failure.verdict);
            (verdict, members.health.lock().last_error.is_some())
        };
        let compacted = Status::out_of_range("etcdserver: mvcc: required revision has been compacted");
        assert_eq!(answer(compacted).await, (Some(Verdict::Compacted), false));
        let refused = Status::invalid_argument("etcdserver: duplicate key given in txn request");
        assert_eq!(answer(refused).await, (Some(Verdict::Refused), true));
    }
}
