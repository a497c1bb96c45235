//! The records that the measurements stand on, as agents and operators would have left them: networks with VNIs, peers,
//! endpoints with their claims. All complete, so that nobody has to claim anything.

use anyhow::{Context, Result};
use weft_bench::Entries;
use weft_lab::{Lab, Writer};

/// etcd takes this many operations in one transaction.
const AT_ONCE: usize = 128;

/// A key and its value.
pub(crate) type Record = (String, String);

/// The name of a network.
pub(crate) fn network(number: usize) -> String {
    format!("n{number:03}")
}

/// A network over 10.0.0.0/8, with its VNI claimed. Networks are apart: all have the same addresses.
pub(crate) fn of_network(number: usize) -> [Record; 2] {
    let (name, vni) = (network(number), 5000 + number);
    [
        (
            key(&format!("networks/{name}")),
            format!(r#"{{"subnets":[{{"cidr":"10.0.0.0/8"}}],"vni":{vni}}}"#),
        ),
        (key(&format!("vnis/{vni}")), format!(r#"{{"network":"{name}"}}"#)),
    ]
}

/// A host without an agent.
pub(crate) fn outsider(number: usize) -> String {
    format!("far-{number:02}")
}

/// Its record.
pub(crate) fn of_outsider(number: usize) -> Record {
    (
        key(&format!("peers/{}", outsider(number))),
        format!(
            r#"{{"vteps":["10.98.0.{}"],"mtu":1500,"kind":"external"}}"#,
            number + 1
        ),
    )
}

/// An endpoint with an address and a MAC.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// Its network's number.
    pub(crate) network: usize,
    /// Its host.
    pub(crate) node: String,
    /// Its name there.
    pub(crate) id: String,
    /// Its address, as a number.
    pub(crate) address: u32,
    /// Its MAC.
    pub(crate) mac: [u8; 6],
    /// The namespace of its container, and the interface there.
    pub(crate) attachment: (String, String),
}

/// The MAC of an address, as agents make it.
pub(crate) fn mac_of(address: u32) -> [u8; 6] {
    let [a, b, c, d] = address.to_be_bytes();
    [2, 0x42, a, b, c, d]
}

/// An address in 10.0.0.0/8.
pub(crate) fn address(number: u32) -> u32 {
    (10 << 24) + number
}

impl Endpoint {
    /// One of a host that has no agent.
    pub(crate) fn outside(network: usize, host: usize, number: u32) -> Self {
        let address = address(number);
        Self {
            network,
            node: outsider(host),
            id: format!("e{number:07}"),
            address,
            mac: mac_of(address),
            attachment: (format!("/run/netns/container-{number:07}"), "eth0".to_owned()),
        }
    }

    fn ip(&self) -> std::net::Ipv4Addr {
        self.address.into()
    }

    /// What makes it reachable from other hosts, that is to come or to go.
    pub(crate) fn entries(&self, gone: bool) -> Entries {
        Entries {
            mac: self.mac,
            address: self.ip(),
            gone,
        }
    }

    /// The endpoint's record.
    pub(crate) fn record(&self) -> Record {
        let Self { node, id, .. } = self;
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        let (netns, ifname) = &self.attachment;
        (
            key(&format!("endpoints/{}/{node}/{id}", network(self.network))),
            format!(
                r#"{{"name":"{id}","attachment":{{"netns":"{netns}","ifname":"{ifname}"}},"addresses":["{}"],"mac":"{mac}"}}"#,
                self.ip()
            ),
        )
    }

    /// The claim of its address.
    pub(crate) fn claim(&self) -> Record {
        (
            key(&format!("addresses/{}/{}", network(self.network), self.ip())),
            format!(r#"{{"endpoint":"{}/{}"}}"#, self.node, self.id),
        )
    }
}

fn key(below: &str) -> String {
    format!("/weft/v1/{below}")
}

/// Writes records, many at a time.
///
/// # Errors
/// When etcd refuses or does not answer.
pub(crate) fn write(lab: &Lab, records: impl IntoIterator<Item = Record>) -> Result<()> {
    let mut writer: Writer = lab.etcd(1).writer()?;
    let records: Vec<Record> = records.into_iter().collect();
    for some in records.chunks(AT_ONCE) {
        writer.put_all(some).context("writing records")?;
    }
    Ok(())
}
