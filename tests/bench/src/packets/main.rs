//! `make bench-packets`: TCP, packets a second and round trips between containers on two hosts, by weft, by a VXLAN
//! made by hand, over the bare underlay, and by Docker's overlay, in turns; and weft's path with one setting changed.

mod hand;
mod load;
mod offloads;
mod path;
mod rounds;
mod settings;
mod variants;
mod weft;

use std::path::Path as FilePath;

use anyhow::Result;
use weft_bench::{Bench, Docker, Form, Only, Progress};
use weft_lab::{Lab, Namespace};

use hand::Hand;
use load::{PAYLOAD, PROCESSORS, Peer};
use path::{Path, bridges_alone};

/// What of weft's figures is to be reached of the peers', in their order after weft.
const GOALS: [Option<f64>; 3] = [Some(0.99), None, Some(1.0)];

fn main() -> Result<()> {
    let bench = Bench::begin("packets")?;
    let (form, progress) = (bench.form, bench.progress);
    let only = Only::of(&["peers", "variants"])?;

    let lab = Lab::builder().hosts(2).build()?;
    let switch = Namespace::named(&format!("{}sw", lab.record().prefix()));
    // The hand-made bridge is in the hosts' own namespaces; the switch stands for a wire.
    for place in [lab.host(1).netns(), lab.host(2).netns(), &switch] {
        bridges_alone(place)?;
    }
    let weft = weft::attach(&lab)?;
    let offloads = offloads::of(&[
        ("the containers' eth0", &weft.from, "eth0"),
        ("vx4", &weft::network(&lab, 1), "vx4"),
        ("the hosts' eth0", lab.host(1).netns(), "eth0"),
    ])?;
    let mut report = bench.report(method(form, &offloads), Vec::new());
    if only.wants("peers") {
        let mut paths = vec![weft.clone(), BY_HAND.make(&lab)?, underlay(&lab)];
        let docker = match overlay(&bench.base, progress) {
            Ok((docker, path)) => {
                paths.push(path);
                Some(docker)
            }
            Err(why) => {
                progress.say(format!("Docker 20.10 is left out: {why:#}"));
                report.method.push(format!("Docker 20.10 was left out: {why:#}."));
                None
            }
        };
        let peers: Vec<_> = paths.into_iter().map(Peer::start).collect::<Result<_>>()?;
        let series = rounds::measure(&peers, form.pick(8, 40), progress)?;
        let goals = [None].into_iter().chain(GOALS);
        let names: Vec<_> = peers.iter().map(|peer| peer.path.name).zip(goals).collect();
        report.rows = rounds::rows(&names, &series);
        drop(docker);
    }
    if only.names("variants") || (only.is_all() && form == Form::Long) {
        report.details = variants::measure(&lab, &switch, weft, form, progress)?;
    }
    lab.close()?;
    if !only.is_all() {
        // For looking closer: half a report would replace a whole one.
        report.print();
        println!("{}\n{}", report.method.join("\n"), report.details);
        return Ok(());
    }
    report.publish(&bench.machine)
}

const BY_HAND: Hand = Hand {
    name: "VXLAN by hand",
    number: 1,
    hosts: ["10.99.0.1", "10.99.0.2"],
    port: 4790,
    mtu: 1450,
    options: "",
    then: ["", ""],
};

fn underlay(lab: &Lab) -> Path {
    Path {
        name: "bare underlay",
        from: lab.host(1).netns().clone(),
        to: lab.host(2).netns().clone(),
        address: lab.host(2).addresses()[0],
    }
}

/// Docker's overlay with a container on each host.
fn overlay(base: &FilePath, progress: Progress) -> Result<(Docker, Path)> {
    let docker = Docker::start(base, 1, progress)?;
    for host in Docker::HOSTS {
        docker.connect(host, 0)?;
    }
    // What the daemon sets on its hosts stays as it is.
    bridges_alone(&docker.switch())?;
    let (from, to) = (docker.netns(1, 0)?, docker.netns(2, 0)?);
    let address = docker.address(2, 0)?;
    let path = Path {
        name: "Docker 20.10 overlay",
        from,
        to,
        address,
    };
    Ok((docker, path))
}

fn method(form: Form, offloads: &str) -> Vec<String> {
    vec![
        format!(
            "Two hosts as namespaces, joined by veth pairs and a bridge, MTU 1500, 1450 inside; {} rounds in each of which \
             all take their turns with each load, one after another: TCP 1 s (iperf3, what the receiver counted), \
             UDP 0.4 s ({PAYLOAD} bytes of payload, one flow as fast as it goes, what the receiver counted), round trips 0.4 s \
             ({PAYLOAD} bytes of UDP there and back, blocking).",
            form.pick(8, 40)
        ),
        format!(
            "The sender is on processor {}, the receiver on processor {}; the kernel does most of its work on the sender's.",
            PROCESSORS[0], PROCESSORS[1]
        ),
        "By hand: a bridge and a VXLAN device in the host's namespace with `ip` and `bridge`; nothing learned or flooded, static \
         entries, permanent neighbours, bridge-nf-call-* off. Docker's is as it makes it. The bare underlay has no containers: what \
         is between it and the others is a bridge, two veths and the encapsulation."
            .to_owned(),
        offloads.to_owned(),
    ]
}
