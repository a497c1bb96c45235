//! An endpoint that comes and goes beside others whose traffic must not notice.

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, SOON, Station};
use weft_lab::{Container, Host, Lab, Underlay, eventually};

use crate::{one_each, picture, picture_inside};

const RED: &str = "/weft/v1/endpoints/red/host1/r1";

/// Two hosts: a network `blue` with an endpoint on each, and a network `red` with one on host 2, and a container on host 1
/// for one that comes and goes: the first and the last of its network there.
#[derive(Debug)]
pub struct Churn {
    /// The lab.
    pub cluster: Cluster,
    /// The endpoints of `blue`.
    pub stations: Vec<Station>,
    /// The endpoint of `red` on host 2.
    pub far: Station,
    /// The container of the one that comes and goes.
    pub container: Container,
    record: String,
}

impl Churn {
    /// Makes all of it, without the one that comes and goes.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn new() -> Result<Self> {
        Self::on(Underlay::V4)
    }

    /// The same on another underlay.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn on(underlay: Underlay) -> Result<Self> {
        let cluster = Cluster::build(Lab::builder().hosts(2).underlay(underlay))?;
        let stations = one_each(&cluster)?;
        cluster.network("red", &["10.2.0.0/24", "10.3.0.0/24", "fd00:2::/64"])?;
        let mut far = vec![cluster.endpoint("red", 2, "r2")?];
        cluster.settle(&mut far)?;
        let container = cluster.container("red-r1")?;
        // The same addresses each time, so that the kernel is to be the same each time.
        let record = container.endpoint_record(&["10.2.0.9", "fd00:2::9"]);
        Ok(Self {
            far: far.remove(0),
            cluster,
            stations,
            container,
            record,
        })
    }

    /// The host on which it comes and goes.
    #[must_use]
    pub fn host(&self) -> &Host {
        self.cluster.host(1)
    }

    /// Writes its record.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn put(&self) -> Result<()> {
        self.cluster.put(RED, &self.record)
    }

    /// Deletes its record.
    ///
    /// # Errors
    /// When etcdctl fails.
    pub fn delete(&self) -> Result<()> {
        self.cluster.del(RED).map(drop)
    }

    /// That it talks to the other host.
    ///
    /// # Errors
    /// When it does not.
    pub fn attached(&self) -> Result<()> {
        for address in &self.far.addresses {
            ensure!(self.container.ping(*address), "no answer from {address}");
        }
        // It talks a step or two before all is done.
        let status = weft_e2e::status(self.host())?;
        let local = status["counts"]["local_endpoints"].as_u64();
        let ready = status["counts"]["ready_endpoints"].as_u64();
        ensure!(ready > Some(1) && ready == local, "{status}");
        Ok(())
    }

    /// That nothing of it is left, here and in the store.
    ///
    /// # Errors
    /// When something is; says what.
    pub fn detached(&self) -> Result<()> {
        let file = self.host().netns_of("red");
        ensure!(!file.path().exists(), "its namespace is there");
        let eth0 = weft_e2e::link(self.container.netns(), "eth0");
        ensure!(eth0.is_err(), "its interface is there");
        let claims = self.cluster.get_prefix("/weft/v1/addresses/red/")?;
        ensure!(claims.len() == 2, "claims: {claims:?}");
        Ok(())
    }

    /// [`Churn::put`], and waits for it.
    ///
    /// # Errors
    /// When it does not talk within the time.
    pub fn attach(&self) -> Result<()> {
        self.put()?;
        eventually(SOON, "it talks", || self.attached())
    }

    /// [`Churn::delete`], and waits for it.
    ///
    /// # Errors
    /// When something is left of it.
    pub fn detach(&self) -> Result<()> {
        self.delete()?;
        eventually(SOON, "it is gone", || self.detached())
    }

    /// All that is there because of it, on the host and in the container.
    ///
    /// # Errors
    /// When it is not there.
    pub fn pictures(&self) -> Result<String> {
        Ok(picture(self.host(), "red")? + &picture_inside(&self.container)?)
    }
}
