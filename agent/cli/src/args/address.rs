//! What can be said about addresses.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::subnet::address;

const SHORTEST_TTL: Duration = Duration::from_secs(5);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Subcommand)]
pub(crate) enum AddressCommand {
    /// List the addresses of a network that are held or reserved, and by whom
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  weft address list blue\n  \
                      weft -o json address list blue | jq '.[] | select(.state == \"reserved\")'"
    )]
    List {
        /// The network
        network: String,
        /// Also those that were held and are not any more, in the order in which they are chosen again
        #[arg(long)]
        released: bool,
    },
    /// Reserve addresses on this host, to attach an endpoint with them later
    #[command(
        after_help = "The reservation ends by itself if no endpoint takes it over in time. Asked for again with the same\n\
                      --id it is the same one, and lasts anew.\n\nExamples:\n  \
                      weft address reserve blue --id web --ttl 5m\n  \
                      weft endpoint attach blue web --reservation web\n  \
                      weft address reserve dual --family ipv4 --address 10.2.0.9"
    )]
    Reserve(ReserveArgs),
    /// Give a reservation of this host up before its time is over; done already is fine
    Release {
        /// Its network
        network: String,
        /// Its id
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ReserveArgs {
    /// The network
    pub(crate) network: String,
    /// Its id, unique on this host in the network [default: made up]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// An address to have (repeatable) [default: a free one of each family]
    #[arg(long = "address", value_parser = address, value_name = "IP")]
    pub(crate) addresses: Vec<IpAddr>,
    /// A family to have an address of (repeatable) [default: all that the network has]
    #[arg(long = "family", value_enum, value_name = "FAMILY")]
    pub(crate) families: Vec<Family>,
    /// How long it lasts, 5s to 24h
    #[arg(long, default_value = "60s", value_parser = ttl, value_name = "TIME")]
    pub(crate) ttl: Duration,
}

/// A family of addresses, as it is named here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = super::whole_seconds(text)?;
    if !(SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) {
        return Err("must be 5s to 24h".to_owned());
    }
    Ok(ttl)
}
