//! More changes than anybody needs to see: they are taken in together, and nobody else waits for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_e2e::{Cluster, SOON, Station, attach, counter, status, writes};
use weft_faults::{between, caught_up, log_lines, one_each};
use weft_lab::{Host, Writer, eventually};

/// Endpoints elsewhere; with their claims twice as many records.
const MANY: usize = 5_000;
/// Records of a transaction, as etcd allows.
const TOGETHER: usize = 128;
/// Memory that an agent may take for that many records and the burst that they come in, in KiB.
const MOST_MEMORY: u64 = 96 << 10;

fn mac(n: usize, turn: usize) -> String {
    format!("02:{turn:02x}:00:00:{:02x}:{:02x}", n / 256, n % 256)
}

fn endpoint(n: usize, turn: usize, note: &str) -> (String, String) {
    let record = json!({
        "attachment": {"netns": format!("/run/netns/far{n}")},
        "addresses": [address(n)],
        "mac": mac(n, turn),
        "labels": {"note": note},
    });
    (format!("/weft/v1/endpoints/big/far/e{n}"), record.to_string())
}

fn address(n: usize) -> String {
    // Not where agents begin to choose.
    format!("10.2.{}.{}", 100 + n / 250, 1 + n % 250)
}

fn claim(n: usize) -> (String, String) {
    let key = format!("/weft/v1/addresses/big/{}", address(n));
    (key, json!({"endpoint": format!("far/e{n}")}).to_string())
}

fn write_all(writer: &mut Writer, records: &[(String, String)]) -> Result<()> {
    for some in records.chunks(TOGETHER) {
        writer.put_all(some)?;
    }
    Ok(())
}

/// A network with an endpoint on each host, and a node that is not in the lab.
fn big(cluster: &Cluster) -> Result<Vec<Station>> {
    cluster.network("big", &["10.2.0.0/16"])?;
    cluster.put(
        "/weft/v1/peers/far",
        &json!({"vteps": ["10.99.0.200"], "mtu": 1500, "kind": "external"}).to_string(),
    )?;
    let mut stations = Vec::new();
    for host in cluster.hosts() {
        stations.push(cluster.endpoint("big", host.number(), &format!("big{}", host.number()))?);
    }
    cluster.up(&mut stations)?;
    Ok(stations)
}

/// Asks an agent for its status again and again until told to stop: the longest that it took, and how often it was asked.
fn ask(host: &Host, stop: &AtomicBool) -> Result<(Duration, usize)> {
    let (mut longest, mut times) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Acquire) || times == 0 {
        let asked = Instant::now();
        status(host)?;
        longest = longest.max(asked.elapsed());
        times += 1;
    }
    Ok((longest, times))
}

/// Does something while agents are asked and endpoints attached. Says how long both took; who waits for longer than a
/// command does by itself, ten seconds, has failed.
fn meanwhile(cluster: &Cluster, what: &str, deed: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    let host = cluster.host(1);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(host, &stop));
        let attaching = scope.spawn(|| -> Result<(Duration, usize)> {
            let (mut longest, mut times) = (Duration::ZERO, 0);
            let container = cluster.container(&format!("meanwhile-{what}"))?;
            while !stop.load(Ordering::Acquire) || times == 0 {
                let asked = Instant::now();
                attach(host, "blue", &container, "meanwhile", &[])?;
                longest = longest.max(asked.elapsed());
                host.weft(&["endpoint", "detach", "blue", "meanwhile"])?;
                times += 1;
            }
            Ok((longest, times))
        });
        let start = Instant::now();
        let done = deed();
        let took = start.elapsed();
        stop.store(true, Ordering::Release);
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let (answer, asked) = asking.join().map_err(panicked)??;
        let (longest, attached) = attaching.join().map_err(panicked)??;
        done?;
        println!(
            "{what}: {took:?}; asked {asked} times, {answer:?} at most; attached {attached} times, {longest:?} at most"
        );
        Ok(())
    })
}

#[test]
fn ten_thousand_records_change_at_once() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    big(&cluster)?;
    let hosts = cluster.hosts();
    let traffic = between(&stations)?;
    let mut writer = cluster.etcd(1).writer()?;
    let resident = || hosts.iter().map(Host::resident).collect::<Result<Vec<_>>>();
    let empty = resident()?;
    let new: Vec<_> = (0..MANY).flat_map(|n| [endpoint(n, 0, ""), claim(n)]).collect();
    let all_there = |turn: usize| -> Result<()> {
        for host in hosts {
            eventually(SOON * 3, &format!("{} has all", host.node()), || {
                let netns = host.netns_of("big");
                let fdb = weft_e2e::remote_fdb(&netns)?;
                let there = (0..MANY).filter(|n| fdb.contains(&(mac(*n, turn), "10.99.0.200".to_owned())));
                let there = there.count();
                ensure!(there == MANY && fdb.len() == MANY + 1, "{there} of {}", fdb.len());
                Ok(())
            })?;
        }
        Ok(())
    };
    meanwhile(&cluster, "new", || {
        write_all(&mut writer, &new)?;
        all_there(0)
    })?;
    let full = resident()?;

    // Everything is written twice, and nothing of it matters to the kernel but once: the last counts.
    let lines: Vec<_> = hosts.iter().map(log_lines).collect();
    let before = writes(&hosts[1])?;
    let passes = counter(&hosts[1], "/passes/total")?;
    let changes: Vec<_> = (0..2 * MANY)
        .map(|n| endpoint(n % MANY, 1, if n < MANY { "" } else { "b" }))
        .collect();
    meanwhile(&cluster, "changed", || {
        write_all(&mut writer, &changes)?;
        all_there(1)
    })?;
    let written = writes(&hosts[1])? - before;
    let passes = counter(&hosts[1], "/passes/total")? - passes;
    let after = resident()?;
    println!("changed: {written} writes to the kernel in {passes} passes");
    println!("memory: {empty:?} KiB, with all {full:?}, after changes {after:?}");
    ensure!(passes < 2_000, "{passes} passes for {} changes", changes.len());
    for ((empty, after), host) in empty.iter().zip(&after).zip(hosts) {
        ensure!(
            after - empty.min(after) < MOST_MEMORY,
            "{}: {empty} to {after} KiB",
            host.node()
        );
    }
    for (host, lines) in hosts.iter().zip(lines) {
        let said = log_lines(host) - lines;
        ensure!(said < 10, "{} said {said} lines", host.node());
    }
    traffic.nothing_lost()?;
    cluster.close()
}

#[test]
fn a_record_flaps_a_hundred_times_a_second() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    big(&cluster)?;
    let hosts = cluster.hosts();
    let traffic = between(&stations)?;
    let mut writer = cluster.etcd(1).writer()?;
    write_all(&mut writer, &[endpoint(0, 0, ""), claim(0)])?;
    let resident = || hosts.iter().map(Host::resident).collect::<Result<Vec<_>>>();
    let empty = resident()?;
    let mut flap = |what: &str, change: &mut dyn FnMut(&mut Writer, usize) -> Result<()>| {
        meanwhile(&cluster, what, || {
            let start = Instant::now();
            for n in 0..200 {
                change(&mut writer, n)?;
                let due = start + Duration::from_millis(10) * (u32::try_from(n)? + 1);
                // A rate is time itself, not a condition to wait for.
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            println!("{what}: 200 changes in {:?}", start.elapsed());
            Ok(())
        })
    };

    // It is somebody else's, and has another MAC each time; then it comes and goes.
    flap("elsewhere", &mut |writer, n| {
        writer.put_all(&[endpoint(0, n % 2, "")]).map(drop)
    })?;
    flap("comes-and-goes", &mut |writer, n| match n % 2 {
        0 => writer.delete(&endpoint(0, 0, "").0).map(drop),
        _ => writer.put_all(&[endpoint(0, 3, "")]).map(drop),
    })?;
    // It is an agent's own, and what the agent completes is undone each time.
    let container = cluster.container("flaps")?;
    let record = json!({"attachment": {"netns": container.path()}}).to_string();
    let key = Cluster::endpoint_key("big", 1, "flaps");
    flap("here", &mut |writer, _| {
        writer.put_all(&[(key.clone(), record.clone())]).map(drop)
    })?;
    flap("here-and-gone", &mut |writer, n| match n % 2 {
        0 => writer.delete(&key).map(drop),
        _ => writer.put_all(&[(key.clone(), record.clone())]).map(drop),
    })?;

    let calm = Instant::now();
    let completed = eventually(SOON * 4, "it is completed", || {
        let record = cluster.get_json(&key)?.context("no record")?;
        let address = record["addresses"][0].as_str().context("no address")?;
        Ok(address.to_owned())
    })?;
    println!(
        "completed with {completed} {:?} after the last change",
        calm.elapsed()
    );
    println!("caught up {:?}", caught_up(&cluster, hosts, "big")?);
    let after = resident()?;
    println!("memory: {empty:?} KiB, after {after:?}");
    for ((empty, after), host) in empty.iter().zip(&after).zip(hosts) {
        ensure!(
            after - empty.min(after) < MOST_MEMORY / 4,
            "{}: {empty} to {after} KiB",
            host.node()
        );
    }
    for host in hosts {
        // What was attached meanwhile was asked for, and is told each time.
        let log = host.log();
        let said = log.lines().filter(|line| !line.contains("/meanwhile")).count();
        println!("{} said {said} lines", host.node());
        ensure!(said < 60, "{said} lines: {log}");
    }
    // Nothing was left behind by what came and went.
    eventually(SOON, "each address is its holder's", || {
        let report = hosts[0].weft_output(&["audit"])?;
        let said = String::from_utf8_lossy(&report.stdout).into_owned();
        ensure!(report.status.success(), "{said}");
        Ok(())
    })?;
    traffic.nothing_lost()?;
    cluster.close()
}
