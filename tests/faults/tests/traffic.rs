//! That the traffic of these tests tells a loss from none: a check that cannot fail shows nothing.

use anyhow::{Result, ensure};
use weft_e2e::Cluster;
use weft_faults::{between, one_each};

#[test]
fn what_is_lost_is_told() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let stations = one_each(&cluster)?;
    let traffic = between(&stations)?;
    traffic.wait_more(30)?;
    traffic.nothing_lost()?;

    // Not by pulling the cable: a kernel that looks for a neighbour keeps packets for it.
    let traffic = between(&stations)?;
    let (far, netns) = (cluster.host(1).addresses(), cluster.host(2).netns());
    netns.cut_off(&far)?;
    traffic.wait_more(20)?;
    netns.reconnect()?;
    let flows = traffic.stop();
    ensure!(flows.len() == 4, "{flows:?}");
    for flow in &flows {
        let lost = flow.pings.lost();
        ensure!((10..flow.pings.sent).contains(&lost), "{flow}");
    }

    let traffic = between(&stations)?;
    netns.cut_off(&far)?;
    traffic.wait_more(5)?;
    let flows = traffic.stop();
    ensure!(flows.iter().all(|flow| flow.broken.is_some()), "{flows:?}");
    cluster.close()
}
