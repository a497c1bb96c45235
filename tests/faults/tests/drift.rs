//! Drift: every kind of object of weft's is deleted, changed or doubled by hand. Each is put right because the kernel told of
//! it, is counted, and is logged with what was found; other networks' traffic goes on, and what is not weft's stays.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use weft_e2e::SOON;
use weft_faults::{Churn, between, same, writes_nothing_when_started_again};
use weft_lab::{Host, Namespace, Traffic, Underlay, eventually};

/// Damage, and how it is cleared up what it needed: where, and lines of programs. `{t}` is the tunnel, `{ve}` the host end of the
/// endpoint's veth, `{own}` and `{far}` MACs of the endpoints, `{vtep}` the other host, `{nobody}` none, `{a4}`… addresses.
type Row = (
    &'static str,
    Place,
    &'static [&'static str],
    &'static [&'static str],
);

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// The network's namespace.
    Network,
    /// The container's.
    Container,
}
use Place::{Container, Network};

const TUNNEL: &[Row] = &[
    (
        "FDB entry deleted",
        Network,
        &["bridge fdb del {far} dev {t} dst {vtep} self"],
        &[],
    ),
    (
        "FDB entry to another VTEP",
        Network,
        &["bridge fdb replace {far} dev {t} dst {nobody} self extern_learn"],
        &[],
    ),
    (
        "FDB entry replaced by somebody's own",
        Network,
        &["bridge fdb replace {far} dev {t} dst {nobody} self"],
        &[],
    ),
    (
        "FDB entry too many",
        Network,
        &["bridge fdb add 02:99:00:00:00:01 dev {t} dst {nobody} self extern_learn"],
        &[],
    ),
    (
        "bridge's entry of the tunnel deleted",
        Network,
        &["bridge fdb del {far} dev {t} master"],
        &[],
    ),
    ("tunnel down", Network, &["ip link set {t} down"], &[]),
    ("tunnel's MTU", Network, &["ip link set {t} mtu 1280"], &[]),
    (
        "tunnel off the bridge",
        Network,
        &["ip link set {t} nomaster"],
        &[],
    ),
    ("tunnel deleted", Network, &["ip link del {t}"], &[]),
    (
        "tunnel renamed",
        Network,
        &["ip link set {t} down", "ip link set {t} name lost"],
        &[],
    ),
    (
        "tunnel's learning",
        Network,
        &["ip link set {t} type vxlan id {vni} learning"],
        &[],
    ),
    (
        "tunnel's port learning",
        Network,
        &["bridge link set dev {t} learning on"],
        &[],
    ),
    (
        "tunnel's port flooding",
        Network,
        &["bridge link set dev {t} flood on"],
        &[],
    ),
    (
        "tunnel's port multicast",
        Network,
        &["bridge link set dev {t} mcast_flood on"],
        &[],
    ),
    (
        "tunnel's port broadcast",
        Network,
        &["bridge link set dev {t} bcast_flood on"],
        &[],
    ),
    (
        "tunnel's port neigh_suppress",
        Network,
        &["bridge link set dev {t} neigh_suppress off"],
        &[],
    ),
];

const REST: &[Row] = &[
    (
        "bridge's entry to the wrong port",
        Network,
        &["bridge fdb replace {far} dev {ve} master extern_learn"],
        &[],
    ),
    (
        "bridge's entry replaced by somebody's own",
        Network,
        &["bridge fdb replace {far} dev {ve} master static"],
        &[],
    ),
    (
        "local entry deleted",
        Network,
        &["bridge fdb del {own} dev {ve} master"],
        &[],
    ),
    (
        "local entry to the tunnel",
        Network,
        &["bridge fdb replace {own} dev {t} master extern_learn"],
        &[],
    ),
    (
        "local endpoint on the tunnel",
        Network,
        &["bridge fdb add {own} dev {t} dst {nobody} self extern_learn"],
        &[],
    ),
    (
        "bridge's entry too many",
        Network,
        &["bridge fdb add 02:99:00:00:00:02 dev {ve} master extern_learn"],
        &[],
    ),
    ("neighbour deleted", Network, &["ip neigh del {n4} dev br0"], &[]),
    (
        "neighbour deleted, IPv6",
        Network,
        &["ip neigh del {n6} dev br0"],
        &[],
    ),
    (
        "neighbour with another MAC",
        Network,
        &["ip neigh replace {n4} lladdr 02:00:00:00:00:99 dev br0 nud noarp extern_learn protocol 87"],
        &[],
    ),
    (
        "neighbour replaced by somebody's own",
        Network,
        &["ip neigh replace {n6} lladdr 02:00:00:00:00:99 dev br0 nud permanent"],
        &[],
    ),
    (
        "neighbour too many",
        Network,
        &["ip neigh add 10.2.0.222 lladdr 02:00:00:00:00:99 dev br0 nud noarp extern_learn protocol 87"],
        &[],
    ),
    (
        "all neighbours flushed",
        Network,
        &["ip neigh flush dev br0 nud all"],
        &[],
    ),
    ("bridge down", Network, &["ip link set br0 down"], &[]),
    ("bridge's MTU", Network, &["ip link set br0 mtu 1280"], &[]),
    ("bridge deleted", Network, &["ip link del br0"], &[]),
    (
        "bridge renamed",
        Network,
        &["ip link set br0 down", "ip link set br0 name lost"],
        &["ip link del lost"],
    ),
    (
        "bridge's MAC",
        Network,
        &["ip link set br0 address 02:00:00:00:00:77"],
        &[],
    ),
    (
        "bridge's snooping",
        Network,
        &["ip link set br0 type bridge mcast_snooping 1"],
        &[],
    ),
    (
        "bridge's link-local addresses",
        Network,
        &["ip link set br0 addrgenmode eui64"],
        &[],
    ),
    (
        "bridge's IPv6 off",
        Network,
        &["sysctl -qw net.ipv6.conf.br0.disable_ipv6=1"],
        &[],
    ),
    ("host end down", Network, &["ip link set {ve} down"], &[]),
    ("host end's MTU", Network, &["ip link set {ve} mtu 1280"], &[]),
    (
        "host end off the bridge",
        Network,
        &["ip link set {ve} nomaster"],
        &[],
    ),
    (
        "host end on another bridge",
        Network,
        &["ip link add other type bridge", "ip link set {ve} master other"],
        &["ip link del other"],
    ),
    ("host end deleted", Network, &["ip link del {ve}"], &[]),
    (
        "host end renamed",
        Network,
        &["ip link set {ve} down", "ip link set {ve} name lost"],
        &[],
    ),
    ("host end's alias", Network, &["ip link set {ve} alias mine"], &[]),
    (
        "host end without alias",
        Network,
        &["ip link set {ve} alias "],
        &[],
    ),
    (
        "host end's learning",
        Network,
        &["bridge link set dev {ve} learning on"],
        &[],
    ),
    (
        "host end's flooding",
        Network,
        &["bridge link set dev {ve} flood on"],
        &[],
    ),
    (
        "host end's multicast",
        Network,
        &["bridge link set dev {ve} mcast_flood off"],
        &[],
    ),
    (
        "host end's broadcast",
        Network,
        &["bridge link set dev {ve} bcast_flood off"],
        &[],
    ),
    (
        "host end's neigh_suppress",
        Network,
        &["bridge link set dev {ve} neigh_suppress on"],
        &[],
    ),
    (
        "host end too many",
        Network,
        &[
            "ip link add ve0000000000000 type veth peer name lost",
            "ip link set ve0000000000000 alias weft_red/host1/ghost",
            // The kernel tells of an alias only while the device is up.
            "ip link set ve0000000000000 up",
        ],
        &[],
    ),
    ("container end down", Container, &["ip link set eth0 down"], &[]),
    (
        "container end's MTU",
        Container,
        &["ip link set eth0 mtu 1280"],
        &[],
    ),
    (
        "container end's MAC",
        Container,
        &["ip link set eth0 address 02:00:00:00:00:07"],
        &[],
    ),
    (
        "container end's alias",
        Container,
        &["ip link set eth0 alias mine"],
        &[],
    ),
    (
        "container end renamed",
        Container,
        &["ip link set eth0 down", "ip link set eth0 name eth9"],
        &[],
    ),
    ("container end deleted", Container, &["ip link del eth0"], &[]),
    (
        "address deleted",
        Container,
        &["ip addr del {a4}/24 dev eth0"],
        &[],
    ),
    (
        "address deleted, IPv6",
        Container,
        &["ip addr del {a6}/64 dev eth0"],
        &[],
    ),
    (
        "all addresses flushed",
        Container,
        &["ip addr flush dev eth0 scope global"],
        &[],
    ),
    ("route deleted", Container, &["ip route del 10.3.0.0/24"], &[]),
    (
        "route replaced by somebody's own",
        Container,
        &["ip route replace 10.3.0.0/24 dev eth0 proto static"],
        &[],
    ),
    (
        "route too many",
        Container,
        &["ip route add 10.77.0.0/24 dev eth0 proto 87"],
        &[],
    ),
    (
        "IPv6 off in the container",
        Container,
        &["sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1"],
        &[],
    ),
];

struct Matrix {
    scene: Churn,
    wanted: String,
    names: Vec<(&'static str, String)>,
}

impl Matrix {
    fn new(underlay: Underlay) -> Result<Self> {
        let scene = Churn::on(underlay)?;
        scene.attach()?;
        let wanted = scene.pictures()?;
        let host = scene.host();
        let mac = |key: &str| -> Result<String> {
            let record = scene.cluster.get_json(key)?.context("no record")?;
            Ok(record["mac"].as_str().context("no MAC")?.to_owned())
        };
        let inspected = host.weft_json(&["endpoint", "inspect", "red", "r1"])?;
        let network = scene
            .cluster
            .get_json("/weft/v1/networks/red")?
            .context("no network")?;
        let vtep = scene.cluster.host(2).addresses()[0];
        let names = vec![
            ("{t}", if vtep.is_ipv4() { "vx4" } else { "vx6" }.to_owned()),
            ("{vtep}", vtep.to_string()),
            (
                "{nobody}",
                if vtep.is_ipv4() {
                    "10.99.0.200"
                } else {
                    "fd99::200"
                }
                .to_owned(),
            ),
            (
                "{ve}",
                inspected["veth"]["name"].as_str().context("no veth")?.to_owned(),
            ),
            ("{vni}", network["vni"].to_string()),
            ("{own}", mac("/weft/v1/endpoints/red/host1/r1")?),
            ("{far}", mac(&scene.far.key())?),
            ("{a4}", "10.2.0.9".to_owned()),
            ("{a6}", "fd00:2::9".to_owned()),
            ("{n4}", scene.far.address(true).to_string()),
            ("{n6}", scene.far.address(false).to_string()),
        ];
        Ok(Self { scene, wanted, names })
    }

    fn host(&self) -> &Host {
        self.scene.host()
    }

    fn place(&self, place: Place) -> Namespace {
        match place {
            Network => self.host().netns_of("red"),
            Container => self.scene.container.netns().clone(),
        }
    }

    fn run(&self, namespace: &Namespace, line: &str) -> Result<()> {
        let mut line = line.to_owned();
        for (name, value) in &self.names {
            line = line.replace(name, value);
        }
        let words: Vec<String> = line
            .split(' ')
            .map(|word| word.replace("weft_", "weft "))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        namespace.exec(&words).map(drop)
    }

    /// Does damage, waits until it is mended and counted, and says how long that took.
    fn mends(&self, (what, place, damage, clear): &Row) -> Result<Duration> {
        let before = drift(self.host())?;
        let namespace = self.place(*place);
        for line in *damage {
            self.run(&namespace, line).with_context(|| (*what).to_owned())?;
        }
        let start = Instant::now();
        eventually(SOON, &format!("noticed: {what}"), || {
            ensure!(drift(self.host())? > before, "not counted");
            Ok(())
        })?;
        for line in *clear {
            self.run(&self.place(*place), line)?;
        }
        eventually(SOON, &format!("as it was: {what}"), || {
            same(&self.scene.pictures()?, &self.wanted)
        })?;
        Ok(start.elapsed())
    }

    fn all(&self, rows: &[Row]) -> Result<()> {
        let mut slow = Vec::new();
        for row in rows {
            let took = self.mends(row)?;
            slow.push((took, row.0));
        }
        eventually(SOON, "it talks", || self.scene.attached())?;
        slow.sort();
        println!("mended after, with what it takes to look: {slow:?}");
        let log = self.host().log();
        let repairs: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("repaired what was changed"))
            .collect();
        ensure!(repairs.len() >= rows.len(), "{} repairs logged", repairs.len());
        ensure!(repairs.iter().all(|line| line.contains("found=")), "{repairs:?}");
        // Nothing goes on being repaired that nobody damages any more.
        writes_nothing_when_started_again(self.host())
    }
}

fn drift(host: &Host) -> Result<u64> {
    weft_e2e::counter(host, "/drift_repaired/total")
}

#[test]
fn each_kind_of_object_deleted_changed_or_doubled() -> Result<()> {
    let matrix = Matrix::new(Underlay::V4)?;
    let traffic = between(&matrix.scene.stations)?;
    matrix.all(TUNNEL)?;
    matrix.all(REST)?;
    traffic.nothing_lost()?;
    matrix.scene.cluster.close()
}

#[test]
fn each_part_of_a_tunnel_over_ipv6_deleted_changed_or_doubled() -> Result<()> {
    let matrix = Matrix::new(Underlay::V6)?;
    let traffic = between(&matrix.scene.stations)?;
    matrix.all(TUNNEL)?;
    traffic.nothing_lost()?;
    matrix.scene.cluster.close()
}

/// How long a repair takes by the kernel's own account: from its notice of a deletion to its notice that the entry is back.
#[test]
fn repairs_come_from_notifications_within_milliseconds() -> Result<()> {
    const TIMES: usize = 100;
    let matrix = Matrix::new(Underlay::V4)?;
    let traffic = between(&matrix.scene.stations)?;
    let namespace = matrix.place(Network);
    let mut monitor = namespace
        // What it has said must not be lost in its buffer when it is ended.
        .command("stdbuf")
        .args(["-oL", "ip", "-ts", "monitor", "neigh"])
        .stdout(Stdio::piped())
        .spawn()
        .context("ip monitor")?;
    let out = BufReader::new(monitor.stdout.take().context("its output")?);
    let lines = std::thread::spawn(move || out.lines().map_while(Result::ok).collect::<Vec<String>>());
    for round in 0..TIMES {
        let before = drift(matrix.host())?;
        matrix.run(&namespace, "ip neigh del {n4} dev br0")?;
        eventually(SOON, &format!("repair {round}"), || {
            ensure!(drift(matrix.host())? > before, "not counted");
            Ok(())
        })?;
    }
    monitor.kill()?;
    monitor.wait()?;
    let lines = lines.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    let mut deleted = None;
    let mut took = Vec::new();
    let address = format!("{} dev br0", matrix.scene.far.address(true));
    for line in lines.iter().filter(|line| line.contains(&address)) {
        let at = seconds(line).with_context(|| line.clone())?;
        let is_there = line.contains("NOARP") && !line.contains("Deleted");
        match (is_there, deleted) {
            (false, None) => deleted = Some(at),
            (true, Some(since)) => {
                took.push(Duration::from_secs_f64((at - since).max(0.0)));
                deleted = None;
            }
            _ => {}
        }
    }
    took.sort();
    ensure!(
        took.len() >= TIMES / 2,
        "only {} pairs in {} lines",
        took.len(),
        lines.len()
    );
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    println!(
        "repair of an entry: p50 {:?}, p90 {:?}, p99 {:?}, longest {:?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    // Far more than it takes, far less than the five minutes of the periodic look.
    ensure!(at(99) < Duration::from_secs(1), "p99 {:?}", at(99));
    traffic.nothing_lost()?;
    matrix.scene.cluster.close()
}

/// The time of day of a line as `-ts` puts it: `[2026-11-21T11:17:29.123456] …`.
fn seconds(line: &str) -> Option<f64> {
    let (stamp, _) = line.strip_prefix('[')?.split_once(']')?;
    let (_, time) = stamp.split_once('T')?;
    let mut sum = 0.0;
    for part in time.split(':') {
        sum = sum * 60.0 + part.parse::<f64>().ok()?;
    }
    Some(sum)
}

#[test]
fn the_namespace_unmounted_or_deleted() -> Result<()> {
    let matrix = Matrix::new(Underlay::V4)?;
    let (host, file) = (matrix.host(), matrix.place(Network).path().display().to_string());
    let traffic = between(&matrix.scene.stations)?;
    // And through the namespace itself: it lives, held open by the agent.
    let far = &matrix.scene.far;
    let through = far.addresses.iter();
    let inside = Traffic::start(through.map(|to| (&matrix.scene.container, &far.container, *to)))?;
    for damage in [
        &["umount", "-l", &file][..],
        // It may be mounted again before the file can be removed.
        &[
            "sh",
            "-c",
            &format!("until umount -l {file}; rm {file}; do :; done"),
        ],
    ] {
        let before = drift(host)?;
        host.exec(damage)?;
        eventually(SOON, &format!("mended: {damage:?}"), || {
            ensure!(drift(host)? > before, "not counted");
            same(&matrix.scene.pictures()?, &matrix.wanted)
        })?;
        eventually(SOON, "it talks", || matrix.scene.attached())?;
    }
    writes_nothing_when_started_again(host)?;
    traffic.nothing_lost()?;
    inside.nothing_lost()?;
    matrix.scene.cluster.close()
}

/// Somebody empties the host's packet filter, takes the cable out, and makes the underlay's interface anew.
#[test]
fn the_hosts_rules_flushed_and_its_underlay_flapping_or_made_again() -> Result<()> {
    let matrix = Matrix::new(Underlay::Dual)?;
    let host = matrix.host();
    let before = (weft_e2e::writes(host)?, drift(host)?);
    let traffic = between(&matrix.scene.stations)?;
    let blue = host.netns_of("blue");
    for namespace in [host.netns(), &matrix.place(Network), &blue] {
        namespace.exec(&["nft", "flush", "ruleset"])?;
        namespace.exec(&[
            "sysctl",
            "-qw",
            "net.ipv4.conf.all.rp_filter=1",
            "net.ipv6.conf.all.accept_ra=1",
        ])?;
    }
    // What udev and its like do to devices that they see, and settings that were made with the namespace.
    blue.exec(&["ip", "link", "set", "vx4", "address", "02:00:00:00:00:78"])?;
    blue.exec(&[
        "sysctl",
        "-qw",
        "net.ipv4.conf.br0.arp_evict_nocarrier=1",
        "net.ipv4.conf.all.forwarding=1",
    ])?;
    traffic.wait_more(20)?;
    traffic.nothing_lost()?;

    host.lower_underlay()?;
    host.raise_underlay()?;
    eventually(SOON, "it talks", || matrix.scene.attached())?;

    host.remove_underlay()?;
    eventually(SOON, "it is told", || {
        let problems = weft_e2e::status(host)?["problems"].to_string();
        ensure!(problems.contains("no interface eth0"), "{problems}");
        Ok(())
    })?;
    host.make_underlay(None)?;
    eventually(SOON, "it talks", || matrix.scene.attached())?;
    eventually(SOON, "it is as it was", || {
        same(&matrix.scene.pictures()?, &matrix.wanted)?;
        let problems = &weft_e2e::status(host)?["problems"];
        ensure!(*problems == serde_json::json!([]), "{problems}");
        Ok(())
    })?;
    let after = (weft_e2e::writes(host)?, drift(host)?);
    println!("writes and repairs before {before:?}, after {after:?}");
    writes_nothing_when_started_again(host)?;
    matrix.scene.cluster.close()
}
