//! The operator's command against real agents: what it does is in etcd, in the kernel and on the wire when it returns.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::{Cluster, SOON, addresses, attach, fails, link, refused};
use weft_lab::{Container, Lab, eventually};

#[test]
fn networks_are_created_listed_shown_and_deleted() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let host = cluster.host(1);
    assert_eq!(host.weft_json(&["network", "list"])?, json!([]));
    let made = host.weft_json(&[
        "network",
        "create",
        "blue",
        "--subnet",
        "10.1.0.0/24",
        "--subnet",
        "fd00:1::/64",
        "--gateway",
        "10.1.0.254",
        "--reserved",
        "10.1.0.2-10.1.0.9",
        "--mtu",
        "1400",
        "--label",
        "team=net",
    ])?;
    let vni = made["vni"].as_u64().context("a claimed VNI")?;
    // In etcd as somebody would have written it, with the VNI claimed.
    let record = cluster
        .get_json(&Cluster::network_key("blue"))?
        .context("record")?;
    assert_eq!(record["vni"], vni);
    assert_eq!(record["mtu"], 1400);
    assert_eq!(record["labels"], json!({"team": "net"}));
    assert_eq!(record["subnets"][0]["gateway"], "10.1.0.254");
    assert_eq!(
        cluster
            .get_json(&format!("/weft/v1/vnis/{vni}"))?
            .context("claim")?["network"],
        "blue"
    );
    // The same on the other host's agent, as soon as it has heard of it.
    eventually(SOON, "host2 lists it", || {
        let networks = cluster.host(2).weft_json(&["network", "list"])?;
        ensure!(
            networks[0]["name"] == "blue" && networks[0]["vni"] == vni,
            "{networks}"
        );
        Ok(())
    })?;
    let table = host.weft(&["network", "list"])?;
    assert!(
        table.contains("blue") && table.contains("10.1.0.0/24") && table.contains(&vni.to_string()),
        "{table}"
    );
    let shown = host.weft(&["network", "inspect", "blue"])?;
    assert!(
        shown.contains("fd00:1::/64") && shown.contains("10.1.0.254"),
        "{shown}"
    );

    refused(
        host,
        &["network", "create", "blue", "--subnet", "10.2.0.0/24"],
        4,
        "blue",
    )?;
    refused(
        host,
        &[
            "network",
            "create",
            "other",
            "--subnet",
            "10.2.0.0/24",
            "--vni",
            &vni.to_string(),
        ],
        4,
        "blue",
    )?;
    refused(host, &["network", "inspect", "none"], 3, "none")?;
    refused(host, &["network", "delete", "none"], 3, "none")?;
    refused(
        host,
        &["network", "create", "a/b", "--subnet", "10.2.0.0/24"],
        2,
        "a/b",
    )?;
    refused(
        host,
        &[
            "network",
            "create",
            "x",
            "--subnet",
            "10.2.0.0/24",
            "--gateway",
            "10.3.0.1",
        ],
        2,
        "10.3.0.1",
    )?;
    refused(
        host,
        &["network", "create", "x", "--subnet", "10.2.0.0"],
        2,
        "10.2.0.0",
    )?;
    refused(
        host,
        &[
            "network",
            "create",
            "x",
            "--subnet",
            "10.2.0.0/24",
            "--vni",
            "16777216",
        ],
        2,
        "16777215",
    )?;
    refused(
        host,
        &[
            "network",
            "create",
            "x",
            "--subnet",
            "10.2.0.0/16",
            "--subnet",
            "10.2.3.0/24",
        ],
        2,
        "10.2.3.0/24",
    )?;
    refused(host, &["no-such-command"], 2, "no-such-command")?;
    assert_eq!(
        cluster.get_prefix("/weft/v1/networks/")?.len(),
        1,
        "nothing refused was written"
    );

    // Not while it has endpoints, also when they are another host's.
    let container = cluster.container("c")?;
    attach(cluster.host(2), "blue", &container, "c", &[])?;
    refused(host, &["network", "delete", "blue"], 4, "c")?;
    cluster.host(2).weft(&["endpoint", "detach", "blue", "c"])?;
    host.weft(&["network", "delete", "blue"])?;
    assert_eq!(cluster.get(&Cluster::network_key("blue"))?, None);
    eventually(SOON, "the VNI is free", || {
        ensure!(cluster.get_prefix("/weft/v1/vnis/")?.is_empty());
        Ok(())
    })?;
    assert_eq!(host.weft_json(&["network", "list"])?, json!([]));
    cluster.close()
}

#[test]
fn an_attach_returns_when_it_works() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    one.weft(&[
        "network",
        "create",
        "blue",
        "--subnet",
        "10.1.0.0/24",
        "--subnet",
        "fd00:1::/64",
    ])?;
    let (a, b, c) = (
        cluster.container("a")?,
        cluster.container("b")?,
        cluster.container("c")?,
    );
    // The network is host1's news; host2 is asked at once.
    let first = attach(two, "blue", &b, "b", &["--name", "the b"])?;
    let second = attach(
        one,
        "blue",
        &a,
        "a",
        &["--name", "web server", "--label", "tier=front"],
    )?;
    // Its interface is up with its addresses when the command returns, and what is on the same host answers.
    let held: BTreeSet<IpAddr> = a.addresses()?.into_iter().collect();
    assert_eq!(held, addresses(&second)?.into_iter().collect());
    assert_eq!(link(a.netns(), "eth0")?["operstate"], "UP");
    assert_eq!(
        (&second["state"], &second["local"]),
        (&json!("ready"), &json!(true))
    );
    let third = attach(one, "blue", &c, "c", &[])?;
    for address in addresses(&third)? {
        assert!(a.ping(address), "{address} from the same host right after");
    }
    // Host1 knew of b before a was attached, so its side is there; host2 has heard within moments.
    for address in addresses(&first)? {
        eventually(SOON, "the other host answers", || {
            ensure!(a.ping_within(address, Duration::from_millis(300)));
            Ok(())
        })?;
    }

    // Which veth is whose: the list says it, the device says it, and they agree.
    let listed = one.weft_json(&["endpoint", "list"])?;
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    for (id, container) in [("a", &a), ("c", &c)] {
        let entry = listed
            .as_array()
            .into_iter()
            .flatten()
            .find(|e| e["id"] == id)
            .context("entry")?;
        let veth = entry["veth"]["name"].as_str().context("veth")?;
        let network = one.netns_of("blue");
        assert_eq!(entry["veth"]["namespace"], network.path().display().to_string());
        let there = link(&network, veth)?;
        let eth0 = link(container.netns(), "eth0")?;
        assert_eq!(
            there["link_index"], eth0["ifindex"],
            "the other end is in the container"
        );
        assert_eq!(eth0["link_index"], there["ifindex"]);
        assert_eq!(entry["mac"], eth0["address"]);
        assert_eq!(
            entry["attachment"],
            json!({"netns": container.path(), "ifname": "eth0"})
        );
        let name = if id == "a" {
            "blue/host1/a web server"
        } else {
            "blue/host1/c"
        };
        assert_eq!(there["ifalias"], format!("weft {name}"));
        assert_eq!(eth0["ifalias"], there["ifalias"]);
        let table = one.weft(&["endpoint", "list"])?;
        let row = table
            .lines()
            .find(|row| row.contains(veth))
            .with_context(|| table.clone())?;
        assert!(row.contains(id) && row.contains("host1"), "{row}");
    }
    let remote = listed
        .as_array()
        .into_iter()
        .flatten()
        .find(|e| e["id"] == "b")
        .context("b")?;
    assert_eq!(
        (&remote["node"], &remote["veth"], &remote["vtep"]),
        (&json!("host2"), &Value::Null, &json!("10.99.0.2"))
    );
    assert_eq!(
        one.weft_json(&["endpoint", "list", "--local"])?
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    assert_eq!(
        one.weft_json(&["endpoint", "list", "--node", "host2"])?
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    refused(one, &["endpoint", "list", "--network", "none"], 3, "none")?;
    let shown = one.weft(&["endpoint", "inspect", "blue", "a"])?;
    assert!(
        shown.contains("web server") && shown.contains(&a.path()),
        "{shown}"
    );
    assert_eq!(
        one.weft_json(&["endpoint", "inspect", "blue", "b", "--node", "host2"])?["name"],
        "the b"
    );
    refused(one, &["endpoint", "inspect", "blue", "none"], 3, "none")?;

    // Repeated it is the same endpoint; another under its id is refused, as is a second one in its place.
    let again = attach(one, "blue", &a, "a", &[])?;
    assert_eq!(again["addresses"], second["addresses"]);
    let other = cluster.container("other")?;
    refused(
        one,
        &["endpoint", "attach", "blue", &other.path(), "--id", "a"],
        4,
        "blue/host1/a",
    )?;
    refused(
        one,
        &["endpoint", "attach", "blue", &a.path(), "--id", "a2"],
        4,
        "blue/host1/a",
    )?;
    refused(one, &["endpoint", "attach", "none", &other.path()], 3, "none")?;
    refused(
        one,
        &["endpoint", "attach", "blue", "no-such-namespace"],
        2,
        "no such network namespace",
    )?;
    refused(
        one,
        &[
            "endpoint",
            "attach",
            "blue",
            &other.path(),
            "--address",
            "10.9.0.1",
        ],
        2,
        "10.9.0.1",
    )?;
    refused(
        one,
        &[
            "endpoint",
            "attach",
            "blue",
            &other.path(),
            "--mac",
            "01:00:5e:00:00:01",
        ],
        2,
        "mac",
    )?;
    refused(
        one,
        &["endpoint", "attach", "blue", &other.path(), "--ifname", "lo"],
        2,
        "ifname",
    )?;
    assert_eq!(
        cluster.get_prefix("/weft/v1/endpoints/")?.len(),
        3,
        "nothing refused was written"
    );
    // A second interface in the same container.
    attach(
        one,
        "blue",
        &a,
        "a-second",
        &["--ifname", "eth1", "--mac", "02:00:00:00:00:77"],
    )?;
    assert_eq!(link(a.netns(), "eth1")?["address"], "02:00:00:00:00:77");

    // Gone when detach returns: the device, the record and the claims.
    let before = cluster.get_prefix("/weft/v1/addresses/blue/")?.len();
    let gone = one.weft_json(&["endpoint", "detach", "blue", "c"])?;
    assert_eq!(
        gone,
        json!({"existed": true, "record_pending": false, "note": null})
    );
    assert!(link(c.netns(), "eth0").is_err());
    assert_eq!(cluster.get(&Cluster::endpoint_key("blue", 1, "c"))?, None);
    assert_eq!(cluster.get_prefix("/weft/v1/addresses/blue/")?.len(), before - 2);
    let again = one.weft_json(&["endpoint", "detach", "blue", "c"])?;
    assert_eq!(
        again,
        json!({"existed": false, "record_pending": false, "note": null})
    );
    cluster.close()
}

#[test]
fn peers_status_version_and_events_tell_what_is() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let host = cluster.host(1);
    let events = {
        let mut command = host.netns().command(weft_lab::bin_dir()?.join("weft"));
        let mut child = command
            .arg("--socket")
            .arg(host.socket())
            .args(["events", "-o", "json"])
            .stdout(Stdio::piped())
            .spawn()?;
        let (sender, lines) = std::sync::mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        (child, lines)
    };
    let (mut child, lines) = events;
    eventually(SOON, "both peers are alive", || {
        let peers = host.weft_json(&["peer", "list"])?;
        ensure!(peers.as_array().map(Vec::len) == Some(2), "{peers}");
        for (number, peer) in peers.as_array().into_iter().flatten().enumerate() {
            ensure!(peer["node"] == format!("host{}", number + 1), "{peers}");
            ensure!(
                peer["vteps"] == json!([format!("10.99.0.{}", number + 1)]),
                "{peers}"
            );
            ensure!(
                peer["alive"] == true && peer["mtu"] == 1500 && peer["kind"] == "agent",
                "{peers}"
            );
            ensure!(peer["local"] == (number == 0), "{peers}");
        }
        Ok(())
    })?;
    let table = host.weft(&["peer", "list"])?;
    assert!(table.contains("host2") && table.contains("10.99.0.2"), "{table}");
    let status = host.weft_json(&["status"])?;
    assert_eq!(
        (&status["node"], &status["store"]["connected"]),
        (&json!("host1"), &json!(true))
    );
    assert!(host.weft(&["status"])?.contains("host1"));
    let version = host.weft_json(&["version"])?;
    assert_eq!(version["agent"]["node"], "host1");
    assert_eq!(version["agent"]["version"], version["client"]["version"]);
    assert!(host.weft(&["completions", "bash"])?.contains("weft"));

    // The stream of events may have begun a moment after the command did: things happen until it has them.
    let mut heard: Vec<Value> = Vec::new();
    let mut round = 0;
    let wanted = [
        "network_put",
        "endpoint_put",
        "endpoint_ready",
        "endpoint_deleted",
        "network_deleted",
    ];
    eventually(SOON * 2, "all kinds of events", || {
        round += 1;
        let (network, container) = (format!("n{round}"), cluster.container(&format!("ev{round}"))?);
        host.weft(&["network", "create", &network, "--subnet", "10.1.0.0/24"])?;
        attach(host, &network, &container, "c", &[])?;
        host.weft(&["endpoint", "detach", &network, "c"])?;
        host.weft(&["network", "delete", &network])?;
        while let Ok(line) = lines.recv_timeout(Duration::from_millis(300)) {
            heard.push(serde_json::from_str(&line).with_context(|| line.clone())?);
        }
        for kind in wanted {
            ensure!(
                heard.iter().any(|event| event["kind"] == kind),
                "no {kind} in {heard:?}"
            );
        }
        Ok(())
    })?;
    let ready = heard
        .iter()
        .find(|e| e["kind"] == "endpoint_ready")
        .context("ready")?;
    assert_eq!(
        (&ready["node"], &ready["endpoint_id"]),
        (&json!("host1"), &json!("c"))
    );
    child.kill()?;
    child.wait()?;

    // A host that is gone stays a peer and is not alive.
    cluster.host(2).stop()?;
    eventually(SOON, "host2 is not alive", || {
        let peers = host.weft_json(&["peer", "list"])?;
        ensure!(
            peers[1]["node"] == "host2" && peers[1]["alive"] == false,
            "{peers}"
        );
        Ok(())
    })?;
    refused(cluster.host(2), &["status"], 5, "weftd")?;
    let (code, said) = fails(cluster.host(2), &["-o", "json", "network", "list"])?;
    let error: Value = serde_json::from_str(said.trim()).with_context(|| said.clone())?;
    assert!(code == 5 && error.is_object(), "{said}");
    cluster.close()
}

#[test]
fn without_etcd_an_attach_fails_soon_and_a_detach_works() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let host = cluster.host(1);
    host.weft(&["network", "create", "blue", "--subnet", "10.1.0.0/24"])?;
    let names = ["stays", "goes", "goes-too"];
    let containers: Vec<Container> = names
        .iter()
        .map(|n| cluster.container(n))
        .collect::<Result<_>>()?;
    let mut made = Vec::new();
    for (name, container) in names.iter().zip(&containers) {
        made.push(attach(host, "blue", container, name, &[])?);
    }
    let remote = cluster.container("remote")?;
    let far = addresses(&attach(cluster.host(2), "blue", &remote, "remote", &[])?)?[0];
    eventually(SOON, "they talk", || {
        ensure!(containers[0].ping_within(far, Duration::from_millis(300)));
        Ok(())
    })?;
    let stream = containers[0].ping_stream(far, 100)?;
    cluster.etcd(1).stop()?;

    let new = cluster.container("new")?;
    let asked = Instant::now();
    let (code, said) = fails(host, &["endpoint", "attach", "blue", &new.path(), "--id", "new"])?;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(code == 5 && said.contains("store"), "{code}: {said}");
    let asked = Instant::now();
    let (code, said) = fails(host, &["network", "create", "red", "--subnet", "10.2.0.0/24"])?;
    assert!(
        code == 5 && asked.elapsed() < Duration::from_secs(3),
        "{code}: {said}"
    );
    let status = host.weft_json(&["status"])?;
    assert_eq!(status["store"]["connected"], false);
    assert!(status["store"]["last_error"].is_string(), "{}", status["store"]);
    // What is known is told, and what is not known is not.
    let peers = host.weft_json(&["peer", "list"])?;
    assert_eq!(peers[1]["node"], "host2", "{peers}");
    assert!(
        peers[1]["alive"].is_null() && peers[1]["vteps"].is_array(),
        "{peers}"
    );

    // Local work goes on: the device is gone when it returns, and says that the record is not.
    let gone = host.weft_json(&["endpoint", "detach", "blue", "goes"])?;
    assert_eq!(
        gone,
        json!({"existed": true, "record_pending": true, "note": null})
    );
    assert!(link(containers[1].netns(), "eth0").is_err());
    assert!(
        host.weft(&["endpoint", "detach", "blue", "goes-too"])?
            .contains("removed from the store")
    );
    // Remembered over the end of the agent, too, which starts without the store and does not bring it back.
    host.kill9()?;
    host.spawn_weftd(&[])?;
    eventually(SOON, "the agent answers", || host.weft(&["version"]).map(drop))?;
    assert!(link(containers[1].netns(), "eth0").is_err());
    cluster.etcd(1).start()?;
    host.wait_ready()?;
    eventually(SOON * 2, "the store has caught up", || {
        let endpoints = cluster.get_prefix("/weft/v1/endpoints/blue/host1/")?;
        let claims = cluster.get_prefix("/weft/v1/addresses/blue/")?;
        ensure!(
            endpoints.len() == 1 && claims.len() == 2,
            "{endpoints:?} {claims:?}"
        );
        Ok(())
    })?;
    for container in &containers[1..] {
        assert!(link(container.netns(), "eth0").is_err(), "it did not come back");
    }
    let sum = stream.stop();
    assert!(
        sum.lost() == 0 && sum.sent > 200,
        "what runs was not disturbed: {sum:?}"
    );
    // The same id may be used again.
    attach(host, "blue", &containers[1], "goes", &[])?;
    assert!(containers[1].ping(addresses(&made[0])?[0]));
    cluster.close()
}

#[test]
fn teardown_removes_all_of_ours_and_nothing_else() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let host = cluster.host(1);
    let mut stations = Vec::new();
    for network in ["blue", "red"] {
        cluster.network(network, &["10.1.0.0/24", "fd00:1::/64"])?;
        let mut here = vec![
            cluster.endpoint(network, 1, "a")?,
            cluster.endpoint(network, 2, "b")?,
        ];
        cluster.up(&mut here)?;
        stations.extend(here);
    }
    // Beside ours: another interface in the container, another namespace in the directory.
    stations[0]
        .container
        .exec(&["ip", "link", "add", "mine", "type", "bridge"])?;
    let foreign = host.netns_of("blue").path().with_file_name("someone-elses");
    std::fs::write(&foreign, "")?;
    let on_host = || host.exec(&["ip", "-br", "link", "show"]);
    let before = on_host()?;

    let mut second = host.netns().command(weft_lab::bin_dir()?.join("weftd"));
    second.arg("--config").arg(host.config_path());
    let output = second.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("weftd.sock"),
        "a second agent is refused: {said}"
    );
    let running = host
        .teardown()
        .err()
        .context("a teardown beside a running agent is refused")?;
    assert!(format!("{running:#}").contains("stop weftd"), "{running:#}");
    cluster.all_talk(&stations[..2])?;

    // Ends with status 0 on SIGTERM, which `stop` checks.
    host.stop()?;
    // Without the store as well.
    cluster.etcd(1).stop()?;
    let said = host.teardown()?;
    assert!(said.contains("blue") && said.contains("red"), "{said}");
    for network in ["blue", "red"] {
        let namespace = host.netns_of(network);
        assert!(
            !namespace.exists() && !namespace.path().exists(),
            "{}",
            namespace.path().display()
        );
    }
    for station in stations.iter().filter(|s| s.host == 1) {
        assert!(
            link(station.container.netns(), "eth0").is_err(),
            "{}",
            station.network
        );
    }
    assert!(link(stations[0].container.netns(), "mine").is_ok() && foreign.exists());
    assert_eq!(on_host()?, before);
    assert!(host.teardown()?.contains("nothing"));

    // The records stay: with the store and an agent everything is back.
    cluster.etcd(1).start()?;
    host.start_weftd()?;
    for stations in stations.chunks(2) {
        cluster.all_talk(stations)?;
    }
    cluster.close()
}

#[test]
fn a_first_start_without_etcd_becomes_ready_with_it() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    lab.etcd(1).stop()?;
    let host = lab.host(1);
    host.spawn_weftd(&[])?;
    eventually(SOON, "it answers without the store", || {
        let status = host.weft_json(&["status"])?;
        ensure!(status["store"]["connected"] == false, "{status}");
        Ok(())
    })?;
    lab.etcd(1).start()?;
    host.wait_ready()?;
    assert_eq!(host.weft_json(&["status"])?["store"]["connected"], true);
    host.stop()?;
    lab.close()
}
