//! A disk that hangs: the loop goes on, and nothing is promised that is not on it.

use std::{fs, path::PathBuf};

use futures::FutureExt as _;

use super::*;

/// Whatever is written in the state directory hangs until this is let go; then it fails, since a pipe is on no disk.
struct Hanging(Vec<PathBuf>);

impl Ground {
    fn hang(&self, files: &[&str]) -> Hanging {
        let pipe = |file: &&str| {
            let path = self._state.path().join(file).with_extension("new");
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            path
        };
        Hanging(files.iter().map(pipe).collect())
    }
}

impl Hanging {
    /// One file after the other, as they are written.
    fn let_go(self) {
        for path in self.0 {
            fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
        }
    }
}

#[tokio::test]
async fn the_loop_does_not_wait_for_a_disk_that_hangs() {
    let peer = entry("peers/host1", 2, &json!({"vteps": ["10.99.0.1"], "mtu": 1500}));
    let mut ground = Ground::informed(
        vec![endpoint("web", "10.1.0.2")],
        vec![claim("10.1.0.2", "host1/web")],
    )
    .await;
    ground.looked(look(&[], Vec::new()));
    assert!(ground.reconciler.is_adopted());
    let hanging = ground.hang(&["store.json", "records.json", "detached.json"]);
    // Each of these is written down, and each would wait for the one before.
    ground.reconciler.note_position(true);
    ground.reconciler.trust.copy_at = Some(Instant::now());
    ground.reconciler.on_time();
    let web = of_blue("web");
    ground.reconciler.detach(&web);
    let remembered = ground.reconciler.remember_detach(&web);
    let again = ground.reconciler.remember_detach(&web);
    ground.list(Scope::Peers, vec![peer]);
    assert!(
        ground.reconciler.snapshot.awaits_detach(&web),
        "it is detached at once"
    );

    let mut remembered = Box::pin(remembered.on_disk());
    assert!(
        (&mut remembered).now_or_never().is_none(),
        "and said to be only when it is written"
    );
    hanging.let_go();
    remembered.await.unwrap_err();
    again.on_disk().await.unwrap_err();
    // What could not be written is, the next time.
    ground.reconciler.remember_detach(&web).on_disk().await.unwrap();
    ground.reconciler.note_position(false);
    ground.reconciler.history.written().await.unwrap().unwrap();
    let kept = |file: &str| fs::read_to_string(ground._state.path().join(file)).unwrap();
    assert!(kept("detached.json").contains("web") && kept("store.json").contains("revision"));
    let copied = arrived(&mut ground.reconciler.trust.copying).await;
    ground.reconciler.on_copied(matches!(copied, Some(Ok(()))));
    assert!(
        ground.reconciler.trust.copy_at.is_some(),
        "the copies are to be written again"
    );
}

#[tokio::test]
async fn another_life_is_nobodys_business_until_it_is_written() {
    let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
    let hanging = ground.hang(&["store.json"]);
    let before = ground.reconciler.incarnation().to_owned();
    let mark = json!({"incarnation": before, "by": "host2", "endpoints": 0});
    ground.list(Scope::Removed, vec![entry("removed/host1", 9, &mark)]);
    assert_ne!(ground.reconciler.incarnation(), before);
    assert_eq!(ground.reconciler.peer_document(), None);
    assert!(!ground.owes(&Chore::PublishPeer));
    hanging.let_go();
    let _ = arrived(&mut ground.reconciler.new_life).await;
    ground.reconciler.on_new_life();
    assert!(ground.reconciler.peer_document().is_some());
    assert!(ground.owes(&Chore::PublishPeer));
}
