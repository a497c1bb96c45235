//! Hosts and agents that are taken for one another: two agents on a host, two hosts with one name or one address.

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use weft_e2e::{Cluster, SOON, Station, has_problem, no_problem, remote_fdb, status};
use weft_faults::{between, one_each};
use weft_lab::{Host, Lab, eventually};

/// Another agent on a host, with these arguments over its own, until it ends.
fn another_agent(host: &Host, args: &[&str]) -> Result<Output> {
    let config = host.config_path().display().to_string();
    let weftd = host.weft_path()?.with_file_name("weftd");
    let command = host
        .netns()
        .command("timeout")
        .args(["10"])
        .arg(weftd)
        .args(["--config", &config])
        .args(args)
        .output();
    command.context("starting weftd")
}

/// An agent for a host that has one already does not start, whichever of its places it shares, and says whose they are. The
/// first one loses nothing and is ready to be restarted at once, also after it was killed.
#[test]
fn two_agents_started_by_mistake_on_one_host() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let traffic = between(&stations)?;
    let host = cluster.host(1);
    let writes = weft_e2e::writes(host)?;
    let dir = tempdir(&cluster)?;
    let [socket, state, netns] = ["other.sock", "state", "netns"].map(|name| format!("{dir}/{name}"));
    let pid = host.pid().context("the agent runs")?;
    for (args, named) in [
        (vec![], "serves"),
        (vec!["--socket", &socket], "state_dir"),
        (
            vec!["--socket", &socket, "--state-dir", &state, "--node", "other"],
            "netns_dir",
        ),
        (
            vec!["--socket", &socket, "--state-dir", &state, "--netns-dir", &netns],
            "node name host1",
        ),
    ] {
        let ended = another_agent(host, &args)?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(
            ended.status.code() == Some(1),
            "{args:?}: {:?} {said}",
            ended.status
        );
        ensure!(
            said.contains(named) && said.contains(&format!("pid {pid}")),
            "{args:?}: {said}"
        );
    }
    ensure!(weft_e2e::writes(host)? == writes);
    host.kill9()?;
    host.start_weftd()?;
    ensure!(weft_e2e::writes(host)? == 0);
    traffic.wait_more(20)?;
    traffic.nothing_lost()?;
    cluster.close()
}

fn tempdir(cluster: &Cluster) -> Result<String> {
    let dir = cluster.run_dir().join("second");
    std::fs::create_dir_all(&dir)?;
    Ok(dir.display().to_string())
}

/// Three hosts, two of them with an agent and an endpoint that talk.
fn without_the_third() -> Result<(Cluster, Vec<Station>)> {
    let lab = Lab::builder().hosts(3).build()?;
    for number in [1, 2] {
        lab.host(number).start_weftd()?;
    }
    let cluster = Cluster::from_running(lab);
    cluster.network("blue", &weft_faults::CIDRS)?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 2, "b")?,
    ];
    cluster.up(&mut stations)?;
    Ok((cluster, stations))
}

/// A second host with the name of one that is there does nothing, says who has the name, and lets the first one be. With a
/// name of its own, or once the first is removed for good, it goes on.
#[test]
fn two_hosts_with_one_node_name() -> Result<()> {
    let (cluster, stations) = without_the_third()?;
    let traffic = between(&stations)?;
    let (first, second) = (cluster.host(1), cluster.host(3));
    let kept: Vec<_> = ["peers/host1", "alive/host1"]
        .map(|key| format!("/weft/v1/{key}"))
        .into();
    let before = kept
        .iter()
        .map(|key| cluster.get_kv(key))
        .collect::<Result<Vec<_>>>()?;

    second.spawn_weftd(&["--node", "host1"])?;
    eventually(SOON, "it says who has the name", || {
        has_problem(
            second,
            "peers/host1",
            "",
            "node name host1 is that of another host, 10.99.0.1",
        )?;
        has_problem(second, "peers/host1", "", "its agent runs since")?;
        has_problem(second, "peers/host1", "", "weft peer remove host1")
    })?;
    let container = cluster.container("c")?;
    let refused = second.weft_output(&["endpoint", "attach", "blue", &container.path(), "--id", "c"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(4), "{said}");
    ensure!(said.contains("node name host1 is that of another host"), "{said}");
    let refused = second.weft_output(&["endpoint", "detach", "blue", "a"])?;
    ensure!(
        refused.status.code() == Some(4),
        "{:?}",
        String::from_utf8_lossy(&refused.stderr)
    );
    traffic.wait_more(50)?;
    // Neither in the kernel nor in the store has it done anything.
    ensure!(!second.netns_of("blue").exists());
    let after = kept
        .iter()
        .map(|key| cluster.get_kv(key))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        format!("{before:?}") == format!("{after:?}"),
        "{before:?} {after:?}"
    );
    no_problem(first, "peers/host1")?;

    // The first one is killed: the name stays its own, and it is back at once.
    first.kill9()?;
    let restarted = Instant::now();
    first.start_weftd()?;
    ensure!(
        restarted.elapsed() < Duration::from_secs(8),
        "{:?}",
        restarted.elapsed()
    );
    ensure!(weft_e2e::writes(first)? == 0);
    traffic.wait_more(20)?;
    traffic.nothing_lost()?;

    // Without its agent it is still the first one's, until somebody says that it is gone for good.
    first.stop()?;
    eventually(SOON, "it says that the other's agent is gone", || {
        has_problem(second, "peers/host1", "", "its agent is not running")
    })?;
    cluster.host(2).weft(&["peer", "remove", "host1", "--yes"])?;
    second.wait_ready()?;
    eventually(SOON, "it is host1 now", || {
        let peer = cluster.get_json("/weft/v1/peers/host1")?.context("no record")?;
        ensure!(peer["vteps"][0] == "10.99.0.3", "{peer}");
        no_problem(second, "peers/host1")
    })?;
    second.weft(&["endpoint", "attach", "blue", &container.path(), "--id", "c"])?;
    // Now it is the other one that comes too late.
    first.spawn_weftd(&[])?;
    eventually(SOON, "the first one is told", || {
        has_problem(
            first,
            "peers/host1",
            "",
            "node name host1 is that of another host, 10.99.0.3",
        )
    })?;
    cluster.close()
}

/// A host that slept while it was removed, and while its name was given to another one, finds that out and stands still.
#[test]
fn a_name_that_was_given_away_while_its_host_slept() -> Result<()> {
    let (cluster, stations) = without_the_third()?;
    let (first, third) = (cluster.host(1), cluster.host(3));
    first.signal(Signal::SIGSTOP)?;
    cluster
        .host(2)
        .weft(&["peer", "remove", "host1", "--yes", "--force"])?;
    third.start_weftd_with(&["--node", "host1"])?;
    let peer = || -> Result<_> { cluster.get_kv("/weft/v1/peers/host1")?.context("no record") };
    let given = peer()?;
    ensure!(given.text()?.contains("10.99.0.3"), "{given:?}");

    let alive = || -> Result<_> { cluster.get("/weft/v1/alive/host1")?.context("nobody is alive") };
    let seen = alive()?;
    let before = weft_e2e::fdb(&first.netns_of("blue"))?;
    first.signal(Signal::SIGCONT)?;
    let whose = "node name host1 is that of another host, 10.99.0.3";
    eventually(SOON, "it is told", || {
        has_problem(first, "peers/host1", "", whose)
    })?;
    // The one that has the name works, and is the only one that is alive under it.
    let container = cluster.container("c")?;
    third.weft(&["endpoint", "attach", "blue", &container.path(), "--id", "c"])?;
    let other = stations[1].address(true);
    ensure!(
        container.ping_within(other, SOON),
        "c does not reach b at {other}"
    );
    eventually(SOON, "the one that has the name is the one that is alive", || {
        ensure!(alive()? == seen, "{} is not {seen}", alive()?);
        Ok(())
    })?;
    let after = peer()?;
    ensure!(
        after.mod_revision == given.mod_revision,
        "they fight: {given:?} {after:?}"
    );
    ensure!(weft_e2e::fdb(&first.netns_of("blue"))? == before);
    cluster.close()
}

/// Of two hosts that come up with one name at the same moment, one has it.
#[test]
fn two_hosts_with_one_node_name_at_the_same_moment() -> Result<()> {
    let cluster = Cluster::from_running(Lab::builder().hosts(2).build()?);
    for host in cluster.hosts() {
        host.spawn_weftd(&["--node", "same"])?;
    }
    eventually(SOON, "one has it, the other says so", || {
        let fenced: Vec<bool> = cluster
            .hosts()
            .iter()
            .map(|host| has_problem(host, "peers/same", "", "is that of another host").is_ok())
            .collect();
        ensure!(fenced.iter().filter(|fenced| **fenced).count() == 1, "{fenced:?}");
        Ok(())
    })?;
    let record = cluster.get_kv("/weft/v1/peers/same")?.context("no record")?;
    ensure!(
        record.mod_revision == record.create_revision,
        "they fought for it: {record:?}"
    );
    cluster.close()
}

/// Two hosts with one VTEP address: the older record keeps it, both are told, and what other hosts forward does not change.
#[test]
fn two_hosts_with_one_vtep_address() -> Result<()> {
    let (cluster, stations) = without_the_third()?;
    let traffic = between(&stations)?;
    let before = remote_fdb(&cluster.host(2).netns_of("blue"))?;

    let third = cluster.host(3);
    // On the underlay itself, the two must not fight: the third says nothing of the address there.
    for (setting, value) in [("arp_ignore", 1), ("arp_announce", 2)] {
        third.exec(&[
            "sysctl",
            "-q",
            "-w",
            &format!("net.ipv4.conf.all.{setting}={value}"),
        ])?;
    }
    third.exec(&["ip", "link", "add", "wrong", "type", "bridge"])?;
    third.exec(&["ip", "link", "set", "wrong", "up"])?;
    third.exec(&["ip", "address", "add", "10.99.0.1/32", "dev", "wrong"])?;
    third.start_weftd_with(&["--underlay-interface", "wrong"])?;
    let late = cluster.endpoint("blue", 3, "c")?;
    cluster.settle(&mut [late])?;
    for host in cluster.hosts() {
        eventually(SOON, "all are told", || {
            has_problem(
                host,
                "peers/host3",
                "vteps",
                "10.99.0.1 is the VTEP address of node host1",
            )?;
            has_problem(
                host,
                "peers/host1",
                "vteps",
                "node host3 names the VTEP address 10.99.0.1 too",
            )
        })?;
    }
    traffic.wait_more(30)?;
    ensure!(
        remote_fdb(&cluster.host(2).netns_of("blue"))? == before,
        "{before:?}"
    );
    traffic.nothing_lost()?;

    // With its own address, it takes part.
    third.stop()?;
    third.exec(&["ip", "link", "del", "wrong"])?;
    third.start_weftd()?;
    let mut all = stations;
    all.push(cluster.endpoint("blue", 3, "d")?);
    cluster.up(&mut all)?;
    for host in cluster.hosts() {
        eventually(SOON, "nothing is wrong any more", || {
            ensure!(
                status(host)?["problems"].as_array().is_none_or(Vec::is_empty),
                "{}",
                status(host)?["problems"]
            );
            Ok(())
        })?;
    }
    cluster.close()
}
