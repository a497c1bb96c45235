//! How each kind of fault strikes and is healed.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_lab::{EtcdMember, Host, Lab, eventually};
use weft_storm::fault::{Course, Strikes, runs};
use weft_storm::scene::Scene;
use weft_storm::verdict::Verdict;

use crate::choice::Kind;
use crate::{drift, steady, writes};

/// How long what needs agents or etcd is tried: they may be down until all faults of the round are healed.
pub(crate) const WHILE_ALL_IS_DOWN: Duration = Duration::from_secs(40);
/// After this many seconds, a second agent has not refused to run beside the first.
const REFUSAL: &str = "8";

impl Strikes for Kind {
    fn name(&self) -> &'static str {
        Kind::name(self)
    }

    fn strike(&self, scene: &Scene<'_>, course: &Course<'_>) -> Result<()> {
        let (lab, verdict): (&Lab, _) = (scene.cluster, scene.verdict);
        match self {
            Self::Storm(kind) => kind.strike(scene, course),
            Self::StopAgent { host } => {
                let host = lab.host(*host);
                runs(host, verdict);
                host.stop()?;
                course.rest();
                host.spawn_weftd(&[])
            }
            Self::SecondAgent { host } => second_agent(lab.host(*host), verdict),
            Self::Reboot { host } => reboot(lab.host(*host), course, verdict),
            Self::AllMembers => {
                let members = lab.etcd_members();
                members.iter().try_for_each(EtcdMember::kill9)?;
                course.rest();
                members.iter().try_for_each(EtcdMember::spawn)
            }
            Self::Compact { times } => {
                for time in 0..*times {
                    course.rest_for(course.lasts / *times * time);
                    compact(scene);
                }
                Ok(())
            }
            Self::RevokeLeases => {
                revoke_leases(lab, verdict);
                Ok(())
            }
            Self::Burst { host, endpoints } => writes::burst(lab, *host, *endpoints, course),
            Self::Flap { host } => writes::flap(lab, &steady::key(*host), course, verdict),
            Self::Garbage { salt, keys } => writes::garbage(lab, *salt, *keys, course),
            Self::Spoil { what, salt } => writes::spoil(lab, *what, *salt, course),
            Self::Drift {
                host,
                steady,
                salt,
                blows,
            } => {
                let network = if *steady {
                    steady::NETWORK
                } else {
                    let networks = &scene.storm.networks;
                    &networks[usize::try_from(*salt)? % networks.len()].name
                };
                drift::strike(lab.host(*host), network, *salt, *blows, course, verdict)
            }
            Self::Unplug { host } => unplug(lab.host(*host), course),
            Self::ContainerGone { host, again } => container_gone(lab.host(*host), scene, *again, course),
            Self::Mtu { host, mtu } => {
                set_mtu(lab.host(*host), *mtu)?;
                course.rest();
                set_mtu(lab.host(*host), u16::try_from(lab.record().mtu)?)
            }
        }
    }
}

/// Tries again while something else is down.
pub(crate) fn persist<T>(what: &dyn fmt::Display, job: impl FnMut() -> Result<T>) -> Result<T> {
    eventually(WHILE_ALL_IS_DOWN, &what.to_string(), job)
}

/// One more agent with the same configuration: it refuses to run, whatever else is down.
fn second_agent(host: &Host, verdict: &Verdict) -> Result<()> {
    runs(host, verdict);
    let weftd = host.weft_path()?.with_file_name("weftd");
    let mut command = host.netns().command("timeout");
    command.args(["--signal=KILL", REFUSAL]);
    let output = command
        .arg(weftd)
        .arg("--config")
        .arg(host.config_path())
        .output()
        .context("starting a second agent")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = output.status.code().is_some_and(|code| (1..100).contains(&code));
    if !refused || said.contains("panicked") {
        verdict.violated(format!(
            "a second agent on {} ended with {}: {said}",
            host.node(),
            output.status
        ));
    }
    Ok(())
}

/// Power goes and comes back: everything in the kernel is gone, what is on disk is there.
fn reboot(host: &Host, course: &Course<'_>, verdict: &Verdict) -> Result<()> {
    runs(host, verdict);
    host.kill9()?;
    for entry in std::fs::read_dir(host.dir().join("netns"))? {
        let path = entry?.path();
        host.exec(&["umount", "--lazy", &path.display().to_string()])?;
        std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    course.rest();
    host.spawn_weftd(&[])
}

/// The cable is out for a while.
///
/// The host remembers its neighbours meanwhile. It would ask for them anew for a second, and keep that long all answers of its
/// containers to echo requests: hosts of a lab share one kernel, which answers from one socket for all of them (a
/// processor, a family), and with that one's buffer full no container of any host is answered any more.
fn unplug(host: &Host, course: &Course<'_>) -> Result<()> {
    let known = host.netns().ip_json(&["neigh", "show", "dev", "eth0"])?;
    let keep = |state: &str| -> Result<()> {
        for entry in known.as_array().into_iter().flatten() {
            let (Some(address), Some(mac)) = (entry["dst"].as_str(), entry["lladdr"].as_str()) else {
                continue;
            };
            let command = format!("ip neigh replace {address} lladdr {mac} dev eth0 nud {state}");
            host.exec(&command.split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    };
    keep("permanent")?;
    host.unplug()?;
    course.rest();
    host.plug()?;
    keep("reachable")
}

/// Up to what the witness has seen, so that it goes on seeing everything.
fn compact(scene: &Scene<'_>) {
    let revision = scene.witness.revision().to_string();
    let args = ["compaction", &revision, "--command-timeout=2s"];
    let word = match scene.cluster.etcdctl(&args) {
        Ok(_) => "compactions",
        // No etcd, or compacted up to there already.
        Err(_) => "compactions that etcd refused",
    };
    scene.verdict.count("faults", word, 1);
}

fn revoke_leases(lab: &Lab, verdict: &Verdict) {
    let listed = lab.etcdctl(&["lease", "list", "--command-timeout=2s"]);
    for lease in listed.unwrap_or_default().lines().skip(1) {
        let done = lab.etcdctl(&["lease", "revoke", lease.trim(), "--command-timeout=2s"]);
        let word = if done.is_ok() {
            "lease revoked"
        } else {
            "lease not revoked"
        };
        verdict.count("faults", word, 1);
    }
}

/// A container of its own is attached and ends; whoever made it detaches it later.
fn container_gone(host: &Host, scene: &Scene<'_>, again: bool, course: &Course<'_>) -> Result<()> {
    let cluster = scene.cluster;
    let id = format!("gone{}", host.number());
    let container = cluster.container(&id)?;
    let path = container.path();
    let over = || scene.verdict.is_over();
    let attach = [
        "endpoint",
        "attach",
        steady::NETWORK,
        &path,
        "--id",
        &id,
        "--timeout",
        "5s",
    ];
    let attached = persist(&format!("{id} is attached"), || {
        if over() {
            Ok(false)
        } else {
            host.weft(&attach).map(|_| true)
        }
    })?;
    container.remove()?;
    course.rest();
    if again && attached {
        cluster.container(&id)?;
        persist(&format!("the new container of {id} is attached"), || {
            ensure!(over() || !container.addresses()?.is_empty(), "it has no address");
            Ok(())
        })?;
    }
    let detach = ["endpoint", "detach", steady::NETWORK, &id, "--timeout", "5s"];
    persist(&format!("{id} is detached"), || {
        match host.weft_output(&detach)? {
            // Never attached, as all is over.
            output if output.status.success() || over() => Ok(()),
            output => bail!("{}", String::from_utf8_lossy(&output.stderr)),
        }
    })?;
    if again && attached {
        container.remove()?;
    }
    Ok(())
}

fn set_mtu(host: &Host, mtu: u16) -> Result<()> {
    let mtu = mtu.to_string();
    host.exec(&["ip", "link", "set", "dev", "eth0", "mtu", &mtu])
        .map(drop)
}
