//! The watch breaks in ways that are not plain to see: what it needs is compacted away, or it is silent for good.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON, attach, writes};
use weft_faults::{between, caught_up, connected, log_lines, long, one_each};
use weft_lab::{Cut, EtcdMember, Host, Mode, Proxy, eventually};

/// Requests of etcd in a few seconds that are no hot loop: each agent looks after its presence now and then, and asks
/// for the scopes of one listing.
const FEW: u64 = 40;
/// The same, where nothing is listed.
const HARDLY_ANY: u64 = 4;

/// Somebody else uses the store, and compacts all history.
fn compact(cluster: &Cluster) -> Result<()> {
    for n in 0..20 {
        cluster.put(&format!("/somebody/else/{n}"), "x")?;
    }
    let revision = cluster.etcd(1).status()?.revision;
    cluster.etcdctl(&["compaction", "--physical", &revision.to_string()])?;
    cluster.etcdctl(&["defrag"]).map(drop)
}

/// What agents did to etcd, to their kernels and to their logs.
struct Figures {
    listed: u64,
    watched: u64,
    writes: Vec<u64>,
    lines: Vec<usize>,
}

impl Figures {
    fn now(etcd: &EtcdMember, hosts: &[Host]) -> Result<Self> {
        Ok(Self {
            listed: etcd.requests("Range")?,
            watched: etcd.requests("Watch")?,
            writes: hosts.iter().map(writes).collect::<Result<_>>()?,
            lines: hosts.iter().map(log_lines).collect(),
        })
    }
}

#[test]
fn history_is_compacted_while_all_is_quiet() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let (hosts, etcd) = (cluster.hosts(), cluster.etcd(1));
    let traffic = between(&stations)?;
    let before = Figures::now(etcd, hosts)?;
    for _ in 0..3 {
        compact(&cluster)?;
        traffic.wait_more(100)?;
    }
    let after = Figures::now(etcd, hosts)?;
    let listed = after.listed - before.listed;
    println!("quiet: {listed} reads of etcd");
    ensure!(
        listed <= HARDLY_ANY && after.watched == before.watched,
        "{listed} listings"
    );
    ensure!(
        after.lines == before.lines,
        "{}{}",
        hosts[0].log(),
        hosts[1].log()
    );
    assert_eq!(after.writes, before.writes);
    // The watch is as good as before.
    let more = cluster.container("more")?;
    attach(&hosts[0], "blue", &more, "more", &[])?;
    caught_up(&cluster, hosts, "blue")?;
    traffic.nothing_lost()?;
    cluster.close()
}

#[test]
fn history_is_compacted_while_an_agent_is_cut_off() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let (hosts, etcd) = (cluster.hosts(), cluster.etcd(1));
    let [one, two] = [&hosts[0], &hosts[1]];
    let spare = cluster.container("spare")?;
    attach(one, "blue", &spare, "spare", &[])?;
    caught_up(&cluster, hosts, "blue")?;
    let traffic = between(&stations)?;
    for what in ["nothing of ours has changed", "much has changed"] {
        let before = Figures::now(etcd, hosts)?;
        two.netns().cut(&etcd.addresses(), Cut::Refused)?;
        connected(two, false)?;
        if what == "much has changed" {
            // One goes whose deletion is in no history any more, one comes, and the address changes hands.
            let address = weft_e2e::addresses(&one.weft_json(&["endpoint", "inspect", "blue", "spare"])?)?[0];
            one.weft(&["endpoint", "detach", "blue", "spare"])?;
            let again = cluster.container("again")?;
            attach(one, "blue", &again, "again", &["--address", &address.to_string()])?;
        }
        compact(&cluster)?;
        two.netns().reconnect()?;
        connected(two, true)?;
        println!("{what}: caught up {:?}", caught_up(&cluster, hosts, "blue")?);
        // Time in which something that turns in circles would show.
        traffic.wait_more(200)?;
        let after = Figures::now(etcd, hosts)?;
        let (listed, watched) = (after.listed - before.listed, after.watched - before.watched);
        let lines = after.lines[1] - before.lines[1];
        println!("{what}: {listed} reads of etcd, {watched} streams, {lines} lines");
        ensure!(listed <= FEW && watched <= 2, "{listed} reads, {watched} streams");
        ensure!(lines <= 8, "{lines} lines: {}", two.log());
        if what == "nothing of ours has changed" {
            assert_eq!(after.writes, before.writes, "listed anew, and nothing to do");
        }
    }
    ensure!(two.log().contains("listed anew"), "{}", two.log());
    traffic.nothing_lost()?;
    cluster.close()
}

/// Connections that stay open and say no more. Pings are not answered, or, which takes longer to notice and is left to the
/// long form, are answered while the watch is mute.
#[test]
fn a_stuck_watch_is_replaced() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let [one, two] = [cluster.host(1), cluster.host(2)];
    let etcd = SocketAddr::new(cluster.etcd(1).addresses()[0], 2379);
    two.stop()?;
    let proxy = Proxy::start(two.netns(), etcd)?;
    two.start_weftd_with(&["--etcd", &proxy.url()])?;
    let traffic = between(&stations)?;
    let modes: &[Mode] = if long() {
        &[Mode::StallOpen, Mode::Stall, Mode::Mute]
    } else {
        &[Mode::StallOpen]
    };
    for mode in modes {
        let before = writes(two)?;
        let connections = proxy.accepted();
        proxy.set(*mode);
        let stuck = Instant::now();
        let id = format!("{mode:?}").to_lowercase();
        let container = cluster.container(&id)?;
        attach(one, "blue", &container, &id, &[])?;
        if *mode == Mode::Stall {
            // Nobody answers at all: it is noticed, and nothing else can be done.
            connected(two, false)?;
            println!("{mode:?}: noticed after {:?}", stuck.elapsed());
            assert_eq!(writes(two)?, before);
            proxy.set(Mode::Pass);
        }
        let bound = Duration::from_secs(30);
        eventually(bound + SOON, &format!("{mode:?}: the watch is replaced"), || {
            weft_faults::forwards_as_recorded(&cluster, two, "blue")
        })?;
        let took = stuck.elapsed();
        println!("{mode:?}: replaced after {took:?}");
        ensure!(took < bound, "{mode:?}: {took:?}");
        ensure!(proxy.accepted() > connections, "not by a new connection");
        connected(two, true)?;
    }
    traffic.nothing_lost()?;
    cluster.close()
}
