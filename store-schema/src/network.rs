//! `networks/<network>`: what an operator says of a network.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AddressRange, Family, Mtu, RecordError, Vni, document, parse_reserved};

/// A network as it is stored.
///
/// The least is `{"subnets":[{"cidr":"10.1.0.0/16"}]}`; an agent adds the VNI.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "networks/<network>")]
pub struct NetworkDocument {
    /// Version of the record's form; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u64>,
    /// The address space: one or more subnets of either family that do not overlap.
    #[serde(deserialize_with = "document::objects")]
    #[schemars(length(min = 1, max = 64))]
    pub subnets: Vec<SubnetDocument>,
    /// VXLAN network identifier; an agent claims a free one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: Option<u64>,
    /// MTU of the endpoints in bytes. When absent, the smallest underlay MTU among the peers less 50 (IPv4
    /// underlay) or 70 (IPv6 underlay).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65_535))]
    pub mtu: Option<u64>,
    /// Whether broadcast and multicast are replicated to all hosts that take part. Not carried yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multicast: bool,
    /// How long an address that was given up is not chosen again, in seconds. Asking for it is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800))]
    pub cooldown: Option<u64>,
    /// The operator's own notes; weft only shows them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Options by name; unknown ones are kept and have no effect.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// A subnet as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetDocument {
    /// The subnet in CIDR notation, host bits zero: `10.1.0.0/16`, `fd00:1::/64`.
    pub cidr: String,
    /// The gateway's address; never given to an endpoint. The first host address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Where addresses are chosen from: a CIDR or `first-last` inside the subnet. The whole subnet when
    /// absent. Asking for an address outside the range is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// What is never given to an endpoint: addresses, `first-last` ranges or CIDRs inside the subnet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub reserved: Vec<String>,
}

/// A valid network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// At least one subnet; none overlaps another.
    pub subnets: Vec<Subnet>,
    /// The VNI, once given or claimed.
    pub vni: Option<Vni>,
    /// The MTU, if the operator set one.
    pub mtu: Option<Mtu>,
    /// Whether broadcast and multicast were asked for.
    pub multicast: bool,
    /// How long an address that was given up is not chosen again.
    pub cooldown: Duration,
    /// The operator's notes.
    pub labels: BTreeMap<String, String>,
    /// Options by name.
    pub options: BTreeMap<String, String>,
}

/// A valid subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The subnet, host bits zero.
    pub net: IpNet,
    /// The gateway's address; none where the subnet has no room for one and none was given.
    pub gateway: Option<IpAddr>,
    /// Where addresses are chosen from.
    pub range: AddressRange,
    /// What the operator keeps out.
    pub reserved: Vec<AddressRange>,
}

const MAX_SUBNETS: usize = 64;
const MAX_RESERVED: usize = 1024;
const MAX_COOLDOWN: u64 = 7 * 24 * 60 * 60;

impl NetworkDocument {
    /// Validates the document.
    ///
    /// # Errors
    /// The first field that is not allowed.
    pub fn validate(self) -> Result<Network, RecordError> {
        document::check_version(self.version)?;
        let count = self.subnets.len();
        if count == 0 {
            return Err(RecordError::field(
                "subnets",
                "empty; give at least one, such as {\"cidr\":\"10.1.0.0/16\"}",
            ));
        }
        if count > MAX_SUBNETS {
            return Err(RecordError::field(
                "subnets",
                format!("{count} subnets; at most {MAX_SUBNETS} are allowed"),
            ));
        }
        let mut subnets: Vec<Subnet> = Vec::with_capacity(count);
        for (i, subnet) in self.subnets.iter().enumerate() {
            let subnet = subnet.validate(&format!("subnets[{i}]"))?;
            let overlap = subnets
                .iter()
                .find(|s| s.net.contains(&subnet.net) || subnet.net.contains(&s.net));
            if let Some(other) = overlap {
                let why = format!("{} overlaps {} of the same network", subnet.net, other.net);
                return Err(RecordError::field(format!("subnets[{i}].cidr"), why));
            }
            subnets.push(subnet);
        }
        let vni = self
            .vni
            .map(|n| {
                Vni::new(n)
                    .ok_or_else(|| RecordError::field("vni", format!("{n} is not from 1 to {}", Vni::MAX)))
            })
            .transpose()?;
        let carries_v6 = subnets.iter().any(|s| s.family() == Family::V6);
        let mtu = self.mtu.map(|n| mtu(n, carries_v6)).transpose()?;
        let cooldown = match self.cooldown {
            Some(n) if n > MAX_COOLDOWN => {
                let why = format!("{n} seconds are more than a week ({MAX_COOLDOWN})");
                return Err(RecordError::field("cooldown", why));
            }
            seconds => Duration::from_secs(seconds.unwrap_or_default()),
        };
        Ok(Network {
            subnets,
            vni,
            mtu,
            multicast: self.multicast,
            cooldown,
            labels: self.labels,
            options: self.options,
        })
    }
}

fn mtu(number: u64, carries_v6: bool) -> Result<Mtu, RecordError> {
    let mtu = Mtu::new(number).ok_or_else(|| {
        RecordError::field(
            "mtu",
            format!("{number} is not from {} to {}", Mtu::MIN, u16::MAX),
        )
    })?;
    if carries_v6 && mtu.get() < Mtu::MIN_IPV6 {
        let why = format!("{mtu} is below {}, the least that IPv6 needs", Mtu::MIN_IPV6);
        return Err(RecordError::field("mtu", why));
    }
    Ok(mtu)
}

impl SubnetDocument {
    fn validate(&self, at: &str) -> Result<Subnet, RecordError> {
        let cidr = || format!("{at}.cidr");
        let shown: String = self.cidr.chars().take(80).collect();
        let net: IpNet = self.cidr.parse().map_err(|_| {
            RecordError::field(
                cidr(),
                format!("{shown:?} is not a subnet such as 10.1.0.0/16 or fd00:1::/64"),
            )
        })?;
        if net != net.trunc() {
            return Err(RecordError::field(
                cidr(),
                format!("{net} has host bits set; did you mean {}?", net.trunc()),
            ));
        }
        if net.prefix_len() == 0 {
            return Err(RecordError::field(
                cidr(),
                format!("{net} is the whole address space"),
            ));
        }
        let special = SPECIAL
            .iter()
            .find(|(special, _)| special.contains(&net) || net.contains(special));
        if let Some((special, what)) = special {
            return Err(RecordError::field(
                cidr(),
                format!("{net} overlaps {special}, {what}"),
            ));
        }
        let inside = |range: AddressRange, field: String| {
            if net.contains(&range.first) && net.contains(&range.last) {
                Ok(range)
            } else {
                Err(RecordError::field(field, format!("{range} is not inside {net}")))
            }
        };
        let gateway = match &self.gateway {
            Some(text) => {
                let field = format!("{at}.gateway");
                let address = parse_reserved(text)
                    .ok()
                    .filter(|r| r.first == r.last && !text.contains(['/', '-']))
                    .ok_or_else(|| {
                        RecordError::field(&field, format!("{:?} is not an address", clip(text)))
                    })?;
                let address = inside(address, field.clone())?.first;
                if is_edge(net, address) {
                    let why = format!("{address} is the network or broadcast address of {net}");
                    return Err(RecordError::field(field, why));
                }
                Some(address)
            }
            None => default_gateway(net),
        };
        let range = match &self.range {
            Some(text) => {
                let field = format!("{at}.range");
                inside(
                    parse_reserved(text).map_err(|why| RecordError::field(&field, why))?,
                    field,
                )?
            }
            None => AddressRange::of(net),
        };
        if self.reserved.len() > MAX_RESERVED {
            let why = format!(
                "{} entries; at most {MAX_RESERVED} are allowed, a range counts as one",
                self.reserved.len()
            );
            return Err(RecordError::field(format!("{at}.reserved"), why));
        }
        let reserved = self
            .reserved
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let field = format!("{at}.reserved[{i}]");
                inside(
                    parse_reserved(text).map_err(|why| RecordError::field(&field, why))?,
                    field,
                )
            })
            .collect::<Result<_, _>>()?;
        Ok(Subnet {
            net,
            gateway,
            range,
            reserved,
        })
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(bits: u128, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), prefix))
}

/// What no endpoint can have as its address, whatever the subnet around it.
const SPECIAL: [(IpNet, &str); 8] = [
    (v4(0, 0, 0, 0, 8), "which is no host's (RFC 1122)"),
    (v4(127, 0, 0, 0, 8), "which is loopback"),
    (v4(224, 0, 0, 0, 4), "which is multicast"),
    (v4(255, 255, 255, 255, 32), "the broadcast address"),
    (v6(0, 96), "which holds the unspecified and the loopback address"),
    (v6(0xffff << 32, 96), "the IPv4-mapped addresses"),
    (
        v6(0xfe80 << 112, 10),
        "which is link-local: every interface has addresses there already",
    ),
    (v6(0xff00 << 112, 8), "which is multicast"),
];

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Whether the address is one that no host may have: the network and broadcast address of an IPv4 subnet
/// (except /31, RFC 3021, and /32) and the subnet-router anycast address of an IPv6 one (RFC 4291 section
/// 2.6.1; except /127, RFC 6164, and /128).
fn is_edge(net: IpNet, address: IpAddr) -> bool {
    let host_bits = net.max_prefix_len() - net.prefix_len();
    host_bits > 1 && (address == net.network() || (net.network().is_ipv4() && address == net.broadcast()))
}

fn default_gateway(net: IpNet) -> Option<IpAddr> {
    (net.max_prefix_len() - net.prefix_len() > 1).then(|| match net.network() {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) + 1).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) + 1).into()),
    })
}

impl Subnet {
    /// The subnet's family.
    pub fn family(&self) -> Family {
        Family::of(self.net.network())
    }

    /// Whether an endpoint may hold the address, if it asks for it: inside the subnet, neither reserved,
    /// the gateway, the network nor the broadcast address. The range does not matter here.
    pub fn admits(&self, address: IpAddr) -> bool {
        self.net.contains(&address)
            && !is_edge(self.net, address)
            && self.gateway != Some(address)
            && !self.reserved.iter().any(|r| r.contains(address))
    }
}

impl Network {
    /// Decodes and validates a stored network.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        document::decode::<NetworkDocument>(bytes)?.validate()
    }

    /// The subnet that contains the address.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|s| s.net.contains(&address))
    }

    /// The families that the network carries, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        Family::ALL
            .into_iter()
            .filter(|f| self.subnets.iter().any(|s| s.family() == *f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_holds_no_address_that_is_never_an_endpoints() {
        let decode =
            |cidr: &str| Network::decode(format!(r#"{{"subnets":[{{"cidr":"{cidr}"}}]}}"#).as_bytes());
        for bad in [
            "0.1.0.0/16",
            "126.0.0.0/7",
            "127.1.0.0/16",
            "128.0.0.0/1",
            "192.0.0.0/2",
            "255.255.255.255/32",
            "::/64",
            "::1/128",
            "::ffff:10.0.0.0/104",
            "fe80::/64",
            "fe00::/8",
            "ff02::/16",
        ] {
            let error = decode(bad).unwrap_err();
            assert_eq!(error.field_path(), Some("subnets[0].cidr"), "{bad}");
            assert!(error.why().starts_with(&format!("{bad} overlaps ")), "{error}");
        }
        for good in [
            "10.0.0.0/8",
            "64:ff9b::/96",
            "fc00::/7",
            "169.254.0.0/16",
            "240.0.0.0/8",
        ] {
            assert!(decode(good).is_ok(), "{good}");
        }
    }
}
