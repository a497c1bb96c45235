//! An agent does not reach etcd, in all the ways in which a network fails, while others change what it needs to know.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::{Cluster, SOON, addresses, attach, refused, status, writes};
use weft_faults::{caught_up, connected, log_lines, long, one_each};
use weft_lab::{Cut, Mode, Proxy, Traffic, eventually};

/// How each host is cut off. The first is not, the last is far away.
const CUTS: [Option<Cut>; 6] = [
    None,
    Some(Cut::Both),
    Some(Cut::Refused),
    Some(Cut::Hearing),
    Some(Cut::Speaking),
    None,
];
const FAR: Duration = Duration::from_millis(200);

#[test]
fn agents_are_cut_off_while_others_change() -> Result<()> {
    let cluster = Cluster::of(CUTS.len())?;
    let stations = one_each(&cluster)?;
    let hosts = cluster.hosts();
    let (first, far) = (&hosts[0], &hosts[CUTS.len() - 1]);
    let etcd = cluster.etcd(1).addresses();

    far.stop()?;
    let proxy = Proxy::start(far.netns(), SocketAddr::new(etcd[0], 2379))?;
    proxy.set(Mode::Delay(FAR));
    far.start_weftd_with(&["--etcd", &proxy.url()])?;
    let spared: BTreeMap<usize, _> = (1..=CUTS.len())
        .map(|number| {
            let container = cluster.container(&format!("spare{number}"))?;
            let made = attach(cluster.host(number), "blue", &container, "spare", &[])?;
            Ok((number, (container, addresses(&made)?[0].to_string())))
        })
        .collect::<Result<_>>()?;
    caught_up(&cluster, hosts, "blue")?;

    // From each to the first and back, one family: more would be a test of this machine.
    let traffic = Traffic::start(stations[1..].iter().flat_map(|other| {
        let (one, two) = (&stations[0], other);
        [
            (&one.container, &two.container, two.address(true)),
            (&two.container, &one.container, one.address(true)),
        ]
    }))?;
    let cut: Vec<_> = hosts
        .iter()
        .zip(CUTS)
        .filter_map(|(host, cut)| Some((host, cut?)))
        .collect();
    let mut before = BTreeMap::new();
    for (host, how) in &cut {
        before.insert(host.number(), (writes(host)?, log_lines(host)));
        host.netns().cut(&etcd, *how)?;
    }
    for (host, _) in &cut {
        connected(host, false)?;
    }

    // One comes, one goes, and an address goes from one host to another.
    let new = cluster.container("new")?;
    attach(first, "blue", &new, "new", &[])?;
    let (_, moves) = &spared[&1];
    first.weft(&["endpoint", "detach", "blue", "spare"])?;
    let moved = cluster.container("moved")?;
    let asked = Instant::now();
    attach(far, "blue", &moved, "moved", &["--address", moves])?;
    println!("far away: attached after {:?}", asked.elapsed());
    caught_up(&cluster, [first, far], "blue")?;
    ensure!(status(far)?["store"]["connected"] == true, "slow is not away");
    if long() {
        traffic.wait_more(18_000)?;
    }

    for (host, how) in &cut {
        let (writes_before, lines) = before[&host.number()];
        ensure!(writes(host)? == writes_before, "{how:?}: nothing is done for it");
        let lines = log_lines(host) - lines;
        ensure!(lines <= 8, "{how:?}: {lines} lines: {}", host.log());
        let said = host.weft_json(&["endpoint", "detach", "blue", "spare"])?;
        ensure!(
            said == json!({"existed": true, "record_pending": true, "note": null}),
            "{said}"
        );
    }
    let (asked, path) = (Instant::now(), moved.path());
    let hopeless = ["endpoint", "attach", "blue", &path, "--ifname", "eth1"];
    refused(cut[0].0, &hopeless, 5, "store")?;
    ensure!(
        asked.elapsed() < Duration::from_millis(4500),
        "{:?}",
        asked.elapsed()
    );

    std::thread::scope(|scope| {
        let healing: Vec<_> = cut
            .iter()
            .map(|(host, how)| {
                let cluster = &cluster;
                scope.spawn(move || -> Result<()> {
                    host.netns().reconnect()?;
                    let healed = Instant::now();
                    eventually(SOON * 2, &format!("{how:?}: the store has been told"), || {
                        let key = Cluster::endpoint_key("blue", host.number(), "spare");
                        ensure!(cluster.get(&key)?.is_none(), "{key}");
                        Ok(())
                    })?;
                    caught_up(cluster, [*host], "blue")?;
                    println!("{how:?}: caught up after {:?}", healed.elapsed());
                    Ok(())
                })
            })
            .collect();
        healing.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    caught_up(&cluster, hosts, "blue")?;
    traffic.nothing_lost()?;
    cluster.close()
}

/// Something on the way, a proxy of connections for example, ends each connection soon after it was made.
#[test]
fn the_connection_breaks_all_the_time() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let [one, two] = [cluster.host(1), cluster.host(2)];
    let etcd = cluster.etcd(1);
    two.stop()?;
    let proxy = Proxy::start(two.netns(), SocketAddr::new(etcd.addresses()[0], 2379))?;
    two.start_weftd_with(&["--etcd", &proxy.url()])?;
    let traffic = weft_faults::between(&stations)?;
    let (before, lines, reads) = (writes(two)?, log_lines(two), etcd.requests("Range")?);
    let rounds = if long() { 200 } else { 12 };
    for _ in 0..rounds {
        let connections = proxy.accepted();
        eventually(SOON, "it connects again", || {
            ensure!(
                proxy.accepted() > connections || connected_now(two)?,
                "it does not"
            );
            Ok(())
        })?;
        traffic.wait_more(20)?;
        proxy.set(Mode::Refuse);
        traffic.wait_more(5)?;
        proxy.set(Mode::Pass);
    }
    let container = cluster.container("new")?;
    attach(one, "blue", &container, "new", &[])?;
    println!("caught up {:?}", caught_up(&cluster, [two], "blue")?);
    let (said, asked) = (log_lines(two) - lines, etcd.requests("Range")? - reads);
    println!("{rounds} times: {said} lines, {asked} reads of etcd");
    // There are some ways to say that a connection broke.
    ensure!(said <= if long() { 24 } else { 8 }, "{said} lines: {}", two.log());
    // Where the store stands is asked for with each connection, and nothing is listed anew.
    ensure!(asked <= 5 * rounds, "{asked} reads");
    ensure!(writes(two)? - before <= 4, "nothing is done for it");
    traffic.nothing_lost()?;
    cluster.close()
}

fn connected_now(host: &weft_lab::Host) -> Result<bool> {
    Ok(status(host)?["store"]["connected"] == true)
}
