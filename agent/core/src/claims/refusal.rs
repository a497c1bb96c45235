//! Why something cannot be had, in words.

use std::{fmt, net::IpAddr, time::Duration};

use ipnet::IpNet;
use weft_store_schema::{EndpointRef, Family, Key, Mac, NetworkName, RecordError, Vni};

use crate::members::Member;

/// Why an endpoint cannot have what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The network has no valid record.
    NoNetwork(NetworkName),
    /// The network exists already.
    NetworkExists(NetworkName),
    /// A wished VNI is another network's.
    VniTaken {
        /// The VNI.
        vni: Vni,
        /// The network that has it.
        holder: NetworkName,
    },
    /// The endpoint exists already.
    Exists(EndpointRef),
    /// There is no such endpoint.
    NoEndpoint(EndpointRef),
    /// A wished address is in none of the network's subnets.
    Outside {
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkName,
        /// Its subnets.
        subnets: Vec<IpNet>,
    },
    /// A wished address is kept for something else.
    Reserved {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// A wished address is held.
    Taken {
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkName,
        /// What holds it; none if its claim cannot be read.
        holder: Option<TakenBy>,
    },
    /// Nothing is free.
    Full {
        /// The network.
        network: NetworkName,
        /// The subnets of the family that was asked for.
        subnets: Vec<Fullness>,
        /// How long what was given up is not chosen again.
        cooldown: Duration,
    },
    /// There is no such reservation; perhaps its time has run out.
    NoReservation(NetworkName, Member),
    /// The reservation exists already.
    ReservationExists(NetworkName, Member),
    /// The network has no subnet of the family.
    NoSuchFamily(NetworkName, Family),
    /// A change of a network would leave held addresses outside of it, or on what is not for endpoints.
    Strands {
        /// The network.
        network: NetworkName,
        /// The addresses, with what holds them.
        stranded: Vec<(IpAddr, Option<TakenBy>)>,
    },
    /// A changed network is not valid.
    Invalid {
        /// The network.
        network: NetworkName,
        /// The field.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A wished MAC is another endpoint's.
    MacTaken {
        /// The MAC.
        mac: Mac,
        /// The endpoint that has it.
        holder: EndpointRef,
    },
    /// The network cannot be deleted while it has endpoints.
    InUse(NetworkName),
    /// The store has the record again.
    NotLost(Key),
    /// What is missing of a record does not fit into it.
    NoRoom(RecordError),
}

/// What holds an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakenBy {
    /// An endpoint.
    Endpoint(EndpointRef),
    /// A reservation, by the node that made it and its id.
    Reservation(Member),
}

impl fmt::Display for TakenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => write!(f, "endpoint {endpoint}"),
            Self::Reservation((node, id)) => write!(f, "reservation {node}/{id}"),
        }
    }
}

/// How full a subnet is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fullness {
    /// The subnet.
    pub net: IpNet,
    /// Addresses in use.
    pub used: u128,
    /// Addresses that are not, and were given up before. In a full subnet, those that have not cooled down.
    pub released: u128,
    /// Addresses that can be chosen at all.
    pub size: u128,
}

/// How many stranded addresses a message names.
const NAMED: usize = 10;

impl Refusal {
    /// The field of an endpoint's record that asks for what cannot be had, if one does. `requested` and
    /// `addresses` are the record's.
    pub fn field(&self, requested: &[IpAddr], addresses: &[IpAddr]) -> Option<String> {
        let place = |address: &IpAddr| {
            let at = |field: &str, all: &[IpAddr]| {
                all.iter()
                    .position(|a| a == address)
                    .map(|i| format!("{field}[{i}]"))
            };
            at("requested_addresses", requested).or_else(|| at("addresses", addresses))
        };
        match self {
            Self::Outside { address, .. } | Self::Reserved { address, .. } | Self::Taken { address, .. } => {
                place(address)
            }
            Self::MacTaken { .. } => Some("mac".to_owned()),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNetwork(network) => {
                write!(f, "network {network} does not exist, or its record is not valid")
            }
            Self::NetworkExists(network) => write!(f, "network {network} exists already"),
            Self::VniTaken { vni, holder } => write!(f, "VNI {vni} belongs to network {holder}"),
            Self::Exists(endpoint) => write!(f, "endpoint {endpoint} exists already"),
            Self::NoEndpoint(endpoint) => write!(f, "there is no endpoint {endpoint}"),
            Self::Outside {
                address,
                network,
                subnets,
            } => {
                let subnets: Vec<_> = subnets.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "{address} is in none of the subnets of network {network}: {}",
                    subnets.join(", ")
                )
            }
            Self::Reserved { address, subnet } => write!(
                f,
                "{address} is not for endpoints: it is the gateway, the network or broadcast address, or reserved in {subnet}"
            ),
            Self::Taken {
                address,
                holder: Some(holder),
                ..
            } => write!(f, "{address} is held by {holder}"),
            Self::Taken {
                address,
                network,
                holder: None,
            } => write!(
                f,
                "{address} is held by whoever, for its claim cannot be read: delete the record addresses/{network}/{address}"
            ),
            Self::Full {
                network,
                subnets,
                cooldown,
            } => {
                write!(f, "network {network}: ")?;
                for (i, subnet) in subnets.iter().enumerate() {
                    let Fullness {
                        net,
                        used,
                        released,
                        size,
                    } = subnet;
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{net} is full ({used} of {size}")?;
                    if *released > 0 && !cooldown.is_zero() {
                        write!(f, "; {released} given up less than {} s ago", cooldown.as_secs())?;
                    }
                    f.write_str(")")?;
                }
                Ok(())
            }
            Self::NoReservation(network, (node, id)) => write!(
                f,
                "there is no reservation {id} of {node} in network {network}; perhaps its time has run out"
            ),
            Self::ReservationExists(network, (node, id)) => {
                write!(
                    f,
                    "reservation {id} of {node} exists already in network {network}"
                )
            }
            Self::NoSuchFamily(network, family) => {
                write!(f, "network {network} has no {family} subnet")
            }
            Self::Strands { network, stranded } => {
                write!(
                    f,
                    "network {network} cannot change so, for these addresses are held: "
                )?;
                for (i, (address, holder)) in stranded.iter().take(NAMED).enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{address}")?;
                    if let Some(holder) = holder {
                        write!(f, " ({holder})")?;
                    }
                }
                match stranded.len().checked_sub(NAMED) {
                    Some(more @ 1..) => write!(f, " and {more} more"),
                    _ => Ok(()),
                }
            }
            Self::Invalid { network, field, why } => write!(f, "network {network}: {field}: {why}"),
            Self::NoRoom(error) => write!(f, "what it lacks does not fit into it: {error}"),
            Self::MacTaken { mac, holder } => write!(f, "{mac} is the MAC of endpoint {holder}"),
            Self::InUse(network) => write!(f, "network {network} has endpoints; detach them first"),
            Self::NotLost(key) => write!(f, "the store has {key}"),
        }
    }
}
