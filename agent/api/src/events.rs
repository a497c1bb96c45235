//! Hands events from the agent to any number of watchers, and picks those that a watcher asked for.
//!
//! In: events, published by the agent's loop, which never waits for a watcher. Out: one [`EventStream`] per
//! watcher. It must not know what the events mean.

use std::{sync::Arc, time::SystemTime};

use futures::StreamExt as _;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use weft_proto::v1::{Event, EventKind, WatchEventsRequest, event};

use crate::{ApiError, EventStream};

/// Where the agent publishes its events. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct EventHub {
    /// By reference: a channel has room for its whole backlog from the start, and an event itself takes half a kilobyte.
    sender: broadcast::Sender<Arc<Event>>,
}

impl EventHub {
    /// A hub that keeps `backlog` events (at least 1) for watchers that are behind; one that falls further
    /// behind gets an `EVENTS_LOST` with the number instead.
    #[must_use]
    pub fn new(backlog: usize) -> Self {
        Self {
            sender: broadcast::Sender::new(backlog.max(1)),
        }
    }

    /// Whether anybody watches: an event that is costly to make need not be made otherwise.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Gives the event to all watchers, without waiting. An event without a time gets the present one.
    pub fn publish(&self, mut event: Event) {
        if event.time.is_none() {
            event.time = Some(SystemTime::now().into());
        }
        // An error only says that nobody watches.
        let _ = self.sender.send(Arc::new(event));
    }

    /// All events published from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventStream {
        let stream = BroadcastStream::new(self.sender.subscribe()).map(|next| {
            Ok(match next {
                Ok(event) => Arc::unwrap_or_clone(event),
                Err(BroadcastStreamRecvError::Lagged(lost)) => Event {
                    time: Some(SystemTime::now().into()),
                    kind: EventKind::EventsLost.into(),
                    message: format!("{lost} events were lost: the client is too slow"),
                    subject: Some(event::Subject::Lost(lost)),
                    ..Event::default()
                },
            })
        });
        Box::pin(stream)
    }
}

/// What a watcher asked for.
pub(crate) struct Filter {
    kinds: Vec<i32>,
    network: String,
}

impl Filter {
    /// Errors: `InvalidArgument` for a kind that is none.
    pub(crate) fn parse(request: WatchEventsRequest) -> Result<Self, ApiError> {
        for (at, kind) in request.kinds.iter().enumerate() {
            if matches!(EventKind::try_from(*kind), Err(_) | Ok(EventKind::Unspecified)) {
                return Err(ApiError::invalid(
                    format!("kinds[{at}]"),
                    format!("{kind} is no kind of event"),
                ));
            }
        }
        Ok(Self {
            kinds: request.kinds,
            network: request.network,
        })
    }

    pub(crate) fn wants(&self, event: &Event) -> bool {
        if event.kind() == EventKind::EventsLost {
            return true;
        }
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.network.is_empty() || self.network == event.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, network: &str) -> Event {
        Event {
            kind: kind.into(),
            network: network.to_owned(),
            ..Event::default()
        }
    }

    #[test]
    fn filters_by_kind_and_network_but_never_hides_a_loss() {
        let filter = |kinds: &[EventKind], network: &str| {
            Filter::parse(WatchEventsRequest {
                kinds: kinds.iter().map(|kind| i32::from(*kind)).collect(),
                network: network.to_owned(),
            })
            .expect("a filter")
        };
        let put = event(EventKind::EndpointPut, "blue");
        assert!(filter(&[], "").wants(&put));
        assert!(filter(&[EventKind::EndpointPut], "blue").wants(&put));
        assert!(!filter(&[EventKind::PeerPut], "").wants(&put));
        assert!(!filter(&[], "red").wants(&put));
        assert!(filter(&[EventKind::PeerPut], "red").wants(&event(EventKind::EventsLost, "")));
        assert!(
            Filter::parse(WatchEventsRequest {
                kinds: vec![99],
                network: String::new()
            })
            .is_err()
        );
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_told_how_much_it_lost() {
        let hub = EventHub::new(2);
        let mut stream = hub.subscribe();
        for _ in 0..5 {
            hub.publish(event(EventKind::PeerPut, ""));
        }
        let first = stream.next().await.expect("an event").expect("no error");
        assert_eq!(first.subject, Some(event::Subject::Lost(3)));
        let second = stream.next().await.expect("an event").expect("no error");
        assert_eq!(second.kind(), EventKind::PeerPut);
        assert!(second.time.is_some());
    }
}
