//! An agent that is downgraded: what a newer version wrote into the store, the state directory and the kernel is still
//! there when that version is back, and meanwhile nothing is lost.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::{Cluster, SOON, has_problem, no_problem};
use weft_faults::{Churn, between, one_each, writes_nothing_when_started_again};
use weft_lab::eventually;

const FUTURE: &str = "of_the_future";

fn future() -> Value {
    json!({"a": [1, {"b": null}], "c": "ü"})
}

#[test]
fn fields_of_a_newer_version_survive_every_write() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let traffic = between(&stations)?;
    let add = |key: &str| -> Result<()> {
        let mut record = cluster.get_json(key)?.with_context(|| key.to_owned())?;
        record[FUTURE] = future();
        cluster.put(key, &record.to_string())
    };
    let keys = [
        "/weft/v1/networks/blue",
        "/weft/v1/peers/host1",
        "/weft/v1/endpoints/blue/host1/a",
    ];
    keys.iter().try_for_each(|key| add(key))?;
    // Records that the agents complete: of a network, and of an endpoint in it.
    let red = json!({"subnets": [{"cidr": "10.9.0.0/24"}], FUTURE: future()});
    cluster.put("/weft/v1/networks/red", &red.to_string())?;
    let container = cluster.container("red-x")?;
    let record = json!({"attachment": {"netns": container.path(), FUTURE: 1}, FUTURE: future()});
    cluster.put("/weft/v1/endpoints/red/host1/x", &record.to_string())?;
    eventually(SOON, "they are completed", || {
        let done = |key: &str, field: &str| -> Result<()> {
            let record = cluster.get_json(key)?.context("no record")?;
            ensure!(!record[field].is_null(), "{record}");
            Ok(())
        };
        done("/weft/v1/networks/red", "vni")?;
        done("/weft/v1/endpoints/red/host1/x", "addresses")
    })?;
    // Records that are changed by command, and by what happens to the host.
    let host = cluster.host(1);
    host.weft(&["network", "update", "blue", "--label", "tier=1"])?;
    host.weft(&["network", "update", "red", "--add-subnet", "10.8.0.0/24"])?;
    host.exec(&["ip", "link", "set", "eth0", "mtu", "1480"])?;
    eventually(SOON, "the peer record is written anew", || {
        let peer = cluster.get_json("/weft/v1/peers/host1")?.context("no record")?;
        ensure!(peer["mtu"] == 1480, "{peer}");
        Ok(())
    })?;
    for restart in [false, true] {
        if restart {
            cluster.hosts().iter().try_for_each(weft_lab::Host::restart)?;
        }
        let all = keys
            .iter()
            .chain(&["/weft/v1/networks/red", "/weft/v1/endpoints/red/host1/x"]);
        for key in all {
            let record = cluster.get_json(key)?.with_context(|| (*key).to_owned())?;
            ensure!(record[FUTURE] == future(), "{key}: {record}");
        }
        let inside = cluster
            .get_json("/weft/v1/endpoints/red/host1/x")?
            .context("no record")?;
        ensure!(inside["attachment"][FUTURE] == 1, "{inside}");
    }
    traffic.nothing_lost()?;
    cluster.close()
}

#[test]
fn records_of_a_newer_version_are_told_and_left() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let traffic = between(&stations)?;
    let keys = [
        "networks/blue",
        "peers/host2",
        "endpoints/blue/host2/b",
        "endpoints/blue/host1/a",
    ];
    // The other host has the newer version.
    cluster.host(2).kill9()?;
    let mut before = Vec::new();
    for key in keys {
        let full = format!("/weft/v1/{key}");
        before.push((full.clone(), cluster.get(&full)?.context("no record")?));
        cluster.put(&full, r#"{"version":9,"everything":{"is":"elsewhere"}}"#)?;
    }
    let host = cluster.host(1);
    for restart in [false, true] {
        if restart {
            host.kill9()?;
            host.start_weftd()?;
        }
        for key in keys {
            eventually(SOON, &format!("{key} is told"), || {
                has_problem(host, key, "version", "9")
            })?;
        }
        traffic.wait_more(30)?;
        cluster.all_talk(&stations)?;
        for (key, _) in &before {
            let now = cluster.get_json(key)?.context("no record")?;
            ensure!(now["version"] == 9, "{key}: {now}");
        }
    }
    for (key, record) in &before {
        cluster.put(key, record)?;
    }
    for key in keys {
        eventually(SOON, &format!("{key} is fine"), || no_problem(host, key))?;
    }
    cluster.host(2).start_weftd()?;
    writes_nothing_when_started_again(host)?;
    traffic.nothing_lost()?;
    cluster.close()
}

/// What a newer version makes in the kernel that this one does not know, and remembers in its state directory.
#[test]
fn what_a_newer_version_made_on_the_host_is_left() -> Result<()> {
    let scene = Churn::new()?;
    scene.attach()?;
    let host = scene.host();
    let traffic = between(&scene.stations)?;
    host.stop()?;
    let namespace = host.netns_of("red");
    let made = [
        "ip link add wx0 type bridge",
        "ip link set wx0 alias weft-of-the-future",
        // Replication to the hosts of the network, and a group's.
        "bridge fdb append 00:00:00:00:00:00 dev vx4 dst 10.99.0.2 self extern_learn",
        "bridge fdb append 01:00:5e:00:00:fb dev vx4 dst 10.99.0.2 self extern_learn",
        "bridge link set dev vx4 fastleave on",
        "ip neigh add 10.2.0.230 lladdr 02:00:00:00:00:aa dev br0 nud permanent protocol 88",
        "nft add table inet weft",
    ];
    for line in made {
        namespace.exec(&line.split(' ').collect::<Vec<_>>())?;
    }
    let state = host.dir().join("state");
    let of_file = |name: &str| -> Result<Value> {
        let text = std::fs::read_to_string(state.join(name)).with_context(|| name.to_owned())?;
        Ok(serde_json::from_str(&text)?)
    };
    let mut store = of_file("store.json")?;
    store[FUTURE] = future();
    std::fs::write(state.join("store.json"), store.to_string())?;
    std::fs::write(
        state.join("detached.json"),
        json!([{FUTURE: future()}]).to_string(),
    )?;

    host.start_weftd()?;
    let picture = || -> Result<[String; 5]> {
        Ok([
            namespace.exec(&["ip", "-d", "link", "show", "wx0"])?,
            namespace.exec(&["bridge", "fdb", "show", "dev", "vx4"])?,
            namespace.exec(&["bridge", "-d", "link", "show", "dev", "vx4"])?,
            namespace.exec(&["ip", "neigh", "show", "dev", "br0"])?,
            namespace.exec(&["nft", "list", "ruleset"])?,
        ])
    };
    let before = picture()?;
    ensure!(weft_e2e::writes(host)? == 0 && weft_e2e::counter(host, "/drift_repaired/total")? == 0);
    // A repair beside it, a detachment that is remembered until it is done, a stop that remembers the store.
    let drift = weft_e2e::counter(host, "/drift_repaired/total")?;
    namespace.exec(&["ip", "link", "set", "vx4", "mtu", "1300"])?;
    eventually(SOON, "repaired", || {
        ensure!(weft_e2e::counter(host, "/drift_repaired/total")? > drift);
        Ok(())
    })?;
    let container = scene.cluster.container("blue-z")?;
    host.weft(&["endpoint", "attach", "blue", &container.path(), "--id", "z"])?;
    host.weft(&["endpoint", "detach", "blue", "z"])?;
    host.restart()?;
    ensure!(picture()? == before, "{:#?}, wanted {before:#?}", picture()?);
    ensure!(
        of_file("store.json")?[FUTURE] == future(),
        "{}",
        of_file("store.json")?
    );
    ensure!(
        of_file("detached.json")?[0][FUTURE] == future(),
        "{}",
        of_file("detached.json")?
    );
    traffic.nothing_lost()?;
    scene.cluster.close()
}
