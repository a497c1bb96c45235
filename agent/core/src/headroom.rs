//! What the underlay leaves for packets inside a network: how large they may be, and on which hosts that is decided.

use weft_store_schema::{Family, NodeName};

use crate::{desired::Host, snapshot::Snapshot};

/// Hosts named in one message.
const NAMED: usize = 3;

/// The MTU inside a network that does not set its own: one value for all hosts, so that no path through the
/// overlay is narrower than what endpoints believe.
pub(crate) fn underlay_mtu(snapshot: &Snapshot, host: &Host) -> u16 {
    let (smallest, overhead) = limits(snapshot, host);
    smallest.saturating_sub(overhead)
}

/// The smallest MTU of the underlay, and what the tunnel takes of it.
fn limits(snapshot: &Snapshot, host: &Host) -> (u16, u16) {
    let (mtu, all_v4) = snapshot.underlay_limits().unwrap_or((u16::MAX, true));
    let family = if all_v4 && host.v4.is_some() {
        Family::V4
    } else {
        Family::V6
    };
    (mtu.min(host.mtu), family.vxlan_overhead())
}

/// What is wrong with giving a network this MTU, in bytes: that the underlay does not carry it, and where. None if it does.
pub fn excess(snapshot: &Snapshot, host: &Host, mtu: u16) -> Option<String> {
    let (smallest, overhead) = limits(snapshot, host);
    let carried = smallest.saturating_sub(overhead);
    if mtu <= carried {
        return None;
    }
    let of = |node: &NodeName, its: u16| {
        if node == snapshot.node() {
            host.mtu.min(its)
        } else {
            its
        }
    };
    let peers: Vec<(&NodeName, u16)> = snapshot
        .peers()
        .filter_map(|(node, slot)| Some((node, of(node, slot.value.as_ref()?.mtu.get()))))
        .collect();
    let narrow: Vec<&str> = peers
        .iter()
        .filter(|(_, its)| *its <= smallest)
        .map(|(node, _)| node.as_str())
        .collect();
    let place = match &narrow[..] {
        // Its own record is not there yet.
        [] => snapshot.node().to_string(),
        all if all.len() == peers.len() && all.len() > 1 => "all hosts".to_owned(),
        few if few.len() <= NAMED => few.join(", "),
        many => format!("{} and {} more", many[..NAMED].join(", "), many.len() - NAMED),
    };
    Some(format!(
        "MTU {mtu} is more than the underlay carries on {place} ({smallest}, of which the tunnel takes {overhead}): \
         packets of more than {carried} bytes will be lost or fragmented between hosts"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_store_schema::Prefix;

    use super::*;
    use crate::record::{Entry, Scope};

    fn snapshot(mtus: &[u16]) -> Snapshot {
        let mut snapshot = Snapshot::new(Prefix::default(), "host1".parse().unwrap());
        let peers = mtus.iter().zip(1..).map(|(mtu, n)| Entry {
            key: format!("/weft/v1/peers/host{n}").into_bytes(),
            value: json!({"vteps": [format!("10.99.0.{n}")], "mtu": mtu})
                .to_string()
                .into_bytes(),
            create_revision: 2,
            mod_revision: 2,
        });
        snapshot.apply_listing(&Scope::Peers, 1, 10, &peers.collect::<Vec<_>>());
        snapshot
    }

    fn said(mtus: &[u16], own: u16, mtu: u16) -> Option<String> {
        let host = Host {
            v4: Some("10.99.0.1".parse().unwrap()),
            v6: None,
            mtu: own,
            port: 4789,
        };
        excess(&snapshot(mtus), &host, mtu)
    }

    #[test]
    fn who_carries_less_is_named() {
        assert_eq!(said(&[1500, 1500], 1500, 1450), None);
        assert_eq!(
            said(&[9000, 1500, 9000], 9000, 8000).as_deref(),
            Some(
                "MTU 8000 is more than the underlay carries on host2 (1500, of which the tunnel takes 50): packets of \
                 more than 1450 bytes will be lost or fragmented between hosts"
            )
        );
        let place = |mtus: &[u16], own: u16| {
            let said = said(mtus, own, 8960).expect("it is too much");
            let (_, rest) = said.split_once(" on ").expect("a place");
            rest.split(" (").next().unwrap_or_default().to_owned()
        };
        assert_eq!(place(&[1500, 1500, 1500], 1500), "all hosts");
        assert_eq!(
            place(&[9000, 1500, 1500, 1500, 1500, 1500], 9000),
            "host2, host3, host4 and 2 more"
        );
        // What this host's interface has now counts, whatever its record says still.
        assert_eq!(place(&[9000, 9000], 1500), "host1");
        assert_eq!(place(&[], 1500), "host1");
    }
}
