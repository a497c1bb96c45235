//! The lab itself: what it promises to the tests that stand on it.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weft_lab::{Lab, LabRecord, Underlay, eventually, labs};

const SOON: Duration = Duration::from_secs(10);

/// Traces of a lab anywhere on this machine.
fn traces(record: &LabRecord) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/run/weft-lab", "/dev/shm", "/var/tmp"] {
        let names = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().into_string().ok());
        found.extend(
            names
                .filter(|name| name.contains(&record.id))
                .map(|name| format!("{dir}/{name}")),
        );
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&record.id))
            .map(str::to_owned),
    );
    let processes = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    for process in processes {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // Only the programs a lab starts: a shell of somebody who looks at the lab is not a leftover.
        if line.contains(&record.id) && (line.starts_with("etcd ") || line.contains("/weftd ")) {
            found.push(line);
        }
    }
    found
}

fn no_traces(record: &LabRecord) {
    let traces = traces(record);
    assert!(traces.is_empty(), "left of lab {}: {traces:#?}", record.id);
}

fn hosts_reach_each_other(underlay: Underlay, families: usize) -> Result<()> {
    let lab = Lab::builder().hosts(2).underlay(underlay).build()?;
    let addresses = lab.host(2).addresses();
    assert_eq!(addresses.len(), families);
    for address in addresses {
        ensure!(lab.host(1).ping(address), "host1 does not reach {address}");
    }
    // etcd is reached from the hosts by the addresses their agents are configured with.
    let endpoints = format!("--endpoints={}", lab.etcd_endpoints().join(","));
    lab.host(2).exec(&[
        "env",
        "ETCDCTL_API=3",
        "etcdctl",
        &endpoints,
        "endpoint",
        "health",
    ])?;
    lab.close()
}

#[test]
fn hosts_reach_each_other_over_ipv4() -> Result<()> {
    hosts_reach_each_other(Underlay::V4, 1)
}

#[test]
fn hosts_reach_each_other_over_ipv6() -> Result<()> {
    hosts_reach_each_other(Underlay::V6, 1)
}

#[test]
fn hosts_reach_each_other_over_both() -> Result<()> {
    hosts_reach_each_other(Underlay::Dual, 2)
}

#[test]
fn keys_are_written_read_and_deleted() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    assert_eq!(lab.get("/a")?, None);
    lab.put("/a/1", "one")?;
    lab.put("/a/2", "two\nlines")?;
    lab.put_bytes("/b", &[0xff, 0])?;
    assert_eq!(lab.get("/a/1")?.as_deref(), Some("one"));
    let all: Vec<_> = lab.get_prefix("/a/")?.into_iter().collect();
    assert_eq!(
        all,
        [
            ("/a/1".to_owned(), "one".to_owned()),
            ("/a/2".to_owned(), "two\nlines".to_owned())
        ]
    );
    let bytes = lab.get_kv("/b")?.context("/b")?;
    assert_eq!(
        (bytes.value.as_slice(), bytes.version, bytes.lease),
        ([0xff, 0].as_slice(), 1, 0)
    );
    assert!(lab.get("/b").is_err(), "not UTF-8");
    assert!(lab.del("/b")?);
    assert!(!lab.del("/b")?);
    assert_eq!(lab.del_prefix("/a/")?, 2);
    assert!(lab.etcdctl(&["no-such-command"]).is_err());
    lab.close()
}

#[test]
fn three_members_go_on_without_one_of_them() -> Result<()> {
    let lab = Lab::builder().hosts(1).etcd_members(3).build()?;
    lab.put("/a", "before")?;
    lab.etcd(2).kill9()?;
    eventually(SOON, "writes go on with two members", || lab.put("/a", "after"))?;
    lab.etcd(2).start()?;
    eventually(SOON, "the third member catches up", || {
        let endpoint = format!("--endpoints={}", lab.etcd(2).endpoint());
        let value = lab.host(1).exec(&[
            "env",
            "ETCDCTL_API=3",
            "etcdctl",
            &endpoint,
            "get",
            "--consistency=s",
            "/a",
        ])?;
        ensure!(value.contains("after"), "{value:?}");
        Ok(())
    })?;
    lab.close()
}

#[test]
fn etcd_stops_keeps_its_data_and_can_lose_them() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    lab.put("/a", "kept")?;
    lab.etcd(1).stop()?;
    assert_eq!(lab.etcd(1).pid(), None);
    lab.etcd(1).start()?;
    assert_eq!(lab.get("/a")?.as_deref(), Some("kept"));
    lab.etcd(1).freeze()?;
    assert!(
        lab.etcdctl(&["get", "/a", "--command-timeout=300ms"]).is_err(),
        "a frozen server answers nothing"
    );
    lab.etcd(1).thaw()?;
    eventually(SOON, "it answers again", || lab.get("/a"))?;
    lab.etcd(1).kill9()?;
    lab.etcd(1).wipe()?;
    lab.etcd(1).start()?;
    assert_eq!(lab.get("/a")?, None);
    lab.close()
}

#[test]
fn two_labs_side_by_side_do_not_meet() -> Result<()> {
    let (one, two) = (Lab::builder().hosts(1).build()?, Lab::builder().hosts(2).build()?);
    one.put("/a", "one")?;
    assert_eq!(two.get("/a")?, None);
    assert!(two.host(1).ping(two.host(2).addresses()[0]));
    assert!(
        !one.host(1).ping(two.host(2).addresses()[0]),
        "the same addresses, another world"
    );
    one.close()?;
    assert!(two.host(1).ping(two.host(2).addresses()[0]));
    two.close()
}

#[test]
fn a_pulled_cable_cuts_one_host_off() -> Result<()> {
    let lab = Lab::builder().hosts(2).underlay(Underlay::Dual).build()?;
    let other = lab.host(2).addresses();
    lab.host(2).unplug()?;
    assert!(!lab.host(1).ping(other[0]) && !lab.host(1).ping(other[1]));
    lab.host(2).plug()?;
    for address in other {
        eventually(SOON, "the host is back", || {
            ensure!(lab.host(1).ping(address), "{address} does not answer");
            Ok(())
        })?;
    }
    lab.close()
}

#[test]
fn pings_are_counted_exactly() -> Result<()> {
    let lab = Lab::builder().hosts(1).underlay(Underlay::Dual).build()?;
    let container = lab.container("c1")?;
    for text in ["127.0.0.1", "::1"] {
        let stream = container.ping_stream(text.parse()?, 200)?;
        eventually(SOON, "fifty answers", || {
            ensure!(stream.so_far().received >= 50, "{:?}", stream.so_far());
            Ok(())
        })?;
        let summary = stream.stop();
        assert_eq!(summary.lost(), 0, "{summary:?}");
        assert!(summary.median_rtt.is_some() && summary.first_answer.is_some());
    }
    // No route: requests that are never answered, and no error.
    let nowhere: IpAddr = "10.1.0.1".parse()?;
    assert!(!container.ping(nowhere));
    let stream = container.ping_stream(nowhere, 500)?;
    eventually(SOON, "twenty requests", || {
        ensure!(stream.so_far().sent >= 20, "{:?}", stream.so_far());
        Ok(())
    })?;
    // The route and the address come while it runs.
    container.exec(&["ip", "addr", "add", "10.1.0.1/24", "dev", "lo"])?;
    eventually(SOON, "answers come", || {
        ensure!(stream.so_far().received > 0, "{:?}", stream.so_far());
        Ok(())
    })?;
    let summary = stream.stop();
    assert!(summary.lost() >= 20, "{summary:?}");
    assert_eq!(container.addresses()?, [nowhere]);
    lab.close()
}

#[test]
fn everything_is_gone_after_drop() -> Result<()> {
    let lab = Lab::builder().hosts(3).underlay(Underlay::Dual).build()?;
    let record = lab.record().clone();
    lab.container("c1")?;
    // As weftd does: a namespace mounted in the host's own directory.
    let path = lab.host(1).netns_of("blue").path().to_path_buf();
    std::fs::write(&path, "")?;
    let netns = "/run/netns/".to_owned() + &record.prefix() + "c-c1";
    let mounted = Command::new("mount")
        .args(["--bind", &netns])
        .arg(&path)
        .status()?;
    assert!(mounted.success());
    assert!(lab.host(1).netns_of("blue").exists());
    assert!(traces(&record).len() > 6);
    drop(lab);
    no_traces(&record);
    Ok(())
}

#[test]
fn everything_is_gone_after_a_panic() {
    let record = std::sync::Mutex::new(None);
    let outcome = std::panic::catch_unwind(|| {
        let lab = Lab::builder().hosts(1).build().unwrap();
        *record.lock().unwrap() = Some(lab.record().clone());
        panic!("as a failing test does");
    });
    assert!(outcome.is_err());
    no_traces(&record.into_inner().unwrap().unwrap());
}

#[test]
fn sweep_removes_the_lab_of_a_killed_process() -> Result<()> {
    use std::io::{BufRead as _, BufReader, Read as _};

    let ours = Lab::builder().hosts(1).build()?;
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-lab"))
        .args(["up", "--hold", "--hosts", "2", "--without-weftd"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // Kept open: the child prints more lines.
    let mut output = BufReader::new(child.stdout.take().context("output of the child")?);
    let id = output
        .by_ref()
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("WEFT_LAB=").map(str::to_owned))
        .context("the child ended without a lab")?;
    let record = LabRecord::load(&id)?;
    assert!(!record.is_abandoned());
    assert!(
        traces(&record).iter().any(|trace| trace.starts_with("etcd")),
        "its etcd runs"
    );
    weft_lab::sweep()?;
    assert!(
        LabRecord::load(&id).is_ok(),
        "a lab with a living owner is left alone"
    );

    child.kill()?;
    child.wait()?;
    assert!(record.is_abandoned());
    // Another test that builds a lab may sweep it first.
    weft_lab::sweep()?;
    no_traces(&record);
    assert!(Path::new(&ours.run_dir()).exists(), "our own is still there");
    ours.put("/a", "and works")?;
    ours.close()
}

#[test]
fn the_command_brings_a_lab_up_and_down() -> Result<()> {
    let weft_lab = |args: &[&str]| -> Result<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-lab")).args(args).output()?;
        ensure!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    let env = weft_lab(&["up", "--hosts", "2", "--underlay", "dual", "--without-weftd"])?;
    let id = env
        .lines()
        .find_map(|line| line.strip_prefix("WEFT_LAB="))
        .context("no id")?
        .to_owned();
    let record = LabRecord::load(&id)?;
    weft_lab::sweep()?;
    assert!(!record.is_abandoned(), "nobody owns it, and it stays");
    assert!(labs()?.iter().any(|lab| lab.id == id));
    assert!(weft_lab(&["list"])?.contains(&id));
    assert!(weft_lab(&["exec", &id, "2", "ip", "addr"])?.contains("10.99.0.2/24"));
    let path = weft_lab(&["container", &id, "web"])?;
    assert!(Path::new(path.trim()).exists());
    weft_lab(&["exec", &id, "c-web", "--", "ping", "-c1", "127.0.0.1"])?;
    weft_lab(&["container", &id, "web", "--remove"])?;
    assert!(!Path::new(path.trim()).exists());
    assert!(weft_lab(&["exec", &id, "9", "true"]).is_err());
    weft_lab(&["down", &id])?;
    no_traces(&record);
    Ok(())
}

/// A directory with a stand-in for weftd, removed with the value.
struct StandIn(std::path::PathBuf);

impl StandIn {
    fn new(name: &str, script: &str) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = std::env::temp_dir().join(format!("weft-lab-stand-in-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("weftd");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(dir))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_agent_that_ends_at_once_is_reported_with_its_log() -> Result<()> {
    let stand_in = StandIn::new("ends", "echo what is wrong >&2; exit 3")?;
    let lab = Lab::builder().hosts(1).bin_dir(&stand_in.0).build()?;
    let error = format!("{:#}", lab.host(1).start_weftd().unwrap_err());
    assert!(
        error.contains("host1") && error.contains("what is wrong"),
        "{error}"
    );
    lab.close()
}

#[test]
fn agents_are_started_in_their_host_stopped_and_killed() -> Result<()> {
    let script = "trap 'echo bye; exit 0' TERM; ip -o addr show dev eth0; cat \"$2\"; echo up\n\
                  while :; do sleep 0.05; done";
    let stand_in = StandIn::new("stays", script)?;
    let lab = Lab::builder().hosts(2).bin_dir(&stand_in.0).build()?;
    let host = lab.host(2);
    let logs = |text: &str, times: usize| {
        eventually(SOON, &format!("{text:?} is logged {times} times"), || {
            ensure!(host.log().matches(text).count() == times, "{}", host.log());
            Ok(())
        })
    };
    assert!(host.stop().is_err() && host.pid().is_none(), "nothing runs yet");
    host.spawn_weftd(&[])?;
    logs("up\n", 1)?;
    for expected in [
        "10.99.0.2/24",
        "node = \"host2\"",
        "http://10.99.0.241:2379",
        "/h2/weftd.sock",
    ] {
        assert!(host.log().contains(expected), "{expected}: {}", host.log());
    }
    let first = host.pid().context("it runs")?;
    assert!(host.spawn_weftd(&[]).is_err(), "one agent a host");
    host.kill9()?;
    assert_eq!(host.pid(), None);
    host.spawn_weftd(&[])?;
    logs("up\n", 2)?;
    assert_ne!(host.pid(), Some(first));
    host.stop()?;
    logs("bye\n", 1)?;
    assert_eq!(host.pid(), None);

    // By the command, from another process.
    let command = |deed: &str, number: &str| -> Result<(bool, String)> {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-lab"))
            .args(["agent", lab.id(), number, deed])
            .output()?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    for (deed, byes) in [("stop", 2), ("kill", 2)] {
        host.spawn_weftd(&[])?;
        logs("up\n", if deed == "stop" { 3 } else { 4 })?;
        assert_eq!(command(deed, "2")?, (true, String::new()));
        assert_eq!(host.pid(), None);
        logs("bye\n", byes)?;
    }
    let (done, said) = command("stop", "2")?;
    assert!(!done && said.contains("does not run"), "{said}");
    let (done, said) = command("kill", "9")?;
    assert!(!done && said.contains("has no \"9\""), "{said}");
    lab.close()
}

#[test]
fn impossible_labs_are_refused() {
    for builder in [
        Lab::builder().hosts(0),
        Lab::builder().mtu(100),
        Lab::builder().etcd_members(10),
    ] {
        assert!(builder.build().is_err());
    }
}

#[test]
fn three_members_elect_another_leader_and_keep_what_was_written() -> Result<()> {
    let lab = Lab::builder().hosts(1).etcd_members(3).build()?;
    let first = eventually(SOON, "somebody leads", || Ok(lab.etcd_leader()?.number()))?;
    lab.put("/a", "1")?;
    lab.etcd(first).kill9()?;
    let second = eventually(SOON, "another one leads", || Ok(lab.etcd_leader()?.number()))?;
    assert_ne!(first, second);
    let reading = lab.etcd(second).read("/", SOON)?;
    assert_eq!(
        (reading.keys.len(), reading.keys[0].value.as_slice()),
        (1, &b"1"[..])
    );
    lab.etcd(first).start()?;
    let status = lab.etcd(first).status()?;
    assert_ne!(status.leader, status.member, "it follows");
    assert_eq!(status.revision, reading.revision);
    lab.close()
}

#[test]
fn a_key_is_created_once() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    assert!(lab.create("/a/1", r#"{"a": "b c", "d": [1]}"#)?);
    assert!(!lab.create("/a/1", "2")?);
    assert_eq!(lab.get("/a/1")?.as_deref(), Some(r#"{"a": "b c", "d": [1]}"#));
    lab.close()
}

#[test]
fn a_watch_tells_whole_revisions_in_order() -> Result<()> {
    let lab = Lab::builder().hosts(1).build()?;
    lab.put("/a/1", "one")?;
    lab.put("/a/2", "two")?;
    lab.del_prefix("/a/")?;
    let watch = lab.etcd(1).watch("/a/", 1)?;
    let mut events = Vec::new();
    eventually(SOON, "all four changes", || {
        events.extend(watch.next(SOON)?);
        ensure!(events.len() == 4, "{events:?}");
        Ok(())
    })?;
    let told: Vec<_> = events
        .iter()
        .map(|e| (e.deleted, e.kv.key.as_str(), e.kv.text().unwrap_or_default()))
        .collect();
    assert_eq!(
        told,
        [
            (false, "/a/1", "one".to_owned()),
            (false, "/a/2", "two".to_owned()),
            (true, "/a/1", String::new()),
            (true, "/a/2", String::new())
        ]
    );
    assert_eq!(events[2].kv.mod_revision, events[3].kv.mod_revision);
    lab.etcd(1).kill9()?;
    // The client behind it tries again for good; dropping it is what ends it.
    drop(watch);
    lab.close()
}

#[test]
fn a_cut_is_silent_and_can_be_mended() -> Result<()> {
    let lab = Lab::builder().hosts(2).underlay(Underlay::Dual).build()?;
    let (here, there) = (lab.host(1), lab.host(2));
    here.netns().cut_off(&there.addresses())?;
    for address in there.addresses() {
        assert!(!here.ping(address), "{address} answers");
    }
    for address in here.addresses() {
        assert!(!there.ping(address), "{address} answers");
    }
    here.netns().cut_off(&[])?;
    here.netns().reconnect()?;
    here.netns().reconnect()?;
    for address in there.addresses() {
        ensure!(here.ping(address), "{address} does not answer");
    }
    lab.close()
}
