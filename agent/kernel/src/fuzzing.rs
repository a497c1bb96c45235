//! What this crate makes of bytes from the kernel, without a kernel: the same functions in the same order, for
//! `tests/fuzz`. Nothing here is part of the product.

use std::collections::{HashMap, HashSet};

use weft_core::{dataplane::BridgeTarget, dataplane::Observed, dirty::Dirty};
use weft_store_schema::{Family, NetworkName, NodeName};

use crate::{
    Notice, addresses,
    entries::{self, Device},
    links, observe,
    registry::{self, Registry},
    underlay, wire,
};

/// Indexes of the devices that the entries of a dump may be on.
const BRIDGE: u32 = 2;

fn devices() -> HashMap<u32, Device> {
    let target = |target| Device::Target(target);
    let mut devices = HashMap::from([
        (BRIDGE, Device::Bridge),
        (3, target(BridgeTarget::Tunnel(Family::V4))),
        (4, target(BridgeTarget::Tunnel(Family::V6))),
    ]);
    devices.extend(("ve0123456789abc".parse().ok()).map(|port| (5, target(BridgeTarget::Port(port)))));
    devices
}

/// Takes a datagram for the answer to each question that is ever asked. Says what was made of it.
pub fn answers(datagram: &[u8]) -> String {
    let (mut objects, mut refusals) = (Vec::new(), Vec::new());
    for raw in wire::split(datagram) {
        refusals.extend(wire::error_of(raw));
        objects.extend(wire::decode(raw));
    }
    let all = links::read_all(objects.clone());
    let mut devices = devices();
    devices.extend(observe::sort(&all).devices);
    let mut ends = Vec::new();
    for link in &all {
        ends.push((link.endpoint(), observe::read_interface(link, "/run/netns/c1")));
    }
    let (mut foreign, mut rows) = (HashSet::new(), HashMap::new());
    for object in &objects {
        entries::read_forward(object, &devices, &mut foreign, &mut rows);
    }
    let neighbours: Vec<_> = objects
        .iter()
        .filter_map(|object| entries::read_neighbour_on(object, BRIDGE))
        .collect();
    let on_interface = addresses::read_on(&objects, BRIDGE);
    let own = objects.iter().filter_map(underlay::read_own).count();
    let default = objects.iter().filter_map(underlay::read_default).min();
    let nsid = registry::read_nsid(&objects);
    let kinds: Vec<_> = objects.iter().map(std::mem::discriminant).collect();
    format!(
        "{refusals:?} {kinds:?} {ends:?} {rows:?} {neighbours:?} {on_interface:?} {own} {default:?} {nsid:?}"
    )
}

/// Takes a datagram for notifications of the host, of a network's namespace and of a container's, and does with
/// the notices what the agent does. Says what they are.
pub fn notifications(datagram: &[u8]) -> String {
    let (Ok(network), Ok(id), Ok(node)) = (
        "blue".parse::<NetworkName>(),
        "web".parse(),
        "host1".parse::<NodeName>(),
    ) else {
        return String::new();
    };
    let registry = Registry::of(&network, devices(), HashMap::from([(BRIDGE, id)]));
    let (mut notices, mut look) = (Vec::new(), Dirty::default());
    for nsid in [None, Some(0), Some(1)] {
        for message in wire::split(datagram).filter_map(wire::decode) {
            registry.read(nsid, message, &mut notices);
        }
    }
    Notice::keep_latest(&mut notices);
    for notice in &notices {
        let _known = notice.agrees_with(&Observed::default());
        notice.mark(&mut look, &node);
    }
    format!("{notices:?}")
}
