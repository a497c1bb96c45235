//! The calls about the cluster as a whole: its hosts, and all its records.

use tonic::{Request, Response, Status};
use weft_proto::v1::{self, peers_server, records_server};

use super::{Answers, Service, asked_timeout, required};
use crate::page::page;
use crate::{Control, Subject};

#[tonic::async_trait]
impl<C: Control> peers_server::Peers for Service<C> {
    type RemoveStream = Answers<v1::RemovePeerResponse>;

    async fn holdings(
        &self,
        request: Request<v1::HoldingsRequest>,
    ) -> Result<Response<v1::HoldingsResponse>, Status> {
        let call = self.call(&request, None);
        let node = request.into_inner().node;
        let what = Subject::new("peer", &node);
        let work = async {
            required("node", &node)?;
            self.control().holdings(call, node).await
        };
        self.read(call, what, work).await.map(Response::new)
    }

    async fn remove(
        &self,
        request: Request<v1::RemovePeerRequest>,
    ) -> Result<Response<Self::RemoveStream>, Status> {
        let asked = asked_timeout(request.get_ref().timeout, self.shared.limits.longest_timeout)?;
        let call = self.call(&request, asked);
        let request = request.into_inner();
        let what = Subject::new("peer", &request.node);
        let work = async {
            required("node", &request.node)?;
            self.control().remove_peer(call, request).await
        };
        let parts = self.change(call, what.clone(), work).await?;
        Ok(Response::new(self.answers(call, what, parts)))
    }

    async fn list(
        &self,
        request: Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::ListPeersResponse>, Status> {
        let call = self.call(&request, None);
        let v1::ListPeersRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let work = async {
            let all = self.control().list_peers(call).await?;
            page(all, |peer| [peer.node.as_str()], page_size, &page_token)
        };
        let (peers, next_page_token) = self.read(call, Subject::new("peers", ""), work).await?;
        Ok(Response::new(v1::ListPeersResponse {
            peers,
            next_page_token,
        }))
    }
}

#[tonic::async_trait]
impl<C: Control> records_server::Records for Service<C> {
    type AuditStream = Answers<v1::AuditResponse>;

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        let asked = asked_timeout(request.get_ref().timeout, self.shared.limits.longest_timeout)?;
        let call = self.call(&request, asked);
        let repair = request.into_inner().repair;
        let what = Subject::new("records", "");
        let parts = self
            .change(call, what.clone(), self.control().audit(call, repair))
            .await?;
        Ok(Response::new(self.answers(call, what, parts)))
    }
}
