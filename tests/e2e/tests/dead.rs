//! Endpoints whose container's namespace is gone: told of after a while, or detached, and never before their time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON, has_problem};
use weft_lab::{Lab, eventually};

fn cluster(args: &[&str]) -> Result<Cluster> {
    let lab = Lab::builder().hosts(1).build()?;
    lab.host(1).start_weftd_with(args)?;
    Ok(Cluster::from_running(lab))
}

fn says_dead(cluster: &Cluster, key: &str) -> Result<()> {
    has_problem(
        cluster.host(1),
        key,
        "attachment.netns",
        "has been gone for more than",
    )
}

#[test]
fn a_namespace_that_is_gone_is_told_of_and_forgotten_when_it_is_back() -> Result<()> {
    let cluster = cluster(&["--dead-grace", "2s"])?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 1, "b")?,
    ];
    cluster.up(&mut stations)?;
    let gone_at = Instant::now();
    stations[0].container.remove()?;
    eventually(SOON, "it is told of", || {
        says_dead(&cluster, &stations[0].short_key())
    })?;
    assert!(
        gone_at.elapsed() >= Duration::from_secs(2),
        "{:?}",
        gone_at.elapsed()
    );
    assert!(says_dead(&cluster, &stations[1].short_key()).is_err());
    assert!(
        cluster.get(&stations[0].key())?.is_some(),
        "it is not for the agent to delete"
    );
    // After a restart, the time runs anew.
    let restarted = Instant::now();
    cluster.host(1).stop()?;
    cluster.host(1).start_weftd_with(&["--dead-grace", "2s"])?;
    eventually(SOON, "it is told of again", || {
        says_dead(&cluster, &stations[0].short_key())
    })?;
    assert!(
        restarted.elapsed() >= Duration::from_secs(2),
        "{:?}",
        restarted.elapsed()
    );
    let again = cluster.container("blue-a")?;
    eventually(SOON, "it works again, and nothing is wrong", || {
        weft_e2e::no_problem(cluster.host(1), &stations[0].short_key())?;
        ensure!(again.addresses()?.contains(&stations[0].addresses[0]));
        Ok(())
    })?;
    cluster.close()
}

#[test]
fn a_namespace_that_is_gone_is_released_if_that_is_wanted() -> Result<()> {
    let cluster = cluster(&["--dead-grace", "1s", "--release-dead"])?;
    cluster.network("blue", &["10.1.0.0/24"])?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 1, "b")?,
    ];
    cluster.up(&mut stations)?;
    let gone_at = Instant::now();
    stations[0].container.remove()?;
    eventually(SOON, "it is released", || {
        ensure!(cluster.get(&stations[0].key())?.is_none());
        Ok(())
    })?;
    assert!(
        gone_at.elapsed() >= Duration::from_secs(1),
        "{:?}",
        gone_at.elapsed()
    );
    let claim = format!("/weft/v1/addresses/blue/{}", stations[0].addresses[0]);
    assert_eq!(cluster.get(&claim)?, None);
    weft_e2e::no_problem(cluster.host(1), &stations[0].short_key())?;
    assert!(cluster.get(&stations[1].key())?.is_some());
    // One that was never there is no different.
    cluster.put(
        &Cluster::endpoint_key("blue", 1, "never"),
        r#"{"attachment":{"netns":"/run/netns/weftless-never-there"}}"#,
    )?;
    eventually(SOON, "it is released too", || {
        ensure!(cluster.get(&Cluster::endpoint_key("blue", 1, "never"))?.is_none());
        Ok(())
    })?;
    ensure!(cluster.host(1).weft_output(&["audit"])?.status.success());
    cluster.close()
}
