//! Whether the agent does its work, for whoever asks its health service.
//!
//! In: answers of the loop, or none. Out: healthy or not. It mends nothing.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::reconcile::Asker;

/// Pause between two questions until the first pass is done.
const SOON: Duration = Duration::from_millis(100);
/// Pause between two questions from then on.
const PAUSE: Duration = Duration::from_secs(1);
/// A loop that does not answer within this time is not alive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nothing that the kernel's thread is asked for takes this long.
const LONGEST_WORK: Duration = Duration::from_secs(60);

/// Follows the loop: healthy when the first pass is done, the loop answers, and the kernel does.
pub(crate) fn watch(asker: Asker) -> watch::Receiver<bool> {
    let (healthy, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut begun = false;
        while !healthy.is_closed() {
            let question = asker.ask(|r| (r.is_ready(), r.busy_for().unwrap_or_default()));
            let (ready, trouble) = match timeout(PATIENCE, question).await {
                Ok(Some((ready, busy))) if busy > LONGEST_WORK => (ready, Some("the kernel does not answer")),
                Ok(Some((ready, _))) => (ready, None),
                Ok(None) => return,
                Err(_) => (begun, Some("the agent's loop does not answer")),
            };
            begun |= ready;
            let now = ready && trouble.is_none();
            if healthy.send_replace(now) != now && begun {
                match trouble {
                    Some(trouble) => tracing::error!("{trouble}; forwarding stays as it is"),
                    None => tracing::info!("healthy"),
                }
            }
            sleep(if begun { PAUSE } else { SOON }).await;
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_answer_is_not_healthy() {
        let (asks, mut queue) = mpsc::channel(1);
        let (_changed, changed) = watch::channel(0);
        let mut healthy = watch(Asker { asks, changed });
        // Nobody takes the questions.
        let waited = timeout(Duration::from_secs(60), healthy.wait_for(|healthy| *healthy));
        assert!(waited.await.is_err());
        // The loop has ended: nobody says that it is healthy again.
        queue.close();
        while queue.recv().await.is_some() {}
        drop(queue);
        let ended = timeout(Duration::from_secs(60), async {
            while healthy.changed().await.is_ok() {
                assert!(!*healthy.borrow_and_update());
            }
        });
        assert!(ended.await.is_ok());
    }
}
