//! Puts gateways, ranges and reserved addresses to the subnets that they lie in.
//!
//! In: the values as given, each parsed. Out: the subnets of a network's specification. Everything else about
//! them the agent judges.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use weft_proto::v1;

use crate::args::{CreateArgs, UpdateArgs};
use crate::failure::Failure;

/// A CIDR, or what is wrong with it. Whether it may be a subnet the agent judges.
pub(crate) fn cidr(text: &str) -> Result<IpNet, String> {
    const EXPECTED: &str = "expected a CIDR such as 10.2.0.0/16 or fd00:2::/64";
    if let Ok(net) = text.parse() {
        return Ok(net);
    }
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(ip) = address.parse::<IpAddr>() else {
        return Err(format!("{EXPECTED}; '{address}' is not an IP address"));
    };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let is_number = |length: &str| !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    Err(match length {
        None => format!("{EXPECTED}; '{text}' has no prefix length"),
        // What does not even fit is more, too.
        Some(length) if is_number(length) && length.parse().map_or(true, |n: u32| n > most) => {
            format!("prefix length {length} is more than {most}")
        }
        Some(length) => format!("{EXPECTED}; '{length}' is not a prefix length"),
    })
}

/// An address, or what is wrong with it.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| match text.parse::<IpNet>() {
        Ok(_) => format!("expected an address without a prefix length; '{text}' has one"),
        Err(_) => format!("expected an address such as 10.2.0.9 or fd00:2::9; '{text}' is none"),
    })
}

/// Addresses never to be handed out: one, a span or a CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    Address(IpAddr),
    Span(IpAddr, IpAddr),
    Cidr(IpNet),
}

impl FromStr for Reserved {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |text: &str| {
            let text = text.trim();
            text.parse::<IpAddr>()
                .map_err(|_| format!("'{text}' is not an address; give an address, FROM-TO or a CIDR"))
        };
        if text.contains('/') {
            return cidr(text).map(Self::Cidr);
        }
        let Some((from, to)) = text.split_once('-') else {
            return address(text).map(Self::Address);
        };
        let (from, to) = (address(from)?, address(to)?);
        if from.is_ipv4() != to.is_ipv4() || from > to {
            return Err(
                "the first address of a span must not be past its last, and of the same family".to_owned(),
            );
        }
        Ok(Self::Span(from, to))
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Span(from, to) => write!(f, "{from}-{to}"),
            Self::Cidr(cidr) => cidr.fmt(f),
        }
    }
}

impl Reserved {
    fn lies_in(self, subnet: &IpNet) -> bool {
        match self {
            Self::Address(address) => subnet.contains(&address),
            Self::Span(from, to) => subnet.contains(&from) && subnet.contains(&to),
            Self::Cidr(cidr) => subnet.contains(&cidr),
        }
    }
}

/// The specification that the arguments describe. Errors: usage, naming the option that lies in none of the
/// subnets or is given twice for one.
pub(crate) fn spec(args: &CreateArgs) -> Result<v1::NetworkSpec, Failure> {
    Ok(v1::NetworkSpec {
        subnets: subnets(&args.subnets, &args.gateways, &args.ranges, &args.reserved)?,
        vni: args.vni,
        mtu: args.mtu,
        multicast: args.multicast,
        labels: args.labels.iter().cloned().collect(),
        options: args.options.iter().cloned().collect(),
        cooldown: args.cooldown.and_then(|time| time.try_into().ok()),
    })
}

/// The change that the arguments describe. Errors: as those of [`spec`].
pub(crate) fn update(args: UpdateArgs) -> Result<v1::UpdateNetworkRequest, Failure> {
    let changes = args.changes;
    Ok(v1::UpdateNetworkRequest {
        add_subnets: subnets(&changes.add_subnets, &args.gateways, &args.ranges, &args.reserved)?,
        remove_subnets: changes.remove_subnets.iter().map(ToString::to_string).collect(),
        mtu: changes.mtu,
        cooldown: changes.cooldown.and_then(|time| time.try_into().ok()),
        labels: changes.labels.into_iter().collect(),
        remove_labels: changes.remove_labels,
        name: args.name,
    })
}

fn subnets(
    cidrs: &[IpNet],
    gateways: &[IpAddr],
    ranges: &[IpNet],
    reserved: &[Reserved],
) -> Result<Vec<v1::Subnet>, Failure> {
    let mut subnets: Vec<v1::Subnet> = cidrs
        .iter()
        .map(|cidr| v1::Subnet {
            cidr: cidr.to_string(),
            ..Default::default()
        })
        .collect();
    let place = |option: &str, value: &dyn fmt::Display, lies_in: &dyn Fn(&IpNet) -> bool| {
        cidrs.iter().position(lies_in).ok_or_else(|| {
            let all: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
            Failure::usage(
                option,
                format!("{value} lies in none of the subnets ({})", all.join(", ")),
            )
        })
    };
    let once = |option: &str, slot: &mut String, value: String, cidr: &str| {
        if !slot.is_empty() {
            let why = format!("subnet {cidr} has {slot} already, and cannot have {value} as well");
            return Err(Failure::usage(option, why));
        }
        *slot = value;
        Ok(())
    };
    for gateway in gateways {
        let at = place("--gateway", gateway, &|subnet| subnet.contains(gateway))?;
        let v1::Subnet {
            cidr, gateway: slot, ..
        } = &mut subnets[at];
        once("--gateway", slot, gateway.to_string(), cidr)?;
    }
    for range in ranges {
        let at = place("--range", range, &|subnet| subnet.contains(range))?;
        let v1::Subnet {
            cidr, range: slot, ..
        } = &mut subnets[at];
        once("--range", slot, range.to_string(), cidr)?;
    }
    for reserved in reserved {
        let at = place("--reserved", reserved, &|subnet| reserved.lies_in(subnet))?;
        subnets[at].reserved.push(reserved.to_string());
    }
    Ok(subnets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command, NetworkCommand};
    use clap::Parser as _;

    fn spec_of(options: &str) -> Result<v1::NetworkSpec, Failure> {
        let line = format!("weft network create blue {options}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Network(NetworkCommand::Create(args)) => spec(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_go_to_the_subnet_that_holds_them() {
        let spec = spec_of(
            "--subnet 10.1.0.0/24 --subnet fd00::/64 --gateway fd00::1 --gateway 10.1.0.1 --range 10.1.0.128/25 \
             --reserved fd00::5 --reserved 10.1.0.130-10.1.0.140 --reserved 10.1.0.192/30 --vni 9",
        )
        .unwrap();
        assert_eq!(spec.vni, Some(9));
        assert_eq!(
            spec.subnets,
            [
                v1::Subnet {
                    cidr: "10.1.0.0/24".to_owned(),
                    gateway: "10.1.0.1".to_owned(),
                    range: "10.1.0.128/25".to_owned(),
                    reserved: vec!["10.1.0.130-10.1.0.140".to_owned(), "10.1.0.192/30".to_owned()],
                },
                v1::Subnet {
                    cidr: "fd00::/64".to_owned(),
                    gateway: "fd00::1".to_owned(),
                    reserved: vec!["fd00::5".to_owned()],
                    ..Default::default()
                },
            ]
        );
    }

    #[test]
    fn options_outside_or_twice_are_refused() {
        for (options, message) in [
            (
                "--gateway 10.9.0.1",
                "--gateway: 10.9.0.1 lies in none of the subnets (10.1.0.0/24)",
            ),
            (
                "--range 10.1.0.0/16",
                "--range: 10.1.0.0/16 lies in none of the subnets (10.1.0.0/24)",
            ),
            (
                "--reserved 10.1.0.250-10.1.1.2",
                "--reserved: 10.1.0.250-10.1.1.2 lies in none of the subnets (10.1.0.0/24)",
            ),
            (
                "--gateway 10.1.0.1 --gateway 10.1.0.2",
                "--gateway: subnet 10.1.0.0/24 has 10.1.0.1 already, and cannot have 10.1.0.2 as well",
            ),
        ] {
            let failure = spec_of(&format!("--subnet 10.1.0.0/24 {options}")).expect_err(options);
            assert_eq!((failure.message.as_str(), failure.code.exit()), (message, 2));
        }
    }
}
