//! The records of a cluster: networks with many endpoints on other hosts, as those hosts' agents would have written them,
//! put into etcd; and what a host's kernel should hold of them.

use std::{collections::HashSet, net::Ipv4Addr, time::Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, GetOptions, KvClient, Txn, TxnOp};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::time::Duration;
use weft_store_schema::Mac;

use crate::wire::Row;

/// Hosts that the endpoints are spread over.
const NODES: u32 = 10;
/// What etcd takes in one transaction by default, two keys an endpoint.
const IN_ONE: usize = 64;
/// As many keys in a page as an agent asks for.
const PAGE: i64 = 10_000;
const MESSAGE: usize = 256 << 20;

/// An endpoint on another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) number: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) vtep: Ipv4Addr,
}

impl Remote {
    /// By number, below a million.
    pub(crate) fn new(number: u32) -> Self {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + number);
        Self {
            number,
            address,
            mac: Mac::from_address(address.into()),
            vtep: vtep(number % NODES),
        }
    }

    fn keys(self, network: &str) -> [String; 2] {
        let Self { number, address, .. } = self;
        let node = node(number % NODES);
        [
            format!("/weft/v1/endpoints/{network}/{node}/container-{number:06}"),
            format!("/weft/v1/addresses/{network}/{address}"),
        ]
    }

    fn puts(self, network: &str) -> [TxnOp; 2] {
        let Self {
            number, address, mac, ..
        } = self;
        let node = node(number % NODES);
        let [endpoint, claim] = self.keys(network);
        let record = format!(
            r#"{{"addresses":["{address}"],"attachment":{{"netns":"/run/netns/container-{number:06}"}},"mac":"{mac}","name":"web-{number}"}}"#
        );
        let held = format!(r#"{{"endpoint":"{node}/container-{number:06}"}}"#);
        [TxnOp::put(endpoint, record, None), TxnOp::put(claim, held, None)]
    }
}

fn node(number: u32) -> String {
    format!("remote{number}")
}

fn vtep(number: u32) -> Ipv4Addr {
    Ipv4Addr::from([10, 97, 0, number as u8 + 1])
}

/// The first so many endpoints.
pub(crate) fn remotes(count: u32) -> Vec<Remote> {
    (0..count).map(Remote::new).collect()
}

/// Checks that a host's tables hold exactly what they should: the remote endpoints' rows, and one local endpoint.
pub(crate) fn check(rows: &[Row], remotes: &[Remote], tunnel: u32) -> Result<()> {
    let there: HashSet<Row> = rows.iter().copied().collect();
    let mut of_remotes = 0;
    for remote in remotes {
        let mac = remote.mac.bytes();
        let wanted = [
            Row::Tunnel(mac, remote.vtep.into()),
            Row::Bridge(mac, tunnel),
            Row::Neighbour(remote.address.into(), mac),
        ];
        for row in wanted {
            ensure!(there.contains(&row), "the kernel has no {row:?}");
            of_remotes += 1;
        }
    }
    // The local endpoint is in the bridge's table, behind its port, and nowhere else.
    let others: Vec<_> = there
        .iter()
        .filter(|row| !matches!(row, Row::Bridge(_, port) if *port != tunnel))
        .collect();
    ensure!(
        others.len() == of_remotes,
        "the kernel holds {} rows for {} endpoints elsewhere",
        others.len(),
        remotes.len()
    );
    Ok(())
}

/// etcd, without anything of weft's.
pub(crate) struct Bare {
    runtime: tokio::runtime::Runtime,
    kv: KvClient,
}

impl Bare {
    pub(crate) fn connect(url: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime
            .block_on(Client::connect([url], None))
            .context(url.to_owned())?;
        Ok(Self {
            runtime,
            kv: client.kv_client().max_decoding_message_size(MESSAGE),
        })
    }

    /// The peers' records of the hosts elsewhere.
    pub(crate) fn put_nodes(&self) -> Result<()> {
        let puts = (0..NODES).map(|n| {
            let record = format!(
                r#"{{"vteps":["{}"],"mtu":1500,"boot_id":"0d6c3b1e-5f0a-4c57-9a5d-6f3f2f9f8b{n:02}","incarnation":"9f2d41c07be35a{n:02}","agent_version":"0.1.0"}}"#,
                vtep(n)
            );
            TxnOp::put(format!("/weft/v1/peers/{}", node(n)), record, None)
        });
        self.transact(puts.collect())
    }

    /// A network with so many endpoints elsewhere.
    pub(crate) fn fill(&self, network: &str, remotes: &[Remote]) -> Result<()> {
        let record = r#"{"subnets":[{"cidr":"10.0.0.0/8"}]}"#;
        self.put(&format!("/weft/v1/networks/{network}"), record)?;
        let sending = remotes.chunks(IN_ONE).map(|some| {
            let ops: Vec<_> = some.iter().flat_map(|remote| remote.puts(network)).collect();
            let mut kv = self.kv.clone();
            async move { kv.txn(Txn::new().and_then(ops)).await }
        });
        self.runtime
            .block_on(
                stream::iter(sending)
                    .buffer_unordered(8)
                    .try_for_each(|_| async { Ok(()) }),
            )
            .context("filling etcd")
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> Result<()> {
        self.transact(vec![TxnOp::put(key, value, None)])
    }

    /// Attaches an endpoint elsewhere: its record and its claim, as one transaction.
    pub(crate) fn attach(&self, network: &str, remote: Remote) -> Result<()> {
        self.transact(remote.puts(network).to_vec())
    }

    /// Detaches it again.
    pub(crate) fn detach(&self, network: &str, remote: Remote) -> Result<()> {
        let keys = remote.keys(network);
        self.transact(keys.into_iter().map(|key| TxnOp::delete(key, None)).collect())
    }

    fn transact(&self, ops: Vec<TxnOp>) -> Result<()> {
        let mut kv = self.kv.clone();
        let answer = self.runtime.block_on(kv.txn(Txn::new().and_then(ops)))?;
        ensure!(answer.succeeded(), "a transaction without conditions failed");
        Ok(())
    }

    /// How long etcd takes to tell a network's endpoints and claims, in an agent's pages.
    pub(crate) fn time_list(&self, network: &str) -> Result<(Duration, usize)> {
        let started = Instant::now();
        let mut count = 0;
        for directory in ["endpoints", "addresses"] {
            let (mut from, end) = (
                format!("/weft/v1/{directory}/{network}/").into_bytes(),
                format!("/weft/v1/{directory}/{network}0"),
            );
            let mut revision = 0;
            loop {
                let options = GetOptions::new()
                    .with_range(end.clone())
                    .with_limit(PAGE)
                    .with_revision(revision);
                let mut kv = self.kv.clone();
                let answer = self.runtime.block_on(kv.get(from, Some(options)))?;
                count += answer.kvs().len();
                if revision == 0 {
                    revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                }
                match answer.kvs().last() {
                    Some(last) if answer.more() => from = [last.key(), &[0]].concat(),
                    _ => break,
                }
            }
        }
        Ok((started.elapsed(), count))
    }

    /// The store's revision, and the keys written since an earlier one.
    pub(crate) fn written_since(&self, revision: i64) -> Result<(i64, Vec<String>)> {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_min_mod_revision(revision + 1);
        let mut kv = self.kv.clone();
        let answer = self.runtime.block_on(kv.get("/weft/v1/", Some(options)))?;
        let keys = answer
            .kvs()
            .iter()
            .map(|kv| String::from_utf8_lossy(kv.key()).into_owned());
        Ok((
            answer.header().map_or(0, etcd_client::ResponseHeader::revision),
            keys.collect(),
        ))
    }
}
