//! The networks that are claimed in: made, filled, emptied again and checked behind weft's back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    ops::Range,
};

use anyhow::{Context, Result, ensure};
use etcd_client::{DeleteOptions, GetOptions, KvClient, SortOrder, SortTarget, Txn, TxnOp};
use weft_core::record::{Transaction, Write};
use weft_store_schema::{
    AddressClaimDocument, EndpointDocument, EndpointId, EndpointRef, Key, Kind, Mac, NetworkName, NodeName,
    PeerDocument, Prefix, ReleasedDocument, encode,
};

use weft_bench::endpoint;

/// etcd takes this many operations in one transaction.
const MOST_OPERATIONS: usize = 128;
/// Keys in one page of a listing.
const PAGE: usize = 20_000;

/// How the addresses that are in use lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// None is.
    Empty,
    /// Anywhere.
    Random,
    /// From the first on, so that all free ones lie together at the end.
    Sequential,
    /// As before, and each of the free ones was used once: all claimers want the one that was given up longest ago.
    Used,
}

impl Layout {
    /// Its name, and that of a network that is filled so.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Random => "anywhere",
            Self::Sequential => "in-a-row",
            Self::Used => "all-used-before",
        }
    }
}

/// A /16 to claim in.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Its name.
    pub(crate) name: NetworkName,
    /// How it was filled.
    pub(crate) layout: Layout,
    /// Endpoints it was filled with.
    pub(crate) filled: usize,
    /// Addresses that were given up.
    pub(crate) released: usize,
}

/// Addresses of the /16 that may be claimed: neither network nor broadcast address.
pub(crate) const SIZE: usize = (1 << 16) - 2;

fn address(number: usize) -> Ipv4Addr {
    let [.., high, low] = (number + 1).to_be_bytes();
    Ipv4Addr::new(10, 1, high, low)
}

impl Network {
    /// Makes a network; `percent` of its addresses are held.
    ///
    /// # Errors
    /// When etcd refuses or does not answer.
    pub(crate) async fn make(kv: &mut KvClient, layout: Layout, percent: usize) -> Result<Self> {
        let prefix = Prefix::default();
        let name = NetworkName::new(layout.name())?;
        let mut numbers: Vec<usize> = (0..SIZE).collect();
        if layout == Layout::Random {
            fastrand::Rng::with_seed(7).shuffle(&mut numbers);
        }
        let filled = match layout {
            Layout::Empty => 0,
            Layout::Random | Layout::Sequential | Layout::Used => SIZE * percent / 100,
        };
        let mut writes = Vec::new();
        for (i, number) in numbers[..filled].iter().enumerate() {
            let holder = EndpointRef {
                network: name.clone(),
                node: NodeName::new(&format!("filler-{:02}", i % 64))?,
                id: EndpointId::new(&format!("e{i:07}"))?,
            };
            let address = IpAddr::V4(address(*number));
            let document = EndpointDocument {
                addresses: vec![address.to_string()],
                mac: Some(Mac::from_address(address).to_string()),
                ..endpoint(i as u64)
            };
            let claim = AddressClaimDocument::of(&holder.node, &holder.id);
            let of = prefix.key(&Key::Address(name.clone(), address));
            writes.push(TxnOp::put(of, encode(&claim), None));
            writes.push(TxnOp::put(
                prefix.key(&Key::Endpoint(holder)),
                encode(&document),
                None,
            ));
        }
        let free = if layout == Layout::Used {
            &numbers[filled..]
        } else {
            &[]
        };
        writes.extend(free.iter().map(|number| trace(&name, address(*number).into())));
        let key = prefix.key(&Key::Network(name.clone()));
        writes.push(TxnOp::put(
            key,
            r#"{"subnets":[{"cidr":"10.1.0.0/16"}],"vni":4711}"#,
            None,
        ));
        all_of(kv, writes)
            .await
            .with_context(|| format!("filling {name}"))?;
        Ok(Self {
            released: free.len(),
            name,
            layout,
            filled,
        })
    }

    /// In words.
    pub(crate) fn text(&self) -> &'static str {
        match self.layout {
            Layout::Empty => "empty /16",
            Layout::Random => "/16 95 % full, anywhere",
            Layout::Sequential => "/16 95 % full, in a row",
            Layout::Used => "/16 95 % full, all used before",
        }
    }

    /// Deletes what was claimed, so that the next measurement finds the network as this one did.
    ///
    /// # Errors
    /// When etcd refuses or does not answer.
    pub(crate) async fn undo(&self, kv: &mut KvClient, claimed: &[Transaction]) -> Result<()> {
        let prefix = Prefix::default();
        let mut operations = Vec::new();
        for write in claimed.iter().flat_map(|t| &t.writes) {
            if let Write::Put(key, _) = write {
                operations.push(TxnOp::delete(prefix.key(key), None));
            }
            if let (Write::Put(Key::Address(_, address), _), Layout::Used) = (write, self.layout) {
                operations.push(trace(&self.name, *address));
            }
        }
        all_of(kv, operations).await.context("deleting what was claimed")
    }

    /// Deletes all of it, and the peers.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub(crate) async fn delete(&self, kv: &mut KvClient) -> Result<()> {
        let prefix = Prefix::default();
        for directory in [
            prefix.endpoints_of(&self.name),
            prefix.addresses_of(&self.name),
            prefix.released_of(&self.name),
            prefix.all(Kind::Peers),
        ] {
            let options = DeleteOptions::new().with_prefix();
            kv.delete(directory, Some(options))
                .await
                .context("deleting a network")?;
        }
        kv.delete(prefix.key(&Key::Network(self.name.clone())), None)
            .await
            .context("deleting a network")?;
        Ok(())
    }

    /// Checks in etcd that every claim that succeeded holds another address, and that there are as many claims
    /// and endpoints as there should be; thoroughly: that each key is there as it was written, that no address
    /// is held twice, and that claims and endpoints agree, those that it was filled with included.
    ///
    /// # Errors
    /// When any of that does not hold.
    pub(crate) async fn verify(
        &self,
        kv: &mut KvClient,
        claimed: &[Transaction],
        thoroughly: bool,
    ) -> Result<()> {
        let prefix = Prefix::default();
        let expected = self.filled + claimed.len();
        let puts = || {
            claimed
                .iter()
                .flat_map(|t| &t.writes)
                .filter_map(|write| match write {
                    Write::Put(key, value) => Some((key, value)),
                    _ => None,
                })
        };
        let addresses: BTreeSet<_> = puts()
            .filter(|(key, _)| matches!(key, Key::Address(..)))
            .map(|(key, _)| key)
            .collect();
        ensure!(
            addresses.len() == claimed.len(),
            "{} claims got {} addresses",
            claimed.len(),
            addresses.len()
        );
        for directory in [prefix.addresses_of(&self.name), prefix.endpoints_of(&self.name)] {
            let options = GetOptions::new().with_prefix().with_count_only();
            let count = kv
                .get(directory.clone(), Some(options))
                .await
                .context("counting")?
                .count();
            ensure!(
                usize::try_from(count) == Ok(expected),
                "{directory} has {count} keys instead of {expected}"
            );
        }
        if !thoroughly {
            return Ok(());
        }
        let claims = list(kv, &prefix.addresses_of(&self.name)).await?;
        let endpoints = list(kv, &prefix.endpoints_of(&self.name)).await?;
        for (key, value) in puts() {
            let full = prefix.key(key);
            let there = claims.get(&full).or_else(|| endpoints.get(&full));
            ensure!(there == Some(value), "{key} was written and is not there");
        }
        let mut held = BTreeSet::new();
        for (key, value) in &endpoints {
            let document: EndpointDocument = serde_json::from_slice(value).with_context(|| key.clone())?;
            ensure!(
                document.addresses.len() == 1,
                "{key} has {:?}",
                document.addresses
            );
            for address in document.addresses {
                let claim = claims.get(&format!("{}{address}", prefix.addresses_of(&self.name)));
                let claim = claim.with_context(|| format!("{key} has {address} without a claim"))?;
                let holder = key.strip_prefix(&prefix.endpoints_of(&self.name)).unwrap_or(key);
                ensure!(
                    String::from_utf8_lossy(claim).contains(&format!("\"{holder}\"")),
                    "{key} has {address}, claimed by {}",
                    String::from_utf8_lossy(claim)
                );
                ensure!(
                    held.insert(address.clone()),
                    "{address} is held twice, once by {key}"
                );
            }
        }
        Ok(())
    }
}

/// What is left of an address that was given up.
fn trace(network: &NetworkName, address: IpAddr) -> TxnOp {
    let key = Prefix::default().key(&Key::Released(network.clone(), address));
    TxnOp::put(key, encode(&ReleasedDocument::default()), None)
}

/// The node of a claimer.
pub(crate) fn node(number: usize) -> Result<NodeName> {
    Ok(NodeName::new(&format!("claimer-{number:02}"))?)
}

/// Writes the peer records of these claimers. Those that are there stay as they are: claims rest on them.
///
/// # Errors
/// When etcd refuses or does not answer.
pub(crate) async fn put_peers(kv: &mut KvClient, numbers: Range<usize>) -> Result<()> {
    let prefix = Prefix::default();
    let mut writes = Vec::new();
    for number in numbers {
        let peer = PeerDocument {
            vteps: vec![format!("10.99.0.{}", number + 1)],
            mtu: Some(1500),
            ..PeerDocument::default()
        };
        writes.push(TxnOp::put(
            prefix.key(&Key::Peer(node(number)?)),
            encode(&peer),
            None,
        ));
    }
    all_of(kv, writes).await.context("writing peers")
}

async fn all_of(kv: &mut KvClient, operations: Vec<TxnOp>) -> Result<()> {
    for some in operations.chunks(MOST_OPERATIONS) {
        kv.txn(Txn::new().and_then(some)).await?;
    }
    Ok(())
}

async fn list(kv: &mut KvClient, directory: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut from = directory.to_owned();
    // The byte after the slash that ends every directory.
    let end = format!("{}0", directory.trim_end_matches('/'));
    loop {
        let options = GetOptions::new()
            .with_range(end.clone())
            .with_limit(PAGE as i64)
            .with_sort(SortTarget::Key, SortOrder::Ascend);
        let mut answer = kv
            .get(from.clone(), Some(options))
            .await
            .with_context(|| format!("listing {directory}"))?;
        let more = answer.more();
        for entry in answer.take_kvs() {
            let (key, value) = entry.into_key_value();
            found.insert(String::from_utf8(key)?, value);
        }
        match found.last_key_value() {
            Some((last, _)) if more => from = format!("{last}\0"),
            _ => return Ok(found),
        }
    }
}
