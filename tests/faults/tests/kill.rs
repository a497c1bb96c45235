//! An agent that is killed half-way through a plan, after any of its steps: the next one adopts, mends and sweeps, and the
//! traffic of everybody else goes on.

use anyhow::{Context as _, Result, ensure};
use weft_e2e::{Cluster, SOON};
use weft_faults::{Churn, between, same, writes_nothing_when_started_again};
use weft_lab::eventually;

/// Has the agent die before a step of what `start` causes; starts it again if it died, and waits for what is to be. Whether
/// it died: if not, there is no such step.
fn dies_at(
    scene: &Churn,
    step: u32,
    start: impl Fn() -> Result<()>,
    done: impl Fn() -> Result<()>,
) -> Result<bool> {
    let host = scene.host();
    host.set_fault(&format!("change {step} die"))?;
    start()?;
    let died = eventually(SOON, "it dies, or is done", || {
        let lives = host.pid().is_some();
        ensure!(!lives || done().is_ok(), "neither");
        Ok(!lives)
    })?;
    // It may be done before the last step.
    let died = died || !host.clear_fault();
    if died {
        eventually(SOON, "it has died", || {
            ensure!(host.pid().is_none() && !host.has_fault());
            Ok(())
        })?;
        host.start_weftd()?;
        eventually(SOON, &format!("mended after step {step}"), &done)?;
    }
    Ok(died)
}

#[test]
fn killed_between_any_two_steps_of_the_first_attach_and_the_last_detach() -> Result<()> {
    let scene = Churn::new()?;
    scene.attach()?;
    let wanted = scene.pictures()?;
    scene.detach()?;
    let traffic = between(&scene.stations)?;
    let (mut attaching, mut detaching) = (true, true);
    let mut step = 0;
    while attaching || detaching {
        if attaching {
            attaching = dies_at(&scene, step, || scene.put(), || scene.attached())?;
            writes_nothing_when_started_again(scene.host())
                .with_context(|| format!("attaching, step {step}"))?;
        } else {
            scene.attach()?;
        }
        same(&scene.pictures()?, &wanted).with_context(|| format!("killed at step {step}"))?;
        if detaching {
            detaching = dies_at(&scene, step, || scene.delete(), || scene.detached())?;
            writes_nothing_when_started_again(scene.host())
                .with_context(|| format!("detaching, step {step}"))?;
        } else {
            scene.detach()?;
        }
        step += 1;
    }
    ensure!(step > 20, "only {step} steps");
    traffic.nothing_lost()?;
    scene.cluster.close()
}

#[test]
fn killed_between_any_two_steps_of_a_sweep() -> Result<()> {
    let scene = Churn::new()?;
    let traffic = between(&scene.stations)?;
    let (mut step, mut died) = (0, true);
    while died {
        scene.attach()?;
        // What is to be swept is found by an agent that starts.
        scene.host().kill9()?;
        scene.delete()?;
        let start = || scene.host().spawn_weftd(&[]);
        died = dies_at(&scene, step, start, || scene.detached())?;
        if !died {
            scene.host().wait_ready()?;
        }
        writes_nothing_when_started_again(scene.host()).with_context(|| format!("step {step}"))?;
        step += 1;
    }
    ensure!(step > 3, "only {step} steps");
    traffic.nothing_lost()?;
    scene.cluster.close()
}

/// Of the very network that the traffic goes through.
#[test]
fn killed_between_any_two_steps_of_a_change_of_mtu_and_of_a_peers_address() -> Result<()> {
    let scene = Churn::new()?;
    // A host without an agent, whose record anybody may change.
    let peer = |vtep: &str| {
        let record = format!(r#"{{"kind":"external","vteps":["{vtep}"],"mtu":1500}}"#);
        scene.cluster.put("/weft/v1/peers/ext", &record)
    };
    peer("10.99.0.77")?;
    for (id, number) in [("x", 70), ("y", 71)] {
        let record = serde_json::json!({
            "attachment": {"netns": "/run/netns/x", "ifname": id},
            "mac": format!("02:42:0a:01:00:{number}"),
            "addresses": [format!("10.1.0.{number}")],
        });
        scene
            .cluster
            .put(&format!("/weft/v1/endpoints/blue/ext/{id}"), &record.to_string())?;
        let claim = format!(r#"{{"endpoint":"ext/{id}"}}"#);
        scene
            .cluster
            .put(&format!("/weft/v1/addresses/blue/10.1.0.{number}"), &claim)?;
    }
    let remote = |vtep: &str| -> Result<()> {
        let entries = weft_e2e::remote_fdb(&scene.host().netns_of("blue"))?;
        let there = entries.iter().filter(|(_, to)| to == vtep).count();
        ensure!(there == 2 && entries.len() == 3, "{entries:?}");
        Ok(())
    };
    eventually(SOON, "the external ones are forwarded to", || {
        remote("10.99.0.77")
    })?;

    let mtu = |mtu: u16| -> Result<()> {
        let subnets: Vec<_> = weft_faults::CIDRS
            .iter()
            .map(|cidr| serde_json::json!({"cidr": cidr}))
            .collect();
        let key = Cluster::network_key("blue");
        let mut record = scene.cluster.get_json(&key)?.context("network")?;
        record["subnets"] = subnets.into();
        record["mtu"] = mtu.into();
        scene.cluster.put(&key, &record.to_string())
    };
    let all_have = |mtu: u16| -> Result<()> {
        let namespace = scene.host().netns_of("blue");
        let links = namespace.ip_json(&["link", "show"])?;
        let links = links
            .as_array()
            .into_iter()
            .flatten()
            .filter(|link| link["ifname"] != "lo");
        for link in links.chain([&weft_e2e::link(scene.stations[0].container.netns(), "eth0")?]) {
            ensure!(link["mtu"] == mtu, "{link}");
        }
        Ok(())
    };
    let traffic = between(&scene.stations)?;
    let (mut step, mut changing_mtu, mut moving) = (0, true, true);
    while changing_mtu || moving {
        if changing_mtu {
            let to = if step % 2 == 0 { 1400 } else { 1450 };
            changing_mtu = dies_at(&scene, step, || mtu(to), || all_have(to))?;
        }
        if moving {
            let to = if step % 2 == 0 { "10.99.0.78" } else { "10.99.0.77" };
            moving = dies_at(&scene, step, || peer(to), || remote(to))?;
        }
        writes_nothing_when_started_again(scene.host()).with_context(|| format!("step {step}"))?;
        step += 1;
    }
    ensure!(step > 5, "only {step} steps");
    traffic.nothing_lost()?;
    scene.cluster.close()
}
