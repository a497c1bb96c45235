//! The configuration file, as it is written. What it means is checked where everything is put together.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;

use super::LogFormat;

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) node: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) netns_dir: Option<PathBuf>,
    pub(super) attachment_dirs: Vec<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) resync_seconds: Option<u64>,
    pub(super) etcd: EtcdSection,
    pub(super) underlay: UnderlaySection,
    pub(super) api: ApiSection,
    pub(super) endpoints: EndpointsSection,
    pub(super) metrics: MetricsSection,
    pub(super) log: LogSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EtcdSection {
    pub(super) endpoints: Vec<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) username: Option<String>,
    pub(super) password_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UnderlaySection {
    pub(super) interface: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mtu: Option<u16>,
    pub(super) port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApiSection {
    pub(super) socket: Option<PathBuf>,
    pub(super) group: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EndpointsSection {
    pub(super) dead_grace: Option<String>,
    pub(super) release_dead: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetricsSection {
    pub(super) listen: Option<String>,
    pub(super) group: Option<String>,
    pub(super) allow_remote: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogSection {
    pub(super) level: Option<String>,
    pub(super) format: Option<LogFormat>,
}
