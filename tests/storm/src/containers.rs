//! What the kernel holds in the containers' namespaces, looked at from outside of weft.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use weft_lab::Container;

/// The interface that weft makes in a container.
const INTERFACE: &str = "eth0";

/// A container's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number, never used again in its namespace.
    pub index: usize,
    /// Its MAC address, lower case.
    pub mac: String,
    /// Its addresses, without link-local ones.
    pub addresses: BTreeSet<IpAddr>,
}

/// The interface that weft made in a container, if there is one.
///
/// # Errors
/// When the namespace cannot be entered or the kernel does not tell.
pub fn look(container: &Container) -> Result<Option<Interface>> {
    let all = container
        .netns()
        .within(|| getifaddrs().map(Iterator::collect::<Vec<_>>))?
        .with_context(|| format!("interfaces of {}", container.path()))?;
    let mut found: Option<Interface> = None;
    let mut addresses = BTreeSet::new();
    for entry in all.into_iter().filter(|entry| entry.interface_name == INTERFACE) {
        let Some(address) = entry.address else { continue };
        if let Some(link) = address.as_link_addr() {
            let mac = link.addr().unwrap_or_default();
            let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            found = Some(Interface {
                index: link.ifindex(),
                mac: mac.join(":"),
                addresses: BTreeSet::new(),
            });
        } else if let Some(v4) = address.as_sockaddr_in() {
            addresses.insert(IpAddr::from(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6()
            && !v6.ip().is_unicast_link_local()
        {
            addresses.insert(IpAddr::from(v6.ip()));
        }
    }
    Ok(found.map(|interface| Interface {
        addresses,
        ..interface
    }))
}

/// Addresses that two containers of one network have at the same moment. `seen` is what [`look`] found in each
/// container, looked at one after the other in the order of the slice; `again` looks at one of them once more.
///
/// One after the other, an address may be seen in two containers because it moved in between. It was in both at once if
/// the first container still has it, on the same interface, when it is looked at again after the second.
///
/// # Errors
/// When a container cannot be looked at again.
pub fn doubles<'a>(
    seen: &[(&'a str, usize, Option<Interface>)],
    again: impl Fn(usize) -> Result<Option<Interface>>,
) -> Result<Vec<(&'a str, IpAddr, usize, usize)>> {
    let mut first: BTreeMap<(&str, IpAddr), (usize, usize)> = BTreeMap::new();
    let mut doubles = Vec::new();
    for (network, container, interface) in seen {
        let Some(interface) = interface else { continue };
        for address in &interface.addresses {
            let Some((other, index)) = first.insert((network, *address), (*container, interface.index))
            else {
                continue;
            };
            let still = again(other)?;
            if still.is_some_and(|still| still.index == index && still.addresses.contains(address)) {
                doubles.push((*network, *address, other, *container));
            }
        }
    }
    Ok(doubles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: usize, address: &str) -> Option<Interface> {
        Some(Interface {
            index,
            mac: String::new(),
            addresses: BTreeSet::from([address.parse().unwrap()]),
        })
    }

    #[test]
    fn an_address_that_moved_is_no_double() {
        let seen = [
            ("blue", 0, interface(2, "10.1.0.2")),
            ("red", 1, interface(2, "10.1.0.2")),
            ("blue", 2, None),
            ("blue", 3, interface(4, "10.1.0.2")),
        ];
        let found = |now: Option<Interface>| {
            doubles(&seen, |container| {
                assert_eq!(container, 0);
                Ok(now.clone())
            })
            .unwrap()
            .len()
        };
        assert_eq!(found(interface(2, "10.1.0.2")), 1);
        assert_eq!(found(None), 0);
        assert_eq!(found(interface(2, "10.1.0.3")), 0);
        assert_eq!(found(interface(3, "10.1.0.2")), 0, "made anew meanwhile");
    }
}
