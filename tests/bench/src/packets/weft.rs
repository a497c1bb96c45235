//! weft's own way between two containers, made as everybody does it.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_lab::{Lab, Namespace, eventually};

use crate::path::Path;

const ADDRESSES: [&str; 2] = ["10.1.0.2", "10.1.0.3"];

/// Starts both agents and attaches a container to each; answers when one reaches the other.
pub(crate) fn attach(lab: &Lab) -> Result<Path> {
    lab.start_all()?;
    lab.put(
        "/weft/v1/networks/blue",
        r#"{"subnets":[{"cidr":"10.1.0.0/16"}],"vni":4711}"#,
    )?;
    let [first, second] = [lab.container("web")?, lab.container("db")?];
    for (host, container, address) in [(1, &first, ADDRESSES[0]), (2, &second, ADDRESSES[1])] {
        lab.put(
            &format!("/weft/v1/endpoints/blue/host{host}/{}", container.name()),
            &container.endpoint_record(&[address]),
        )?;
    }
    let target = ADDRESSES[1].parse()?;
    eventually(Duration::from_secs(15), "one container reaches the other", || {
        ensure!(first.ping(target), "no answer");
        Ok(())
    })?;
    Ok(Path {
        name: "weft",
        from: first.netns().clone(),
        to: second.netns().clone(),
        address: target,
    })
}

/// The network's namespace on a host.
pub(crate) fn network(lab: &Lab, host: usize) -> Namespace {
    lab.host(host).netns_of("blue")
}
