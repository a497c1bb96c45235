//! Looking at the kernel again: which part, and how what is seen replaces what was known of it.

use std::{collections::BTreeSet, net::IpAddr};

use weft_core::{
    dataplane::{ForwardRow, LookInto, Observed},
    dirty::Dirty,
};
use weft_kernel::KernelError;
use weft_store_schema::{EndpointRef, Mac, NetworkName};

use crate::{kernel_thread::HostKernel, reconcile::Look};

/// Forwarding entries and neighbours of a network, as they are now; none where there is nothing.
pub(crate) struct Entries {
    network: NetworkName,
    forwards: Vec<(Mac, Option<ForwardRow>)>,
    neighbours: Vec<(IpAddr, Option<Mac>)>,
}

/// Looks at a part of the kernel. Runs on the kernel's thread.
pub(crate) fn look(
    kernel: &mut dyn HostKernel,
    look: &Dirty,
    places: &[LookInto],
    known: &[NetworkName],
) -> Look {
    let mut seen = Look {
        observed: Observed::default(),
        entries: Vec::new(),
        networks: BTreeSet::new(),
        errors: Vec::new(),
    };
    if look.everything {
        let (observed, errors) = kernel.observe(places);
        // What could not be seen is not known to be gone.
        let unseen: BTreeSet<&str> = errors.iter().map(|(subject, _)| subject.as_str()).collect();
        // Without the directory of the namespaces, it is not even known which there are.
        let blind = unseen.iter().any(|subject| subject.contains('/'));
        seen.networks = known
            .iter()
            .chain(observed.networks.keys())
            .filter(|n| observed.networks.contains_key(*n) || !(blind || unseen.contains(n.as_str())))
            .cloned()
            .collect();
        seen.observed = observed;
        seen.errors = errors;
        return seen;
    }
    for network in &look.networks {
        let result = kernel.observe_network(network, &of(places, network));
        seen.take(network, result);
    }
    let links: BTreeSet<&NetworkName> = look
        .links
        .iter()
        .chain(look.endpoints.iter().map(|e| &e.network))
        .collect();
    for network in links {
        if !look.networks.contains(network) {
            let result = kernel.observe_links(network, &of(places, network));
            seen.take(network, result);
        }
    }
    let keyed: BTreeSet<&NetworkName> = look.macs.keys().chain(look.addresses.keys()).collect();
    for network in keyed {
        if look.networks.contains(network) {
            continue;
        }
        let macs: Vec<Mac> = look.macs.get(network).into_iter().flatten().copied().collect();
        let addresses: Vec<IpAddr> = look
            .addresses
            .get(network)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let forwards = kernel.observe_forward(network, &macs);
        let neighbours = kernel.observe_neighbours(network, &addresses);
        let mut failed = |error: KernelError| seen.errors.push((network.to_string(), error));
        seen.entries.push(Entries {
            network: network.clone(),
            forwards: forwards.map_err(&mut failed).unwrap_or_default(),
            neighbours: neighbours.map_err(&mut failed).unwrap_or_default(),
        });
    }
    seen
}

fn of(places: &[LookInto], network: &NetworkName) -> Vec<LookInto> {
    places.iter().filter(|p| p.network == *network).cloned().collect()
}

impl Look {
    fn take(
        &mut self,
        network: &NetworkName,
        result: Result<Option<weft_core::dataplane::ObservedNetwork>, KernelError>,
    ) {
        match result {
            Ok(seen) => {
                self.networks.insert(network.clone());
                if let Some(seen) = seen {
                    self.observed.networks.insert(network.clone(), seen);
                }
            }
            Err(error) => self.errors.push((network.to_string(), error)),
        }
    }
}

/// Puts what was seen in the place of what was known. Returns networks of which more has to be seen: their
/// devices are others than before, so nothing known of their entries counts.
pub(crate) fn merge(known: &mut Observed, look: &Dirty, seen: Look) -> BTreeSet<NetworkName> {
    let mut again = BTreeSet::new();
    let Look {
        mut observed,
        entries,
        networks,
        ..
    } = seen;
    for network in networks {
        let whole = look.everything || look.networks.contains(&network);
        match (
            observed.networks.remove(&network),
            known.networks.get_mut(&network),
        ) {
            (None, _) => drop(known.networks.remove(&network)),
            (Some(new), Some(old)) if !whole => {
                let same = old.bridge.is_some() == new.bridge.is_some()
                    && old.tunnels.keys().eq(new.tunnels.keys())
                    && old.ports.keys().eq(new.ports.keys());
                if !same {
                    again.insert(network.clone());
                }
                old.unmounted = new.unmounted;
                old.bridge = new.bridge;
                old.tunnels = new.tunnels;
                old.ports = new.ports;
                if same && !look.links.contains(&network) {
                    // Nobody looked into the other containers.
                    let looked_into = look.endpoints.iter().filter(|e| e.network == network);
                    for EndpointRef { id, .. } in looked_into {
                        old.interfaces.remove(id);
                        old.unseen.remove(id);
                        if new.unseen.contains(id) {
                            old.unseen.insert(id.clone());
                        }
                    }
                    old.interfaces.extend(new.interfaces);
                } else {
                    old.interfaces = new.interfaces;
                    old.unseen = new.unseen;
                }
            }
            (Some(_), None) if !whole => drop(again.insert(network)),
            (Some(new), _) => drop(known.networks.insert(network, new)),
        }
    }
    for Entries {
        network,
        forwards,
        neighbours,
    } in entries
    {
        let Some(known) = known.networks.get_mut(&network) else {
            continue;
        };
        for (mac, row) in forwards {
            match row {
                Some(row) => drop(known.forwards.insert(mac, row)),
                None => drop(known.forwards.remove(&mac)),
            }
        }
        for (address, mac) in neighbours {
            match mac {
                Some(mac) => drop(known.neighbours.insert(address, mac)),
                None => drop(known.neighbours.remove(&address)),
            }
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use weft_core::dataplane::{Interface, ObservedNetwork};
    use weft_store_schema::Attachment;

    use super::*;

    fn seen(there: &[&str], looked_at: &[&str]) -> Look {
        let network = |name: &&str| name.parse::<NetworkName>().unwrap();
        Look {
            observed: Observed {
                networks: there
                    .iter()
                    .map(|n| (network(n), ObservedNetwork::default()))
                    .collect(),
            },
            networks: looked_at.iter().map(network).collect(),
            entries: Vec::new(),
            errors: Vec::new(),
        }
    }

    fn names(known: &Observed) -> Vec<&str> {
        known.networks.keys().map(NetworkName::as_str).collect()
    }

    #[test]
    fn what_was_looked_at_and_is_there_stays_known() {
        let mut known = Observed::default();
        let everything = Dirty::everything();
        merge(&mut known, &everything, seen(&["blue", "red"], &["blue", "red"]));
        merge(&mut known, &everything, seen(&["blue"], &["blue", "red"]));
        assert_eq!(names(&known), ["blue"]);
        // Not looked at, for it could not be seen: nothing new is known of it.
        merge(&mut known, &everything, seen(&[], &[]));
        assert_eq!(names(&known), ["blue"]);
    }

    fn interface(address: &str) -> Interface {
        Interface {
            attachment: Attachment {
                netns: "/run/netns/c".into(),
                ifname: "eth0".parse().unwrap(),
            },
            alias: String::new(),
            mac: "02:42:0a:01:00:02".parse().unwrap(),
            mtu: 1450,
            up: true,
            addresses: [address.parse().unwrap()].into(),
            routes: BTreeSet::new(),
        }
    }

    fn blue(interfaces: &[(&str, &str)], unseen: &[&str]) -> ObservedNetwork {
        let ids = |id: &str| id.parse().unwrap();
        ObservedNetwork {
            interfaces: interfaces
                .iter()
                .map(|(id, at)| (ids(id), interface(at)))
                .collect(),
            unseen: unseen.iter().copied().map(ids).collect(),
            ..ObservedNetwork::default()
        }
    }

    #[test]
    fn a_look_at_one_endpoint_says_nothing_of_the_others() {
        let name: NetworkName = "blue".parse().unwrap();
        let before = blue(
            &[("a", "10.1.0.2/16"), ("b", "10.1.0.3/16"), ("c", "10.1.0.4/16")],
            &["d"],
        );
        let mut known = Observed::default();
        known.networks.insert(name.clone(), before);
        let mut look = Dirty::default();
        for id in ["a", "c"] {
            look.endpoints.insert(EndpointRef {
                network: name.clone(),
                node: "host1".parse().unwrap(),
                id: id.parse().unwrap(),
            });
        }
        let mut found = seen(&[], &["blue"]);
        // Of those that nobody looked into it is only said that nobody did.
        let now = blue(&[("a", "10.1.0.9/16")], &["b", "c", "d"]);
        found.observed.networks.insert(name.clone(), now);
        assert!(merge(&mut known, &look, found).is_empty());
        let after = blue(&[("a", "10.1.0.9/16"), ("b", "10.1.0.3/16")], &["c", "d"]);
        assert_eq!(known.networks[&name], after);
    }
}
