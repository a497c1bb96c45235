//! `weft events`: what happens, with the object that it happened to.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use weft_e2e::{Cluster, SOON};

/// Events of a host as they come.
struct Events {
    child: std::process::Child,
    lines: mpsc::Receiver<Value>,
    seen: Vec<Value>,
}

impl Events {
    fn of(host: &weft_lab::Host) -> Result<Self> {
        let mut child = host
            .netns()
            .command(host.weft_path()?)
            .arg("--socket")
            .arg(host.socket())
            .args(["events", "-o", "json"])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let read = output.lines().map_while(Result::ok);
            let events = read.filter_map(|line| serde_json::from_str(&line).ok());
            events.for_each(|event| drop(sender.send(event)));
        });
        Ok(Self {
            child,
            lines,
            seen: Vec::new(),
        })
    }

    /// Waits for an event of a kind about something.
    fn next(&mut self, kind: &str, about: &str) -> Result<Value> {
        loop {
            match self.lines.recv_timeout(SOON) {
                Ok(event) if event["kind"] == kind && event.to_string().contains(about) => return Ok(event),
                Ok(event) => self.seen.push(event),
                Err(_) => bail!("no {kind} about {about}; there were {:?}", self.seen),
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[test]
fn events_hold_what_they_are_about() -> Result<()> {
    let cluster = Cluster::of(1)?;
    let host = cluster.host(1);
    let mut events = Events::of(host)?;
    // Whoever listens hears of what happens from then on: something happens until it is heard.
    for round in 0.. {
        cluster.put(
            "/weft/v1/networks/knock",
            r#"{"subnets":[{"cidr":"10.8.0.0/24"}]}"#,
        )?;
        if events.lines.recv_timeout(Duration::from_millis(200)).is_ok() {
            break;
        }
        anyhow::ensure!(round < 100, "nothing is heard");
    }
    cluster.network("blue", &["10.1.0.0/24"])?;
    let network = events.next("network_put", "blue")?;
    assert_eq!(network["subject"]["network"]["name"], "blue", "{network}");
    let mut stations = vec![cluster.endpoint("blue", 1, "a")?];
    cluster.settle(&mut stations)?;
    let ready = events.next("endpoint_ready", "blue")?;
    let address = &ready["subject"]["endpoint"]["addresses"][0];
    assert_eq!(*address, format!("{}/24", stations[0].address(true)), "{ready}");
    cluster.put(
        "/weft/v1/peers/far",
        r#"{"vteps":["10.99.0.77"],"mtu":1500,"kind":"external"}"#,
    )?;
    let peer = events.next("peer_put", "far")?;
    assert_eq!(peer["subject"]["peer"]["vteps"][0], "10.99.0.77", "{peer}");
    let blue = host.netns_of("blue");
    blue.exec(&["ip", "link", "set", "br0", "mtu", "1400"])?;
    let drift = events.next("drift_repaired", "br0")?;
    let told = &drift["subject"]["drift"];
    assert_eq!(
        (&told["found"], &told["wanted"]),
        (&"mtu 1400".into(), &"mtu 1450".into()),
        "{drift}"
    );
    let claim = format!("addresses/blue/{}", stations[0].address(true));
    let before = cluster.get(&format!("/weft/v1/{claim}"))?;
    cluster.del(&format!("/weft/v1/{claim}"))?;
    let drift = events.next("drift_repaired", &claim)?;
    assert_eq!(drift["subject"]["drift"]["kind"], "claim", "{drift}");
    assert_eq!(cluster.get(&format!("/weft/v1/{claim}"))?, before);
    assert!(host.log().contains("claimed again"), "{}", host.log());
    cluster.put("/weft/v1/networks/bad", "{")?;
    let problem = events.next("problem_appeared", "networks/bad")?;
    assert_eq!(problem["subject"]["problem"]["key"], "networks/bad", "{problem}");
    cluster.del(&stations[0].key())?;
    let gone = events.next("endpoint_deleted", "blue")?;
    assert!(gone["subject"].is_null(), "{gone}");
    cluster.close()
}
