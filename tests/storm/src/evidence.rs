//! What is kept of a storm in which something did not hold.

use std::path::Path;

use anyhow::{Context, Result};
use weft_lab::{Host, Lab};

use crate::kernel;
use crate::verdict::{Verdict, lock};
use crate::witness::Witness;

/// What was done, logs of all agents and members, every change in the store, every call, and what is in the kernel, in
/// files.
pub(crate) fn keep(lab: &Lab, dir: &Path, witness: &Witness<'_>, verdict: &Verdict) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let keep = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    keep("history.txt", verdict.history().join("\n"))?;
    keep("violations.txt", verdict.violations().join("\n"))?;
    for host in lab.hosts() {
        let node = host.node();
        keep(&format!("weftd-{node}.log"), Host::log(host))?;
        keep(
            &format!("kernel-{node}.txt"),
            format!("{:#?}", kernel::on_host(host)),
        )?;
        // From an agent that does not answer there is none.
        let status = host.weft(&["status", "-o", "json"]);
        keep(&format!("status-{node}.json"), status.unwrap_or_default())?;
    }
    keep("containers.txt", format!("{:#?}", kernel::in_containers(lab)))?;
    for member in lab.etcd_members() {
        let log = lab.run_dir().join(format!("etcd{}.log", member.number()));
        std::fs::copy(&log, dir.join(format!("etcd{}.log", member.number())))
            .with_context(|| format!("copying {}", log.display()))?;
    }
    let changes: Vec<String> = lock(&witness.ledger).changes().map(str::to_owned).collect();
    keep("changes.txt", changes.join("\n"))?;
    keep("calls.txt", witness.calls())
}
