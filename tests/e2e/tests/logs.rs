//! What the agent logs: a line for each cause and not for each time; JSON lines with fields.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::{Cluster, SOON, neighbours};
use weft_lab::{Host, Lab, eventually};

/// Records of a network with so many endpoints on a host that has no agent, beside one on host 1.
fn crowd(size: usize) -> Vec<(String, String)> {
    let key = |rest: String| format!("/weft/v1/{rest}");
    let peer = json!({"vteps": ["10.99.0.77"], "mtu": 1500, "kind": "external"});
    let mut records = vec![(key("peers/far".to_owned()), peer.to_string())];
    for i in 0..size {
        let (high, low) = (i / 250 + 1, i % 250 + 1);
        let address = format!("10.1.{high}.{low}");
        let endpoint = json!({
            "attachment": {"netns": "/run/netns/far"},
            "addresses": [address],
            "mac": format!("02:42:0a:01:{high:02x}:{low:02x}"),
        });
        records.push((key(format!("endpoints/blue/far/e{i}")), endpoint.to_string()));
        let claim = json!({"endpoint": format!("far/e{i}")});
        records.push((key(format!("addresses/blue/{address}")), claim.to_string()));
    }
    records
}

fn lines(host: &Host, of: &str) -> usize {
    host.log().lines().filter(|line| line.contains(of)).count()
}

#[test]
fn thousands_of_repairs_and_a_flapping_record_are_a_few_lines() -> Result<()> {
    const CROWD: usize = 400;
    let cluster = Cluster::of(1)?;
    cluster.network("blue", &["10.1.0.0/16"])?;
    let mut stations = vec![cluster.endpoint("blue", 1, "a")?];
    cluster.settle(&mut stations)?;
    let host = cluster.host(1);
    for some in crowd(CROWD).chunks(100) {
        cluster.put_all(some)?;
    }
    let blue = host.netns_of("blue");
    let all_there = || -> Result<()> {
        let there = neighbours(&blue)?.len();
        ensure!(there >= CROWD, "{there}");
        Ok(())
    };
    eventually(SOON * 2, "the crowd is known", all_there)?;
    let repaired = || {
        host.metrics()?
            .get("weft_drift_repaired_total{kind=\"neighbour\"}")
    };
    blue.exec(&["ip", "neigh", "flush", "dev", "br0", "nud", "all"])?;
    eventually(SOON * 2, "each is back and counted", || {
        all_there()?;
        ensure!(repaired()? >= CROWD as f64, "{}", repaired()?);
        Ok(())
    })?;
    let told = lines(host, "repaired what was changed");
    assert!((1..=20).contains(&told), "{told} lines");

    // One record, bad and good in turns, as fast as etcdctl goes.
    let begun = Instant::now();
    let mut turns = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        cluster.put("/weft/v1/networks/flapping", "{")?;
        cluster.put(
            "/weft/v1/networks/flapping",
            r#"{"subnets":[{"cidr":"10.9.0.0/24"}]}"#,
        )?;
        turns += 1;
    }
    cluster.put("/weft/v1/networks/flapping", "{")?;
    eventually(SOON, "the last word counts", || {
        ensure!(host.metrics()?.get("weft_problems{source=\"record\"}")? == 1.0);
        Ok(())
    })?;
    assert!(turns > 10, "{turns}");
    let told = lines(host, "networks/flapping");
    assert!(
        (1..=12).contains(&told),
        "{told} lines of {turns} turns: {}",
        host.log()
    );
    cluster.close()
}

#[test]
fn json_lines_have_fields() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    lab.host(1).start_weftd_with(&["--log-format", "json"])?;
    let cluster = Cluster::from_running(lab);
    let host = cluster.host(1);
    cluster.network("blue", &["10.1.0.0/16"])?;
    let mut stations = vec![cluster.endpoint("blue", 1, "a")?];
    cluster.settle(&mut stations)?;
    cluster.put_all(&crowd(1))?;
    let blue = host.netns_of("blue");
    eventually(SOON, "the neighbour is there", || {
        ensure!(
            neighbours(&blue)?
                .iter()
                .any(|(address, _)| address == "10.1.1.1")
        );
        Ok(())
    })?;
    blue.exec(&["ip", "neigh", "del", "10.1.1.1", "dev", "br0"])?;
    cluster.put("/weft/v1/networks/bad", r#"{"subnets":[{"cidr":"nonsense"}]}"#)?;
    cluster.etcd(1).kill9()?;
    let line = |wanted: &dyn Fn(&Value) -> bool| -> Result<Value> {
        eventually(SOON, "the line", || {
            let log = host.log();
            let mut all = Vec::new();
            for line in log.lines() {
                all.push(serde_json::from_str::<Value>(line).with_context(|| format!("not JSON: {line}"))?);
            }
            all.into_iter()
                .find(|line| wanted(&line["fields"]))
                .with_context(|| log.clone())
        })
    };
    let drift = line(&|fields| fields["kind"] == "neighbour")?;
    assert_eq!(drift["level"], "WARN");
    assert_eq!(drift["fields"]["network"], "blue");
    assert_eq!(drift["fields"]["object"], "neighbour 10.1.1.1 of network blue");
    assert!(drift["fields"]["found"].is_string(), "{drift}");
    let problem = line(&|fields| fields["key"] == "networks/bad")?;
    assert_eq!(problem["fields"]["field"], "subnets[0].cidr");
    assert_eq!(problem["fields"]["source"], "record");
    let ready = line(&|fields| fields["endpoint"] == "blue/host1/a")?;
    assert_eq!(ready["fields"]["message"], "ready");
    let lost = line(&|fields| {
        fields["message"]
            .as_str()
            .is_some_and(|m| m.contains("no connection to etcd"))
    })?;
    assert!(lost["fields"]["why"].is_string(), "{lost}");
    // The start and the end as well.
    host.stop()?;
    line(&|fields| {
        fields["message"] == "started" && fields["node"] == "host1" && fields["version"].is_string()
    })?;
    line(&|fields| {
        fields["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("stopping"))
    })?;
    cluster.close()
}
