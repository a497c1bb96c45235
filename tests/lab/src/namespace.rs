//! A network namespace by its path: run programs in it, look at it, run code in it.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{Pinger, tools};

/// The nftables table that cuts connections: not a name of the product's.
const CUT: &str = "weft-lab-cut";

/// How a namespace is cut off from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing passes, silently.
    Both,
    /// What the others say does not arrive; they hear all.
    Hearing,
    /// What is said to the others does not arrive; all of theirs does.
    Speaking,
    /// Whatever is sent to the others is answered at once by a reset, as by a firewall that rejects.
    Refused,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "both ways",
            Self::Hearing => "it hears nothing",
            Self::Speaking => "it is not heard",
            Self::Refused => "refused",
        })
    }
}

/// A network namespace, named by the file it is mounted on. The namespace need not exist (yet).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// The namespace mounted at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The namespace with this name in `/run/netns`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::at(Path::new("/run/netns").join(name))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a namespace is mounted there.
    #[must_use]
    pub fn exists(&self) -> bool {
        // The empty file that is left when nothing is mounted is not on nsfs: it cannot be entered.
        self.within(|| ()).is_ok()
    }

    /// A command that will run in this namespace (and in the mount namespace of the caller).
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg(program);
        command
    }

    /// Runs a program with arguments and answers its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails; the text holds its standard error.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        let (program, args) = argv.split_first().ok_or_else(|| anyhow!("no command given"))?;
        tools::run(self.command(program).args(args))
    }

    /// `ip -json -details` with these arguments, for example `["link", "show", "br0"]` or `["neigh", "show"]`.
    ///
    /// # Errors
    /// When ip fails or prints no JSON.
    pub fn ip_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        self.json(&["ip", "-json", "-details"], args)
    }

    /// `bridge -json -details` with these arguments, for example `["fdb", "show"]`.
    ///
    /// # Errors
    /// When bridge fails or prints no JSON.
    pub fn bridge_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        self.json(&["bridge", "-json", "-details"], args)
    }

    fn json(&self, program: &[&str], args: &[&str]) -> Result<serde_json::Value> {
        let text = self.exec(&[program, args].concat())?;
        // Some listings print nothing at all when they are empty.
        let text = if text.trim().is_empty() { "[]" } else { &text };
        serde_json::from_str(text).with_context(|| format!("output of {program:?} {args:?}: {text:?}"))
    }

    /// Runs `code` on a thread inside this namespace. Sockets made there stay in the namespace for good.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// Passes on a panic of `code`.
    pub fn within<T: Send>(&self, code: impl FnOnce() -> T + Send) -> Result<T> {
        // A thread of its own that ends after: a pooled one would keep the namespace for whoever comes next.
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(code())
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Opens a socket here for single echo requests to addresses of this one's family.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket cannot be made.
    pub fn pinger(&self, target: IpAddr) -> Result<Pinger> {
        self.within(|| Pinger::open(target))?
    }

    /// Drops every packet to and from these addresses, silently, as a broken path does: connections stay open and
    /// hear nothing. Replaces what was dropped before.
    ///
    /// # Errors
    /// When nft fails.
    pub fn cut_off(&self, addresses: &[IpAddr]) -> Result<()> {
        self.cut(addresses, Cut::Both)
    }

    /// Cuts this namespace off from addresses in one of the ways there are. Replaces what was cut before.
    ///
    /// # Errors
    /// When nft fails.
    pub fn cut(&self, addresses: &[IpAddr], how: Cut) -> Result<()> {
        let (heard, said) = match how {
            Cut::Both => (Some("drop"), Some("drop")),
            Cut::Hearing => (Some("drop"), None),
            Cut::Speaking => (None, Some("drop")),
            Cut::Refused => (None, Some("reject with tcp reset")),
        };
        let mut script = format!("table inet {CUT}\ndelete table inet {CUT}\ntable inet {CUT} {{\n");
        for (chain, hook, side, verdict) in [
            ("heard", "input", "saddr", heard),
            ("said", "output", "daddr", said),
        ] {
            let Some(verdict) = verdict else { continue };
            // A reset answers TCP alone; nothing else is said to etcd.
            let tcp = if how == Cut::Refused {
                "meta l4proto tcp "
            } else {
                ""
            };
            writeln!(script, "chain {chain} {{ type filter hook {hook} priority -400;")?;
            for address in addresses {
                let family = if address.is_ipv4() { "ip" } else { "ip6" };
                writeln!(script, "{family} {side} {address} {tcp}{verdict}")?;
            }
            writeln!(script, "}}")?;
        }
        writeln!(script, "}}")?;
        tools::run_with_input(self.command("nft").args(["-f", "-"]), script.as_bytes())
            .map(drop)
            .with_context(|| format!("script:\n{script}"))
    }

    /// Takes [`Namespace::cut`] back. Does nothing where nothing is cut off.
    ///
    /// # Errors
    /// When nft fails.
    pub fn reconnect(&self) -> Result<()> {
        let script = format!("table inet {CUT}\ndelete table inet {CUT}\n");
        tools::run_with_input(self.command("nft").args(["-f", "-"]), script.as_bytes()).map(drop)
    }

    /// Moves the calling thread into the namespace for the rest of its life; threads that it starts begin there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter(&self) -> Result<()> {
        let file =
            File::open(&self.path).with_context(|| format!("opening namespace {}", self.path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering namespace {}", self.path.display()))
    }
}
