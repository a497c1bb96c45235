//! The command line: what can be said, with its help, and nothing of what it does.
//!
//! In: arguments and environment. Out: [`Cli`], each value parsed. It must not know the agent.

mod address;
mod update;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;

pub(crate) use self::address::{AddressCommand, Family, ReserveArgs};
pub(crate) use self::update::UpdateArgs;
use crate::subnet::{Reserved, address, cidr};

/// Where the agent listens unless it is told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/weft/weftd.sock";

/// The longest that an agent lets a call wait.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(300);

/// See and change weft's networks through the agent of this host.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    arg_required_else_help = true,
    after_help = "Exit status:\n  \
                  0 done, 1 failed, 2 bad usage or a value the agent does not take, 3 not found,\n  \
                  4 conflict or already there, 5 agent or store not available, 6 not done in time\n\n\
                  Examples:\n  \
                  weft network create blue --subnet 10.1.0.0/16\n  \
                  weft endpoint attach blue /run/netns/web --id web\n  \
                  weft endpoint list\n  \
                  weft status"
)]
pub(crate) struct Cli {
    /// Socket of the agent
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        env = "WEFT_SOCKET",
        default_value = DEFAULT_SOCKET,
        value_name = "PATH"
    )]
    pub(crate) socket: PathBuf,

    /// How to print: a table for people, or JSON for programs (lists are arrays, errors objects on standard
    /// error)
    #[arg(
        short,
        long,
        global = true,
        help_heading = "Global options",
        value_enum,
        default_value_t = Format::Table,
        value_name = "FORMAT"
    )]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // Comments, not help: with a text of its own each value takes a line in every command's help.
    // Tables and text for people; may change with any version.
    Table,
    // JSON for programs; fields may be added, never renamed.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Networks of the cluster
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Endpoints: containers plugged into networks
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Addresses of networks: who has which, and reservations
    #[command(subcommand)]
    Address(AddressCommand),
    /// The hosts of the cluster
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Return when every host of a network has programmed all that was written before
    #[command(
        after_help = "Whoever has endpoints in the network is waited for, and its agent says when it has caught up. Then the first\n\
                      packet between any two of its endpoints finds its way. A host that has not by the deadline is named, with\n\
                      exit status 6; nothing is undone. A host without a peer record (no agent runs there yet, or the node was removed)\n\
                      is named and not waited for.\n\nExamples:\n  \
                      weft wait blue\n  \
                      weft wait --timeout 5s && echo all networks work\n  \
                      weft -o json wait blue | jq '.[].hosts'"
    )]
    Wait(WaitArgs),
    /// How this host's agent is: its store, what it has programmed, what is wrong
    #[command(after_help = "Examples:\n  weft status\n  weft -o json status | jq '.problems[].key'")]
    Status,
    /// Print what happens, as it happens, until interrupted
    #[command(after_help = "With -o json, one object a line.\n\nExamples:\n  \
                      weft events --network blue\n  \
                      weft events --kind drift-repaired --kind problem-appeared")]
    Events(EventsArgs),
    /// Whether all records fit together: every claim has its endpoint, every endpoint its claims
    #[command(
        after_help = "Reads every record of the cluster at one revision. --repair gives up claims that nobody has, claims what\n\
                      endpoints have, frees VNIs and clears away wrong marks; it never changes or deletes a network, an\n\
                      endpoint or a peer. What is left is for people, and said so.\n\n\
                      Exit status: 0 nothing is wrong (any more), 1 something is.\n\n\
                      Examples:\n  weft audit\n  weft audit --repair\n  weft -o json audit | jq '.findings[].key'"
    )]
    Audit(AuditArgs),
    /// After trouble of the store: write again what it has lost, or confirm that it may go
    #[command(
        after_help = "When etcd was restored from a backup, replaced or emptied, or a prefix was deleted by mistake, this host\n\
                      keeps what the store no longer has, and 'weft status' says so. --republish, on each host, writes it\n\
                      again: the host's own endpoints with their addresses, the networks, the peers without an agent.\n\
                      Nothing that is there is overwritten; what is in the way is named. --accept confirms that what is\n\
                      still held here is gone for good.\n\n\
                      Exit status: 0 done, 4 some records could not be written again.\n\n\
                      Examples:\n  weft resync --republish\n  weft resync --accept"
    )]
    Resync(ResyncArgs),
    /// Versions of this command and of the agent
    Version,
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  \
                      weft completions bash > /etc/bash_completion.d/weft\n  \
                      weft completions zsh > /usr/local/share/zsh/site-functions/_weft\n  \
                      weft completions fish > ~/.config/fish/completions/weft.fish")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Make a network
    #[command(
        after_help = "--gateway, --range and --reserved apply to the subnet that they lie in.\n\nExamples:\n  \
                      weft network create blue --subnet 10.1.0.0/16\n  \
                      weft network create dual --subnet 10.2.0.0/24 --subnet fd00:2::/64 --gateway 10.2.0.1\n  \
                      weft network create lab --subnet 10.3.0.0/24 --range 10.3.0.128/25 --reserved 10.3.0.200-10.3.0.210"
    )]
    Create(Box<CreateArgs>),
    /// List all networks
    #[command(visible_alias = "ls")]
    List,
    /// Show one network
    Inspect {
        /// Its name
        name: String,
    },
    /// Change a network; what is not named stays
    #[command(
        after_help = "Refused while an address is held that would be in no subnet any more, or on what is kept out.\n\nExamples:\n  \
                      weft network update blue --add-subnet 10.4.0.0/16\n  \
                      weft network update blue --remove-subnet 10.1.0.0/16 --cooldown 1h\n  \
                      weft network update blue --remove-subnet 10.4.0.0/16 --add-subnet 10.4.0.0/16 --range 10.4.1.0/24"
    )]
    Update(Box<UpdateArgs>),
    /// Delete a network that has no endpoints
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  weft network delete blue\n  weft network delete blue --force"
    )]
    Delete {
        /// Its name
        name: String,
        /// Detach its endpoints first, on all hosts
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name, unique in the cluster
    pub(crate) name: String,
    /// A subnet, IPv4 or IPv6 (repeatable)
    #[arg(long = "subnet", required = true, value_parser = cidr, value_name = "CIDR")]
    pub(crate) subnets: Vec<IpNet>,
    /// An address kept for a gateway, one a subnet (repeatable)
    #[arg(long = "gateway", value_parser = address, value_name = "IP")]
    pub(crate) gateways: Vec<IpAddr>,
    /// Take addresses only from this part of a subnet, one a subnet (repeatable)
    #[arg(long = "range", value_parser = cidr, value_name = "CIDR")]
    pub(crate) ranges: Vec<IpNet>,
    /// Never hand out: an address, FROM-TO or a CIDR (repeatable)
    #[arg(long = "reserved", value_name = "IP|FROM-TO|CIDR")]
    pub(crate) reserved: Vec<Reserved>,
    /// VXLAN network identifier, 1 to 16777215 [default: a free one]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16_777_215), value_name = "N")]
    pub(crate) vni: Option<u32>,
    /// MTU of the endpoints' interfaces in bytes [default: the underlay's, less the encapsulation]
    #[arg(long, value_parser = clap::value_parser!(u32).range(68..=65_535), value_name = "N")]
    pub(crate) mtu: Option<u32>,
    /// Replicate multicast and broadcast to all hosts of the network (noted in the record, not carried yet)
    #[arg(long)]
    pub(crate) multicast: bool,
    /// How long an address that was given up is not chosen again, at most 7d [default: 0s]
    #[arg(long, value_parser = cooldown, value_name = "TIME")]
    pub(crate) cooldown: Option<Duration>,
    /// A label for people and programs (repeatable)
    #[arg(long = "label", value_parser = key_value, value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<(String, String)>,
    /// An option of the data plane (repeatable)
    #[arg(long = "option", value_parser = key_value, value_name = "KEY=VALUE")]
    pub(crate) options: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EndpointCommand {
    /// Plug a container of this host into a network, and return when it works
    #[command(after_help = "Examples:\n  \
                      ip netns add web && weft endpoint attach blue web --id web\n  \
                      weft endpoint attach blue /run/docker/netns/5f0c --address 10.1.0.9 --timeout 5s\n  \
                      weft endpoint attach blue web --wait && echo every host of blue reaches it")]
    Attach(AttachArgs),
    /// Unplug a container of this host; done already is fine
    Detach(DetachArgs),
    /// List endpoints: which veth belongs to which container, where, with which addresses
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  weft endpoint list --local\n  weft -o json endpoint list --network blue | jq '.[].addresses'"
    )]
    List(EndpointListArgs),
    /// Show one endpoint
    Inspect {
        /// Its network
        network: String,
        /// Its id
        id: String,
        /// Its host [default: this one]
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The network
    pub(crate) network: String,
    /// The container's network namespace: a path, or a name under /run/netns
    pub(crate) netns: String,
    /// Its id, unique on this host in the network [default: made up]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// A name for people
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Name of the interface in the container
    #[arg(long, default_value = "eth0", value_name = "IFNAME")]
    pub(crate) ifname: String,
    /// An address to have, one a subnet (repeatable) [default: a free one of each family]
    #[arg(long = "address", value_parser = address, value_name = "IP")]
    pub(crate) addresses: Vec<IpAddr>,
    /// Take over the addresses of this reservation of this host
    #[arg(long, value_name = "ID")]
    pub(crate) reservation: Option<String>,
    /// MAC address to have [default: made from the address]
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<String>,
    /// A label for people and programs (repeatable)
    #[arg(long = "label", value_parser = key_value, value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<(String, String)>,
    /// How long to wait until it works, at most 5m
    #[arg(long, default_value = "30s", value_parser = timeout, value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// Wait until every host of the network has programmed it, too; if some have not in time, it stays attached
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Only this network's hosts [default: those of all networks that have endpoints]
    pub(crate) network: Option<String>,
    /// How long to wait, at most 5m
    #[arg(long, default_value = "30s", value_parser = timeout, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// Its network
    pub(crate) network: String,
    /// Its id
    pub(crate) id: String,
    /// How long to wait until it is gone, at most 5m
    #[arg(long, default_value = "30s", value_parser = timeout, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct EndpointListArgs {
    /// Only those of this network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// Only those of this host
    #[arg(long, value_name = "NODE", conflicts_with = "local")]
    pub(crate) node: Option<String>,
    /// Only those of the agent's own host
    #[arg(long)]
    pub(crate) local: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// List the hosts of the cluster
    #[command(visible_alias = "ls")]
    List,
    /// Remove a host that is gone for good, and release what it held
    #[command(
        visible_alias = "rm",
        after_help = "Says what the host holds and asks before anything is changed. If the host comes back with its old state,\n\
                      it knows that it was removed: it writes nothing of what it held, takes it down, and starts anew.\n\n\
                      Examples:\n  weft peer remove host3\n  weft peer remove host3 --yes"
    )]
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Its node name
    pub(crate) node: String,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Also while its agent is alive
    #[arg(long)]
    pub(crate) force: bool,
    /// How long it may take, at most 5m
    #[arg(long, default_value = "2m", value_parser = timeout, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ResyncArgs {
    /// Write again what the store has lost and this host has
    #[arg(long)]
    pub(crate) republish: bool,
    /// Remove what is held from this host
    #[arg(long)]
    pub(crate) accept: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Mend what can be mended without asking, and look again
    #[arg(long)]
    pub(crate) repair: bool,
    /// How long it may take, at most 5m
    #[arg(long, default_value = "5m", value_parser = timeout, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only those about this network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// Only those of this kind (repeatable)
    #[arg(long = "kind", value_enum, value_name = "KIND")]
    pub(crate) kinds: Vec<Kind>,
}

/// A kind of event, as it is named here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    NetworkPut,
    NetworkDeleted,
    EndpointPut,
    EndpointDeleted,
    PeerPut,
    PeerDeleted,
    EndpointReady,
    EndpointFailed,
    DriftRepaired,
    ProblemAppeared,
    ProblemCleared,
    StoreConnected,
    StoreLost,
    EventsLost,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is not of the form KEY=VALUE".to_owned()),
    }
}

const LONGEST_COOLDOWN: Duration = Duration::from_secs(7 * 24 * 60 * 60);

fn cooldown(text: &str) -> Result<Duration, String> {
    let cooldown = whole_seconds(text)?;
    if cooldown > LONGEST_COOLDOWN {
        return Err("must be at most 7d".to_owned());
    }
    Ok(cooldown)
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|why| format!("{why}; give a time with its unit, such as 30s, 10m or 2h"))?;
    if time.subsec_nanos() != 0 {
        return Err("must be whole seconds".to_owned());
    }
    Ok(time)
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text)
        .map_err(|why| format!("{why}; give a time with its unit, such as 500ms, 10s or 2m"))?;
    if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
        return Err("must be more than 0s and at most 5m".to_owned());
    }
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_text() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments().filter(|a| !a.is_global_set()) {
                assert!(
                    argument.get_help().is_some(),
                    "{path}: {} has no help",
                    argument.get_id()
                );
            }
            for below in command.get_subcommands() {
                walk(below, &path);
            }
        }
        walk(&Cli::command(), "");
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli = parse("weft endpoint list --local -o json --socket /tmp/s").unwrap();
        assert_eq!((cli.output, cli.socket), (Format::Json, PathBuf::from("/tmp/s")));
        let Command::Endpoint(EndpointCommand::List(list)) = cli.command else {
            panic!("another command")
        };
        assert!(list.local);
    }

    #[test]
    fn a_network_takes_all_its_options() {
        let cli = parse(
            "weft network create blue --subnet 10.1.0.0/16 --subnet fd00::/64 --gateway 10.1.0.1 --range 10.1.1.0/24 \
             --reserved 10.1.1.1-10.1.1.9 --vni 7 --mtu 1400 --multicast --label a=b=c --option x=",
        )
        .unwrap();
        let Command::Network(NetworkCommand::Create(create)) = cli.command else {
            panic!("another command")
        };
        assert_eq!(create.subnets.len(), 2);
        assert_eq!(
            (create.vni, create.mtu, create.multicast),
            (Some(7), Some(1400), true)
        );
        assert_eq!(create.labels, [("a".to_owned(), "b=c".to_owned())]);
        assert_eq!(create.options, [("x".to_owned(), String::new())]);
    }

    #[test]
    fn a_network_is_changed_by_any_one_thing() {
        for change in [
            "--add-subnet 10.4.0.0/16",
            "--remove-subnet 10.4.0.0/16",
            "--mtu auto",
            "--cooldown 0s",
            "--label a=",
            "--remove-label a",
        ] {
            let line = format!("weft network update blue {change}");
            match parse(&line).unwrap().command {
                Command::Network(NetworkCommand::Update(update)) => assert_eq!(update.name, "blue"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_attach_waits_thirty_seconds_or_as_told() {
        let timeout = |line: &str| match parse(line).unwrap().command {
            Command::Endpoint(EndpointCommand::Attach(attach)) => attach.timeout,
            other => panic!("{other:?}"),
        };
        assert_eq!(timeout("weft endpoint attach blue web"), Duration::from_secs(30));
        assert_eq!(
            timeout("weft endpoint attach blue web --timeout 1500ms"),
            Duration::from_millis(1500)
        );
    }

    #[test]
    fn a_wait_is_for_one_network_or_for_all() {
        let wait = |line: &str| match parse(line).unwrap().command {
            Command::Wait(wait) => (wait.network, wait.timeout.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("weft wait"), (None, 30));
        assert_eq!(wait("weft wait blue --timeout 5s"), (Some("blue".to_owned()), 5));
    }

    #[test]
    fn what_is_no_subnet_or_address_is_told_with_what_would_be_one() {
        for (options, why) in [
            (
                "network create blue --subnet 10.2.0.0",
                "invalid value '10.2.0.0' for '--subnet <CIDR>': expected a CIDR such as 10.2.0.0/16 or fd00:2::/64; \
                 '10.2.0.0' has no prefix length",
            ),
            (
                "network create blue --subnet 10.2.0.0/33",
                ": prefix length 33 is more than 32\n",
            ),
            (
                "network create blue --subnet fd00::/129",
                ": prefix length 129 is more than 128\n",
            ),
            (
                "network update blue --add-subnet 10.2.0.0/99999999999",
                ": prefix length 99999999999 is more than 32\n",
            ),
            (
                "network create blue --subnet 10.2.0.0/",
                "; '' is not a prefix length\n",
            ),
            (
                "network update blue --remove-subnet ten/8",
                "; 'ten' is not an IP address\n",
            ),
            (
                "network create blue --subnet 10.2.0.0/16 --range 10.2.0.0/-1",
                "; '-1' is not a prefix length\n",
            ),
            (
                "network create blue --subnet 10.2.0.0/16 --reserved 10.2.0.0/40",
                ": prefix length 40 is more than 32\n",
            ),
            (
                "endpoint attach blue web --address 10.2.0.9/16",
                ": expected an address without a prefix length; '10.2.0.9/16' has one\n",
            ),
            ("address reserve blue --address nine", "; 'nine' is none\n"),
        ] {
            let told = parse(&format!("weft {options}")).map(|_| ()).expect_err(options);
            assert!(told.to_string().contains(why), "{options}: {told}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for line in [
            "weft network create blue",
            "weft network create blue --subnet 10.1.0.0",
            "weft network create blue --subnet 10.1.0.0/16 --vni 0",
            "weft network create blue --subnet 10.1.0.0/16 --vni 16777216",
            "weft network create blue --subnet 10.1.0.0/16 --mtu 67",
            "weft network create blue --subnet 10.1.0.0/16 --reserved 10.1.0.9-10.1.0.2",
            "weft network create blue --subnet 10.1.0.0/16 --label =x",
            "weft network create blue --subnet 10.1.0.0/16 --cooldown 8d",
            "weft network create blue --subnet 10.1.0.0/16 --cooldown 500ms",
            "weft network update blue",
            "weft network update blue --gateway 10.1.0.1",
            "weft network update blue --mtu none",
            "weft address reserve blue --ttl 4s",
            "weft address reserve blue --ttl 25h",
            "weft address reserve blue --family ipx",
            "weft address release blue",
            "weft endpoint attach blue web --timeout 10",
            "weft endpoint attach blue web --timeout 0s",
            "weft endpoint attach blue web --timeout 6m",
            "weft endpoint attach blue web --address 10.1.0.5/16",
            "weft wait blue --timeout 10",
            "weft wait blue red",
            "weft endpoint list --node a --local",
            "weft events --kind nonsense",
            "weft -o yaml status",
        ] {
            let why = parse(line).map(|_| ()).expect_err(line);
            assert_eq!(why.exit_code(), 2, "{line}: {why}");
            assert!(why.kind() != ErrorKind::DisplayHelp, "{line}");
        }
    }
}
