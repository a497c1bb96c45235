//! A kernel that refuses, loses answers, interrupts its dumps or tells more than can be read: what could not be done is
//! looked at and done again, it is told and taken back, and the traffic of everybody else goes on.

use anyhow::{Context as _, Result, ensure};
use weft_e2e::SOON;
use weft_faults::{Churn, between, same, writes_nothing_when_started_again};
use weft_lab::{Host, eventually};

/// What a kernel says that has too much to do, and answers that get lost.
const KINDS: [&str; 5] = [
    "refuse EBUSY",
    "refuse ENOMEM",
    "refuse EINTR",
    "refuse ENOBUFS",
    "lose",
];

fn calm(host: &Host) -> Result<()> {
    let problems = &weft_e2e::status(host)?["problems"];
    ensure!(*problems == serde_json::json!([]), "{problems}");
    Ok(())
}

/// How often the log has a text.
fn told(host: &Host, text: &str) -> usize {
    host.log().matches(text).count()
}

/// The kinds that a step is tried with: all with `WEFT_FAULTS_LONG=1`, else another one for each step.
fn kinds(step: usize) -> Vec<&'static str> {
    if weft_faults::long() {
        KINDS.to_vec()
    } else {
        vec![KINDS[step % KINDS.len()]]
    }
}

#[test]
fn each_step_of_a_plan_refused_or_its_answer_lost() -> Result<()> {
    let scene = Churn::new()?;
    let host = scene.host();
    scene.attach()?;
    let wanted = scene.pictures()?;
    scene.detach()?;
    let traffic = between(&scene.stations)?;
    let (mut attaching, mut detaching, mut step) = (true, true, 0);
    while attaching || detaching {
        for kind in kinds(step) {
            let fault = format!("change {step} {kind}");
            // An endpoint that comes and goes without end is completed ever later; an agent that starts anew forgets that.
            host.kill9()?;
            host.start_weftd()?;
            if attaching {
                host.set_fault(&fault)?;
            }
            scene
                .attach()
                .with_context(|| format!("attaching with {fault}"))?;
            eventually(SOON, &format!("after {fault}"), || {
                same(&scene.pictures()?, &wanted)?;
                calm(host)
            })?;
            attaching = attaching && !host.clear_fault();
            if detaching {
                host.set_fault(&fault)?;
            }
            scene
                .detach()
                .with_context(|| format!("detaching with {fault}"))?;
            eventually(SOON, &format!("after {fault}"), || calm(host))?;
            detaching = detaching && !host.clear_fault();
        }
        step += 1;
    }
    ensure!(step > 20, "only {step} steps");
    let (come, gone) = (told(host, "it is tried again"), told(host, "no longer: "));
    ensure!(come > 10 && gone > 5, "{come} problems told, {gone} taken back");
    writes_nothing_when_started_again(host)?;
    traffic.nothing_lost()?;
    scene.cluster.close()
}

#[test]
fn a_kernel_that_refuses_everything_for_a_while() -> Result<()> {
    let scene = Churn::new()?;
    let host = scene.host();
    let traffic = between(&scene.stations)?;
    for kind in ["refuse EBUSY", "lose"] {
        host.set_fault(&format!("change * {kind}"))?;
        scene.put()?;
        eventually(SOON, "it is told", || {
            let status = weft_e2e::status(host)?;
            let problems = status["problems"].to_string();
            ensure!(problems.contains("networks/red"), "{problems}");
            Ok(())
        })?;
        // Told once, however often it is tried.
        eventually(SOON, "it is tried some times", || {
            let retried = weft_e2e::counter(host, "/passes/total")?;
            ensure!(retried > 3, "{retried} passes");
            Ok(())
        })?;
        ensure!(host.clear_fault());
        eventually(SOON * 3, "it talks", || scene.attached())?;
        eventually(SOON * 3, "it is taken back", || calm(host))?;
        scene.detach()?;
    }
    traffic.nothing_lost()?;
    scene.cluster.close()
}

/// Each question that a repair asks: what is not seen is not written, and seen later.
#[test]
fn each_look_at_what_somebody_changed_refused_lost_or_interrupted() -> Result<()> {
    let scene = Churn::new()?;
    let host = scene.host();
    scene.attach()?;
    let wanted = scene.pictures()?;
    let traffic = between(&scene.stations)?;
    let (mut step, mut came) = (0, true);
    while came {
        let kind = ["refuse ENOMEM", "lose", "interrupt"][step % 3];
        let fault = format!("question {step} {kind}");
        host.set_fault(&fault)?;
        host.netns_of("red").exec(&["ip", "link", "del", "vx4"])?;
        eventually(SOON, &format!("repaired in spite of {fault}"), || {
            same(&scene.pictures()?, &wanted)?;
            calm(host)
        })?;
        came = !host.clear_fault();
        step += 1;
    }
    ensure!(step > 10, "only {step} steps");
    writes_nothing_when_started_again(host)?;
    traffic.nothing_lost()?;
    scene.cluster.close()
}

fn drift(host: &Host) -> Result<u64> {
    weft_e2e::counter(host, "/drift_repaired/total")
}

/// Each question that an agent asks when it starts: nothing is written before it was answered.
#[test]
fn each_look_at_the_start_refused_lost_or_interrupted() -> Result<()> {
    let scene = Churn::new()?;
    let host = scene.host();
    scene.attach()?;
    let wanted = scene.pictures()?;
    let traffic = between(&scene.stations)?;
    let (mut step, mut came) = (0, true);
    while came {
        let fault = format!(
            "question {step} {}",
            ["refuse ENOMEM", "lose", "interrupt"][step % 3]
        );
        host.kill9()?;
        host.set_fault(&fault)?;
        host.start_weftd().with_context(|| fault.clone())?;
        eventually(SOON, &format!("as it was in spite of {fault}"), || {
            same(&scene.pictures()?, &wanted)?;
            calm(host)
        })?;
        let written = weft_e2e::writes(host)?;
        ensure!(written == 0 && drift(host)? == 0, "{written} writes with {fault}");
        came = !host.clear_fault();
        step += 1;
    }
    ensure!(step > 10, "only {step} steps");
    traffic.nothing_lost()?;
    scene.cluster.close()
}

/// While the kernel does not answer, what runs goes on, and nothing is written blindly.
#[test]
fn a_kernel_that_cannot_be_looked_at_for_a_while() -> Result<()> {
    let scene = Churn::new()?;
    let host = scene.host();
    scene.attach()?;
    let wanted = scene.pictures()?;
    let traffic = between(&scene.stations)?;
    for fault in ["question * refuse ENOMEM", "question * lose"] {
        host.set_fault(fault)?;
        host.netns_of("red").exec(&["ip", "link", "set", "vx4", "down"])?;
        let told = || {
            let problems = weft_e2e::status(host)?["problems"].to_string();
            ensure!(
                problems.contains("cannot see all of the kernel's state")
                    && problems.contains("networks/red"),
                "{problems}"
            );
            Ok(())
        };
        eventually(SOON, "it is told", told)?;
        ensure!(host.clear_fault());
        eventually(SOON * 3, "repaired", || {
            same(&scene.pictures()?, &wanted)?;
            calm(host)
        })?;
    }
    // Every dump interrupted each time is taken as it is, in the end.
    host.set_fault("question * interrupt")?;
    host.netns_of("red").exec(&["ip", "link", "del", "vx4"])?;
    eventually(SOON, "repaired", || same(&scene.pictures()?, &wanted))?;
    ensure!(host.clear_fault());
    writes_nothing_when_started_again(host)?;
    traffic.nothing_lost()?;
    scene.cluster.close()
}

/// More notifications than the agent's socket holds, for real: it sleeps while thousands of foreign entries come and go,
/// and while some of its own do.
#[test]
fn notifications_overrun_while_the_agent_sleeps() -> Result<()> {
    use nix::sys::signal::Signal;
    let scene = Churn::new()?;
    let host = scene.host();
    scene.attach()?;
    let wanted = scene.pictures()?;
    let traffic = between(&scene.stations)?;
    host.signal(Signal::SIGSTOP)?;
    let namespace = host.netns_of("red");
    let far = scene.far.addresses.iter().find(|a| a.is_ipv4()).context("IPv4")?;
    namespace.exec(&["ip", "neigh", "del", &far.to_string(), "dev", "br0"])?;
    let batch: String = (0..30_000_u32)
        .flat_map(|n| {
            let mac = format!("02:99:00:00:{:02x}:{:02x}", n / 256 % 128, n % 256);
            ["add", "del"].map(|what| format!("fdb {what} {mac} dev vx4 dst 10.99.0.99 self\n"))
        })
        .collect();
    let path = host.dir().join("flood");
    std::fs::write(&path, batch)?;
    namespace.exec(&["bridge", "-batch", &path.display().to_string()])?;
    namespace.exec(&["ip", "link", "set", "vx4", "mtu", "1300"])?;
    host.signal(Signal::SIGCONT)?;
    eventually(SOON, "repaired", || {
        same(&scene.pictures()?, &wanted)?;
        ensure!(drift(host)? >= 2, "not counted");
        calm(host)
    })?;
    ensure!(
        told(host, "came faster than they could be read") > 0,
        "no overrun"
    );
    writes_nothing_when_started_again(host)?;
    traffic.nothing_lost()?;
    scene.cluster.close()
}
