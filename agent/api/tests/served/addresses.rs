//! Calls about addresses, and changes of networks.

use tonic::Code;
use tonic_types::StatusExt as _;
use weft_proto::v1::{self, addresses_client::AddressesClient, networks_client::NetworksClient};

use crate::fake::Served;

#[tokio::test]
async fn a_reservation_is_made_and_given_up() {
    let served = Served::start();
    let mut client = AddressesClient::new(served.channel().await);
    let request = |id: &str| v1::ReserveRequest {
        network: "blue".to_owned(),
        id: id.to_owned(),
        requested_addresses: vec!["10.1.0.5".to_owned()],
        ..Default::default()
    };
    let made = client.reserve(request("r1")).await.unwrap().into_inner();
    assert_eq!((made.id.as_str(), made.addresses.len()), ("r1", 1));
    let refused = client.reserve(request("taken")).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(refused.message(), "reservation blue/host1/taken already exists");
    let refused = client.reserve(v1::ReserveRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.get_details_bad_request().unwrap().field_violations[0].field,
        "network"
    );
    let mut unreserve = async |id: &str| {
        let request = v1::UnreserveRequest {
            network: "blue".to_owned(),
            id: id.to_owned(),
        };
        client.unreserve(request).await
    };
    assert!(unreserve("r1").await.unwrap().into_inner().existed);
    assert!(!unreserve("r2").await.unwrap().into_inner().existed);
    assert_eq!(unreserve("").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn addresses_come_in_order_a_page_at_a_time() {
    let served = Served::start();
    let mut client = AddressesClient::new(served.channel().await);
    let mut list = async |released: bool| {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListAddressesRequest {
                network: "blue".to_owned(),
                released,
                page_size: 2,
                page_token,
            };
            let page = client.list(request).await.unwrap().into_inner();
            assert!(page.addresses.len() <= 2);
            all.extend(page.addresses.into_iter().map(|a| a.address));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return all;
            }
        }
    };
    let held = ["10.1.0.9/24", "10.1.0.10/24", "fd00::5/64"];
    assert_eq!(list(false).await, held);
    // The oldest of the released first: it is chosen first.
    let released = ["10.1.0.3/24", "10.1.0.2/24"];
    assert_eq!(list(true).await, [&held[..], &released[..]].concat());
}

#[tokio::test]
async fn a_network_is_changed_or_says_why_not() {
    let served = Served::start();
    let mut client = NetworksClient::new(served.channel().await);
    let request = |name: &str| v1::UpdateNetworkRequest {
        name: name.to_owned(),
        labels: [("team".to_owned(), "net".to_owned())].into(),
        ..Default::default()
    };
    let changed = client.update(request("blue")).await.unwrap().into_inner();
    assert_eq!(changed.network.unwrap().spec.unwrap().labels["team"], "net");
    let refused = client.update(request("used")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "network used: 10.1.0.2 is held");
    let refused = client.update(request("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
