//! What is not ours is left alone while ours is repaired, and nothing is taken for drift that is none. Each kind of drift is in
//! tests/faults (`drift.rs`).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weft_e2e::{Cluster, Station, counter, fdb, link, neighbours, remote_fdb};
use weft_lab::{Host, Namespace, eventually};

/// How long a repair may take. Notifications make it milliseconds; the periodic look, five minutes, is no help.
const REPAIR: Duration = Duration::from_secs(5);

struct Scene {
    cluster: Cluster,
    stations: Vec<Station>,
    /// Name of the host end of the first station's veth.
    veth: String,
    /// MAC of the other host's station.
    mac: String,
}

impl Scene {
    fn new() -> Result<Self> {
        let cluster = Cluster::of(2)?;
        cluster.network("blue", &["10.1.0.0/24", "fd00:1::/64"])?;
        let mut stations = vec![
            cluster.endpoint("blue", 1, "a")?,
            cluster.endpoint("blue", 2, "b")?,
            cluster.endpoint("blue", 1, "c")?,
        ];
        cluster.up(&mut stations)?;
        let local = cluster.host(1).weft_json(&["endpoint", "inspect", "blue", "a"])?;
        let veth = local["veth"]["name"].as_str().context("veth")?.to_owned();
        let mac = cluster.record(&stations[1])?["mac"]
            .as_str()
            .context("mac")?
            .to_owned();
        Ok(Self {
            cluster,
            stations,
            veth,
            mac,
        })
    }

    fn host(&self) -> &Host {
        self.cluster.host(1)
    }

    fn network(&self) -> Namespace {
        self.host().netns_of("blue")
    }

    fn drift(&self) -> Result<u64> {
        counter(self.host(), "/drift_repaired/total")
    }

    /// Does damage by a program in a namespace, waits until `mended`, and checks that it was counted.
    fn damage(
        &self,
        what: &str,
        namespace: &Namespace,
        argv: &[&str],
        mended: impl Fn(&Self) -> Result<()>,
    ) -> Result<()> {
        let before = self.drift()?;
        namespace.exec(argv)?;
        self.mends(what, before, mended)
    }

    fn mends(&self, what: &str, before: u64, mended: impl Fn(&Self) -> Result<()>) -> Result<()> {
        eventually(REPAIR, &format!("mended: {what}"), || {
            mended(self)?;
            ensure!(self.drift()? > before, "not counted");
            Ok(())
        })?;
        self.cluster.all_talk(&self.stations)
    }

    fn has_all_entries(&self) -> Result<()> {
        let vtep = ("10.99.0.2".to_owned(), self.mac.clone());
        let remote = remote_fdb(&self.network())?;
        ensure!(remote.contains(&(vtep.1.clone(), vtep.0)), "{remote:?}");
        let bridge = fdb(&self.network())?;
        ensure!(
            bridge.iter().any(|row| row.mac == self.mac && row.master),
            "{bridge:?}"
        );
        let seen = neighbours(&self.network())?;
        for address in &self.stations[1].addresses {
            ensure!(
                seen.contains(&(address.to_string(), self.mac.clone())),
                "{seen:?}"
            );
        }
        Ok(())
    }

    fn attached(&self) -> Result<()> {
        let veth = link(&self.network(), &self.veth)?;
        ensure!(
            veth["master"] == "br0" && veth["operstate"] == "UP" && veth["mtu"] == 1450,
            "{veth}"
        );
        let station = &self.stations[0];
        let eth0 = link(station.container.netns(), "eth0")?;
        ensure!(eth0["operstate"] == "UP" && eth0["mtu"] == 1450, "{eth0}");
        let held = station.container.addresses()?;
        ensure!(station.addresses.iter().all(|a| held.contains(a)), "{held:?}");
        Ok(())
    }

    /// Nothing goes on being repaired that nobody damages any more.
    fn calm(&self) -> Result<()> {
        let (drift, writes) = (self.drift()?, weft_e2e::writes(self.host())?);
        let passes = counter(self.host(), "/passes/total")?;
        self.cluster.all_talk(&self.stations)?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(
            (self.drift()?, weft_e2e::writes(self.host())?) == (drift, writes),
            "it goes on"
        );
        ensure!(
            counter(self.host(), "/passes/total")? - passes < 10,
            "passes without end"
        );
        Ok(())
    }
}

#[test]
fn what_is_not_ours_stays() -> Result<()> {
    let scene = Scene::new()?;
    let network = scene.network();
    let container = scene.stations[0].container.netns();
    let before = (scene.drift()?, weft_e2e::writes(scene.host())?);
    for line in [
        "bridge fdb append 02:00:00:00:00:aa dev vx4 dst 10.99.0.88 self permanent",
        "bridge fdb add 02:00:00:00:00:bb dev vx4 master static",
        "ip neigh add 10.1.0.250 lladdr 02:00:00:00:00:aa dev br0 nud permanent",
        "ip link add mine type veth peer name mine-peer",
        "ip link set mine master br0 up",
    ] {
        network.exec(&line.split(' ').collect::<Vec<_>>())?;
    }
    for line in [
        "ip addr add 10.1.0.240/24 dev eth0",
        // Of another prefix: the kernel would take it for the source of what goes to the network's.
        "ip addr add fd00:9::240/64 dev eth0 nodad",
        "ip link add other type bridge",
        "ip addr add 192.168.7.7/24 dev other",
        "ip link set other up",
        "ip route add 172.16.0.0/16 via 10.1.0.240 dev eth0",
        "ip neigh add 10.1.0.251 lladdr 02:00:00:00:00:cc dev eth0 nud permanent",
    ] {
        container.exec(&line.split(' ').collect::<Vec<_>>())?;
    }
    let foreign_is_there = |scene: &Scene| -> Result<()> {
        let network = scene.network();
        let entries = network.exec(&["bridge", "fdb", "show"])?;
        ensure!(
            entries
                .lines()
                .any(|row| row.contains("02:00:00:00:00:aa dev vx4 dst 10.99.0.88")
                    && row.contains("self permanent")),
            "{entries}"
        );
        ensure!(
            entries.contains("02:00:00:00:00:bb dev vx4 master br0 static"),
            "{entries}"
        );
        ensure!(neighbours(&network)?.contains(&("10.1.0.250".into(), "02:00:00:00:00:aa".into())));
        ensure!(link(&network, "mine")?["master"] == "br0");
        let container = scene.stations[0].container.netns();
        let held = scene.stations[0].container.addresses()?;
        for address in ["10.1.0.240", "fd00:9::240", "192.168.7.7"] {
            ensure!(held.contains(&address.parse()?), "{address}: {held:?}");
        }
        let routes = container.exec(&["ip", "route", "show"])?;
        ensure!(routes.contains("172.16.0.0/16"), "{routes}");
        ensure!(
            container
                .exec(&["ip", "neigh", "show"])?
                .contains("02:00:00:00:00:cc")
        );
        Ok(())
    };
    foreign_is_there(&scene)?;
    // Nothing of that is drift, and nothing is written for it.
    scene.calm()?;
    assert_eq!((scene.drift()?, weft_e2e::writes(scene.host())?), before);

    // Repairs, new endpoints and a restart beside them leave them alone too.
    scene.damage(
        "fdb",
        &network,
        &[
            "bridge",
            "fdb",
            "del",
            &scene.mac,
            "dev",
            "vx4",
            "dst",
            "10.99.0.2",
            "self",
        ],
        Scene::has_all_entries,
    )?;
    let v6 = format!("{}/64", scene.stations[0].address(false));
    scene.damage(
        "address",
        container,
        &["ip", "addr", "del", &v6, "dev", "eth0"],
        Scene::attached,
    )?;
    let mut new = vec![
        scene.cluster.endpoint("blue", 1, "new")?,
        scene.cluster.endpoint("blue", 2, "new2")?,
    ];
    scene.cluster.up(&mut new)?;
    scene.host().kill9()?;
    scene.host().start_weftd()?;
    scene.cluster.all_talk(&scene.stations)?;
    foreign_is_there(&scene)?;
    assert_eq!(weft_e2e::writes(scene.host())?, 0);

    // And when the endpoint goes, the container keeps what is not ours.
    scene.cluster.del(&scene.stations[0].key())?;
    eventually(REPAIR, "eth0 is gone", || {
        ensure!(link(container, "eth0").is_err());
        Ok(())
    })?;
    assert!(link(container, "other").is_ok());
    scene.cluster.close()
}

#[test]
fn nothing_is_drift_when_nobody_touches_anything() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &["10.1.0.0/24", "fd00:1::/64"])?;
    let mut stations = Vec::new();
    for number in 0..10 {
        stations.push(cluster.endpoint("blue", number % 2 + 1, &format!("e{number}"))?);
    }
    cluster.up(&mut stations)?;
    for station in stations.split_off(5) {
        cluster.del(&station.key())?;
    }
    cluster.all_talk(&stations)?;
    for host in cluster.hosts() {
        let status = weft_e2e::status(host)?;
        assert_eq!(
            status["drift_repaired"]["total"], 0,
            "{}",
            status["drift_repaired"]
        );
        assert!(!host.log().contains("repaired"), "{}", host.log());
    }
    cluster.close()
}
