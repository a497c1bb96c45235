//! Fifty endpoints on three hosts: every one of the 50×49 ordered pairs talks, over both families.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON, neighbours, remote_fdb, unanswered};
use weft_lab::eventually;

#[test]
fn fifty_endpoints_on_three_hosts_all_talk() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster.network("blue", &["10.1.0.0/24", "fd00:1::/64"])?;
    let mut stations = Vec::new();
    for number in 0..50 {
        stations.push(cluster.endpoint("blue", number % 3 + 1, &format!("e{number}"))?);
    }
    cluster.settle(&mut stations)?;
    let all: BTreeSet<_> = stations.iter().flat_map(|s| &s.addresses).collect();
    assert_eq!(all.len(), 100, "no address twice");

    // Wait for what the kernels hold, not for pings.
    for host in cluster.hosts() {
        let elsewhere = stations.iter().filter(|s| s.host != host.number()).count();
        eventually(SOON, &format!("{} has all entries", host.node()), || {
            let network = host.netns_of("blue");
            let (fdb, neighbours) = (remote_fdb(&network)?.len(), neighbours(&network)?.len());
            ensure!(
                fdb == elsewhere && neighbours == 2 * elsewhere,
                "{fdb} and {neighbours} of {elsewhere}"
            );
            let ready = weft_e2e::counter(host, "/counts/ready_endpoints")?;
            ensure!(ready == (50 - elsewhere) as u64, "{ready} ready");
            Ok(())
        })?;
    }
    let silent = unanswered(&stations, Duration::from_secs(10))?;
    assert_eq!(silent, Vec::<String>::new(), "of {} pairs", 50 * 49);
    for host in cluster.hosts() {
        assert_eq!(weft_e2e::status(host)?["problems"], serde_json::json!([]));
    }
    cluster.close()
}
