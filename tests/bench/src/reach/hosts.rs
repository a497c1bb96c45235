//! Two hosts with agents and a network, for what is attached: as the operator has them, on one etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, GetOptions};
use weft_bench::{Claimer, Shape};
use weft_lab::{Container, Lab, Namespace, eventually};
use weft_store_schema::Prefix;

use crate::agent::{Agent, Attached};

const PATIENCE: Duration = Duration::from_secs(20);
/// The network that everything is attached to.
pub(crate) const NETWORK: &str = "blue";

/// The lab, with a container on each host that stays: a host's first and last endpoint are another matter.
pub(crate) struct Hosts {
    pub(crate) lab: Lab,
    pub(crate) agents: Vec<Agent>,
    pub(crate) residents: Vec<(Container, Attached)>,
}

impl Hosts {
    /// The lab alone.
    ///
    /// # Errors
    /// When it cannot be built.
    pub(crate) fn build(base: &Path) -> Result<Lab> {
        Lab::builder().hosts(2).data_base(base).build()
    }

    /// Starts the agents.
    ///
    /// # Errors
    /// When something fails.
    pub(crate) async fn start(lab: Lab) -> Result<Self> {
        lab.put(
            "/weft/v1/networks/blue",
            r#"{"subnets":[{"cidr":"10.1.0.0/16"}]}"#,
        )?;
        lab.start_all()?;
        let mut agents = Vec::new();
        let mut residents = Vec::new();
        for host in lab.hosts() {
            let mut agent = Agent::connect(host, NETWORK).await?;
            let container = lab.container(&host.node())?;
            let (attached, _) = agent.attach(&container, false).await?;
            residents.push((container, attached));
            agents.push(agent);
        }
        let hosts = Self {
            lab,
            agents,
            residents,
        };
        hosts.settled(&[])?;
        Ok(hosts)
    }

    /// Makes containers; which host they are for does not show.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(crate) fn containers(&self, name: &str, count: usize) -> Result<Vec<Container>> {
        (0..count)
            .map(|n| self.lab.container(&format!("{name}{n}")))
            .collect()
    }

    /// Waits until etcd holds exactly what is attached besides the residents, each address once, and the other host's
    /// kernel has exactly its entries.
    ///
    /// # Errors
    /// When that does not come about.
    pub(crate) fn settled(&self, attached: &[(usize, Attached)]) -> Result<()> {
        let residents = self.residents.iter().enumerate().map(|(host, (_, a))| (host, a));
        let all: Vec<(usize, &Attached)> = residents
            .chain(attached.iter().map(|(host, a)| (*host, a)))
            .collect();
        let addresses: BTreeSet<_> = all.iter().map(|(_, a)| a.address).collect();
        ensure!(
            addresses.len() == all.len(),
            "two endpoints were given one address"
        );
        eventually(PATIENCE, "etcd and both kernels hold what is attached", || {
            let records = self.lab.get_prefix("/weft/v1/endpoints/blue/")?.len();
            let claims = self.lab.get_prefix("/weft/v1/addresses/blue/")?;
            ensure!(
                (records, claims.len()) == (all.len(), all.len()),
                "{records} records and {} claims for {} endpoints",
                claims.len(),
                all.len()
            );
            for (_, endpoint) in &all {
                let key = format!("/weft/v1/addresses/blue/{}", endpoint.address);
                ensure!(claims.contains_key(&key), "{key} is not there");
            }
            for (number, host) in self.lab.hosts().iter().enumerate() {
                let remote = all.iter().filter(|(on, _)| *on != number).map(|(_, a)| *a);
                let wanted: BTreeMap<String, String> =
                    remote.map(|a| (a.address.to_string(), a.mac.clone())).collect();
                holds(&host.netns_of(NETWORK), &wanted, &self.macs(&all, number))
                    .with_context(|| host.node())?;
            }
            Ok(())
        })
    }

    fn macs(&self, all: &[(usize, &Attached)], host: usize) -> BTreeSet<String> {
        let local = all.iter().filter(|(on, _)| *on == host);
        local.map(|(_, a)| a.mac.clone()).collect()
    }

    /// The form of the transaction by which an agent attaches here.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub(crate) async fn shape(&self) -> Result<Shape> {
        let url = self.lab.etcd_endpoints().swap_remove(0);
        let mut kv = Client::connect([&url], None).await?.kv_client();
        let mut count = async |directory: &str| {
            let options = GetOptions::new().with_prefix().with_count_only();
            let counted = kv.get(format!("/weft/v1/{directory}"), Some(options)).await?;
            anyhow::Ok(usize::try_from(counted.count())?)
        };
        let (endpoints, peers) = (count("endpoints/blue/").await?, count("peers/").await?);
        let released = count("released/blue/").await?;
        let claimer = Claimer::open(&url, "host1".parse()?, NETWORK.parse()?).await?;
        claimer.informed(endpoints, released, peers).await?;
        let shape = Shape::of(&claimer.example()?, &Prefix::default())?;
        claimer.close().await;
        Ok(shape)
    }
}

/// Whether a kernel has exactly these neighbours of other hosts, by address and MAC, and the tunnel's entries for them.
fn holds(namespace: &Namespace, wanted: &BTreeMap<String, String>, local: &BTreeSet<String>) -> Result<()> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let neighbours = namespace.ip_json(&["neigh", "show", "dev", "br0"])?;
    let neighbours = neighbours.as_array().into_iter().flatten();
    let remote: BTreeMap<String, String> = neighbours
        .map(|n| (text(&n["dst"]), text(&n["lladdr"])))
        .filter(|(_, mac)| !local.contains(mac))
        .collect();
    ensure!(
        remote == *wanted,
        "{} neighbours for {} endpoints",
        remote.len(),
        wanted.len()
    );
    let entries = namespace.bridge_json(&["fdb", "show", "dev", "vx4"])?;
    let entries = entries.as_array().into_iter().flatten();
    let tunnelled: BTreeSet<String> = entries
        .filter(|entry| entry["dst"].is_string())
        .map(|entry| text(&entry["mac"]))
        .collect();
    let macs: BTreeSet<String> = wanted.values().cloned().collect();
    ensure!(
        tunnelled == macs,
        "{} tunnel entries for {} endpoints",
        tunnelled.len(),
        macs.len()
    );
    Ok(())
}
