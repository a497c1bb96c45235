//! Waiting until every host of a network has caught up: the first packet is answered, and who is behind is named.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_e2e::{Cluster, SOON};
use weft_lab::{Container, Host, Lab, eventually};

const BOTH: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

fn attach(host: &Host, network: &str, container: &Container, id: &str, more: &[&str]) -> Result<Value> {
    let path = container.path();
    host.weft_json(&[&["endpoint", "attach", network, &path, "--id", id], more].concat())
}

/// What is said on standard error by a command that must end by its deadline.
fn late(host: &Host, args: &[&str]) -> Result<String> {
    let output = host.weft_output(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let done = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(6),
        "{args:?}: {}: {said}{done}",
        output.status
    );
    Ok(said)
}

/// Nothing of any question is left.
fn all_gone(lab: &Lab) -> Result<()> {
    eventually(SOON, "no question and no answer is left", || {
        let mut left = lab.get_prefix("/weft/v1/barriers/")?;
        left.extend(lab.get_prefix("/weft/v1/passed/")?);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn questions(lab: &Lab) -> Result<usize> {
    Ok(lab.get_prefix("/weft/v1/barriers/")?.len())
}

/// Ends a host's lease at once, as the time does half a minute after its agent has ended.
fn end_lease(lab: &Lab, host: &Host) -> Result<()> {
    let alive = lab.get_kv(&format!("/weft/v1/alive/{}", host.node()))?;
    let lease = alive.context("its presence")?.lease;
    lab.etcdctl(&["lease", "revoke", &format!("{lease:x}")]).map(drop)
}

/// A container on each host that is attached to blue, each named like its host.
fn one_on_each(cluster: &Cluster, hosts: &[usize]) -> Result<Vec<Container>> {
    hosts
        .iter()
        .map(|number| {
            let host = cluster.host(*number);
            let container = cluster.container(&host.node())?;
            attach(host, "blue", &container, &host.node(), &["--wait"])?;
            Ok(container)
        })
        .collect()
}

#[test]
fn the_first_packet_after_an_attach_is_answered() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &BOTH)?;
    let standing = one_on_each(&cluster, &[1, 2, 3])?;
    let mut times = Vec::new();
    for number in 0..30 {
        let host = cluster.host(number % 3 + 1);
        let container = cluster.container(&format!("c{number}"))?;
        let start = Instant::now();
        let made = attach(host, "blue", &container, &format!("c{number}"), &["--wait"])?;
        times.push(start.elapsed());
        assert_eq!(made["converged"]["hosts"], json!(["host1", "host2", "host3"]));
        // One request each, the first that ever went there; from the new one and to it.
        for (there, from) in standing.iter().enumerate() {
            for address in container.addresses()? {
                ensure!(
                    from.ping(address),
                    "attach {number} on {}: {address} does not answer host{}",
                    host.node(),
                    there + 1
                );
            }
        }
        let next = &standing[(number + 1) % 3];
        for address in next.addresses()? {
            ensure!(
                container.ping(address),
                "attach {number} on {}: {address}",
                host.node()
            );
        }
    }
    times.sort();
    println!(
        "attach --wait: median {:?}, slowest {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    all_gone(&cluster)?;
    cluster.close()
}

/// Those who ask at the same time share questions, and each has its answer.
#[test]
fn many_at_once_are_all_answered() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &BOTH)?;
    let standing = one_on_each(&cluster, &[1, 2, 3])?;
    let containers: Vec<Container> = (0..36)
        .map(|number| cluster.container(&format!("c{number}")))
        .collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let attaching: Vec<_> = containers
            .iter()
            .enumerate()
            .map(|(number, container)| {
                let (cluster, standing) = (&cluster, &standing);
                scope.spawn(move || {
                    let host = cluster.host(number % 3 + 1);
                    attach(host, "blue", container, &format!("c{number}"), &["--wait"])?;
                    let from = &standing[(number + 1) % 3];
                    for address in container.addresses()? {
                        ensure!(
                            from.ping(address),
                            "attach {number} on {}: {address}",
                            host.node()
                        );
                    }
                    Ok(())
                })
            })
            .collect();
        for one in attaching {
            one.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        }
        anyhow::Ok(())
    })?;
    all_gone(&cluster)?;
    cluster.close()
}

#[test]
fn a_slow_host_is_waited_for() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &BOTH)?;
    let standing = one_on_each(&cluster, &[1, 2, 3])?;
    let slow = cluster.host(3);
    for number in 0..5 {
        let id = format!("c{number}");
        let container = cluster.container(&id)?;
        slow.signal(Signal::SIGSTOP)?;
        std::thread::scope(|scope| {
            let attaching = scope.spawn(|| attach(cluster.host(1), "blue", &container, &id, &["--wait"]));
            eventually(SOON, "host2 has answered", || {
                ensure!(cluster.get_prefix("/weft/v1/passed/")?.len() == 1);
                Ok(())
            })?;
            ensure!(!attaching.is_finished(), "host3 cannot know of it");
            slow.signal(Signal::SIGCONT)?;
            attaching.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            for address in container.addresses()? {
                ensure!(standing[2].ping(address), "attach {number}: {address} from host3");
            }
            Ok(())
        })?;
        all_gone(&cluster)?;
    }
    cluster.close()
}

#[test]
fn a_host_that_does_not_catch_up_is_named() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &BOTH)?;
    let standing = one_on_each(&cluster, &[1, 2, 3])?;
    let (one, frozen) = (cluster.host(1), cluster.host(3));
    frozen.signal(Signal::SIGSTOP)?;
    let container = cluster.container("c")?;
    let path = container.path();
    let said = late(
        one,
        &[
            "endpoint",
            "attach",
            "blue",
            &path,
            "--id",
            "c",
            "--wait",
            "--timeout",
            "2s",
        ],
    )?;
    ensure!(
        said.contains("endpoint blue/host1/c") && said.contains("it is attached") && said.contains("host3 ("),
        "{said}"
    );
    ensure!(
        !said.contains("host2") && !said.contains("cannot attach"),
        "{said}"
    );
    // It is: whoever is there reaches it.
    for address in container.addresses()? {
        ensure!(standing[1].ping(address), "{address} from host2");
    }
    let said = late(one, &["wait", "blue", "--timeout", "1s"])?;
    ensure!(said.contains("network blue") && said.contains("host3"), "{said}");
    let output = one.weft_output(&["-o", "json", "wait", "--timeout", "1s"])?;
    let error: Value = serde_json::from_slice(&output.stderr)?;
    assert_eq!(error["error"]["details"]["hosts"], "host3", "{error}");

    // Asking while it is away and answering when it is back.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| one.weft_json(&["wait", "blue"]));
        eventually(SOON, "the question is there", || {
            ensure!(questions(&cluster)? > 0);
            Ok(())
        })?;
        frozen.signal(Signal::SIGCONT)?;
        let done = waiting.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        assert_eq!(done[0]["hosts"], json!(["host1", "host2", "host3"]));
        anyhow::Ok(())
    })?;
    for address in container.addresses()? {
        ensure!(standing[2].ping(address), "{address} from host3");
    }

    // Killed: named, and when its lease has ended, as one that does not run. Its own host forwards nevertheless.
    frozen.kill9()?;
    let said = late(one, &["wait", "blue", "--timeout", "1s"])?;
    ensure!(said.contains("host3"), "{said}");
    end_lease(&cluster, frozen)?;
    let said = late(one, &["wait", "blue", "--timeout", "1s"])?;
    ensure!(said.contains("host3 (its agent is not running)"), "{said}");
    frozen.start_weftd()?;
    one.weft(&["wait", "blue"])?;
    all_gone(&cluster)?;
    cluster.close()
}

#[test]
fn nothing_of_a_question_is_left_whoever_ends() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &BOTH)?;
    one_on_each(&cluster, &[1, 2, 3])?;
    all_gone(&cluster)?;
    let (asking, frozen) = (cluster.host(1), cluster.host(3));
    frozen.signal(Signal::SIGSTOP)?;
    let asked = |wanted: usize| {
        eventually(SOON, "the question and host2's answer", || {
            ensure!(questions(&cluster)? == wanted);
            let passed = cluster.get_prefix("/weft/v1/passed/")?;
            ensure!(passed.len() == wanted, "{passed:?}");
            Ok(())
        })
    };

    // The deadline.
    late(asking, &["wait", "blue", "--timeout", "500ms"])?;
    all_gone(&cluster)?;

    // The client leaves.
    let mut client = asking
        .netns()
        .command(weft_lab::bin_dir()?.join("weft"))
        .arg("--socket")
        .arg(asking.socket())
        .args(["wait", "blue"])
        .spawn()?;
    asked(1)?;
    client.kill()?;
    client.wait()?;
    all_gone(&cluster)?;

    // The agent is killed: its lease takes everything along, answers of others too.
    let mut client = asking
        .netns()
        .command(weft_lab::bin_dir()?.join("weft"))
        .arg("--socket")
        .arg(asking.socket())
        .args(["wait", "blue"])
        .spawn()?;
    asked(1)?;
    asking.kill9()?;
    client.wait()?;
    ensure!(questions(&cluster)? == 1, "it is there as long as the lease");
    end_lease(&cluster, asking)?;
    all_gone(&cluster)?;
    // host3 finds questions that are void when it goes on, and answers none of them.
    frozen.signal(Signal::SIGCONT)?;
    asking.start_weftd()?;
    asking.weft(&["wait"])?;
    all_gone(&cluster)?;
    cluster.close()
}

/// Records change all the time, and each change is one to the kernels of all hosts.
#[test]
fn constant_changes_starve_nobody() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &BOTH)?;
    cluster.put(
        "/weft/v1/peers/switch",
        &json!({"vteps": ["10.99.0.200"], "mtu": 1500, "kind": "external"}).to_string(),
    )?;
    let standing = one_on_each(&cluster, &[1, 2, 3])?;
    let (stop, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for writer in 0..2_usize {
            let (cluster, stop, changes) = (&cluster, &stop, &changes);
            scope.spawn(move || {
                let record = |round: usize, slot: usize| {
                    let host = 100 + writer * 40 + slot;
                    let record = json!({
                        "attachment": {"netns": format!("/run/netns/s{host}")},
                        "addresses": [format!("10.1.0.{host}")],
                        "mac": format!("02:42:0a:01:{:02x}:{host:02x}", round % 256),
                    });
                    let key = format!("/weft/v1/endpoints/blue/switch/s{host}");
                    (key, record.to_string())
                };
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let records: Vec<_> = (0..40).map(|slot| record(round, slot)).collect();
                    if cluster.put_all(&records).is_ok() {
                        changes.fetch_add(records.len(), Ordering::Relaxed);
                    }
                }
            });
        }
        let result = (|| {
            let mut slowest = Duration::ZERO;
            for number in 0..8 {
                let host = cluster.host(number % 3 + 1);
                let before = weft_e2e::counter(host, "/applied_revision")?;
                let container = cluster.container(&format!("c{number}"))?;
                let start = Instant::now();
                let made = attach(host, "blue", &container, &format!("c{number}"), &["--wait"])?;
                slowest = slowest.max(start.elapsed());
                // An external peer has no agent to ask.
                assert_eq!(made["converged"]["hosts"], json!(["host1", "host2", "host3"]));
                for from in &standing {
                    for address in container.addresses()? {
                        ensure!(from.ping(address), "attach {number}: {address}");
                    }
                }
                let after = weft_e2e::counter(host, "/applied_revision")?;
                ensure!(after > before, "the applied revision stands at {after}");
            }
            println!(
                "attach --wait amid {} changes: slowest {slowest:?}",
                changes.load(Ordering::Relaxed)
            );
            ensure!(slowest < Duration::from_secs(10), "{slowest:?}");
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    let changes = changes.into_inner();
    ensure!(changes > 500, "{changes} changes are no storm");
    cluster.close()
}

#[test]
fn whoever_has_no_endpoint_is_not_waited_for_and_may_ask() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &BOTH)?;
    cluster.network("red", &["10.2.0.0/24"])?;
    cluster.network("empty", &["10.3.0.0/24"])?;
    let outside = cluster.host(3);
    outside.signal(Signal::SIGSTOP)?;
    one_on_each(&cluster, &[1, 2])?;
    let container = cluster.container("r")?;
    let made = attach(cluster.host(2), "red", &container, "r", &["--wait"])?;
    assert_eq!(made["converged"]["hosts"], json!(["host2"]));
    outside.signal(Signal::SIGCONT)?;

    let blue = |waited: &Value| -> Result<BTreeSet<String>> {
        let hosts = waited["hosts"].as_array().context("hosts")?;
        Ok(hosts
            .iter()
            .filter_map(|h| Some(h.as_str()?.to_owned()))
            .collect())
    };
    let both: BTreeSet<String> = ["host1", "host2"].map(str::to_owned).into();
    let done = outside.weft_json(&["wait", "blue"])?;
    assert_eq!(blue(&done[0])?, both);
    for host in cluster.hosts() {
        let done = host.weft_json(&["wait"])?;
        let names: Vec<_> = done
            .as_array()
            .into_iter()
            .flatten()
            .map(|n| &n["network"])
            .collect();
        assert_eq!(names, ["blue", "red"], "on {}: {done}", host.node());
        assert_eq!(blue(&done[0])?, both);
    }
    assert_eq!(outside.weft_json(&["wait", "empty"])?, json!([]));
    let output = outside.weft_output(&["wait", "none"])?;
    assert_eq!(output.status.code(), Some(3));
    // Once its last endpoint is gone, a host is not waited for any more, also by who asked before.
    cluster.host(2).signal(Signal::SIGSTOP)?;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cluster.host(1).weft_json(&["wait", "blue"]));
        eventually(SOON, "the question is there", || {
            ensure!(questions(&cluster)? > 0);
            Ok(())
        })?;
        cluster.del(&Cluster::endpoint_key("blue", 2, "host2"))?;
        let done = waiting.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        ensure!(done[0]["network"] == "blue", "{done}");
        anyhow::Ok(())
    })?;
    cluster.host(2).signal(Signal::SIGCONT)?;
    cluster.close()
}

/// Each call brings the network into view and lets go of it, faster than the store can list it.
#[test]
fn whoever_takes_no_part_may_ask_again_and_again() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &BOTH)?;
    one_on_each(&cluster, &[1])?;
    let outside = cluster.host(2);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..15 {
                        assert_eq!(
                            outside.weft_json(&["wait", "blue"])?[0]["hosts"],
                            json!(["host1"])
                        );
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for one in asking {
            one.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        }
        anyhow::Ok(())
    })?;
    // The same by endpoints: the last one goes, and the next one comes at once.
    let container = cluster.container("c")?;
    for number in 0..10 {
        let id = format!("c{number}");
        attach(outside, "blue", &container, &id, &["--wait"])?;
        outside.weft(&["endpoint", "detach", "blue", &id])?;
    }
    cluster.close()
}

/// Records as `etcdctl put` makes them: their agents complete them first, and that is waited for too.
#[test]
fn minimal_records_work_when_the_wait_returns() -> Result<()> {
    let cluster = Cluster::of(3)?;
    for round in 0..3 {
        let network = format!("n{round}");
        let (v4, v6) = (format!("10.{round}.0.0/24"), format!("fd00:{round}::/64"));
        cluster.network(&network, &[&v4, &v6])?;
        let mut stations = Vec::new();
        for host in 1..=3 {
            stations.push(cluster.endpoint(&network, host, &format!("{network}h{host}"))?);
        }
        cluster.host(round + 1).weft(&["wait", &network])?;
        for station in &stations {
            let addresses = station.container.addresses()?;
            assert_eq!(addresses.len(), 2, "{} has {addresses:?}", station.id);
            for other in stations.iter().filter(|other| other.id != station.id) {
                for address in &addresses {
                    ensure!(
                        other.container.ping(*address),
                        "{} does not reach {address}",
                        other.id
                    );
                }
            }
        }
    }
    cluster.close()
}

/// What its kernel refuses, a host has not programmed.
#[test]
fn a_host_whose_kernel_refuses_does_not_answer() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let record = json!({"subnets": [{"cidr": "10.1.0.0/24"}], "vni": 4711}).to_string();
    cluster.put(&Cluster::network_key("blue"), &record)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    // Somebody else's device with that VNI.
    two.exec(&[
        "ip", "link", "add", "other0", "type", "vxlan", "id", "4711", "dstport", "4789", "dev", "eth0",
    ])?;
    two.exec(&["ip", "link", "set", "other0", "up"])?;
    let container = cluster.container("a")?;
    attach(one, "blue", &container, "a", &["--wait"])?;
    let theirs = cluster.endpoint("blue", 2, "b")?;
    let said = late(one, &["wait", "blue", "--timeout", "2s"])?;
    ensure!(
        said.contains("host2 (its agent is alive)") && !said.contains("host1 ("),
        "{said}"
    );
    let said = late(two, &["wait", "blue", "--timeout", "1s"])?;
    ensure!(said.contains("host2 (its kernel refuses"), "{said}");
    two.exec(&["ip", "link", "del", "other0"])?;
    one.weft(&["wait", "blue"])?;
    for address in theirs.container.addresses()? {
        ensure!(container.ping(address), "{address}");
    }
    cluster.close()
}
