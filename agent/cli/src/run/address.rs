//! Carries out what is about addresses.

use std::path::Path;

use weft_proto::v1;

use super::Printer;
use crate::args::{AddressCommand, Family, ReserveArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::plain;
use crate::progress::waiting;
use crate::view::{Address, Released, Reservation};
use crate::{report, table};

pub(super) async fn address(
    command: AddressCommand,
    socket: &Path,
    printer: &Printer,
) -> Result<(), Failure> {
    match command {
        AddressCommand::List { network, released } => {
            let client = Client::connect(socket).await?;
            let what = format!("listing the addresses of network {network}");
            let addresses = waiting(&what, client.list_addresses(&network, released)).await?;
            let addresses: Vec<Address> = addresses.into_iter().map(Address::from).collect();
            printer.show(&addresses[..], table::addresses)
        }
        AddressCommand::Reserve(args) => {
            let request = request(args);
            let network = request.network.clone();
            let client = Client::connect(socket).await?;
            let what = format!("reserving addresses in network {network}");
            let made = waiting(&what, client.reserve_addresses(request)).await?;
            printer.show(&Reservation::new(network, made), report::reservation)
        }
        AddressCommand::Release { network, id } => {
            let client = Client::connect(socket).await?;
            let what = format!("releasing reservation {network}/{id}");
            let done = waiting(&what, client.unreserve_addresses(&network, &id)).await?;
            let done = Released {
                existed: done.existed,
            };
            printer.show(&done, |done, _| match done.existed {
                true => format!("reservation {} released\n", plain(&format!("{network}/{id}"))),
                false => format!(
                    "there was no reservation {} here\n",
                    plain(&format!("{network}/{id}"))
                ),
            })
        }
    }
}

fn request(args: ReserveArgs) -> v1::ReserveRequest {
    let families = args.families.into_iter().map(|family| match family {
        Family::Ipv4 => v1::AddressFamily::Ipv4.into(),
        Family::Ipv6 => v1::AddressFamily::Ipv6.into(),
    });
    v1::ReserveRequest {
        network: args.network,
        id: args.id.unwrap_or_default(),
        requested_addresses: args.addresses.iter().map(ToString::to_string).collect(),
        families: families.collect(),
        ttl: prost_types::Duration::try_from(args.ttl).ok(),
    }
}
