//! A store that is not the one that was known: forwarding stays until somebody confirms.

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON};
use weft_lab::eventually;

/// The agent is down while the store is replaced by an empty one. What the agent knows of the store before lies in its
/// state directory; here that is another cluster, and the records are gone.
#[test]
fn an_agent_that_starts_on_another_empty_store_tears_nothing_down() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 2, "b")?,
    ];
    cluster.up(&mut stations)?;
    let stream = stations[0].container.ping_stream(stations[1].addresses[0], 100)?;
    for host in cluster.hosts() {
        host.kill9()?;
        std::fs::write(
            host.dir().join("state/store.json"),
            r#"{"cluster_id":1,"revision":7}"#,
        )?;
    }
    cluster.etcdctl(&["del", "--prefix", "/weft/v1/"])?;
    for host in cluster.hosts() {
        host.start_weftd()?;
        eventually(SOON, "the agent says what it holds", || {
            let status = weft_e2e::status(host)?;
            let reason = status["held_deletions"]["reason"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            ensure!(reason.contains("another cluster"), "{status}");
            ensure!(status.to_string().contains("weft resync --accept"), "{status}");
            Ok(())
        })?;
        assert_eq!(weft_e2e::writes(host)?, 0);
    }
    let goal = stream.so_far().sent + 50;
    eventually(SOON, "more requests", || {
        ensure!(stream.so_far().sent >= goal);
        Ok(())
    })?;
    let sum = stream.stop();
    assert_eq!(sum.lost(), 0, "{sum:?}");

    for host in cluster.hosts() {
        host.weft(&["resync", "--accept"])?;
        eventually(SOON, "the network is gone", || {
            ensure!(!host.netns_of("blue").exists());
            Ok(())
        })?;
        assert!(weft_e2e::status(host)?["held_deletions"].is_null());
    }
    cluster.close()
}
