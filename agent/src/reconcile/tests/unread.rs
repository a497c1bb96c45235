//! What questions are answered while etcd is away: what was known, what was not, and that nothing is known yet.

use weft_api::{ApiError, Call, Control as _, EndpointFilter};

use super::*;
use crate::control::AgentControl;

/// The calls of the API on a loop to which nothing happens but what a test does.
struct Served {
    ground: Ground,
    control: AgentControl,
    asks: mpsc::Receiver<Ask>,
}

impl Served {
    fn new(ground: Ground) -> Self {
        let (sender, asks) = mpsc::channel(16);
        let reconciler = &ground.reconciler;
        let control = AgentControl {
            asker: Asker {
                asks: sender,
                changed: reconciler.changed.subscribe(),
            },
            store: reconciler.store.clone(),
            kernel: KernelThread::idle(),
            events: reconciler.events.clone(),
            node: reconciler.node.name.clone(),
            netns_dir: reconciler.node.netns_dir.clone(),
            questions: std::sync::Arc::default(),
            auditing: std::sync::Arc::default(),
            turns: std::sync::Arc::default(),
        };
        Self {
            ground,
            control,
            asks,
        }
    }

    /// The answer to a call.
    async fn answer<T, F: Future<Output = T>>(&mut self, call: impl FnOnce(AgentControl, Call) -> F) -> T {
        let started = Instant::now();
        let deadline = started + Duration::from_secs(30);
        let circumstances = Call {
            deadline,
            started,
            caller: None,
        };
        let mut answer = std::pin::pin!(call(self.control.clone(), circumstances));
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                Some(ask) = self.asks.recv() => ask(&mut self.ground.reconciler),
            }
        }
    }

    async fn endpoints(&mut self, network: Option<&str>) -> Result<weft_api::EndpointList, ApiError> {
        let filter = EndpointFilter {
            network: network.map(str::to_owned),
            ..EndpointFilter::default()
        };
        self.answer(|control, call| async move { control.list_endpoints(call, filter).await })
            .await
    }

    async fn status(&mut self) -> v1::AgentStatus {
        self.answer(|control, call| async move { control.status(call).await })
            .await
            .unwrap()
    }
}

fn away() -> StoreEvent {
    StoreEvent::Connection(Connection::Down {
        why: "connection refused".to_owned(),
    })
}

fn says_that_nothing_is_known<T: std::fmt::Debug>(answer: Result<T, ApiError>) {
    let error = answer.expect_err("nothing is known");
    let text = error.to_string();
    let is_said = text.contains("connection refused") && text.contains("since it started");
    assert!(matches!(error, ApiError::Unavailable { .. }) && is_said, "{text}");
}

#[tokio::test]
async fn before_the_records_were_read_nothing_is_said_of_them() {
    let mut ground = Ground::new().await;
    ground.event(away());
    let mut served = Served::new(ground);
    let networks = served.answer(|control, call| async move { control.list_networks(call).await });
    says_that_nothing_is_known(networks.await);
    let network =
        |control: AgentControl, call| async move { control.get_network(call, "blue".to_owned()).await };
    says_that_nothing_is_known(served.answer(network).await);
    let peers = served.answer(|control, call| async move { control.list_peers(call).await });
    says_that_nothing_is_known(peers.await);
    let waited = |control: AgentControl, call| async move { control.wait_networks(call, None).await };
    says_that_nothing_is_known(served.answer(waited).await);
    let accepted = |control: AgentControl, call| async move { control.accept_deletions(call).await };
    says_that_nothing_is_known(served.answer(accepted).await);
    says_that_nothing_is_known(served.endpoints(None).await);
    says_that_nothing_is_known(served.endpoints(Some("blue")).await);
    let counts = served.status().await.counts.unwrap();
    let of_records = [
        counts.networks,
        counts.local_endpoints,
        counts.ready_endpoints,
        counts.remote_endpoints,
        counts.peers,
    ];
    assert_eq!(of_records, [None; 5]);
}

#[tokio::test]
async fn what_was_known_is_shown_while_etcd_is_away_and_what_is_not_is_named() {
    let web = endpoint("web", "10.1.0.2");
    let mut ground = Ground::informed(vec![web], vec![claim("10.1.0.2", "host1/web")]).await;
    let others = ["red", "green"].map(|name| {
        let record = json!({"subnets": [{"cidr": "10.2.0.0/24"}]});
        entry(&format!("networks/{name}"), 2, &record)
    });
    let networks = [network()].into_iter().chain(others).collect();
    ground.list(Scope::Networks, networks);
    for name in ["red", "green"] {
        ground.list(Scope::OwnEndpoints(name.parse().unwrap()), Vec::new());
    }
    let mut served = Served::new(ground);
    // Not noticed yet, and noticed.
    for _ in 0..2 {
        let listed = served.endpoints(None).await.unwrap();
        let ids: Vec<&str> = listed.endpoints.iter().map(|e| e.id.as_str()).collect();
        let unknown: Vec<&str> = listed.unknown.iter().map(String::as_str).collect();
        assert_eq!((ids, unknown), (vec!["web"], vec!["green", "red"]));
        served.ground.event(away());
    }
    let blue = served.endpoints(Some("blue")).await.unwrap();
    assert!(blue.endpoints.len() == 1 && blue.unknown.is_empty());
    let red = served.endpoints(Some("red")).await.unwrap_err();
    assert!(matches!(red, ApiError::Unavailable { .. }), "{red}");
    assert!(red.to_string().contains("no part in network red"), "{red}");
    let none = served.endpoints(Some("none")).await.unwrap_err();
    assert!(matches!(none, ApiError::NotFound { .. }), "{none}");
    let networks = served.answer(|control, call| async move { control.list_networks(call).await });
    assert_eq!(networks.await.unwrap().len(), 3);
    let counts = served.status().await.counts.unwrap();
    assert_eq!((counts.networks, counts.local_endpoints), (Some(3), Some(1)));
}
