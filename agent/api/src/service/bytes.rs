//! Any call, from the bytes of its request: what gRPC hands over once HTTP/2 is off. For tests/fuzz; it is no part of the
//! product.

use std::sync::Arc;

use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};
use weft_proto::v1::addresses_server::Addresses;
use weft_proto::v1::endpoints_server::Endpoints;
use weft_proto::v1::events_server::Events as _;
use weft_proto::v1::networks_server::Networks;
use weft_proto::v1::peers_server::Peers;
use weft_proto::v1::records_server::Records as _;
use weft_proto::v1::{self, status_server};

use super::Service;
use crate::{Control, Limits};

/// Calls by bytes.
pub struct Bytes<C>(Service<C>);

impl<C: Control> Bytes<C> {
    /// How many calls there are.
    pub const CALLS: u8 = 22;

    /// Calls of this agent.
    pub fn new(control: Arc<C>) -> Self {
        let (shutdown, cut) = (CancellationToken::new(), CancellationToken::new());
        Self(Service::new(control, Limits::default(), shutdown, cut))
    }

    /// Makes the call of this number, modulo [`Self::CALLS`], with a `grpc-timeout` header unless that is empty, and the
    /// bytes of its message. What it answers is thrown away.
    ///
    /// # Errors
    /// As the call; `INVALID_ARGUMENT` with a text of prost's where the bytes are no message of its kind.
    pub async fn call(&self, number: u8, timeout: &[u8], message: &[u8]) -> Result<(), Status> {
        let s = &self.0;
        let read = Reader { timeout, message };
        match number % Self::CALLS {
            0 => s
                .create(read.request::<v1::CreateNetworkRequest>()?)
                .await
                .map(drop),
            1 => Networks::list(s, read.request()?).await.map(drop),
            2 => Networks::get(s, read.request()?).await.map(drop),
            3 => s.update(read.request()?).await.map(drop),
            4 => s.delete(read.request()?).await.map(drop),
            5 => s.wait(read.request()?).await.map(drop),
            6 => s.attach(read.request()?).await.map(drop),
            7 => s.detach(read.request()?).await.map(drop),
            8 => Endpoints::list(s, read.request()?).await.map(drop),
            9 => Endpoints::get(s, read.request()?).await.map(drop),
            10 => s.reserve(read.request()?).await.map(drop),
            11 => s.unreserve(read.request()?).await.map(drop),
            12 => Addresses::list(s, read.request()?).await.map(drop),
            13 => Peers::list(s, read.request()?).await.map(drop),
            14 => s.holdings(read.request()?).await.map(drop),
            15 => s.remove(read.request()?).await.map(drop),
            16 => status_server::Status::get(s, read.request()?).await.map(drop),
            17 => status_server::Status::accept_deletions(s, read.request()?)
                .await
                .map(drop),
            18 => status_server::Status::version(s, read.request()?).await.map(drop),
            19 => s.audit(read.request()?).await.map(drop),
            20 => s.watch(read.request()?).await.map(drop),
            // Twice as often as the rest: the request with the most in it.
            _ => s.attach(read.request()?).await.map(drop),
        }
    }
}

struct Reader<'a> {
    timeout: &'a [u8],
    message: &'a [u8],
}

impl Reader<'_> {
    fn request<T: Message + Default>(&self) -> Result<Request<T>, Status> {
        let message = T::decode(self.message).map_err(|why| Status::invalid_argument(why.to_string()))?;
        let mut request = Request::new(message);
        if !self.timeout.is_empty()
            && let Ok(value) = MetadataValue::try_from(self.timeout)
        {
            request.metadata_mut().insert("grpc-timeout", value);
        }
        Ok(request)
    }
}
