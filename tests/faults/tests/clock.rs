//! The time of day jumps by hours under an agent: its own time only, the machine's clock is not touched.

use anyhow::{Context, Result, ensure};
use weft_e2e::{Cluster, SOON, attach, status, writes};
use weft_faults::{between, caught_up, log_lines, one_each};
use weft_lab::{Clock, Host, eventually};

/// How far the clock is off, as libfaketime is told it, one after another.
const JUMPS: [&str; 4] = ["+7h", "-30h", "+10y", "+0"];

/// The hour of day and the day that an agent reckons its connection to stand since: of its clock, a moment and a stretch.
fn since(host: &Host) -> Result<String> {
    let since = &status(host)?["store"]["since"];
    let text = since.as_str().with_context(|| format!("since {since}"))?;
    Ok(text.get(..13).context("too short for a time")?.to_owned())
}

#[test]
fn the_clock_jumps() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let (hosts, etcd) = (cluster.hosts(), cluster.etcd(1));
    let host = &hosts[0];
    host.stop()?;
    let clock = Clock::of(host)?;
    host.spawn_weftd_in(&[], &clock.env())?;
    host.wait_ready()?;
    let lease = || -> Result<i64> {
        let alive = cluster.get_kv("/weft/v1/alive/host1")?;
        Ok(alive.context("host1 is not alive")?.lease)
    };
    let held = eventually(SOON, "it is alive", lease)?;
    let traffic = between(&stations)?;
    for (n, jump) in JUMPS.iter().enumerate() {
        let (before, lines) = (writes(host)?, log_lines(host));
        let (reads, streams) = (etcd.requests("Range")?, etcd.requests("Watch")?);
        let hour = since(host)?;
        clock.set(jump)?;
        eventually(SOON, "the agent's clock has jumped", || {
            ensure!(since(host)? != hour, "it is still {hour}");
            Ok(())
        })?;
        let health = status(host)?;
        ensure!(health["store"]["connected"] == true, "{health}");
        let uptime = &health["uptime_seconds"];
        ensure!(
            uptime.as_u64().is_some_and(|seconds| seconds < 600),
            "{jump}: uptime {uptime}"
        );
        traffic.wait_more(100)?;
        ensure!(log_lines(host) <= lines + 1, "{jump}: {}", host.log());
        ensure!(etcd.requests("Watch")? == streams, "{jump}: another watch");
        let read = etcd.requests("Range")? - reads;
        ensure!(read <= 4, "{jump}: {read} reads of etcd");
        assert_eq!(writes(host)?, before, "{jump}");
        assert_eq!(lease()?, held, "{jump}");

        // And all goes its way, here and between hosts.
        let id = format!("after{n}");
        let container = cluster.container(&id)?;
        attach(host, "blue", &container, &id, &["--wait"])?;
        caught_up(&cluster, hosts, "blue")?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}
