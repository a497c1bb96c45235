//! Carries out a command: asks the agent, prints the answer.
//!
//! In: the parsed command line. Out: text on standard output, or a [`Failure`]. It must not know how calls
//! travel or how tables are laid out.

mod address;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use serde::Serialize;
use tokio_stream::StreamExt as _;
use weft_proto::v1::{self, EventKind};

use crate::args::{
    AttachArgs, Cli, Command, EndpointCommand, EventsArgs, Format, Kind, NetworkCommand, PeerCommand,
    ResyncArgs,
};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::output::{Paint, plain, print};
use crate::progress::waiting;
use crate::view::{self, Converged, Endpoint, Network, Peer};
use crate::{audit, output, removal, report, resync, subnet, table};

/// How answers are printed.
struct Printer {
    format: Format,
    paint: Paint,
}

impl Printer {
    /// Prints the value in the format asked for.
    fn show<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&T, Paint) -> String,
    ) -> Result<(), Failure> {
        self.line(value, text).map(|_| ())
    }

    /// The same; returns whether anybody still reads.
    fn line<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&T, Paint) -> String,
    ) -> Result<bool, Failure> {
        match self.format {
            Format::Table => print(&text(value, self.paint)),
            Format::Json => {
                let json =
                    serde_json::to_string(value).map_err(|why| Failure::io("print JSON", &why.into()))?;
                print(&(json + "\n"))
            }
        }
    }
}

/// Carries out the command line. Only an audit and a resync have something to say by their exit
/// status beside a failure.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let printer = Printer {
        format: cli.output,
        paint: Paint::detect(),
    };
    let socket = cli.socket.as_path();
    if let Command::Audit(args) = cli.command {
        let client = Client::connect(socket).await?;
        let found = audit::ask(&client, &args).await?;
        printer.show(&found, audit::report)?;
        return Ok(ExitCode::from(u8::from(!found.clean)));
    }
    if let Command::Resync(ResyncArgs { republish: true, .. }) = cli.command {
        let done = resync::republish(socket).await?;
        printer.show(&done, resync::republished)?;
        let conflict = ExitCode::from(Code::Conflict.exit());
        return Ok(if done.conflicts() {
            conflict
        } else {
            ExitCode::SUCCESS
        });
    }
    carry_out(cli.command, socket, &printer)
        .await
        .map(|()| ExitCode::SUCCESS)
}

async fn carry_out(command: Command, socket: &Path, printer: &Printer) -> Result<(), Failure> {
    match command {
        Command::Network(command) => network(command, socket, printer).await,
        Command::Endpoint(command) => endpoint(command, socket, printer).await,
        Command::Address(command) => address::address(command, socket, printer).await,
        Command::Peer(PeerCommand::List) => {
            let client = Client::connect(socket).await?;
            let peers = waiting("listing peers", client.list_peers()).await?;
            let peers: Vec<Peer> = peers.into_iter().map(Peer::from).collect();
            printer.show(&peers[..], table::peers)?;
            let unknown = |peer: &Peer| peer.kind == "agent" && peer.alive.is_none();
            if matches!(printer.format, Format::Table) && peers.iter().any(unknown) {
                output::complain(
                    "weft: etcd does not answer: these are the peers as last known, and who is alive is not (see 'weft status')\n",
                );
            }
            Ok(())
        }
        Command::Peer(PeerCommand::Remove(args)) => {
            let client = Client::connect(socket).await?;
            let each = |held: &view::Held| match printer.format {
                // Each as it comes; JSON has them all in one object at the end.
                Format::Table => print(&removal::line("released", held)).map(|_| ()),
                Format::Json => Ok(()),
            };
            let removed = removal::remove(&client, &args, printer.paint, each).await?;
            printer.show(&removed, |removed, _| removal::summary(removed))
        }
        Command::Wait(args) => {
            let client = Client::connect(socket).await?;
            let what = match &args.network {
                Some(network) => format!("waiting for the hosts of network {network}"),
                None => "waiting for the hosts of all networks".to_owned(),
            };
            let done = waiting(&what, client.wait(args.network, args.timeout)).await?;
            let done: Vec<Converged> = done.into_iter().map(Converged::from).collect();
            printer.show(&done[..], |done, _| match done {
                [] => "nothing to wait for: there are no endpoints\n".to_owned(),
                done => done.iter().map(report::converged).collect(),
            })
        }
        Command::Status => {
            let client = Client::connect(socket).await?;
            let status = waiting("asking for the status", client.status()).await?;
            printer.show(&view::Status::from(status), report::status)
        }
        // Carried out by the caller.
        Command::Audit(_) => Ok(()),
        Command::Events(args) => events(args, socket, printer).await,
        // Writing again is carried out by the caller.
        Command::Resync(_) => {
            let accepted = resync::accept(socket).await?;
            printer.show(&accepted, |accepted, _| resync::accepted(accepted))
        }
        Command::Version => version(socket, printer).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
            print(&String::from_utf8_lossy(&script)).map(|_| ())
        }
    }
}

async fn network(command: NetworkCommand, socket: &Path, printer: &Printer) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create(args) => {
            // Before anybody is asked: a mistake on the command line needs no agent.
            let spec = subnet::spec(&args)?;
            let client = Client::connect(socket).await?;
            let what = format!("creating network {}", args.name);
            let made = waiting(&what, client.create_network(&args.name, spec)).await?;
            written(made, printer)
        }
        NetworkCommand::List => {
            let client = Client::connect(socket).await?;
            let networks = waiting("listing networks", client.list_networks()).await?;
            let networks: Vec<Network> = networks.into_iter().map(Network::from).collect();
            printer.show(&networks[..], table::networks)
        }
        NetworkCommand::Inspect { name } => {
            let client = Client::connect(socket).await?;
            let network = waiting("asking for the network", client.get_network(&name)).await?;
            printer.show(&Network::from(network), report::network)
        }
        NetworkCommand::Update(args) => {
            let request = subnet::update(*args)?;
            let client = Client::connect(socket).await?;
            let what = format!("changing network {}", request.name);
            let changed = waiting(&what, client.update_network(request)).await?;
            written(changed, printer)
        }
        NetworkCommand::Delete { name, force } => {
            let client = Client::connect(socket).await?;
            let what = format!("deleting network {name}");
            let detached = waiting(&what, client.delete_network(&name, force)).await?;
            let deleted = view::Deleted {
                deleted: name,
                detached: detached.into_iter().map(view::Held::from).collect(),
            };
            printer.show(&deleted, |it, _| {
                let detached = it.detached.iter();
                let lines = detached.map(|held| removal::line("detached", held));
                lines.collect::<String>() + &format!("network {} deleted\n", plain(&it.deleted))
            })
        }
    }
}

/// Shows a network that was made or changed. What the agent warns of is told on standard error, or with the rest in JSON.
fn written((network, warnings): (v1::Network, Vec<String>), printer: &Printer) -> Result<(), Failure> {
    let network = network.into();
    let written = view::Written { network, warnings };
    printer.show(&written, |written, paint| {
        table::networks(std::slice::from_ref(&written.network), paint)
    })?;
    if matches!(printer.format, Format::Table) {
        for warning in &written.warnings {
            output::complain(&format!("weft: warning: {}\n", plain(warning)));
        }
    }
    Ok(())
}

async fn endpoint(command: EndpointCommand, socket: &Path, printer: &Printer) -> Result<(), Failure> {
    match command {
        EndpointCommand::Attach(args) => {
            let timeout = args.timeout;
            let request = attachment(args)?;
            let client = Client::connect(socket).await?;
            let what = format!("attaching to network {}", request.network);
            let (made, converged) = waiting(&what, client.attach_endpoint(request, timeout)).await?;
            let made = view::Attached {
                endpoint: made.into(),
                converged: converged.map(Converged::from),
            };
            printer.show(&made, |made, paint| {
                let mut text = table::endpoints(std::slice::from_ref(&made.endpoint), paint);
                if let Some(converged) = &made.converged {
                    text.push_str(&report::converged(converged));
                }
                text
            })
        }
        EndpointCommand::Detach(args) => {
            let client = Client::connect(socket).await?;
            let name = format!("{}/{}", args.network, args.id);
            let what = format!("detaching endpoint {name}");
            let done = waiting(
                &what,
                client.detach_endpoint(&args.network, &args.id, args.timeout),
            )
            .await?;
            let done = view::Detached {
                existed: done.existed,
                record_pending: done.record_pending,
                note: view::given(done.note),
            };
            printer.show(&done, |done, _| detached(&name, done))?;
            if let (Some(note), Format::Table) = (&done.note, printer.format) {
                output::complain(&format!("weft: {}\n", plain(note)));
            }
            Ok(())
        }
        EndpointCommand::List(args) => {
            let filter = v1::ListEndpointsRequest {
                network: args.network.unwrap_or_default(),
                node: args.node.unwrap_or_default(),
                local: args.local,
                ..Default::default()
            };
            let client = Client::connect(socket).await?;
            let listing = client.list_endpoints(filter);
            let (endpoints, unknown) = waiting("listing endpoints", listing).await?;
            let endpoints: Vec<Endpoint> = endpoints.into_iter().map(Endpoint::from).collect();
            printer.show(&endpoints[..], table::endpoints)?;
            if !unknown.is_empty() {
                output::complain(&not_shown(unknown));
            }
            Ok(())
        }
        EndpointCommand::Inspect { network, id, node } => {
            let client = Client::connect(socket).await?;
            let endpoint = waiting(
                "asking for the endpoint",
                client.get_endpoint(&network, node.as_deref(), &id),
            )
            .await?;
            printer.show(&Endpoint::from(endpoint), report::endpoint)
        }
    }
}

/// Which networks' endpoints a list lacks. Also said beside JSON, whose array has no place for it.
fn not_shown(networks: BTreeSet<String>) -> String {
    let names: Vec<String> = networks.into_iter().collect();
    let of = match names.len() {
        1 => "a network that has none on this host is".to_owned(),
        count => format!("{count} networks that have none on this host are"),
    };
    let text = format!(
        "weft: etcd does not answer: these are the endpoints as last known; those of {of} not among them: {}",
        names.join(", ")
    );
    plain(&text) + "\n"
}

fn detached(name: &str, done: &view::Detached) -> String {
    let mut text = match done.existed {
        true => format!("endpoint {} detached\n", plain(name)),
        false if done.record_pending => format!("endpoint {} was not attached here\n", plain(name)),
        false => format!("endpoint {} was not attached here; nothing to do\n", plain(name)),
    };
    if done.record_pending {
        text.push_str(match done.existed {
            true => "its record is removed from the store when that is available again\n",
            false => {
                "a record of it, if there is one, is removed from the store when that is available again\n"
            }
        });
    }
    text
}

fn attachment(args: AttachArgs) -> Result<v1::AttachEndpointRequest, Failure> {
    Ok(v1::AttachEndpointRequest {
        network: args.network,
        id: args.id.unwrap_or_default(),
        name: args.name.unwrap_or_default(),
        attachment: Some(v1::Attachment {
            netns: namespace(&args.netns)?,
            ifname: args.ifname,
        }),
        requested_addresses: args.addresses.iter().map(ToString::to_string).collect(),
        mac: args.mac.unwrap_or_default(),
        labels: args.labels.into_iter().collect(),
        timeout: None,
        wait: args.wait,
        reservation: args.reservation.unwrap_or_default(),
    })
}

/// The absolute path of a namespace: one named as `ip netns` names it lies in /run/netns.
fn namespace(given: &str) -> Result<String, Failure> {
    if given.contains('/') {
        let path = std::path::absolute(given).map_err(|why| Failure::usage("NETNS", why.to_string()))?;
        return Ok(path.display().to_string());
    }
    if given.is_empty() {
        return Err(Failure::usage(
            "NETNS",
            "is empty; give a path, or a name under /run/netns",
        ));
    }
    Ok(format!("/run/netns/{given}"))
}

async fn events(args: EventsArgs, socket: &Path, printer: &Printer) -> Result<(), Failure> {
    let request = v1::WatchEventsRequest {
        kinds: args
            .kinds
            .into_iter()
            .map(|kind| EventKind::from(kind).into())
            .collect(),
        network: args.network.unwrap_or_default(),
    };
    let mut stream = Client::connect(socket).await?.watch_events(request).await?;
    while let Some(next) = stream.next().await {
        let event = next.map_err(|status| Failure::refused("go on watching the events", &status))?;
        if !printer.line(&view::Event::from(event), report::event)? {
            return Ok(());
        }
    }
    Ok(())
}

async fn version(socket: &Path, printer: &Printer) -> Result<(), Failure> {
    let asked = async { Client::connect(socket).await?.version().await };
    let (agent, outcome) = match waiting("asking for the agent's version", asked).await {
        Ok(agent) => (Some(agent.into()), Ok(())),
        Err(why) => (None, Err(why)),
    };
    let client = view::ClientVersion {
        version: env!("CARGO_PKG_VERSION"),
    };
    printer.show(&view::Versions { client, agent }, |versions, _| {
        report::versions(versions)
    })?;
    outcome
}

impl From<Kind> for EventKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::NetworkPut => Self::NetworkPut,
            Kind::NetworkDeleted => Self::NetworkDeleted,
            Kind::EndpointPut => Self::EndpointPut,
            Kind::EndpointDeleted => Self::EndpointDeleted,
            Kind::PeerPut => Self::PeerPut,
            Kind::PeerDeleted => Self::PeerDeleted,
            Kind::EndpointReady => Self::EndpointReady,
            Kind::EndpointFailed => Self::EndpointFailed,
            Kind::DriftRepaired => Self::DriftRepaired,
            Kind::ProblemAppeared => Self::ProblemAppeared,
            Kind::ProblemCleared => Self::ProblemCleared,
            Kind::StoreConnected => Self::StoreConnected,
            Kind::StoreLost => Self::StoreLost,
            Kind::EventsLost => Self::EventsLost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_a_namespace_of_ip_netns() {
        assert_eq!(namespace("web").unwrap(), "/run/netns/web");
        assert_eq!(namespace("/run/docker/netns/5f").unwrap(), "/run/docker/netns/5f");
        let here = std::env::current_dir().unwrap().join("x");
        assert_eq!(namespace("./x").unwrap(), here.display().to_string());
        assert_eq!(namespace("").unwrap_err().code.exit(), 2);
    }
}
