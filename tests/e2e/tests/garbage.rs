//! Bad input in every kind of record: a clear problem that names key and field, said once, and nothing else disturbed.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use weft_e2e::{Cluster, SOON, Station, has_problem, link, no_problem, problems};
use weft_lab::{Namespace, PingStream, eventually};

const CIDRS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

/// Two endpoints on two hosts, and echo between them at 100 a second that must not suffer.
struct Scene {
    cluster: Cluster,
    stations: Vec<Station>,
    streams: Vec<PingStream>,
    pids: Vec<Option<u32>>,
}

impl Scene {
    fn new() -> Result<Self> {
        let cluster = Cluster::of(2)?;
        cluster.network("blue", &CIDRS)?;
        let mut stations = vec![
            cluster.endpoint("blue", 1, "a")?,
            cluster.endpoint("blue", 2, "b")?,
        ];
        cluster.up(&mut stations)?;
        let mut streams = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            for address in &stations[to].addresses {
                streams.push(stations[from].container.ping_stream(*address, 100)?);
            }
        }
        let pids = cluster.hosts().iter().map(weft_lab::Host::pid).collect();
        Ok(Self {
            cluster,
            stations,
            streams,
            pids,
        })
    }

    /// Waits until a host's agent has taken in all that the store holds.
    fn caught_up(&self, host: usize) -> Result<()> {
        let key = "/weft/v1/networks/marker";
        self.cluster
            .put(key, r#"{"subnets":[{"cidr":"192.168.0.0/24"}]}"#)?;
        let revision = self.cluster.get_kv(key)?.context("marker")?.mod_revision;
        eventually(SOON, "the agent has seen all", || {
            let seen = weft_e2e::counter(self.cluster.host(host), "/applied_revision")?;
            ensure!(seen >= u64::try_from(revision)?, "{seen} of {revision}");
            Ok(())
        })
    }

    /// Nothing was lost, and no agent has ended meanwhile.
    fn undisturbed(&mut self) -> Result<()> {
        for (number, stream) in self.streams.drain(..).enumerate() {
            let sum = stream.stop();
            ensure!(sum.lost() == 0 && sum.sent > 20, "stream {number}: {sum:?}");
        }
        let pids: Vec<_> = self.cluster.hosts().iter().map(weft_lab::Host::pid).collect();
        ensure!(
            pids == self.pids,
            "agents ended: {pids:?}, before {:?}",
            self.pids
        );
        Ok(())
    }
}

/// Warnings about a key in a host's log.
fn warnings(cluster: &Cluster, host: usize, key: &str) -> Vec<String> {
    let log = cluster.host(host).log();
    let wanted = format!("key={key:?}");
    log.lines()
        .filter(|line| line.contains(" WARN ") && line.contains(&wanted))
        .map(str::to_owned)
        .collect()
}

/// Key without the prefix, value, the field that the problem has to name, and words of its text.
fn bad_records() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let text = |t: &str| t.as_bytes().to_vec();
    let with_vni = |vni: &str| {
        text(&format!(
            r#"{{"subnets":[{{"cidr":"10.9.0.0/16"}}],"vni":{vni}}}"#
        ))
    };
    let attached = |more: &str| {
        text(&format!(
            r#"{{"attachment":{{"netns":"/run/netns/none"}}{more}}}"#
        ))
    };
    let mut huge = text(r#"{"subnets":[{"cidr":"10.9.0.0/16"}],"vni":""#);
    huge.extend(std::iter::repeat_n(b'x', 1_000_000));
    huge.extend(b"\"}");
    vec![
        // Networks.
        ("networks/bytes", vec![0xff, 0xfe, 0, 1, 2, 0x80], "", ""),
        ("networks/cut", text(r#"{"subnets":[{"cidr":"10.9.0"#), "", ""),
        ("networks/list", text("[1,2,3]"), "", ""),
        ("networks/empty", text("{}"), "subnets", "is missing"),
        (
            "networks/string",
            text(r#"{"subnets":"10.9.0.0/16"}"#),
            "subnets",
            "",
        ),
        (
            "networks/number",
            text(r#"{"subnets":[{"cidr":10}]}"#),
            "subnets[0].cidr",
            "",
        ),
        (
            "networks/cidr",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/33"}]}"#),
            "subnets[0].cidr",
            "",
        ),
        (
            "networks/host-bits",
            text(r#"{"subnets":[{"cidr":"10.9.0.1/16"}]}"#),
            "subnets[0].cidr",
            "",
        ),
        (
            "networks/gateway",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/16","gateway":"10.8.0.1"}]}"#),
            "subnets[0].gateway",
            "",
        ),
        (
            "networks/overlap",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/16"},{"cidr":"10.9.1.0/24"}]}"#),
            "subnets[1].cidr",
            "",
        ),
        ("networks/vni0", with_vni("0"), "vni", ""),
        ("networks/vni-high", with_vni("16777216"), "vni", ""),
        ("networks/vni-text", with_vni("\"7\""), "vni", ""),
        ("networks/vni-huge", with_vni("1e99"), "vni", ""),
        (
            "networks/mtu",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/16"}],"mtu":67}"#),
            "mtu",
            "",
        ),
        (
            "networks/version",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/16"}],"version":99}"#),
            "version",
            "",
        ),
        ("networks/megabyte", huge, "", "at most 262144"),
        (
            "networks/a/b",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/16"}]}"#),
            "",
            "",
        ),
        (
            "networks/-dash",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/16"}]}"#),
            "",
            "",
        ),
        (
            "networks/sp ace",
            text(r#"{"subnets":[{"cidr":"10.9.0.0/16"}]}"#),
            "",
            "",
        ),
        // Peers.
        ("peers/bytes", vec![0xc3, 0x28], "", ""),
        ("peers/none", text(r#"{"vteps":[],"mtu":1500}"#), "vteps", ""),
        (
            "peers/vtep",
            text(r#"{"vteps":["10.99.0.300"],"mtu":1500}"#),
            "vteps[0]",
            "",
        ),
        (
            "peers/multicast",
            text(r#"{"vteps":["224.0.0.1"],"mtu":1500}"#),
            "vteps[0]",
            "",
        ),
        (
            "peers/mtu",
            text(r#"{"vteps":["10.99.0.9"],"mtu":70000}"#),
            "mtu",
            "",
        ),
        ("peers/a/b", text(r#"{"vteps":["10.99.0.9"],"mtu":1500}"#), "", ""),
        // Endpoints, of this host and another.
        ("endpoints/blue/host1/bytes", vec![0, 0xff], "", ""),
        (
            "endpoints/blue/host1/empty",
            text("{}"),
            "attachment",
            "is missing",
        ),
        (
            "endpoints/blue/host1/number",
            text(r#"{"attachment":{"netns":7}}"#),
            "attachment.netns",
            "",
        ),
        (
            "endpoints/blue/host1/relative",
            text(r#"{"attachment":{"netns":"c1"}}"#),
            "attachment.netns",
            "",
        ),
        (
            "endpoints/blue/host1/dots",
            text(r#"{"attachment":{"netns":"/run/netns/../x"}}"#),
            "attachment.netns",
            "",
        ),
        (
            "endpoints/blue/host1/lo",
            text(r#"{"attachment":{"netns":"/run/netns/x","ifname":"lo"}}"#),
            "attachment.ifname",
            "",
        ),
        (
            "endpoints/blue/host1/long",
            text(r#"{"attachment":{"netns":"/run/netns/x","ifname":"sixteen-letters-"}}"#),
            "attachment.ifname",
            "",
        ),
        (
            "endpoints/blue/host1/slash",
            text(r#"{"attachment":{"netns":"/run/netns/x","ifname":"a/b"}}"#),
            "attachment.ifname",
            "",
        ),
        (
            "endpoints/blue/host1/mac",
            attached(r#","mac":"01:00:5e:00:00:01""#),
            "mac",
            "",
        ),
        (
            "endpoints/blue/host1/address",
            attached(r#","requested_addresses":["10.1.0.999"]"#),
            "requested_addresses[0]",
            "",
        ),
        (
            "endpoints/blue/host1/outside",
            attached(r#","requested_addresses":["10.7.0.9"]"#),
            "requested_addresses[0]",
            "",
        ),
        ("endpoints/blue/host2/bytes", vec![0x7b, 0xff], "", ""),
        (
            "endpoints/blue/host2/attachment",
            text(r#"{"attachment":[]}"#),
            "attachment",
            "",
        ),
        ("endpoints/blue/host1/a/b", attached(""), "", ""),
        ("endpoints/blue/host1/..", attached(""), "", ""),
        ("endpoints/blue/host1/", attached(""), "", ""),
        // Claims.
        ("addresses/blue/10.1.0.77", vec![0xff], "", ""),
        (
            "addresses/blue/10.1.0.78",
            text(r#"{"endpoint":"nobody"}"#),
            "endpoint",
            "",
        ),
        (
            "addresses/blue/10.1.0.079",
            text(r#"{"endpoint":"host9/x"}"#),
            "",
            "",
        ),
        ("addresses/blue/ten", text(r#"{"endpoint":"host9/x"}"#), "", ""),
        ("vnis/77", vec![0xff], "", ""),
        ("vnis/78", text(r#"{"network":7}"#), "network", ""),
        ("vnis/0", text(r#"{"network":"x"}"#), "", ""),
        ("vnis/many", text(r#"{"network":"x"}"#), "", ""),
    ]
}

#[test]
fn every_bad_record_is_named_and_disturbs_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let host = scene.cluster.host(1);
    for (key, value, ..) in bad_records() {
        scene.cluster.put_bytes(&format!("/weft/v1/{key}"), &value)?;
    }
    // All that are wrong are told at once: one failing check would hide the others.
    eventually(SOON, "all problems are told", || {
        let mut missing = Vec::new();
        for (key, _, field, words) in bad_records() {
            if let Err(error) = has_problem(host, key, field, words) {
                let text = error.to_string();
                missing.push(text.split("; all:").next().unwrap_or_default().to_owned());
            }
        }
        ensure!(missing.is_empty(), "{missing:#?}");
        Ok(())
    })?;
    // Several passes over all of it, and a look at the log: each cause has its one line.
    for _ in 0..3 {
        scene.caught_up(1)?;
    }
    for (key, ..) in bad_records() {
        let lines = warnings(&scene.cluster, 1, key);
        assert_eq!(lines.len(), 1, "{key}: {lines:#?}");
        assert!(lines[0].len() < 1000, "{} bytes in a line", lines[0].len());
    }
    // A healthy network beside them can be made and used.
    scene.cluster.network("red", &CIDRS)?;
    let mut red = vec![
        scene.cluster.endpoint("red", 1, "r1")?,
        scene.cluster.endpoint("red", 2, "r2")?,
    ];
    scene.cluster.up(&mut red)?;
    // A record that is deleted takes its problem along, whatever it was.
    for (key, ..) in bad_records() {
        scene.cluster.del(&format!("/weft/v1/{key}"))?;
    }
    eventually(SOON, "no problem is left", || {
        let left = weft_e2e::status(host)?["problems"].clone();
        ensure!(left == serde_json::json!([]), "{left}");
        Ok(())
    })?;
    scene.undisturbed()?;
    scene.cluster.close()
}

/// Xorshift: the same bytes in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % below
    }

    /// A good record with a few bytes changed, cut or doubled.
    fn mutate(&mut self, record: &str) -> Vec<u8> {
        let mut bytes = record.as_bytes().to_vec();
        for _ in 0..=self.roll(4) {
            let at = self.roll(bytes.len());
            match self.roll(4) {
                0 => bytes[at] = u8::try_from(self.roll(256)).unwrap_or(0),
                1 => bytes.truncate(at.max(1)),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"{}[]\",:0-9\\"[self.roll(11)]),
            }
            if bytes.is_empty() {
                bytes.push(b'x');
            }
        }
        bytes
    }
}

#[test]
fn mutated_records_of_every_kind_disturb_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut dice = Dice(0x5eed_0e2e);
    let kinds = [
        (
            "networks/f",
            r#"{"subnets":[{"cidr":"10.50.0.0/16","gateway":"10.50.0.1"}],"mtu":1400,"labels":{"a":"b"}}"#,
        ),
        (
            "peers/f",
            r#"{"vteps":["10.99.0.200","fd99::200"],"mtu":1500,"kind":"external"}"#,
        ),
        (
            "endpoints/blue/host1/f",
            r#"{"name":"x","attachment":{"netns":"/run/netns/none-such","ifname":"eth0"},"mac":"02:00:00:00:01:02"}"#,
        ),
        (
            "endpoints/blue/host2/f",
            r#"{"attachment":{"netns":"/run/netns/none-such"},"addresses":["10.1.0.90"],"mac":"02:00:00:00:01:03"}"#,
        ),
        ("addresses/blue/10.1.0.9", r#"{"endpoint":"host9/f"}"#),
        ("vnis/99", r#"{"network":"nobody"}"#),
        ("alive/f", r#"{"boot_id":"b","since":1}"#),
        ("status/f", r#"{"applied_revision":1,"networks":0}"#),
    ];
    for round in 0..12 {
        for (key, record) in &kinds {
            let value = dice.mutate(record);
            scene
                .cluster
                .put_bytes(&format!("/weft/v1/{key}{}", round % 4), &value)?;
        }
    }
    for host in [1, 2] {
        scene.caught_up(host)?;
    }
    // They stand a start with all of it, too.
    scene.undisturbed()?;
    scene.cluster.host(1).restart()?;
    scene.cluster.all_talk(&scene.stations)?;
    let mut more = vec![
        scene.cluster.endpoint("blue", 1, "late")?,
        scene.stations.remove(1),
    ];
    scene.cluster.up(&mut more)?;
    scene.cluster.close()
}

#[test]
fn what_runs_goes_on_when_its_record_turns_bad() -> Result<()> {
    let mut scene = Scene::new()?;
    let cluster = &scene.cluster;
    let keys = [
        scene.stations[0].key(),
        scene.stations[1].key(),
        Cluster::network_key("blue"),
        "/weft/v1/peers/host2".to_owned(),
    ];
    let good: Vec<String> = keys
        .iter()
        .map(|key| cluster.get(key)?.context("a record"))
        .collect::<Result<_>>()?;
    // Its own agent would put a peer's record right at once.
    cluster.host(2).stop()?;
    for (key, value) in keys
        .iter()
        .zip([&b"\xff\xff"[..], b"{}", b"{\"subnets\":7}", b"nonsense"])
    {
        cluster.put_bytes(key, value)?;
    }
    let host = cluster.host(1);
    let short: Vec<&str> = keys
        .iter()
        .map(|key| key.trim_start_matches("/weft/v1/"))
        .collect();
    let all_told = |host: &weft_lab::Host, keys: &[&str]| {
        eventually(SOON, "all of it is told", || {
            for key in keys {
                ensure!(!problems(host, key)?.is_empty(), "nothing of {key}");
            }
            Ok(())
        })
    };
    all_told(host, &short)?;
    scene.caught_up(1)?;

    // Over a restart nothing is known of them but what the kernel holds: it stays.
    host.kill9()?;
    host.start_weftd()?;
    all_told(host, &short)?;
    scene.caught_up(1)?;
    assert_eq!(weft_e2e::writes(host)?, 0, "{}", weft_e2e::status(host)?);
    // host2 puts its own peer record right; the others stay as they are.
    cluster.host(2).start_weftd()?;
    all_told(cluster.host(2), &short[..3])?;
    eventually(SOON, "the peer's record is good again", || {
        no_problem(host, short[3])
    })?;
    let second = cluster.host(2);
    assert_eq!(weft_e2e::writes(second)?, 0, "{}", weft_e2e::status(second)?);

    // Put right, the problems go, and nothing has to be done.
    for (key, value) in keys.iter().zip(&good).take(3) {
        cluster.put(key, value)?;
    }
    for host in cluster.hosts() {
        eventually(SOON, "nothing is wrong any more", || {
            let left = weft_e2e::status(host)?["problems"].clone();
            ensure!(left == serde_json::json!([]), "{left}");
            Ok(())
        })?;
        assert_eq!(weft_e2e::writes(host)?, 0, "{}", weft_e2e::status(host)?);
    }
    let pids = cluster.hosts().iter().map(weft_lab::Host::pid).collect();
    scene.pids = pids;
    scene.undisturbed()?;
    scene.cluster.all_talk(&scene.stations)?;
    scene.cluster.close()
}

/// What is on a host or in a container, down to addresses.
fn picture(namespace: &Namespace) -> Result<String> {
    // Link-local addresses change by themselves while their uniqueness is probed.
    let addresses = namespace.exec(&["ip", "-o", "addr", "show", "scope", "global"])?;
    Ok(addresses + &namespace.exec(&["ip", "-br", "link", "show"])?)
}

#[test]
fn an_attachment_cannot_turn_the_agent_against_its_host() -> Result<()> {
    let mut scene = Scene::new()?;
    let cluster = &scene.cluster;
    let host = cluster.host(1);
    let prefix = cluster.lab_record().prefix();
    let victim = cluster.container("victim")?;
    for line in [
        "ip link add eth0 type bridge",
        "ip addr add 192.0.2.1/24 dev eth0",
        "ip link set eth0 up",
    ] {
        victim.exec(&line.split(' ').collect::<Vec<_>>())?;
    }
    let at = |name: &str| format!("/run/netns/{prefix}c-{name}");
    // A link to a container, a plain file, a namespace of another kind, one of weft's under another name.
    std::os::unix::fs::symlink(victim.path(), at("link"))?;
    std::fs::write(at("plain"), "")?;
    for (name, source) in [
        ("mount", "/proc/self/ns/uts".to_owned()),
        ("own", host.netns_of("blue").path().display().to_string()),
    ] {
        std::fs::write(at(name), "")?;
        host.exec(&["mount", "--bind", &source, &at(name)])?;
    }
    let attacks = [
        ("host", host.netns().path().display().to_string(), "host's own"),
        (
            "weft",
            host.netns_of("blue").path().display().to_string(),
            "attachments have to be",
        ),
        ("weft-name", "/run/netns/weft-blue".to_owned(), "weft's own"),
        ("weft-bound", at("own"), "weft's"),
        ("proc", "/proc/1/ns/net".to_owned(), "attachments have to be"),
        ("file", "/etc/passwd".to_owned(), "attachments have to be"),
        ("link", at("link"), "symbolic link"),
        ("plain", at("plain"), "not a network namespace"),
        ("mount", at("mount"), "not a network namespace"),
        ("dir", "/run/netns".to_owned(), "attachments have to be"),
        ("none", at("none"), "no such network namespace"),
        ("taken", victim.path(), "eth0"),
    ];
    let namespaces = [
        host.netns().clone(),
        victim.netns().clone(),
        host.netns_of("blue"),
    ];
    let before: Vec<String> = namespaces.iter().map(picture).collect::<Result<_>>()?;
    let passwd = std::fs::read("/etc/passwd")?;
    for (id, netns, _) in &attacks {
        let record = serde_json::json!({"attachment": {"netns": netns}}).to_string();
        cluster.put(&Cluster::endpoint_key("blue", 1, id), &record)?;
    }
    eventually(SOON, "all are refused", || {
        let mut missing = Vec::new();
        for (id, _, words) in &attacks {
            let found = problems(host, &format!("endpoints/blue/host1/{id}"))?;
            if !found.iter().any(|(_, message)| message.contains(words)) {
                missing.push(format!("{id}: {words:?} not in {found:?}"));
            }
        }
        ensure!(missing.is_empty(), "{missing:#?}");
        Ok(())
    })?;
    // Tried again several times, told once.
    scene.caught_up(1)?;
    let tries = weft_e2e::counter(host, "/passes/total")?;
    eventually(SOON, "it is tried again", || {
        ensure!(weft_e2e::counter(host, "/passes/total")? > tries + 5);
        Ok(())
    })?;
    for (id, ..) in &attacks {
        let lines = warnings(cluster, 1, &format!("endpoints/blue/host1/{id}"));
        assert_eq!(lines.len(), 1, "{id}: {lines:#?}");
    }
    // The same by the command: refused at once, and nothing is left in the store.
    for (id, netns, words) in attacks.iter().filter(|(id, ..)| *id != "taken") {
        let output =
            host.weft_output(&["endpoint", "attach", "blue", netns, "--id", &format!("{id}-cli")])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{id}: {said}");
        assert!(said.contains(words), "{id}: {said}");
        assert_eq!(
            cluster.get(&Cluster::endpoint_key("blue", 1, &format!("{id}-cli")))?,
            None
        );
    }
    let output = host.weft_output(&[
        "endpoint",
        "attach",
        "blue",
        &victim.path(),
        "--id",
        "taken-cli",
        "--timeout",
        "5s",
    ])?;
    assert!(!output.status.success(), "{output:?}");
    eventually(SOON, "a failed attach leaves nothing", || {
        ensure!(
            cluster
                .get(&Cluster::endpoint_key("blue", 1, "taken-cli"))?
                .is_none()
        );
        Ok(())
    })?;

    let after: Vec<String> = namespaces.iter().map(picture).collect::<Result<_>>()?;
    assert_eq!(before, after);
    assert_eq!(link(victim.netns(), "eth0")?["linkinfo"]["info_kind"], "bridge");
    assert_eq!(std::fs::read("/etc/passwd")?, passwd);
    assert!(Path::new(&at("link")).is_symlink());

    // Deleting the records takes nothing of the victims along.
    for (id, ..) in &attacks {
        cluster.del(&Cluster::endpoint_key("blue", 1, id))?;
    }
    eventually(SOON, "no problem is left", || {
        let left = weft_e2e::status(host)?["problems"].clone();
        ensure!(left == serde_json::json!([]), "{left}");
        Ok(())
    })?;
    let after: Vec<String> = namespaces.iter().map(picture).collect::<Result<_>>()?;
    assert_eq!(before, after);
    std::fs::remove_file(at("link"))?;
    scene.undisturbed()?;
    scene.cluster.close()
}
