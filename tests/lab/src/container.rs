//! Containers of a lab: network namespaces with nothing but loopback, as a container runtime would hand them to weft.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::record::LabRecord;
use crate::{Namespace, PingStream, tools};

/// A container: a handle to its namespace. It is removed with the lab, or by [`Container::remove`].
#[derive(Debug, Clone)]
pub struct Container {
    name: String,
    netns: Namespace,
    netns_name: String,
}

impl Container {
    pub(crate) fn existing(lab: &LabRecord, name: &str) -> Self {
        let netns_name = format!("{}c-{name}", lab.prefix());
        Self {
            name: name.to_owned(),
            netns: Namespace::named(&netns_name),
            netns_name,
        }
    }

    pub(crate) fn create(lab: &LabRecord, name: &str) -> Result<Self> {
        let container = Self::existing(lab, name);
        tools::run(std::process::Command::new("ip").args(["netns", "add", &container.netns_name]))?;
        container.netns.exec(&["ip", "link", "set", "lo", "up"])?;
        Ok(container)
    }

    /// The name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// The path for an endpoint's `attachment.netns`.
    #[must_use]
    pub fn path(&self) -> String {
        self.netns.path().display().to_string()
    }

    /// The endpoint record for this container, with these requested addresses.
    #[must_use]
    pub fn endpoint_record(&self, requested_addresses: &[&str]) -> String {
        let mut record = json!({"name": self.name, "attachment": {"netns": self.path()}});
        if !requested_addresses.is_empty() {
            record["requested_addresses"] = json!(requested_addresses);
        }
        record.to_string()
    }

    /// Runs a program in the container and answers its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        self.netns.exec(argv)
    }

    /// Whether `target` answers one echo request within a second. False also when there is no route to it.
    #[must_use]
    pub fn ping(&self, target: IpAddr) -> bool {
        self.ping_within(target, Duration::from_secs(1))
    }

    /// Whether `target` answers one echo request within this time.
    #[must_use]
    pub fn ping_within(&self, target: IpAddr, patience: Duration) -> bool {
        crate::probe::once(&self.netns, target, patience).unwrap_or(false)
    }

    /// Pings `target` in the background, `rate` times a second, until stopped.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket cannot be made.
    pub fn ping_stream(&self, target: IpAddr, rate: u32) -> Result<PingStream> {
        PingStream::start(&self.netns, target, rate)
    }

    /// All its global addresses, of all interfaces.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let links = self.netns.ip_json(&["addr", "show", "scope", "global"])?;
        let entries = links
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|link| link["addr_info"].as_array())
            .flatten();
        entries
            .filter_map(|entry| entry["local"].as_str())
            .map(|text| text.parse().with_context(|| format!("address {text:?}")))
            .collect()
    }

    /// Removes the namespace now, as a runtime does when a container ends.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn remove(&self) -> Result<()> {
        tools::run(std::process::Command::new("ip").args(["netns", "del", &self.netns_name])).map(drop)
    }
}
