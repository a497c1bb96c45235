//! What the agent is told: flags, environment, file and defaults, in this order of precedence.
//!
//! In: the command line, the environment, a TOML file. Out: one [`Config`], checked. Every error names the
//! setting and where it was given.

mod file;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use serde::Deserialize;
use thiserror::Error;
use weft_store_schema::{IfName, Mtu, NodeName, Prefix};

use file::File;

/// Where the file is looked for when none is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/weft/weftd.toml";

/// The weft agent: makes this host's part of the networks that etcd describes.
///
/// Each setting is taken from the flag, else from the environment variable, else from the file, else it is
/// the default.
#[derive(Debug, Default, Parser)]
#[command(name = "weftd", version, about, max_term_width = 110)]
pub(crate) struct Args {
    /// The configuration file (TOML). Without this, /etc/weft/weftd.toml if it exists.
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Remove everything that is weft's on this host, and exit. Needs no etcd; the records stay.
    #[arg(long)]
    pub(crate) teardown: bool,
    /// This host's name in the cluster [default: the host name up to its first dot].
    #[arg(long, env = "WEFT_NODE", value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Prefix of all keys in etcd [default: /weft/v1/].
    #[arg(long, env = "WEFT_PREFIX", value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
    /// Directory in which the networks' namespaces appear as weft-<network> [default: /run/netns].
    #[arg(long, env = "WEFT_NETNS_DIR", value_name = "DIR")]
    pub(crate) netns_dir: Option<PathBuf>,
    /// A directory whose namespaces endpoints may be attached to; repeatable
    /// [default: /run/netns, /var/run/netns and /run/docker/netns].
    #[arg(
        long = "attachment-dir",
        env = "WEFT_ATTACHMENT_DIRS",
        value_name = "DIR",
        value_delimiter = ':'
    )]
    pub(crate) attachment_dirs: Vec<PathBuf>,
    /// Directory for what must survive the agent [default: /var/lib/weft].
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// An etcd client URL; repeatable, or several with commas [default: http://127.0.0.1:2379].
    #[arg(long, env = "WEFT_ETCD", value_name = "URL", value_delimiter = ',')]
    pub(crate) etcd: Vec<String>,
    /// PEM file with the authorities that may sign etcd's certificate.
    #[arg(long, env = "WEFT_ETCD_CA", value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// PEM file with the agent's client certificate.
    #[arg(long, env = "WEFT_ETCD_CERT", value_name = "FILE")]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// PEM file with the client certificate's key.
    #[arg(long, env = "WEFT_ETCD_KEY", value_name = "FILE")]
    pub(crate) etcd_key: Option<PathBuf>,
    /// etcd user.
    #[arg(long, env = "WEFT_ETCD_USERNAME", value_name = "NAME")]
    pub(crate) etcd_username: Option<String>,
    /// File whose first line is the etcd user's password.
    #[arg(long, env = "WEFT_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// The interface of the underlay [default: that of the default route].
    #[arg(long, env = "WEFT_UNDERLAY_INTERFACE", value_name = "IFNAME")]
    pub(crate) underlay_interface: Option<String>,
    /// This host's VTEP address: one IPv4, one IPv6, or both by repeating [default: the interface's].
    #[arg(
        long = "underlay-address",
        env = "WEFT_UNDERLAY_ADDRESSES",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub(crate) underlay_addresses: Vec<IpAddr>,
    /// MTU of the underlay in bytes, 576 to 65535 [default: the interface's].
    #[arg(long, env = "WEFT_UNDERLAY_MTU", value_name = "BYTES")]
    pub(crate) underlay_mtu: Option<u16>,
    /// UDP port of all VTEPs of the cluster [default: 4789].
    #[arg(long, env = "WEFT_VXLAN_PORT", value_name = "PORT")]
    pub(crate) vxlan_port: Option<u16>,
    /// Unix socket of the API [default: /run/weft/weftd.sock].
    #[arg(long, env = "WEFT_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Group that may use the socket besides root.
    #[arg(long, env = "WEFT_SOCKET_GROUP", value_name = "GROUP")]
    pub(crate) socket_group: Option<String>,
    /// Where to serve metrics for Prometheus: unix:/PATH or a loopback ADDRESS:PORT [default: nowhere].
    #[arg(long, env = "WEFT_METRICS_LISTEN", value_name = "WHERE")]
    pub(crate) metrics_listen: Option<String>,
    /// Group that may use the metrics' Unix socket besides root.
    #[arg(long, env = "WEFT_METRICS_GROUP", value_name = "GROUP")]
    pub(crate) metrics_group: Option<String>,
    /// Allow an address for the metrics that other hosts can reach [default: false].
    #[arg(
        long,
        env = "WEFT_METRICS_ALLOW_REMOTE",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) metrics_allow_remote: Option<bool>,
    /// What to log: error, warn, info, debug, trace, or tracing directives, such as info,h2=debug [default: info].
    #[arg(long, env = "WEFT_LOG", value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Form of the log [default: text].
    #[arg(long, env = "WEFT_LOG_FORMAT", value_enum)]
    pub(crate) log_format: Option<LogFormat>,
    /// Seconds between two comparisons of everything, which find what notifications missed [default: 300].
    #[arg(long, env = "WEFT_RESYNC_SECONDS", value_name = "SECONDS")]
    pub(crate) resync_seconds: Option<u64>,
    /// How long the namespace of an endpoint's container has to be gone before that is reported [default: 60s].
    #[arg(long, env = "WEFT_DEAD_GRACE", value_name = "TIME")]
    pub(crate) dead_grace: Option<String>,
    /// Detach endpoints whose container's namespace has been gone for that long [default: false].
    #[arg(
        long,
        env = "WEFT_RELEASE_DEAD",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) release_dead: Option<bool>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// The agent's settings, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// This host's name in the cluster.
    pub(crate) node: NodeName,
    /// Prefix of all keys.
    pub(crate) prefix: Prefix,
    /// Where the networks' namespaces are.
    pub(crate) netns_dir: PathBuf,
    /// Where attachments may be.
    pub(crate) attachment_dirs: Vec<PathBuf>,
    /// Where the agent keeps what must survive it.
    pub(crate) state_dir: PathBuf,
    /// etcd.
    pub(crate) etcd: Etcd,
    /// The underlay.
    pub(crate) underlay: Underlay,
    /// The API's socket.
    pub(crate) socket: PathBuf,
    /// The group of the socket.
    pub(crate) socket_group: Option<String>,
    /// Where metrics are served, if anywhere.
    pub(crate) metrics: Option<MetricsListen>,
    /// What to log.
    pub(crate) log_level: String,
    /// Form of the log.
    pub(crate) log_format: LogFormat,
    /// Time between two comparisons of everything.
    pub(crate) resync: Duration,
    /// How long the namespace of an endpoint's container has to be gone before that is reported.
    pub(crate) dead_grace: Duration,
    /// Whether such endpoints are detached.
    pub(crate) release_dead: bool,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MetricsListen {
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Its group.
        group: Option<String>,
    },
    /// A TCP port, on a loopback address unless another was allowed.
    Tcp(SocketAddr),
}

/// Where etcd is and who we are there.
#[derive(Debug, Clone)]
pub(crate) struct Etcd {
    /// Client URLs.
    pub(crate) endpoints: Vec<String>,
    /// Authorities.
    pub(crate) ca: Option<PathBuf>,
    /// Client certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// User, and the file with its password.
    pub(crate) user: Option<(String, PathBuf)>,
}

/// How the underlay is found.
#[derive(Debug, Clone)]
pub(crate) struct Underlay {
    /// Its interface; without it and without addresses, that of the default route.
    pub(crate) interface: Option<IfName>,
    /// VTEP addresses; without them, the interface's.
    pub(crate) addresses: Vec<IpAddr>,
    /// MTU; without it, the interface's.
    pub(crate) mtu: Option<u16>,
    /// UDP port of all VTEPs.
    pub(crate) port: u16,
}

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has settings that do not exist.
    #[error("configuration file {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A setting has a value that is not allowed.
    #[error("setting {setting}: {why}")]
    Setting {
        /// The setting, as in the file.
        setting: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
}

#[expect(clippy::needless_pass_by_value, reason = "texts and errors made on the spot")]
fn setting(setting: &'static str, why: impl ToString) -> ConfigError {
    ConfigError::Setting {
        setting,
        why: why.to_string(),
    }
}

impl Config {
    /// Puts flags and environment (both in `args`), file and defaults together.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(crate) fn load(args: Args) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        Self::merge(args, file)
    }

    fn merge(args: Args, file: File) -> Result<Self, ConfigError> {
        let node = match args.node.or(file.node) {
            Some(name) => NodeName::new(&name).map_err(|e| setting("node", e))?,
            None => {
                let host = nix::unistd::gethostname().map_err(|e| setting("node", e))?;
                let host = host.to_string_lossy().into_owned();
                let short = host.split('.').next().unwrap_or_default();
                NodeName::new(short)
                    .map_err(|e| setting("node", format!("not given, and the host's own does not do: {e}")))?
            }
        };
        let prefix = args
            .prefix
            .or(file.prefix)
            .map_or_else(|| Ok(Prefix::default()), |p| Prefix::new(&p));
        let absolute = |name, path: PathBuf| {
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(setting(
                    name,
                    format!("{} is not an absolute path", path.display()),
                ))
            }
        };
        let or_default =
            |given: Option<PathBuf>, default: &str| given.unwrap_or_else(|| PathBuf::from(default));
        let pick = |flag: Vec<PathBuf>, file: Vec<PathBuf>| if flag.is_empty() { file } else { flag };
        let mut attachment_dirs = pick(args.attachment_dirs, file.attachment_dirs);
        if attachment_dirs.is_empty() {
            attachment_dirs = ["/run/netns", "/var/run/netns", "/run/docker/netns"]
                .map(PathBuf::from)
                .to_vec();
        }
        let attachment_dirs = attachment_dirs
            .into_iter()
            .map(|d| absolute("attachment_dirs", d))
            .collect::<Result<_, _>>()?;
        let etcd = Etcd {
            endpoints: match (args.etcd.is_empty(), file.etcd.endpoints.is_empty()) {
                (false, _) => args.etcd,
                (true, false) => file.etcd.endpoints,
                (true, true) => vec!["http://127.0.0.1:2379".to_owned()],
            },
            ca: args.etcd_ca.or(file.etcd.ca),
            identity: match (args.etcd_cert.or(file.etcd.cert), args.etcd_key.or(file.etcd.key)) {
                (Some(cert), Some(key)) => Some((cert, key)),
                (None, None) => None,
                (Some(_), None) => {
                    return Err(setting(
                        "etcd.key",
                        "not given, but etcd.cert is; both are needed",
                    ));
                }
                (None, Some(_)) => {
                    return Err(setting(
                        "etcd.cert",
                        "not given, but etcd.key is; both are needed",
                    ));
                }
            },
            user: match (
                args.etcd_username.or(file.etcd.username),
                args.etcd_password_file.or(file.etcd.password_file),
            ) {
                (Some(user), Some(file)) => Some((user, file)),
                (None, None) => None,
                (Some(_), None) => {
                    return Err(setting("etcd.password_file", "not given, but etcd.username is"));
                }
                (None, Some(_)) => {
                    return Err(setting("etcd.username", "not given, but etcd.password_file is"));
                }
            },
        };
        let addresses = if args.underlay_addresses.is_empty() {
            file.underlay.addresses
        } else {
            args.underlay_addresses
        };
        let per_family = |v4| addresses.iter().filter(|a: &&IpAddr| a.is_ipv4() == v4).count();
        if per_family(true) > 1 || per_family(false) > 1 {
            return Err(setting(
                "underlay.addresses",
                "at most one IPv4 and one IPv6 address are allowed",
            ));
        }
        let mtu = args.underlay_mtu.or(file.underlay.mtu);
        if let Some(mtu) = mtu
            && Mtu::new(mtu.into()).is_none()
        {
            return Err(setting(
                "underlay.mtu",
                format!("{mtu} is not from {} to {}", Mtu::MIN, u16::MAX),
            ));
        }
        let port = args.vxlan_port.or(file.underlay.port).unwrap_or(4789);
        if port == 0 {
            return Err(setting("underlay.port", "0 is not a UDP port"));
        }
        let resync = args.resync_seconds.or(file.resync_seconds).unwrap_or(300);
        if !(1..=86_400).contains(&resync) {
            return Err(setting(
                "resync_seconds",
                format!("{resync} is not from 1 to 86400"),
            ));
        }
        let dead_grace = match args.dead_grace.or(file.endpoints.dead_grace) {
            Some(text) => dead_grace(&text)?,
            None => Duration::from_secs(60),
        };
        Ok(Self {
            node,
            prefix: prefix.map_err(|e| setting("prefix", e))?,
            netns_dir: absolute(
                "netns_dir",
                or_default(args.netns_dir.or(file.netns_dir), "/run/netns"),
            )?,
            attachment_dirs,
            state_dir: absolute(
                "state_dir",
                or_default(args.state_dir.or(file.state_dir), "/var/lib/weft"),
            )?,
            etcd,
            underlay: Underlay {
                interface: args
                    .underlay_interface
                    .or(file.underlay.interface)
                    .map(|name| IfName::new(&name).map_err(|e| setting("underlay.interface", e)))
                    .transpose()?,
                addresses,
                mtu,
                port,
            },
            socket: absolute(
                "api.socket",
                or_default(args.socket.or(file.api.socket), "/run/weft/weftd.sock"),
            )?,
            socket_group: args.socket_group.or(file.api.group),
            metrics: metrics(
                &args.metrics_listen.or(file.metrics.listen).unwrap_or_default(),
                args.metrics_group.or(file.metrics.group),
                args.metrics_allow_remote
                    .or(file.metrics.allow_remote)
                    .unwrap_or(false),
            )?,
            log_level: args
                .log_level
                .or(file.log.level)
                .unwrap_or_else(|| "info".to_owned()),
            log_format: args.log_format.or(file.log.format).unwrap_or_default(),
            resync: Duration::from_secs(resync),
            dead_grace,
            release_dead: args.release_dead.or(file.endpoints.release_dead).unwrap_or(false),
        })
    }
}

/// Where metrics are served; nowhere for an empty text.
fn metrics(
    text: &str,
    group: Option<String>,
    allow_remote: bool,
) -> Result<Option<MetricsListen>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |why: &str| setting("metrics.listen", format!("{text:?} {why}"));
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return Err(wrong("is not unix: and an absolute path"));
        }
        return Ok(Some(MetricsListen::Unix { path, group }));
    }
    let address: SocketAddr = text.parse().map_err(|_| {
        wrong("is neither unix:/PATH nor an address with a port, such as 127.0.0.1:9477 or [::1]:9477")
    })?;
    if !address.ip().is_loopback() && !allow_remote {
        return Err(wrong(
            "can be reached from other hosts, which would see this host's state without being asked who they are; \
             choose 127.0.0.1, [::1] or unix:/PATH, or set metrics.allow_remote",
        ));
    }
    Ok(Some(MetricsListen::Tcp(address)))
}

fn dead_grace(text: &str) -> Result<Duration, ConfigError> {
    let allowed = Duration::from_millis(100)..=Duration::from_secs(86_400);
    let given = humantime::parse_duration(text).ok();
    given.filter(|grace| allowed.contains(grace)).ok_or_else(|| {
        setting(
            "endpoints.dead_grace",
            format!("{text:?} is not a time from 100ms to 1day with its unit, such as 60s"),
        )
    })
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests;
