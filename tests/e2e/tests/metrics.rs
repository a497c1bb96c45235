//! What the agent tells Prometheus and its health service, held against the kernel, etcd and what was done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use weft_e2e::{
    Cluster, SOON, Station, counter, fdb, has_problem, neighbours, no_problem, remote_fdb, status,
};
use weft_lab::{Host, Lab, Metrics, eventually};

/// Two hosts in one network: two endpoints on the first, one on the second.
fn scene() -> Result<(Cluster, Vec<Station>)> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &["10.1.0.0/24", "fd00:1::/64"])?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 1, "b")?,
        cluster.endpoint("blue", 2, "c")?,
    ];
    cluster.up(&mut stations)?;
    Ok((cluster, stations))
}

/// Waits for a sample to have a value.
fn becomes(host: &Host, sample: &str, wanted: f64) -> Result<()> {
    eventually(SOON, &format!("{sample} is {wanted}"), || {
        let value = host.metrics()?.get(sample)?;
        ensure!(value == wanted, "{value}");
        Ok(())
    })
}

fn drift(metrics: &Metrics) -> BTreeMap<String, f64> {
    let of_drift = |(name, value): (&str, f64)| {
        let kind = name
            .strip_prefix("weft_drift_repaired_total{kind=\"")?
            .strip_suffix("\"}")?;
        (value > 0.0).then(|| (kind.to_owned(), value))
    };
    metrics.iter().filter_map(of_drift).collect()
}

#[test]
fn figures_are_what_kernel_and_store_say() -> Result<()> {
    let (cluster, stations) = scene()?;
    let host = cluster.host(1);
    let blue = host.netns_of("blue");
    eventually(SOON, "the figures are those of kernel and status", || {
        let metrics = host.metrics()?;
        let macs: std::collections::BTreeSet<String> = fdb(&blue)?.into_iter().map(|row| row.mac).collect();
        for (sample, wanted) in [
            ("weft_loop_responding", 1),
            ("weft_ready", 1),
            ("weft_networks", 1),
            ("weft_local_networks", 1),
            ("weft_endpoints{location=\"local\"}", 2),
            ("weft_endpoints{location=\"remote\"}", 1),
            ("weft_ready_endpoints", 2),
            ("weft_peers", 2),
            ("weft_fdb_entries", macs.len()),
            ("weft_neighbours", neighbours(&blue)?.len()),
            ("weft_problems{source=\"record\"}", 0),
            ("weft_held_deletions", 0),
            ("weft_chores_owed", 0),
            ("weft_store_connected", 1),
            ("weft_kernel_changes_total{kind=\"namespace\"}", 1),
            ("weft_kernel_changes_total{kind=\"veth\"}", 2),
        ] {
            let value = metrics.get(sample)?;
            ensure!(value == wanted as f64, "{sample} is {value}, not {wanted}");
        }
        // Counted once, told twice.
        ensure!(metrics.get("weft_netlink_writes_total")? == counter(host, "/netlink_writes/total")? as f64);
        ensure!(metrics.get("weft_applied_revision")? == counter(host, "/applied_revision")? as f64);
        ensure!(metrics.get("weft_store_lag_seconds")? < 15.0);
        ensure!(drift(&metrics).is_empty(), "{metrics:?}");
        Ok(())
    })?;

    // The process is this host's agent.
    let metrics = host.metrics()?;
    let pid = host.pid().context("no agent")?;
    let resident: f64 = std::fs::read_to_string(format!("/proc/{pid}/statm"))?
        .split(' ')
        .nth(1)
        .context("statm")?
        .parse::<f64>()?
        * 4096.0;
    let told = metrics.get("process_resident_memory_bytes")?;
    assert!((told - resident).abs() < resident / 4.0, "{told} {resident}");

    // An event is measured from its coming to its being in the kernel, and what was there at the start is not.
    let count = "weft_convergence_seconds_count";
    let (events, sum) = (metrics.get(count)?, metrics.get("weft_convergence_seconds_sum")?);
    let begun = Instant::now();
    cluster.del(&stations[2].key())?;
    eventually(SOON, "the remote endpoint is gone", || {
        ensure!(remote_fdb(&blue)?.is_empty());
        ensure!(host.metrics()?.get(count)? > events);
        Ok(())
    })?;
    let metrics = host.metrics()?;
    let took = metrics.get("weft_convergence_seconds_sum")? - sum;
    assert!(took > 0.0, "{took}");
    assert!(
        took < (metrics.get(count)? - events) * begun.elapsed().as_secs_f64(),
        "{took}"
    );
    let at_revision = counter(host, "/store/revision")? as f64;
    assert!(metrics.get("weft_store_revision")? >= metrics.get("weft_applied_revision")?);
    eventually(SOON, "all is known and applied", || {
        ensure!(host.metrics()?.get("weft_applied_revision")? >= at_revision);
        ensure!(host.metrics()?.get("weft_store_known_revision")? >= at_revision);
        Ok(())
    })?;

    // Problems by who sees them.
    cluster.put("/weft/v1/networks/bad", "{")?;
    becomes(host, "weft_problems{source=\"record\"}", 1.0)?;
    cluster.del("/weft/v1/networks/bad")?;
    becomes(host, "weft_problems{source=\"record\"}", 0.0)?;
    let nowhere = r#"{"attachment":{"netns":"/run/netns/weft-test-nowhere"}}"#;
    cluster.put("/weft/v1/endpoints/blue/host1/nowhere", nowhere)?;
    becomes(host, "weft_problems{source=\"kernel\"}", 1.0)?;
    eventually(SOON, "each try is counted", || {
        let errors = host
            .metrics()?
            .get("weft_kernel_errors_total{during=\"apply\",error=\"attachment\"}")?;
        ensure!(errors >= 2.0, "{errors}");
        Ok(())
    })?;
    // Each try was counted, and one line told of the cause.
    let key = "endpoints/blue/host1/nowhere";
    let log = host.log();
    assert_eq!(
        log.lines()
            .filter(|l| l.contains("WARN") && l.contains(key))
            .count(),
        1,
        "{log}"
    );
    cluster.close()
}

#[test]
fn drift_is_counted_by_kind_and_told_with_what_was_found() -> Result<()> {
    let (cluster, stations) = scene()?;
    let host = cluster.host(1);
    let blue = host.netns_of("blue");
    let mac = cluster.record(&stations[2])?["mac"]
        .as_str()
        .context("mac")?
        .to_owned();
    let v4 = stations[2].address(true).to_string();
    let vtep = "10.99.0.2";
    let mut wanted = BTreeMap::new();
    let mut damage = |kind: &str, argv: &[&str], found: &str| -> Result<()> {
        blue.exec(argv)?;
        *wanted.entry(kind.to_owned()).or_insert(0.0) += 1.0;
        eventually(SOON, &format!("{argv:?} is mended and counted once"), || {
            let has = drift(&host.metrics()?);
            ensure!(has == wanted, "{has:?}, wanted {wanted:?}");
            Ok(())
        })?;
        let log = host.log();
        let line = log
            .lines()
            .rfind(|line| line.contains("repaired"))
            .context("no line")?;
        ensure!(line.contains(&format!("kind=\"{kind}\"")), "{line}");
        ensure!(
            line.contains(&format!("found=\"{found}\"")),
            "{line}, wanted {found:?}"
        );
        Ok(())
    };
    damage(
        "fdb",
        &["bridge", "fdb", "del", &mac, "dev", "vx4", "self"],
        "no entry of the tunnel",
    )?;
    damage("neighbour", &["ip", "neigh", "del", &v4, "dev", "br0"], "nothing")?;
    let elsewhere = [
        "bridge",
        "fdb",
        "replace",
        &mac,
        "dev",
        "vx4",
        "dst",
        "10.99.0.77",
    ];
    damage(
        "fdb",
        &[&elsewhere[..], &["self", "extern_learn"]].concat(),
        "tunnel to 10.99.0.77",
    )?;
    let other = "02:00:00:00:00:99";
    damage(
        "neighbour",
        &[
            "ip",
            "neigh",
            "replace",
            &v4,
            "lladdr",
            other,
            "dev",
            "br0",
            "nud",
            "noarp",
            "extern_learn",
            "proto",
            "87",
        ],
        other,
    )?;
    damage("bridge", &["ip", "link", "set", "br0", "mtu", "1400"], "mtu 1400")?;
    damage("vxlan", &["ip", "link", "set", "vx4", "down"], "state down")?;
    eventually(SOON, "all is as it was", || {
        ensure!(remote_fdb(&blue)?.contains(&(mac.clone(), vtep.to_owned())));
        ensure!(neighbours(&blue)?.contains(&(v4.clone(), mac.clone())));
        Ok(())
    })?;
    // Status counts the same.
    let metrics = host.metrics()?;
    assert_eq!(
        drift(&metrics).values().sum::<f64>(),
        counter(host, "/drift_repaired/total")? as f64
    );
    cluster.close()
}

#[test]
fn a_lost_store_shows() -> Result<()> {
    let (cluster, _) = scene()?;
    let host = cluster.host(1);
    let before = host.metrics()?;
    cluster.etcd(1).kill9()?;
    eventually(SOON, "the loss is told", || {
        let metrics = host.metrics()?;
        ensure!(metrics.get("weft_store_connected")? == 0.0, "connected");
        let lost = "weft_store_disconnects_total";
        ensure!(metrics.get(lost)? == before.get(lost)? + 1.0, "{metrics:?}");
        Ok(())
    })?;
    let lag = |host: &Host| host.metrics()?.get("weft_store_lag_seconds");
    let since = Instant::now();
    let at_first = lag(host)?;
    eventually(SOON, "the lag grows as time goes", || {
        ensure!(lag(host)? >= at_first + 0.5);
        Ok(())
    })?;
    assert!(lag(host)? <= at_first + since.elapsed().as_secs_f64() + 0.1);
    let told = status(host)?;
    assert!(told["store"]["last_error_time"].is_string(), "{told}");
    cluster.etcd(1).start()?;
    eventually(SOON, "it is back", || {
        let metrics = host.metrics()?;
        ensure!(metrics.get("weft_store_connected")? == 1.0);
        let watches = "weft_store_watches_total";
        ensure!(metrics.get(watches)? > before.get(watches)?);
        ensure!(metrics.get("weft_store_lag_seconds")? < at_first + 0.5);
        Ok(())
    })?;
    // It went on where it had been.
    let metrics = host.metrics()?;
    let lists = "weft_store_listings_total";
    assert_eq!(metrics.get(lists)?, before.get(lists)?);
    cluster.close()
}

#[test]
fn metrics_are_served_where_it_is_said_and_an_occupied_place_stops_nobody() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    let host = lab.host(1);
    let path = host.dir().join("metrics.sock");
    let occupied = std::os::unix::net::UnixListener::bind(&path)?;
    host.start_weftd()?;
    eventually(SOON, "the problem is told", || {
        has_problem(host, "(metrics)", "", "metrics cannot be served")
    })?;
    drop(occupied);
    eventually(SOON, "it is served in the end", || {
        no_problem(host, "(metrics)")?;
        host.metrics().map(drop)
    })?;
    // Nobody but root may ask.
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path)?.permissions());
    assert_eq!(mode & 0o777, 0o660, "{mode:o}");
    host.stop()?;
    assert!(!path.exists());

    // By TCP, on loopback, from within the host; other paths and methods are told so.
    host.start_weftd_with(&["--metrics-listen", "127.0.0.1:9477"])?;
    let ask = |request: &str| {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/9477 && printf '{request} HTTP/1.1\\r\\nHost: h\\r\\nConnection: close\\r\\n\\r\\n' >&3 && cat <&3"
        );
        host.netns().exec(&["bash", "-c", &script])
    };
    let answer = eventually(SOON, "TCP answers", || ask("GET /metrics"))?;
    assert_eq!(Metrics::parse(&answer)?.get("weft_ready")?, 1.0);
    assert!(ask("GET /")?.starts_with("HTTP/1.1 404 "));
    assert!(ask("POST /metrics")?.starts_with("HTTP/1.1 405 "));
    host.stop()?;

    // Not to others, unless that is said.
    let address = format!("{}:9477", host.addresses()[0]);
    host.spawn_weftd(&["--metrics-listen", &address])?;
    eventually(SOON, "it is refused", || {
        ensure!(host.pid().is_none(), "it runs");
        ensure!(
            host.log().contains("can be reached from other hosts"),
            "{}",
            host.log()
        );
        Ok(())
    })?;
    host.start_weftd_with(&["--metrics-listen", &address, "--metrics-allow-remote"])?;
    host.stop()?;
    lab.close()
}

fn health(host: &Host) -> Result<ServingStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let to = format!("unix:{}", host.socket().display());
        let channel = tonic::transport::Endpoint::from_shared(to)?.connect().await?;
        let mut client = HealthClient::new(channel);
        let answer = client.check(HealthCheckRequest::default());
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await??;
        Ok(answer.into_inner().status())
    })
}

#[test]
fn an_agent_is_healthy_from_its_first_pass_on() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    let host = lab.host(1);
    lab.etcd(1).stop()?;
    host.spawn_weftd(&[])?;
    eventually(SOON, "the API and the metrics are there", || {
        health(host)?;
        host.metrics().map(drop)
    })?;
    assert_eq!(health(host)?, ServingStatus::NotServing);
    assert_eq!(host.metrics()?.get("weft_ready")?, 0.0);
    lab.etcd(1).start()?;
    host.wait_ready()?;
    eventually(SOON, "healthy", || {
        ensure!(health(host)? == ServingStatus::Serving);
        ensure!(host.metrics()?.get("weft_ready")? == 1.0);
        Ok(())
    })?;
    // Without the store it goes on doing its work.
    lab.etcd(1).kill9()?;
    becomes(host, "weft_store_connected", 0.0)?;
    assert_eq!(health(host)?, ServingStatus::Serving);
    host.stop()?;
    lab.close()
}
