//! Faults of the store itself: its history forgotten, its leases gone, its space used up.

use anyhow::{Context, Result, ensure};
use weft_lab::{EtcdMember, Host, Lab};
use weft_storm::fault::Course;
use weft_storm::scene::Scene;
use weft_storm::verdict::Verdict;

use crate::faults::persist;

/// Up to what the witness has seen, so that it goes on seeing everything.
pub(crate) fn compact(scene: &Scene<'_>) {
    let revision = scene.witness.revision().to_string();
    let args = ["compaction", &revision, "--command-timeout=2s"];
    let word = match scene.cluster.etcdctl(&args) {
        Ok(_) => "compactions",
        // No etcd, or compacted up to there already.
        Err(_) => "compactions that etcd refused",
    };
    scene.verdict.count("faults", word, 1);
}

/// Every lease that there is just now.
pub(crate) fn revoke_leases(lab: &Lab, verdict: &Verdict) {
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

/// A host hears nothing for a while, and what happened then is no longer told when it is back.
pub(crate) fn compact_unseen(scene: &Scene<'_>, host: &Host, course: &Course<'_>) -> Result<()> {
    let members = scene.cluster.etcd_members().iter();
    let addresses: Vec<_> = members.flat_map(EtcdMember::addresses).collect();
    host.netns().cut_off(&addresses)?;
    course.rest();
    compact(scene);
    host.netns().reconnect()
}

/// etcd says that its database is full: it reads and deletes, and takes nothing else.
pub(crate) fn no_space(lab: &Lab, course: &Course<'_>) -> Result<()> {
    persist(&"the alarm is raised", || {
        let leader = lab.etcd_leader()?;
        leader.writer()?.raise_no_space(leader.status()?.member)?;
        let alarms = lab.etcdctl(&["alarm", "list"])?;
        ensure!(alarms.contains("NOSPACE"), "{alarms:?}");
        Ok(())
    })?;
    course.rest();
    persist(&"the alarm is taken back", || {
        lab.etcdctl(&["alarm", "disarm"])?;
        let alarms = lab.etcdctl(&["alarm", "list"])?;
        ensure!(alarms.trim().is_empty(), "{alarms:?}");
        Ok(())
    })
    .context("etcd is out of space")
}
