//! How each kind of fault strikes and is healed.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_lab::{EtcdMember, Host, Lab, Namespace, eventually};
use weft_storm::fault::{Course, Strikes, runs};
use weft_storm::scene::Scene;
use weft_storm::verdict::Verdict;

use crate::choice::{Kind, Part};
use crate::{agents, drift, slip, steady, store, underlay, writes};

/// How long what needs agents or etcd is tried: they may be down until all faults of the round are healed.
pub(crate) const WHILE_ALL_IS_DOWN: Duration = Duration::from_secs(40);

impl Strikes for Kind {
    fn name(&self) -> &'static str {
        Kind::name(self)
    }

    fn needs_rest(&self) -> bool {
        matches!(self, Self::Slip(slip) if slip.part != Part::Own)
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
            Self::SecondAgent { host } => agents::second(lab.host(*host), verdict),
            Self::Proxied { host, how } => agents::proxied(lab, lab.host(*host), *how, course, verdict),
            Self::Clock { host } => agents::clock_jumps(lab.host(*host), course, verdict),
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
                    store::compact(scene);
                }
                Ok(())
            }
            Self::CompactUnseen { host } => store::compact_unseen(scene, lab.host(*host), course),
            Self::NoSpace => store::no_space(lab, course),
            Self::RevokeLeases => {
                store::revoke_leases(lab, verdict);
                Ok(())
            }
            Self::Slip(slip) => slip::strike(scene, slip, course),
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
            Self::Unplug { host } => underlay::unplug(lab.host(*host), course),
            Self::Underlay { host, how } => underlay::strike(lab, lab.host(*host), *how, course, verdict),
            Self::ContainerGone { host, again } => container_gone(lab.host(*host), scene, *again, course),
            Self::Mtu { host, mtu } => {
                underlay::set_mtu(lab.host(*host), *mtu)?;
                course.rest();
                underlay::set_mtu(lab.host(*host), u16::try_from(lab.record().mtu)?)
            }
        }
    }
}

/// Tries again while something else is down.
pub(crate) fn persist<T>(what: &dyn fmt::Display, job: impl FnMut() -> Result<T>) -> Result<T> {
    eventually(WHILE_ALL_IS_DOWN, &what.to_string(), job)
}

/// As [`persist`] for what weft has to do by itself: that it does not is told, as is all that does not hold.
pub(crate) fn promised<T>(verdict: &Verdict, what: &str, mut job: impl FnMut() -> Result<T>) -> Option<T> {
    let done = eventually(WHILE_ALL_IS_DOWN, what, || {
        if verdict.is_over() {
            return Ok(None);
        }
        job().map(Some)
    });
    done.unwrap_or_else(|error| {
        verdict.violated(format!("{error:#}"));
        None
    })
}

/// Power goes and comes back: everything in the kernel is gone, what is on disk is there.
fn reboot(host: &Host, course: &Course<'_>, verdict: &Verdict) -> Result<()> {
    runs(host, verdict);
    host.kill9()?;
    for entry in std::fs::read_dir(host.dir().join("netns"))? {
        let path = entry?.path();
        // Killed while it made one, the agent has left an empty file.
        if Namespace::at(&path).exists() {
            host.exec(&["umount", "--lazy", &path.display().to_string()])?;
        }
        std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    course.rest();
    host.spawn_weftd(&[])
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
