//! A lab with an agent on each host, and the records that tests write into it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{Container, Host, Lab, LabBuilder, eventually};

use crate::mesh;

/// How long anything that should happen at once may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// A lab whose agents run. A test ends with [`Cluster::close`]; dropped before, it prints the agents' logs.
#[derive(Debug)]
pub struct Cluster {
    lab: Option<Lab>,
}

impl Deref for Cluster {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab
            .as_ref()
            .unwrap_or_else(|| unreachable!("only close takes it"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(lab) = &self.lab else { return };
        if std::thread::panicking() {
            // The lab tells it then.
            return;
        }
        for host in lab.hosts() {
            let log = host.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            println!("--- end of the log of weftd on {}:\n{tail}", host.node());
        }
    }
}

/// An endpoint: its container, the host that it is on, and what it was given.
#[derive(Debug, Clone)]
pub struct Station {
    /// Its network.
    pub network: String,
    /// Number of its host.
    pub host: usize,
    /// Its id.
    pub id: String,
    /// Its container.
    pub container: Container,
    /// Its addresses as its record has them; empty until they were waited for.
    pub addresses: Vec<IpAddr>,
}

impl Station {
    /// The key of its record.
    #[must_use]
    pub fn key(&self) -> String {
        Cluster::endpoint_key(&self.network, self.host, &self.id)
    }

    /// The key as problems name it: without the prefix.
    #[must_use]
    pub fn short_key(&self) -> String {
        self.key().trim_start_matches("/weft/v1/").to_owned()
    }

    /// Its address of one family.
    ///
    /// # Panics
    /// When it has none: a mistake in the test.
    #[must_use]
    pub fn address(&self, v4: bool) -> IpAddr {
        let found = self.addresses.iter().find(|a| a.is_ipv4() == v4);
        *found.unwrap_or_else(|| panic!("{} has {:?}", self.id, self.addresses))
    }
}

impl Cluster {
    /// Builds a lab with this many hosts on an IPv4 underlay and starts its agents.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn of(hosts: usize) -> Result<Self> {
        Self::build(Lab::builder().hosts(hosts))
    }

    /// Builds a lab and starts its agents.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn build(builder: LabBuilder) -> Result<Self> {
        let lab = builder.build()?;
        let cluster = Self { lab: Some(lab) };
        cluster.start_all()?;
        Ok(cluster)
    }

    /// A lab whose agents were started by other means.
    #[must_use]
    pub fn from_running(lab: Lab) -> Self {
        Self { lab: Some(lab) }
    }

    /// Takes everything down: the end of a test that went well.
    ///
    /// # Errors
    /// When something of the lab could not be removed.
    pub fn close(mut self) -> Result<()> {
        self.lab.take().map_or(Ok(()), Lab::close)
    }

    /// The key of a network's record.
    #[must_use]
    pub fn network_key(network: &str) -> String {
        format!("/weft/v1/networks/{network}")
    }

    /// The key of an endpoint's record.
    #[must_use]
    pub fn endpoint_key(network: &str, host: usize, id: &str) -> String {
        format!("/weft/v1/endpoints/{network}/host{host}/{id}")
    }

    /// Writes a network's record with nothing but subnets.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn network(&self, name: &str, cidrs: &[&str]) -> Result<()> {
        let subnets: Vec<_> = cidrs
            .iter()
            .map(|cidr| serde_json::json!({"cidr": cidr}))
            .collect();
        let record = serde_json::json!({"subnets": subnets}).to_string();
        self.put(&Self::network_key(name), &record)
    }

    /// Makes a container and writes an endpoint's record with nothing but its attachment.
    ///
    /// # Errors
    /// When the container or the record cannot be made.
    pub fn endpoint(&self, network: &str, host: usize, id: &str) -> Result<Station> {
        let container = self.container(&format!("{network}-{id}"))?;
        self.endpoint_in(network, host, id, container)
    }

    /// Writes the minimal record of an endpoint in a container that exists.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn endpoint_in(&self, network: &str, host: usize, id: &str, container: Container) -> Result<Station> {
        let record = serde_json::json!({"attachment": {"netns": container.path()}}).to_string();
        self.put(&Self::endpoint_key(network, host, id), &record)?;
        Ok(Station {
            network: network.to_owned(),
            host,
            id: id.to_owned(),
            container,
            addresses: Vec::new(),
        })
    }

    /// What is recorded of the lab; [`Cluster::record`] is about endpoints.
    #[must_use]
    pub fn lab_record(&self) -> &weft_lab::LabRecord {
        (**self).record()
    }

    /// The host of a station.
    #[must_use]
    pub fn host_of(&self, station: &Station) -> &Host {
        self.host(station.host)
    }

    /// An endpoint's record.
    ///
    /// # Errors
    /// When there is none or it is not JSON.
    pub fn record(&self, station: &Station) -> Result<Value> {
        self.get_json(&station.key())?
            .with_context(|| format!("{} is missing", station.key()))
    }

    /// Waits until the agents have given all stations their addresses, and reads them.
    ///
    /// # Errors
    /// When they do not within the time; names those that are missing.
    pub fn settle(&self, stations: &mut [Station]) -> Result<()> {
        let networks: std::collections::BTreeSet<String> =
            stations.iter().map(|s| s.network.clone()).collect();
        eventually(SOON * 2, "every endpoint's record is completed", || {
            let mut records: BTreeMap<String, String> = BTreeMap::new();
            for network in &networks {
                match self.get_prefix(&format!("/weft/v1/endpoints/{network}/")) {
                    Ok(found) => records.extend(found),
                    // Something that is no text is among them: one by one then.
                    Err(_) => {
                        for station in stations.iter().filter(|s| s.network == *network) {
                            records.extend(self.get(&station.key())?.map(|text| (station.key(), text)));
                        }
                    }
                }
            }
            for station in stations.iter_mut() {
                let text = records.get(&station.key()).context("no record")?;
                let record: Value = serde_json::from_str(text)?;
                station.addresses = addresses_of(&record)?;
                ensure!(!station.addresses.is_empty(), "{} has no addresses", station.id);
            }
            Ok(())
        })
    }

    /// Waits until every station reaches every other one over all their addresses.
    ///
    /// # Errors
    /// When they do not; names the pairs that do not talk.
    pub fn all_talk(&self, stations: &[Station]) -> Result<()> {
        eventually(SOON, "all pairs talk", || {
            let silent = mesh::unanswered(stations, Duration::from_secs(1))?;
            let some: Vec<_> = silent.iter().take(10).collect();
            ensure!(silent.is_empty(), "{} pairs do not: {some:?}", silent.len());
            Ok(())
        })
    }

    /// [`Cluster::settle`], then [`Cluster::all_talk`].
    ///
    /// # Errors
    /// As those.
    pub fn up(&self, stations: &mut [Station]) -> Result<()> {
        self.settle(stations)?;
        self.all_talk(stations)
    }
}

fn addresses_of(record: &Value) -> Result<Vec<IpAddr>> {
    let listed = record["addresses"].as_array().into_iter().flatten();
    listed
        .map(|a| Ok(a.as_str().context("an address that is no text")?.parse()?))
        .collect()
}
