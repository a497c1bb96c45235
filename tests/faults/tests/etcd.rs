//! etcd is down, in part or whole, loses leases, or takes no writes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use weft_e2e::{Cluster, SOON, Station, attach, fails, has_problem, link, no_problem, status, writes};
use weft_faults::{between, caught_up, connected, forwards_as_recorded, log_lines, one_each};
use weft_lab::{EtcdMember, Host, Lab, eventually};

/// An attach without etcd fails within three seconds; some more for starting a program on a busy machine.
const SOON_ENOUGH: Duration = Duration::from_millis(4500);

/// Attaches, which fails: for the store, in time, in words.
fn attach_fails(cluster: &Cluster, host: &Host, id: &str, status: i32, words: &str) -> Result<Duration> {
    let container = cluster.container(id)?;
    let path = container.path();
    let asked = Instant::now();
    let (code, said) = fails(host, &["endpoint", "attach", "blue", &path, "--id", id])?;
    let took = asked.elapsed();
    println!("{id}: after {took:?}: {}", said.trim());
    ensure!(code == status && said.contains(words), "{id}: {code}: {said}");
    ensure!(took < SOON_ENOUGH, "{id}: {took:?}: {said}");
    Ok(took)
}

/// An endpoint that can be spared.
fn spare(cluster: &Cluster, host: &Host, id: &str) -> Result<Station> {
    let container = cluster.container(id)?;
    let made = attach(host, "blue", &container, id, &[])?;
    Ok(Station {
        network: "blue".to_owned(),
        host: host.number(),
        id: id.to_owned(),
        container,
        addresses: weft_e2e::addresses(&made)?,
    })
}

/// Detaches without the store: the container is free when it returns.
fn detach_pending(host: &Host, station: &Station) -> Result<()> {
    let said = host.weft_json(&["endpoint", "detach", "blue", &station.id])?;
    ensure!(
        said == json!({"existed": true, "record_pending": true, "note": null}),
        "{said}"
    );
    ensure!(
        link(station.container.netns(), "eth0").is_err(),
        "the device stays"
    );
    Ok(())
}

/// What was detached is told to the store, and so to the others: how long it took.
fn told(cluster: &Cluster, stations: &[Station]) -> Result<Duration> {
    let start = Instant::now();
    eventually(SOON * 2, "the store has been told of what was detached", || {
        for station in stations {
            ensure!(cluster.get(&station.key())?.is_none(), "{}", station.key());
            for address in &station.addresses {
                let claim = format!("/weft/v1/addresses/blue/{address}");
                ensure!(cluster.get(&claim)?.is_none(), "{claim}");
            }
        }
        Ok(())
    })?;
    Ok(start.elapsed())
}

/// A follower, then the leader, of three members dies: changes go on, at once or when a leader is chosen.
#[test]
fn one_of_three_members_dies() -> Result<()> {
    let cluster = Cluster::build(Lab::builder().hosts(2).etcd_members(3))?;
    let stations = one_each(&cluster)?;
    let traffic = between(&stations)?;
    for who in ["a follower", "the leader"] {
        let leader = eventually(SOON, "somebody leads", || Ok(cluster.etcd_leader()?.number()))?;
        let dies = if who == "the leader" {
            leader
        } else {
            leader % 3 + 1
        };
        cluster.etcd(dies).kill9()?;
        for host in cluster.hosts() {
            // Refused or done: never silent. Done as soon as there is a leader.
            let id = format!("{}-{}", who.rsplit(' ').next().unwrap_or_default(), host.node());
            let container = cluster.container(&id)?;
            let killed = Instant::now();
            eventually(SOON * 2, &format!("{id} is attached without {who}"), || {
                let asked = Instant::now();
                let done = attach(host, "blue", &container, &id, &[]);
                ensure!(asked.elapsed() < SOON_ENOUGH, "{id}: {:?}", asked.elapsed());
                done.map(drop)
            })?;
            println!("without {who}: {id} is attached after {:?}", killed.elapsed());
        }
        println!(
            "without {who}: caught up {:?}",
            caught_up(&cluster, cluster.hosts(), "blue")?
        );
        cluster.etcd(dies).start()?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}

/// The majority dies, or all do, or all are frozen with their connections open.
#[test]
fn all_members_are_down() -> Result<()> {
    let cluster = Cluster::build(Lab::builder().hosts(2).etcd_members(3))?;
    let stations = one_each(&cluster)?;
    let [one, two] = [cluster.host(1), cluster.host(2)];
    let traffic = between(&stations)?;
    type Deed = fn(&EtcdMember) -> Result<()>;
    let (kill, spawn, freeze, thaw): (Deed, Deed, Deed, Deed) = (
        EtcdMember::kill9,
        EtcdMember::spawn,
        EtcdMember::freeze,
        EtcdMember::thaw,
    );
    for (what, members, down, up) in [
        ("frozen", &[1, 2, 3][..], freeze, thaw),
        ("two-killed", &[1, 2], kill, spawn),
        ("killed", &[1, 2, 3], kill, spawn),
    ] {
        let goes = spare(&cluster, one, &format!("goes-{what}"))?;
        // The other host hears of it a moment after the attach has returned.
        caught_up(&cluster, [one, two], "blue")?;
        let before = writes(two)?;
        for member in members {
            down(cluster.etcd(*member))?;
        }
        // Whether or not it has been noticed that nobody answers.
        if what == "killed" {
            for host in [one, two] {
                connected(host, false)?;
            }
        }
        attach_fails(&cluster, one, &format!("new-{what}"), 5, "store")?;
        detach_pending(one, &goes)?;
        assert_eq!(
            writes(two)?,
            before,
            "nothing is done to the kernel for an outage"
        );
        // At first only as many as are needed, where that makes a difference.
        let (late, back) = members.split_at(usize::from(what == "killed"));
        for member in back {
            up(cluster.etcd(*member))?;
        }
        cluster.etcd(2).wait_ready()?;
        let answers = Instant::now();
        cluster.put("/weft/v1/endpoints/blue/host2/b2", &record(&cluster, what)?)?;
        for host in [one, two] {
            connected(host, true)?;
        }
        let found = answers.elapsed();
        told(&cluster, std::slice::from_ref(&goes))?;
        let told = answers.elapsed();
        caught_up(&cluster, [one, two], "blue")?;
        let all = answers.elapsed();
        println!("{what}: back; after {found:?} connected, {told:?} told, {all:?} caught up");
        ensure!(all < SOON, "{what}: {all:?}");
        for member in late {
            up(cluster.etcd(*member))?;
            cluster.etcd(*member).wait_ready()?;
        }
        cluster.del("/weft/v1/endpoints/blue/host2/b2")?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}

/// The record of an endpoint in a container of its own.
fn record(cluster: &Cluster, name: &str) -> Result<String> {
    let container = cluster.container(&format!("later-{name}"))?;
    Ok(json!({"attachment": {"netns": container.path()}}).to_string())
}

/// All leases of the cluster end, as when a leader stalled for long: presence says so, and comes back.
#[test]
fn all_leases_are_revoked() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let hosts = cluster.hosts();
    let traffic = between(&stations)?;
    let before = hosts.iter().map(writes).collect::<Result<Vec<_>>>()?;
    // Paused, it cannot take another lease: who looks sees that it is away.
    hosts[1].signal(Signal::SIGSTOP)?;
    let leases = cluster.etcdctl(&["lease", "list"])?;
    let ids: Vec<&str> = leases.lines().filter(|line| !line.contains(' ')).collect();
    ensure!(ids.len() == 2, "{leases}");
    for id in ids {
        cluster.etcdctl(&["lease", "revoke", id])?;
    }
    let revoked = Instant::now();
    alive(&hosts[0], "host2", false)?;
    traffic.wait_more(50)?;
    hosts[1].signal(Signal::SIGCONT)?;
    for host in hosts {
        for node in ["host1", "host2"] {
            alive(host, node, true)?;
        }
    }
    println!("both alive again after {:?}", revoked.elapsed());
    let after = hosts.iter().map(writes).collect::<Result<Vec<_>>>()?;
    assert_eq!(after, before, "forwarding has nothing to do with leases");
    traffic.nothing_lost()?;
    cluster.close()
}

/// Waits until an agent says that a node is alive, or that it is not.
fn alive(host: &Host, node: &str, wanted: bool) -> Result<()> {
    eventually(SOON * 2, &format!("{node} alive: {wanted}"), || {
        let peers = host.weft_json(&["peer", "list"])?;
        let mut rows = peers.as_array().into_iter().flatten();
        let told = rows.any(|peer| peer["node"] == node && peer["alive"] == wanted);
        ensure!(told, "{peers}");
        Ok(())
    })
}

/// etcd's database is full: whoever reads goes on, whoever writes is told why not, and all is made up for afterwards.
#[test]
fn etcd_is_out_of_space() -> Result<()> {
    let lab = Lab::builder().hosts(2).build()?;
    let etcd = lab.etcd(1);
    etcd.stop()?;
    etcd.spawn_with(&["--quota-backend-bytes=8388608"])?;
    etcd.wait_ready()?;
    lab.start_all()?;
    let cluster = Cluster::from_running(lab);
    let (etcd, hosts) = (cluster.etcd(1), cluster.hosts());
    let [one, two] = [&hosts[0], &hosts[1]];
    let stations = one_each(&cluster)?;
    let goes = spare(&cluster, one, "goes")?;
    let deleted = spare(&cluster, two, "deleted")?;
    caught_up(&cluster, hosts, "blue")?;
    let traffic = between(&stations)?;
    let lines = hosts.iter().map(log_lines).collect::<Vec<_>>();

    let megabyte = "x".repeat(1 << 20);
    eventually(SOON * 2, "etcd is full", || {
        for n in 0.. {
            if let Err(error) = cluster.put(&format!("/somebody/else/{n}"), &megabyte) {
                ensure!(format!("{error:#}").contains("space exceeded"), "{error:#}");
                break;
            }
        }
        ensure!(
            cluster.etcdctl(&["alarm", "list"])?.contains("NOSPACE"),
            "no alarm"
        );
        Ok(())
    })?;
    let before = hosts.iter().map(writes).collect::<Result<Vec<_>>>()?;
    attach_fails(&cluster, one, "new", 5, "database is full")?;
    detach_pending(one, &goes)?;
    // etcd still deletes, and tells of it.
    cluster.del(&deleted.key())?;
    eventually(SOON, "what was deleted is gone", || {
        ensure!(link(deleted.container.netns(), "eth0").is_err(), "on its host");
        forwards_as_recorded(&cluster, one, "blue")
    })?;
    // An agent that starts now has all that it needs to read.
    two.kill9()?;
    two.start_weftd()?;
    assert_eq!(writes(two)?, 0);
    for host in hosts {
        let store = &status(host)?["store"];
        ensure!(store["connected"] == true, "{store}");
    }
    // Who owes it something says that it is refused.
    eventually(SOON, "that writes are refused is told", || {
        has_problem(one, "(store writes)", "", "space exceeded")
    })?;
    // Each has something to say of itself that cannot be written: told once, and not asked for every second.
    let requests = etcd.requests("LeaseKeepAlive")? + etcd.requests("Txn")?;
    traffic.wait_more(500)?;
    let requests = etcd.requests("LeaseKeepAlive")? + etcd.requests("Txn")? - requests;
    println!("full: {requests} attempts to write in five seconds");
    ensure!(requests < 40, "{requests} attempts to write");
    for (host, lines) in hosts.iter().zip(lines) {
        // A start is ten lines; each of two lives says of its presence, and of all else it has to write, that it is refused.
        let (said, log) = (log_lines(host) - lines, host.log());
        let complaints = log
            .lines()
            .filter(|line| line.contains("cannot be kept up"))
            .count();
        ensure!(
            said < 16 && complaints <= 2,
            "{said} lines, {complaints} complaints: {log}"
        );
        ensure!(host.log().contains("space exceeded"), "{}", host.log());
    }
    println!("writes before and while full: {before:?} {:?}", writes(one)?);

    cluster.etcdctl(&["del", "--prefix", "/somebody/"])?;
    let revision = etcd.status()?.revision;
    cluster.etcdctl(&["compaction", "--physical", &revision.to_string()])?;
    cluster.etcdctl(&["defrag"])?;
    cluster.etcdctl(&["alarm", "disarm"])?;
    let healed = Instant::now();
    told(&cluster, &[goes, deleted])?;
    println!("told after {:?}", healed.elapsed());
    for host in ["host1", "host2"] {
        alive(one, host, true)?;
    }
    println!("both alive after {:?}", healed.elapsed());
    no_problem(one, "(store writes)")?;
    let late = cluster.container("late")?;
    attach(one, "blue", &late, "late", &[])?;
    caught_up(&cluster, hosts, "blue")?;
    traffic.nothing_lost()?;
    cluster.close()
}

/// Every command that needs etcd, while it is frozen and nobody knows yet: none hangs, each says why.
#[test]
fn no_command_hangs_while_etcd_is_frozen() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let host = cluster.host(1);
    cluster.network("red", &["10.3.0.0/24"])?;
    host.weft(&["address", "reserve", "blue", "--id", "kept", "--ttl", "5m"])?;
    let goes = spare(&cluster, host, "goes")?;
    let container = cluster.container("new")?;
    let path = container.path();
    // What is asked for while etcd is frozen may still happen when it goes on: nothing that is in the traffic's way.
    cluster.network("gray", &["10.6.0.0/24"])?;
    let idle = cluster.container("idle")?;
    host.weft(&["endpoint", "attach", "gray", &idle.path()])?;
    let traffic = between(&stations)?;
    let commands: &[&[&str]] = &[
        &["endpoint", "attach", "blue", &path, "--wait"],
        &["endpoint", "attach", "red", &path, "--ifname", "eth1"],
        &["endpoint", "attach", "none", &path, "--ifname", "eth2"],
        &[
            "endpoint",
            "attach",
            "blue",
            &path,
            "--ifname",
            "eth3",
            "--address",
            "10.1.0.3",
        ],
        &[
            "endpoint",
            "attach",
            "blue",
            &path,
            "--ifname",
            "eth4",
            "--id",
            "kept",
            "--reservation",
            "kept",
        ],
        &["endpoint", "list", "--network", "red"],
        &["endpoint", "inspect", "red", "nobody"],
        &["network", "create", "green", "--subnet", "10.4.0.0/24"],
        &["network", "update", "blue", "--add-subnet", "10.5.0.0/24"],
        &["network", "delete", "red"],
        &["network", "delete", "gray", "--force"],
        &["address", "reserve", "blue", "--id", "other"],
        &["address", "reserve", "red", "--id", "other"],
        &["address", "release", "blue", "kept"],
        &["address", "list", "red"],
        &["wait", "blue"],
        &["wait"],
        &["audit"],
        &["peer", "remove", "host2", "--yes"],
    ];
    cluster.etcd(1).freeze()?;
    let asked = Instant::now();
    let wrong = std::thread::scope(|scope| {
        let asking: Vec<_> = commands
            .iter()
            .map(|args| scope.spawn(move || (args, host.weft_output(args), asked.elapsed())))
            .collect();
        let mut wrong = Vec::new();
        for thread in asking {
            let Ok((args, output, took)) = thread.join() else {
                wrong.push("a thread panicked".to_owned());
                continue;
            };
            let output = output?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("{args:?}: {:?} after {took:?}: {said}", output.status.code());
            // Many at once, each a program to start: what hung took minutes, or all of its own time (status 6).
            let soon = took < SOON * 2;
            if !soon || output.status.code() != Some(5) || said.trim().is_empty() {
                wrong.push(format!("{args:?}: {:?} after {took:?}: {said}", output.status));
            }
        }
        anyhow::Ok(wrong)
    })?;
    detach_pending(host, &goes)?;
    cluster.etcd(1).thaw()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    told(&cluster, &[goes])?;
    traffic.nothing_lost()?;
    cluster.close()
}

/// Whether the agent has seen the records since it started or not: nothing that is not known is taken for nothing.
#[test]
fn what_is_not_known_without_etcd_is_said_not_to_be() -> Result<()> {
    let cluster = Cluster::of(2)?;
    one_each(&cluster)?;
    let host = cluster.host(1);
    for name in ["red", "green"] {
        cluster.network(name, &["10.3.0.0/24"])?;
    }
    eventually(SOON, "the networks are known", || {
        ensure!(host.weft_json(&["network", "list"])?.as_array().map(Vec::len) == Some(3));
        Ok(())
    })?;
    cluster.etcd(1).kill9()?;
    connected(host, false)?;
    let output = host.weft_output(&["-o", "json", "endpoint", "list"])?;
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && listed.len() == 2, "{listed:?}: {said}");
    ensure!(said.trim_end().ends_with(": green, red"), "{said}");
    let (code, said) = fails(host, &["endpoint", "list", "--network", "red"])?;
    ensure!(code == 5 && said.contains("no part in network red"), "{said}");

    host.kill9()?;
    host.spawn_weftd(&[])?;
    connected(host, false)?;
    let lists: [&[&str]; 5] = [
        &["network", "list"],
        &["network", "inspect", "blue"],
        &["endpoint", "list"],
        &["endpoint", "list", "--local"],
        &["peer", "list"],
    ];
    for args in lists {
        let (code, said) = fails(host, args)?;
        ensure!(
            code == 5 && said.contains("has not read the records"),
            "{args:?}: {said}"
        );
    }
    let told = status(host)?;
    ensure!(told["counts"]["networks"].is_null(), "{told}");
    ensure!(host.weft(&["status"])?.contains("NOT KNOWN YET"));

    cluster.etcd(1).start()?;
    host.wait_ready()?;
    let told = status(host)?;
    ensure!(told["counts"]["networks"] == 3, "{told}");
    let listed = host.weft_json(&["endpoint", "list"])?;
    ensure!(listed.as_array().map(Vec::len) == Some(2), "{listed}");
    cluster.close()
}
