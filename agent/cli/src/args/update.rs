//! What can be said about the change of a network.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::{cooldown, key_value};
use crate::subnet::{Reserved, address, cidr};

#[derive(Debug, Args)]
#[group(required = true, multiple = true, id = "change")]
pub(crate) struct Changes {
    /// A subnet to add, IPv4 or IPv6 (repeatable)
    #[arg(long = "add-subnet", value_parser = cidr, value_name = "CIDR")]
    pub(crate) add_subnets: Vec<IpNet>,
    /// A subnet to take away; added again with another --range, it is changed (repeatable)
    #[arg(long = "remove-subnet", value_parser = cidr, value_name = "CIDR")]
    pub(crate) remove_subnets: Vec<IpNet>,
    /// MTU of the endpoints' interfaces in bytes, or auto: the underlay's, less the encapsulation
    #[arg(long, value_parser = mtu, value_name = "N|auto")]
    pub(crate) mtu: Option<u32>,
    /// How long an address that was given up is not chosen again, at most 7d
    #[arg(long, value_parser = cooldown, value_name = "TIME")]
    pub(crate) cooldown: Option<Duration>,
    /// A label to set (repeatable)
    #[arg(long = "label", value_parser = key_value, value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<(String, String)>,
    /// A label to take away (repeatable)
    #[arg(long = "remove-label", value_name = "KEY")]
    pub(crate) remove_labels: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) changes: Changes,
    /// An address kept for a gateway in an added subnet (repeatable)
    #[arg(long = "gateway", requires = "add_subnets", value_parser = address, value_name = "IP")]
    pub(crate) gateways: Vec<IpAddr>,
    /// Take addresses only from this part of an added subnet (repeatable)
    #[arg(long = "range", requires = "add_subnets", value_parser = cidr, value_name = "CIDR")]
    pub(crate) ranges: Vec<IpNet>,
    /// Never hand out, in an added subnet: an address, FROM-TO or a CIDR (repeatable)
    #[arg(long = "reserved", requires = "add_subnets", value_name = "IP|FROM-TO|CIDR")]
    pub(crate) reserved: Vec<Reserved>,
}

/// The MTU as requests have it: 0 is the one that follows from the underlay.
fn mtu(text: &str) -> Result<u32, String> {
    if text == "auto" {
        return Ok(0);
    }
    match text.parse() {
        Ok(mtu @ 68..=65_535) => Ok(mtu),
        _ => Err("must be 68 to 65535, or auto".to_owned()),
    }
}
