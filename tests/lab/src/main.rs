//! `weft-lab`: brings up a lab by hand, runs things in it, takes it down.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use weft_lab::{Host, Lab, Underlay, down, labs, sweep};

/// Hosts as network namespaces and a real etcd.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Bring up a lab that stays until `down`, with weftd on every host; prints how to reach it as shell variables.
    Up {
        /// Number of hosts.
        #[arg(long, default_value_t = 3)]
        hosts: usize,
        /// Address families of the underlay.
        #[arg(long, value_enum, default_value = "v4")]
        underlay: Underlay,
        /// MTU of the underlay.
        #[arg(long, default_value_t = 1500)]
        mtu: u32,
        /// Number of etcd members.
        #[arg(long, default_value_t = 1)]
        etcd_members: usize,
        /// Where weftd and weft lie; default: beside this program.
        #[arg(long)]
        bin_dir: Option<PathBuf>,
        /// Start no weftd.
        #[arg(long)]
        without_weftd: bool,
        /// Keep the lab only until standard input ends, or a signal comes.
        #[arg(long)]
        hold: bool,
    },
    /// Take down one lab, or all that `up` made.
    Down {
        /// Id of the lab.
        id: Option<String>,
    },
    /// List labs.
    List,
    /// Print how to reach a lab as shell variables.
    Env {
        /// Id of the lab; may be left out when there is only one.
        id: Option<String>,
    },
    /// Run a command in a place of a lab: `h1`, `etcd1`, `sw`, `c-<name>` for a container, `h1/blue` for the
    /// namespace of network blue on host 1.
    Exec {
        /// Id of the lab.
        id: String,
        /// The place; a bare number is a host.
        place: String,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Make a container (a namespace with loopback up) and print its path.
    Container {
        /// Id of the lab.
        id: String,
        /// Name of the container.
        name: String,
        /// Remove it instead.
        #[arg(long)]
        remove: bool,
    },
    /// Run etcdctl against the lab's etcd (the only lab, or the one in WEFT_LAB).
    Etcdctl {
        /// Arguments of etcdctl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run weft against the agent of a host.
    Weft {
        /// Id of the lab.
        id: String,
        /// Number of the host.
        host: usize,
        /// Arguments of weft.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Start, stop or kill the agent of one host; what it has forwarded stays.
    Agent {
        /// Id of the lab.
        id: String,
        /// Number of the host.
        host: usize,
        /// What to do.
        #[arg(value_enum)]
        deed: Deed,
    },
    /// Remove what labs of dead processes left.
    Sweep,
}

/// What is done to an agent.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Deed {
    /// Start it, and wait until it is ready.
    Start,
    /// Ask it to end (SIGTERM), and wait.
    Stop,
    /// Stop it and start it again.
    Restart,
    /// End it at once (SIGKILL).
    Kill,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain on one line; a backtrace would bury what to do about it.
            eprintln!("weft-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<()> {
    match action {
        Action::Up {
            hosts,
            underlay,
            mtu,
            etcd_members,
            bin_dir,
            without_weftd,
            hold,
        } => {
            let mut builder = Lab::builder()
                .hosts(hosts)
                .underlay(underlay)
                .mtu(mtu)
                .etcd_members(etcd_members);
            if !without_weftd {
                builder = builder.bin_dir(bin_dir.map_or_else(weft_lab::bin_dir, Ok)?);
            }
            let lab = builder.persistent(!hold).build()?;
            if !without_weftd && let Err(error) = lab.start_all() {
                lab.close().context("taking the lab down again")?;
                return Err(error);
            }
            print_environment(&lab);
            if hold {
                wait_for_the_end()?;
                lab.close()?;
            }
        }
        Action::Down { id: Some(id) } => down(&id)?,
        Action::Down { id: None } => {
            for lab in labs()?.iter().filter(|lab| lab.owner.is_none()) {
                down(&lab.id)?;
                println!("lab {} is down", lab.id);
            }
        }
        Action::List => {
            for lab in labs()? {
                let owner = lab
                    .owner
                    .map_or_else(|| "stays until down".to_owned(), |o| format!("process {}", o.pid));
                println!(
                    "{}  {} hosts  {:?}  {} etcd  {owner}",
                    lab.id, lab.hosts, lab.underlay, lab.etcd_members
                );
            }
        }
        Action::Env { id } => print_environment(&the_lab(id)?),
        Action::Exec { id, place, command } => return Err(exec(&Lab::open(&id)?, &place, &command)),
        Action::Container { id, name, remove } => {
            let lab = Lab::open(&id)?;
            if remove {
                lab.existing_container(&name).remove()?;
            } else {
                println!("{}", lab.container(&name)?.path());
            }
        }
        Action::Etcdctl { args } => {
            let lab = the_lab(std::env::var("WEFT_LAB").ok())?;
            let mut command = lab.etcd(1).netns().command("etcdctl");
            command
                .env("ETCDCTL_API", "3")
                .env("ETCDCTL_ENDPOINTS", lab.etcd_endpoints().join(","))
                .args(args);
            return Err(command.exec().into());
        }
        Action::Weft { id, host, args } => {
            let lab = Lab::open(&id)?;
            let weft = lab
                .record()
                .bin_dir
                .clone()
                .map_or_else(weft_lab::bin_dir, Ok)?
                .join("weft");
            let host = host_of(&lab, host)?;
            let mut command = host.netns().command(weft);
            return Err(command
                .arg("--socket")
                .arg(host.socket())
                .args(args)
                .exec()
                .into());
        }
        Action::Agent { id, host, deed } => {
            let lab = Lab::open(&id)?;
            let host = host_of(&lab, host)?;
            match deed {
                Deed::Start => host.start_weftd()?,
                Deed::Stop => host.stop()?,
                Deed::Restart => host.restart()?,
                Deed::Kill => host.kill9()?,
            }
        }
        Action::Sweep => {
            for id in sweep()?.labs {
                println!("removed lab {id}, whose process is gone");
            }
        }
    }
    Ok(())
}

/// The lab with this id, or the only one there is.
fn the_lab(id: Option<String>) -> Result<Lab> {
    if let Some(id) = id {
        return Lab::open(&id);
    }
    let all = labs()?;
    match all.as_slice() {
        [lab] => Lab::open(&lab.id),
        [] => bail!("no lab is up: `weft-lab up`"),
        many => {
            let ids: Vec<_> = many.iter().map(|lab| lab.id.as_str()).collect();
            bail!("which lab? {} (set WEFT_LAB)", ids.join(", "))
        }
    }
}

fn host_of(lab: &Lab, number: usize) -> Result<&Host> {
    place(lab, &number.to_string()).map(|_| lab.host(number))
}

fn place(lab: &Lab, name: &str) -> Result<weft_lab::Namespace> {
    let number = |text: &str| {
        text.trim_start_matches('h')
            .parse::<usize>()
            .ok()
            .filter(|n| (1..=lab.hosts().len()).contains(n))
    };
    let place = match name.split_once('/') {
        Some((host, network)) => lab
            .host(number(host).ok_or_else(|| anyhow!("no host {host:?}"))?)
            .netns_of(network),
        None => match number(name) {
            Some(host) => lab.host(host).netns().clone(),
            None => weft_lab::Namespace::named(&format!("{}{name}", lab.record().prefix())),
        },
    };
    if !place.exists() {
        bail!("lab {} has no {name:?} ({})", lab.id(), place.path().display());
    }
    Ok(place)
}

/// Becomes the command; returns only when that fails.
fn exec(lab: &Lab, name: &str, command: &[String]) -> anyhow::Error {
    let result = place(lab, name).map(|netns| {
        let mut process = netns.command(&command[0]);
        process.args(&command[1..]).exec()
    });
    match result {
        Ok(error) => error.into(),
        Err(error) => error,
    }
}

fn print_environment(lab: &Lab) {
    println!("WEFT_LAB={}", lab.id());
    println!("WEFT_LAB_DIR={}", lab.run_dir().display());
    println!("WEFT_LAB_PREFIX={}", lab.record().prefix());
    println!("WEFT_LAB_HOSTS={}", lab.hosts().len());
    println!("WEFT_LAB_ETCD={}", lab.etcd_endpoints().join(","));
    println!(
        "WEFT_LAB_BIN={}",
        lab.record().bin_dir.clone().unwrap_or_default().display()
    );
}

/// Returns when standard input has ended, or on SIGINT, SIGTERM or SIGHUP.
fn wait_for_the_end() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Only now, as children would inherit it; and before the thread, which does.
    signals.thread_block().context("blocking signals")?;
    std::thread::spawn(|| {
        // However it ends, it has ended.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGTERM)
    });
    signals.wait().context("waiting for a signal")?;
    Ok(())
}
