//! The calls about the cluster as a whole, whose answers come in parts.

use tokio_stream::StreamExt as _;
use tonic::Code;
use weft_proto::v1::peers_client::PeersClient;
use weft_proto::v1::records_client::RecordsClient;
use weft_proto::v1::{self, audit_response, remove_peer_response};

use crate::fake::{Served, soon};

#[tokio::test]
async fn an_answer_in_parts_ends_with_its_failure() {
    let served = Served::start();
    let mut client = RecordsClient::new(served.channel().await);
    let request = v1::AuditRequest {
        repair: true,
        timeout: None,
    };
    let mut parts = client.audit(request).await.expect("a stream").into_inner();
    let first = soon(parts.next()).await.expect("a part").expect("no failure");
    assert!(matches!(first.part, Some(audit_response::Part::Progress(_))));
    let second = soon(parts.next()).await.expect("a part").expect("no failure");
    let Some(audit_response::Part::Finding(finding)) = second.part else {
        panic!("{second:?}")
    };
    assert!(finding.mended);
    let status = soon(parts.next()).await.expect("a part").unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(soon(parts.next()).await.is_none());

    let odd = v1::AuditRequest {
        repair: false,
        timeout: prost_types::Duration::try_from(std::time::Duration::from_secs(1000)).ok(),
    };
    let status = client.audit(odd).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_removal_is_refused_before_it_begins_or_told_to_its_end() {
    let served = Served::start();
    let mut client = PeersClient::new(served.channel().await);
    let ask = |node: &str, force| v1::RemovePeerRequest {
        node: node.to_owned(),
        force,
        timeout: None,
    };
    let status = client.remove(ask("", false)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = client.remove(ask("host3", false)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let mut parts = client
        .remove(ask("host3", true))
        .await
        .expect("a stream")
        .into_inner();
    let only = soon(parts.next()).await.expect("a part").expect("no failure");
    assert!(matches!(only.part, Some(remove_peer_response::Part::Summary(_))));
    assert!(soon(parts.next()).await.is_none());
    let request = v1::HoldingsRequest {
        node: "host9".to_owned(),
    };
    let status = client.holdings(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}
