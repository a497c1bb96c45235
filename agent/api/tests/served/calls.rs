//! Calls, their errors and their ends.

use std::time::Duration;

use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;
use weft_proto::v1::endpoints_client::EndpointsClient;
use weft_proto::v1::events_client::EventsClient;
use weft_proto::v1::networks_client::NetworksClient;
use weft_proto::v1::peers_client::PeersClient;
use weft_proto::v1::status_client::StatusClient;
use weft_proto::v1::{self, Event, EventKind};

use crate::fake::{Served, soon};

async fn failure(served: &Served, name: &str) -> Status {
    let mut client = NetworksClient::new(served.channel().await);
    let request = v1::GetNetworkRequest {
        name: name.to_owned(),
    };
    soon(client.get(request)).await.expect_err("a failure")
}

#[tokio::test]
async fn every_error_has_its_code_reason_and_details() {
    let served = Served::with(|limits| limits.default_timeout = Duration::from_millis(200));
    let expected = [
        (
            "nothing",
            Code::NotFound,
            "NOT_FOUND",
            "network nothing does not exist",
        ),
        (
            "invalid",
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            "name: is odd",
        ),
        (
            "conflict",
            Code::FailedPrecondition,
            "CONFLICT",
            "network conflict: it has 2 endpoints",
        ),
        (
            "blocked",
            Code::FailedPrecondition,
            "CONFLICT",
            "network blocked: VNI 7 belongs to network red",
        ),
        (
            "full",
            Code::ResourceExhausted,
            "FULL",
            "network full: 10.1.0.0/29 is full (5 of 5)",
        ),
        (
            "away",
            Code::Unavailable,
            "UNAVAILABLE",
            "the store is not available: no leader",
        ),
        ("broken", Code::Internal, "INTERNAL", "reading it failed: EIO"),
        (
            "late",
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            "network late: not done after 0.2 s: no carrier",
        ),
    ];
    for (name, code, reason, message) in expected {
        let status = failure(&served, name).await;
        assert_eq!((status.code(), status.message()), (code, message));
        let info = status
            .get_details_error_info()
            .unwrap_or_else(|| panic!("{name}: ErrorInfo"));
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("weft", reason));
    }

    let details = failure(&served, "nothing").await.get_error_details();
    let resource = details.resource_info().unwrap();
    assert_eq!(
        (resource.resource_type.as_str(), resource.resource_name.as_str()),
        ("network", "nothing")
    );
    let details = failure(&served, "invalid").await.get_error_details();
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!(
        (violation.field.as_str(), violation.description.as_str()),
        ("name", "is odd")
    );
    let details = failure(&served, "conflict").await.get_error_details();
    assert_eq!(
        details.precondition_failure().unwrap().violations[0].description,
        "it has 2 endpoints"
    );
    assert!(details.error_info().unwrap().metadata.is_empty());
    let details = failure(&served, "blocked").await.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["field"], "spec.vni");
    let details = failure(&served, "full").await.get_error_details();
    assert_eq!(
        details.quota_failure().unwrap().violations[0].subject,
        "network full"
    );
    assert_eq!(details.error_info().unwrap().metadata["capacity"], "5");
    let details = failure(&served, "away").await.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    let details = failure(&served, "late").await.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["why"], "no carrier");

    let mut client = NetworksClient::new(served.channel().await);
    let twice = v1::CreateNetworkRequest {
        name: "twice".to_owned(),
        spec: Some(v1::NetworkSpec::default()),
    };
    let status = client.create(twice).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::AlreadyExists, "network twice already exists")
    );
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, "twice");
}

#[tokio::test]
async fn a_very_long_error_arrives_cut() {
    let served = Served::start();
    let status = failure(&served, "wordy").await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().ends_with('…'), "{}", status.message());
}

#[tokio::test]
async fn missing_and_bad_fields_are_named_before_the_agent_is_asked() {
    let served = Served::start();
    let channel = served.channel().await;
    let mut networks = NetworksClient::new(channel.clone());
    let mut endpoints = EndpointsClient::new(channel.clone());
    let mut events = EventsClient::new(channel);
    let at = |netns: &str| {
        Some(v1::Attachment {
            netns: netns.to_owned(),
            ..Default::default()
        })
    };
    let blue = "blue".to_owned();
    let failures = [
        (
            "name",
            networks
                .create(v1::CreateNetworkRequest::default())
                .await
                .unwrap_err(),
        ),
        (
            "spec",
            networks
                .create(v1::CreateNetworkRequest {
                    name: blue.clone(),
                    ..Default::default()
                })
                .await
                .unwrap_err(),
        ),
        (
            "name",
            networks.get(v1::GetNetworkRequest::default()).await.unwrap_err(),
        ),
        (
            "name",
            networks
                .delete(v1::DeleteNetworkRequest::default())
                .await
                .unwrap_err(),
        ),
        (
            "page_size",
            networks
                .list(v1::ListNetworksRequest {
                    page_size: 5000,
                    ..Default::default()
                })
                .await
                .unwrap_err(),
        ),
        (
            "network",
            endpoints
                .attach(v1::AttachEndpointRequest::default())
                .await
                .unwrap_err(),
        ),
        (
            "attachment.netns",
            endpoints
                .attach(v1::AttachEndpointRequest {
                    network: blue.clone(),
                    ..Default::default()
                })
                .await
                .unwrap_err(),
        ),
        (
            "timeout",
            endpoints
                .attach(v1::AttachEndpointRequest {
                    network: blue.clone(),
                    attachment: at("/run/netns/c1"),
                    timeout: Some(prost_types::Duration::default()),
                    ..Default::default()
                })
                .await
                .unwrap_err(),
        ),
        (
            "id",
            endpoints
                .detach(v1::DetachEndpointRequest {
                    network: blue,
                    ..Default::default()
                })
                .await
                .unwrap_err(),
        ),
        (
            "node",
            endpoints
                .list(v1::ListEndpointsRequest {
                    node: "a".to_owned(),
                    local: true,
                    ..Default::default()
                })
                .await
                .unwrap_err(),
        ),
        (
            "kinds[0]",
            events
                .watch(v1::WatchEventsRequest {
                    kinds: vec![99],
                    ..Default::default()
                })
                .await
                .unwrap_err(),
        ),
    ];
    for (field, status) in failures {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(
            status.get_details_bad_request().unwrap().field_violations[0].field,
            field,
            "{status}"
        );
    }
}

#[tokio::test]
async fn calls_reach_the_agent_and_its_answers_come_back() {
    let served = Served::start();
    let channel = served.channel().await;
    let mut networks = NetworksClient::new(channel.clone());
    let spec = v1::NetworkSpec {
        vni: Some(7),
        ..Default::default()
    };
    let create = v1::CreateNetworkRequest {
        name: "blue".to_owned(),
        spec: Some(spec),
    };
    assert_eq!(
        networks
            .create(create)
            .await
            .unwrap()
            .into_inner()
            .network
            .unwrap()
            .vni,
        7
    );
    let caller = served
        .fake
        .caller
        .lock()
        .unwrap()
        .expect("the kernel says who calls");
    assert_eq!(caller.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(caller.pid, Some(i32::try_from(std::process::id()).unwrap()));

    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListNetworksRequest {
            page_size: 2,
            page_token,
        };
        let page = networks.list(request).await.unwrap().into_inner();
        names.extend(page.networks.into_iter().map(|network| network.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["blue", "green", "red"]);

    let mut endpoints = EndpointsClient::new(channel.clone());
    let detach = |id: &str| v1::DetachEndpointRequest {
        network: "blue".to_owned(),
        id: id.to_owned(),
        timeout: None,
    };
    assert!(
        endpoints
            .detach(detach("web"))
            .await
            .unwrap()
            .into_inner()
            .existed
    );
    assert!(
        !endpoints
            .detach(detach("gone"))
            .await
            .unwrap()
            .into_inner()
            .existed
    );
    let local = v1::ListEndpointsRequest {
        local: true,
        ..Default::default()
    };
    let listed = endpoints.list(local).await.unwrap().into_inner();
    assert_eq!(listed.endpoints[0].node, "local");
    assert_eq!(listed.unknown_networks, ["green", "red"]);
    let get = v1::GetEndpointRequest {
        network: "blue".to_owned(),
        id: "web".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        endpoints
            .get(get)
            .await
            .unwrap()
            .into_inner()
            .endpoint
            .unwrap()
            .node,
        "here"
    );

    let peers = PeersClient::new(channel.clone())
        .list(v1::ListPeersRequest::default())
        .await
        .unwrap();
    assert_eq!(peers.into_inner().peers[0].node, "host1");
    let mut status = StatusClient::new(channel);
    let got = status.get(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(got.status.unwrap().node, "host1");
    assert_eq!(
        status
            .version(v1::VersionRequest {})
            .await
            .unwrap()
            .into_inner()
            .version,
        "1.2.3"
    );
}

#[tokio::test]
async fn the_shorter_of_both_timeouts_is_the_deadline() {
    let served = Served::start();
    let mut client = EndpointsClient::new(served.channel().await);
    let mut left = async |asked: Option<i64>, grpc: Option<&'static str>| {
        let mut request = Request::new(v1::AttachEndpointRequest {
            network: "blue".to_owned(),
            attachment: Some(v1::Attachment {
                netns: "/run/netns/c1".to_owned(),
                ..Default::default()
            }),
            timeout: asked.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        });
        if let Some(grpc) = grpc {
            request
                .metadata_mut()
                .insert("grpc-timeout", grpc.parse().unwrap());
        }
        client
            .attach(request)
            .await
            .unwrap()
            .into_inner()
            .endpoint
            .unwrap()
            .message
    };
    assert_eq!(left(None, None).await, "30");
    assert_eq!(left(Some(50), None).await, "50");
    assert_eq!(left(Some(50), Some("20S")).await, "20");
    assert_eq!(left(Some(10), Some("20S")).await, "10");
    assert_eq!(left(None, Some("9H")).await, "30");
}

#[tokio::test]
async fn who_was_waited_for_and_who_is_behind_is_told() {
    let served = Served::start();
    let mut client = NetworksClient::new(served.channel().await);
    let mut wait = async |network: &str, seconds: i64| {
        let request = v1::WaitRequest {
            network: network.to_owned(),
            timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        client
            .wait(request)
            .await
            .map(|answer| answer.into_inner().networks)
    };
    assert_eq!(wait("blue", 3).await.unwrap()[0].hosts, ["host1", "host2"]);
    assert!(wait("", 3).await.unwrap().is_empty());
    assert_eq!(wait("blue", 0).await.unwrap_err().code(), Code::InvalidArgument);
    let late = wait("late", 3).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(
        late.message(),
        "network late: not done after 3.0 s: not caught up: host2 (its agent is not running), host3"
    );
    let details = late.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.metadata["hosts"].as_str()),
        ("DEADLINE_EXCEEDED", "host2,host3")
    );
    assert_eq!(details.resource_info().unwrap().resource_name, "late");
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up() {
    let served = Served::with(|limits| limits.default_timeout = Duration::from_millis(50));
    let mut client = NetworksClient::new(served.channel().await);
    let stuck = v1::GetNetworkRequest {
        name: "stuck".to_owned(),
    };
    let status = soon(client.get(stuck)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        status.message().ends_with("the agent gave no answer in time"),
        "{status}"
    );
}

#[tokio::test]
async fn calls_past_the_limit_wait_for_a_place_and_say_so() {
    let served = Served::with(|limits| {
        limits.reads = 1;
        limits.default_timeout = Duration::from_secs(2);
    });
    let mut client = NetworksClient::new(served.channel().await);
    let mut other = client.clone();
    let holder = tokio::spawn(async move {
        other
            .get(v1::GetNetworkRequest {
                name: "stuck".to_owned(),
            })
            .await
    });
    soon(served.fake.stuck.notified()).await;
    let mut request = Request::new(v1::GetNetworkRequest {
        name: "nothing".to_owned(),
    });
    request
        .metadata_mut()
        .insert("grpc-timeout", "400m".parse().unwrap());
    let status = soon(client.get(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        status.message().ends_with("the agent is busy with other calls"),
        "{status}"
    );
    soon(holder).await.unwrap().unwrap_err();
    let status = client
        .get(v1::GetNetworkRequest {
            name: "nothing".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "the place is free again: {status}");
}

#[tokio::test]
async fn a_request_that_is_too_big_is_refused() {
    let served = Served::start();
    let mut client = NetworksClient::new(served.channel().await);
    let status = client
        .get(v1::GetNetworkRequest {
            name: "x".repeat(2 << 20),
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let status = client
        .get(v1::GetNetworkRequest {
            name: "nothing".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "the others go on: {status}");
}

#[tokio::test]
async fn health_is_told_for_the_whole_and_each_service() {
    let served = Served::start();
    let mut client = HealthClient::new(served.channel().await);
    for healthy in [true, false, true] {
        served.healthy.send_replace(healthy);
        let wanted = match healthy {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for service in [
            "",
            "weft.v1.Networks",
            "weft.v1.Endpoints",
            "weft.v1.Addresses",
            "weft.v1.Peers",
            "weft.v1.Status",
            "weft.v1.Records",
            "weft.v1.Events",
        ] {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            let told = soon(client.watch(request)).await.unwrap().into_inner();
            let mut told = told.map(|answer| answer.unwrap().status());
            let is_told = soon(async { while told.next().await.expect("more") != wanted {} });
            is_told.await;
        }
    }
}

#[tokio::test]
async fn an_agent_that_stops_is_not_healthy() {
    let served = Served::start();
    let mut client = HealthClient::new(served.channel().await);
    let told = client
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut told = told.filter_map(|answer| Some(answer.ok()?.status()));
    soon(async { while told.next().await.expect("more") != ServingStatus::Serving {} }).await;
    served.shutdown.cancel();
    assert_eq!(soon(told.next()).await, Some(ServingStatus::NotServing));
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let served = Served::start();
    let mut client = ServerReflectionClient::new(served.channel().await);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([list]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["weft.v1.Networks", "weft.v1.Events", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == service), "{service} in {names:?}");
    }
}

#[tokio::test]
async fn events_are_filtered_and_end_at_shutdown() {
    let served = Served::start();
    let mut client = EventsClient::new(served.channel().await);
    let watch = v1::WatchEventsRequest {
        kinds: vec![EventKind::EndpointReady.into()],
        network: "blue".to_owned(),
    };
    let mut stream = client.watch(watch).await.unwrap().into_inner();
    let event = |kind: EventKind, network: &str| Event {
        kind: kind.into(),
        network: network.to_owned(),
        ..Default::default()
    };
    served.fake.hub.publish(event(EventKind::EndpointReady, "red"));
    served.fake.hub.publish(event(EventKind::PeerPut, ""));
    served.fake.hub.publish(event(EventKind::EndpointReady, "blue"));
    let first = soon(stream.next()).await.unwrap().unwrap();
    assert_eq!(
        (first.kind(), first.network.as_str()),
        (EventKind::EndpointReady, "blue")
    );

    served.shutdown.cancel();
    let end = soon(stream.next()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.message().contains("stopping"), "{end}");
    soon(served.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn streams_past_the_limit_are_refused_until_one_ends() {
    let served = Served::with(|limits| limits.watches = 1);
    let mut client = EventsClient::new(served.channel().await);
    let first = client.watch(v1::WatchEventsRequest::default()).await.unwrap();
    let status = client.watch(v1::WatchEventsRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    drop(first);
    soon(async {
        while client.watch(v1::WatchEventsRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_under_way_at_shutdown_is_cut_after_the_drain() {
    let served = Served::start();
    let mut client = NetworksClient::new(served.channel().await);
    let call = tokio::spawn(async move {
        client
            .get(v1::GetNetworkRequest {
                name: "stuck".to_owned(),
            })
            .await
    });
    soon(served.fake.stuck.notified()).await;
    served.shutdown.cancel();
    let status = soon(call).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("stopping"), "{status}");
    soon(served.server).await.unwrap().unwrap();
    assert!(!served.path.exists());
}
