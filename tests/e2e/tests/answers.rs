//! What commands answer about what they did, did not do, and cannot know.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_e2e::{Cluster, SOON, addresses, attach, refused};
use weft_lab::eventually;

#[test]
fn an_mtu_that_the_underlay_does_not_carry_is_warned_of_and_shown() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let host = cluster.host(1);
    let made = host.weft_json(&["network", "create", "blue", "--subnet", "10.1.0.0/24"])?;
    assert_eq!((&made["warnings"], &made["mtu_set"]), (&json!([]), &json!(null)));
    attach(host, "blue", &cluster.container("a")?, "a", &[])?;
    let said = host.weft_output(&["network", "update", "blue", "--mtu", "8000"])?;
    ensure!(said.status.success(), "{said:?}");
    let (out, told) = (
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr),
    );
    ensure!(out.contains(" 8000 "), "{out}");
    ensure!(
        told.contains("MTU 8000 is more than the underlay carries on all hosts (1500"),
        "{told}"
    );
    let status = host.weft_json(&["status"])?;
    ensure!(
        status["problems"][0]["key"] == "networks/blue" && status["problems"][0]["field"] == "mtu",
        "{status}"
    );
    // The answer has what is in force by then.
    let changed = host.weft_json(&["network", "update", "blue", "--mtu", "1400"])?;
    assert_eq!(
        (&changed["mtu"], &changed["mtu_set"], &changed["warnings"]),
        (&json!(1400), &json!(1400), &json!([]))
    );
    let changed = host.weft_json(&["network", "update", "blue", "--mtu", "auto"])?;
    assert_eq!(
        (&changed["mtu"], &changed["mtu_set"]),
        (&json!(1450), &json!(null))
    );
    cluster.close()
}

#[test]
fn a_detach_of_nothing_says_what_there_is_instead() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let (one, two, three) = (cluster.host(1), cluster.host(2), cluster.host(3));
    one.weft(&["network", "create", "blue", "--subnet", "10.1.0.0/24"])?;
    let nothing = |note: serde_json::Value| json!({"existed": false, "record_pending": false, "note": note});
    assert_eq!(
        one.weft_json(&["endpoint", "detach", "bleu", "web"])?,
        nothing(json!("there is no network bleu"))
    );
    assert_eq!(
        one.weft_json(&["endpoint", "detach", "blue", "web"])?,
        nothing(json!(null))
    );
    attach(one, "blue", &cluster.container("w1")?, "web", &[])?;
    attach(two, "blue", &cluster.container("w2")?, "web", &[])?;
    attach(one, "blue", &cluster.container("o1")?, "other", &[])?;
    // Each host has its own of that id. Repeated, a detachment is done all the same.
    for (existed, note) in [
        (true, json!(null)),
        (false, json!("it is on host2: detach it there")),
    ] {
        let said = one.weft_json(&["endpoint", "detach", "blue", "web"])?;
        ensure!(said["existed"] == existed && said["note"] == note, "{said}");
    }
    cluster
        .get(&Cluster::endpoint_key("blue", 2, "web"))?
        .context("it is still there")?;
    // Without the store nobody knows, and nobody is kept waiting.
    cluster.etcd(1).stop()?;
    eventually(SOON, "it is noticed", || {
        let status = three.weft_json(&["status"])?;
        ensure!(status["store"]["connected"] == false, "{status}");
        Ok(())
    })?;
    let said = three.weft_json(&["endpoint", "detach", "blue", "web"])?;
    ensure!(
        said["existed"] == false && said["record_pending"] == true,
        "{said}"
    );
    cluster.etcd(1).start()?;
    let key = Cluster::endpoint_key("blue", 2, "web");
    cluster.get(&key)?.context("it is still there")?;
    cluster.close()
}

#[test]
fn a_host_where_no_agent_has_ever_run_is_named_and_not_waited_for() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    one.weft(&["network", "create", "blue", "--subnet", "10.1.0.0/24"])?;
    attach(one, "blue", &cluster.container("a")?, "a", &[])?;
    attach(two, "blue", &cluster.container("b")?, "b", &[])?;
    let bare = r#"{"attachment":{"netns":"/run/netns/x"}}"#;
    cluster.put(&Cluster::endpoint_key("blue", 9, "x"), bare)?;
    let said = one.weft_json(&["wait", "blue", "--timeout", "10s"])?;
    assert_eq!(
        (&said[0]["hosts"], &said[0]["unannounced"]),
        (&json!(["host1", "host2"]), &json!(["host9"]))
    );
    attach(
        one,
        "blue",
        &cluster.container("c")?,
        "c",
        &["--wait", "--timeout", "10s"],
    )?;
    for host in [one, two] {
        let status = host.weft_json(&["status"])?;
        let problem = &status["problems"][0];
        ensure!(
            problem["key"] == "endpoints/blue/host9/x"
                && problem["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("peers/host9")),
            "{status}"
        );
    }
    cluster.close()
}

#[test]
fn what_is_not_known_of_other_hosts_is_not_told_as_nothing() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    for (network, subnet) in [("blue", "10.1.0.0/24"), ("red", "10.2.0.0/24")] {
        one.weft(&["network", "create", network, "--subnet", subnet])?;
        eventually(SOON, "host2 has it", || {
            attach(
                two,
                network,
                &cluster.container(&format!("{network}2"))?,
                "b",
                &[],
            )
        })?;
    }
    attach(one, "blue", &cluster.container("blue1")?, "a", &["--wait"])?;
    let seen = one.weft_json(&["network", "list"])?;
    assert_eq!(
        (&seen[0]["remote_endpoints"], &seen[1]["remote_endpoints"]),
        (&json!(1), &json!(null)),
        "{seen}"
    );
    cluster.close()
}

#[test]
fn what_stands_in_the_way_is_told_with_the_option_that_helps() -> Result<()> {
    let cluster = Cluster::of(1)?;
    let host = cluster.host(1);
    host.weft(&[
        "network",
        "create",
        "blue",
        "--subnet",
        "10.1.0.0/29",
        "--vni",
        "77",
    ])?;
    let (a, b) = (cluster.container("a")?, cluster.container("b")?);
    let held = addresses(&attach(host, "blue", &a, "a", &[])?)?[0].to_string();
    let (path_a, path_b) = (a.path(), b.path());
    for (args, option) in [
        (&["network", "delete", "blue"][..], "--force"),
        (
            &["network", "create", "blue", "--subnet", "10.9.0.0/24"],
            "--add-subnet",
        ),
        (
            &[
                "network",
                "create",
                "red",
                "--subnet",
                "10.9.0.0/24",
                "--vni",
                "77",
            ],
            "--vni",
        ),
        (&["endpoint", "attach", "blue", &path_a, "--id", "x"], "--ifname"),
        (
            &["endpoint", "attach", "blue", &path_b, "--address", &held],
            "--address",
        ),
        (
            &["endpoint", "attach", "blue", &path_b, "--reservation", "none"],
            "--reservation",
        ),
    ] {
        refused(host, args, 4, option)?;
    }
    // Something else of the container's has the name.
    b.netns().exec(&["ip", "link", "add", "eth0", "type", "bridge"])?;
    let taken = ["endpoint", "attach", "blue", &path_b];
    refused(host, &taken, 4, "--ifname")?;
    attach(host, "blue", &b, "b", &["--ifname", "eth1"])?;
    host.weft(&["network", "create", "small", "--subnet", "10.2.0.0/30"])?;
    attach(host, "small", &cluster.container("c")?, "c", &[])?;
    let d = cluster.container("d")?.path();
    refused(
        host,
        &["endpoint", "attach", "small", &d],
        1,
        "'weft network update small --add-subnet CIDR'",
    )?;
    cluster.close()
}
