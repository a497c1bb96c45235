//! The calls about addresses. Whatever is common to all calls is done in `service.rs`.

use std::net::IpAddr;

use tonic::{Request, Response, Status};
use weft_proto::v1::{self, AddressState, addresses_server};

use super::{Service, required};
use crate::{Control, Subject, page::page_by};

#[tonic::async_trait]
impl<C: Control> addresses_server::Addresses for Service<C> {
    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveResponse>, Status> {
        let call = self.call(&request, None);
        let request = request.into_inner();
        let what = Subject::reservation(&request.network, "", &request.id);
        let work = async {
            required("network", &request.network)?;
            self.control().reserve_addresses(call, request).await
        };
        self.change(call, what, work).await.map(Response::new)
    }

    async fn unreserve(
        &self,
        request: Request<v1::UnreserveRequest>,
    ) -> Result<Response<v1::UnreserveResponse>, Status> {
        let call = self.call(&request, None);
        let v1::UnreserveRequest { network, id } = request.into_inner();
        let what = Subject::reservation(&network, "", &id);
        let work = async {
            required("network", &network)?;
            required("id", &id)?;
            self.control().unreserve_addresses(call, network, id).await
        };
        self.change(call, what, work).await.map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListAddressesRequest>,
    ) -> Result<Response<v1::ListAddressesResponse>, Status> {
        let call = self.call(&request, None);
        let v1::ListAddressesRequest {
            network,
            released,
            page_size,
            page_token,
        } = request.into_inner();
        let what = Subject::new("addresses", network.as_str());
        let work = async {
            required("network", &network)?;
            let all = self.control().list_addresses(call, network, released).await?;
            page_by(all, |address| [place(address)], page_size, &page_token)
        };
        let (addresses, next_page_token) = self.read(call, what, work).await?;
        Ok(Response::new(v1::ListAddressesResponse {
            addresses,
            next_page_token,
        }))
    }
}

/// A text that sorts as the list does: what is held by number, IPv4 first; then what was released by age.
fn place(address: &v1::Address) -> String {
    let bare = address.address.split('/').next().unwrap_or_default();
    let number = match bare.parse() {
        Ok(IpAddr::V4(a)) => format!("4-{:032x}", u32::from(a)),
        Ok(IpAddr::V6(a)) => format!("6-{:032x}", u128::from(a)),
        Err(_) => bare.to_owned(),
    };
    match address.state() {
        AddressState::Released => format!("released-{:020}-{number}", address.revision),
        _ => format!("held-{number}"),
    }
}
