//! What is ours in the kernel, recognisable without memory. A new kind of object gets its row here first.
//!
//! | object | where | ours when |
//! |---|---|---|
//! | network namespace | the namespace directory | its file is named `weft-<network>` |
//! | bridge | a network's namespace | named `br0`, of kind bridge |
//! | VXLAN device | a network's namespace | named `vx4` or `vx6`, of kind vxlan; under another name, when it has the VNI that ours is to have |
//! | veth, host end | a network's namespace | named `ve` and 13 hexadecimal digits, of kind veth; its alias `weft <network>/<node>/<id> …` says whose, and is missing only after a crash between making and naming it |
//! | veth, container end | a container's namespace | its alias likewise, and its peer is the host end; with another peer, it gives way to the one that is to be made |
//! | FDB entry | our bridge's ports and VXLAN devices | flag `NTF_EXT_LEARNED` |
//! | neighbour | our bridge | `NDA_PROTOCOL` is [`PROTOCOL`] |
//! | address | our container end | `IFA_PROTO` is [`PROTOCOL`] |
//! | route | our container end | `RTA_PROTOCOL` is [`PROTOCOL`] |
//!
//! Everything else, in whichever namespace, is foreign: never changed, never removed. Removing a
//! namespace of ours is the one exception: what somebody put into it goes with it.

use weft_store_schema::{EndpointRef, Family, IfName, NetworkName};

use crate::hash::stable_hash;

/// Our number as a routing protocol (`rtm_protocol`, `NDA_PROTOCOL`, `IFA_PROTO`): 87, a `W`, not assigned
/// in the kernel's `include/uapi/linux/rtnetlink.h` nor in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 87;

/// The bridge's name in each network's namespace.
pub const BRIDGE: &str = "br0";

/// What the name of a network's namespace starts with.
pub const NAMESPACE_PREFIX: &str = "weft-";

const ALIAS_PREFIX: &str = "weft ";

/// File name of a network's namespace.
pub fn namespace_name(network: &NetworkName) -> String {
    format!("{NAMESPACE_PREFIX}{network}")
}

/// The network whose namespace a file is, going by its name.
pub fn network_of_namespace(file_name: &str) -> Option<NetworkName> {
    NetworkName::new(file_name.strip_prefix(NAMESPACE_PREFIX)?).ok()
}

/// Name of the VXLAN device for an underlay family.
pub fn tunnel_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "vx4",
        Family::V6 => "vx6",
    }
}

/// The underlay family of a VXLAN device of ours, going by its name.
pub fn family_of_tunnel(ifname: &str) -> Option<Family> {
    Family::ALL.into_iter().find(|f| tunnel_name(*f) == ifname)
}

/// Name of the host end of an endpoint's veth: `ve` and 13 hexadecimal digits (52 bits) of a hash of its
/// node and id. Names live in the network's own namespace, so only endpoints of one network on one host
/// could meet.
pub fn port_name(endpoint: &EndpointRef) -> IfName {
    let hash = stable_hash([endpoint.node.as_str(), "/", endpoint.id.as_str()]);
    IfName::new(&format!("ve{:013x}", hash >> 12)).unwrap_or_else(|e| unreachable!("{e}"))
}

/// Whether a name is one that [`port_name`] gives.
pub fn is_port_name(ifname: &str) -> bool {
    ifname
        .strip_prefix("ve")
        .is_some_and(|rest| rest.len() == 13 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The alias of both ends of an endpoint's veth: says to people and to us whose it is. At most 255 bytes
/// (`IFALIASZ`): three names of 63 and a name of 63 characters, cut where need be.
pub fn alias(endpoint: &EndpointRef, name: Option<&str>) -> String {
    let mut alias = format!("{ALIAS_PREFIX}{endpoint}");
    if let Some(name) = name {
        for c in [' '].into_iter().chain(name.chars()) {
            if alias.len() + c.len_utf8() > 255 {
                break;
            }
            alias.push(c);
        }
    }
    alias
}

/// The endpoint that an alias names; none if the alias is not one of ours.
pub fn endpoint_of_alias(alias: &str) -> Option<EndpointRef> {
    let identity = alias.strip_prefix(ALIAS_PREFIX)?.split(' ').next()?;
    let mut parts = identity.split('/');
    let endpoint = EndpointRef {
        network: parts.next()?.parse().ok()?,
        node: parts.next()?.parse().ok()?,
        id: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(network: &str, node: &str, id: &str) -> EndpointRef {
        EndpointRef {
            network: network.parse().unwrap(),
            node: node.parse().unwrap(),
            id: id.parse().unwrap(),
        }
    }

    #[test]
    fn an_alias_reads_back() {
        let long = "x".repeat(63);
        for (e, name) in [
            (endpoint("blue", "host1", "web"), None),
            (endpoint("blue", "host1", "web"), Some("the web server / front")),
            (endpoint(&long, &long, &long), Some("ä".repeat(63).as_str())),
        ] {
            let alias = alias(&e, name);
            assert!(alias.len() <= 255);
            assert_eq!(endpoint_of_alias(&alias), Some(e));
        }
        for foreign in [
            "",
            "weft",
            "weft ",
            "weft a/b",
            "weft a/b/c/d",
            "weave a/b/c",
            " weft a/b/c",
        ] {
            assert_eq!(endpoint_of_alias(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn port_names_are_stable() {
        // A change here would make every running veth foreign-looking to a new version.
        assert_eq!(
            port_name(&endpoint("blue", "host1", "web")).as_str(),
            "veb9e2d1a1ae5d3"
        );
        assert!(is_port_name("veb9e2d1a1ae5d3"));
        for foreign in [
            "",
            "ve",
            "veth0",
            "veb9e2d1a1ae5d",
            "veb9e2d1a1ae5d33",
            "veB9e2d1a1ae5d3",
            "vxb9e2d1a1ae5d3",
        ] {
            assert!(!is_port_name(foreign), "{foreign}");
        }
        assert_eq!(
            port_name(&endpoint("red", "host1", "web")),
            port_name(&endpoint("blue", "host1", "web"))
        );
        assert_ne!(
            port_name(&endpoint("blue", "host1", "a")),
            port_name(&endpoint("blue", "host1", "b"))
        );
    }

    #[test]
    fn namespaces() {
        let blue = "blue".parse().unwrap();
        assert_eq!(network_of_namespace(&namespace_name(&blue)), Some(blue));
        assert_eq!(network_of_namespace("blue"), None);
        assert_eq!(network_of_namespace("weft-"), None);
    }
}
