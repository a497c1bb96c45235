//! What choosing costs where nobody can claim that many addresses first: a /8, and what views weigh.

use std::{
    collections::BTreeSet,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use anyhow::{Context, Result};
use weft_bench::{Figure, Form, Row, resident_bytes};
use weft_core::{
    address_set::{AddressSet, Span, number},
    record::{Entry, Scope},
    snapshot::Snapshot,
};
use weft_store_schema::{
    AddressClaimDocument, EndpointDocument, EndpointId, EndpointRef, Key, Mac, NetworkName, NodeName, Prefix,
    encode,
};

use weft_bench::endpoint;

/// One in this many of the /8 is free: 95 % are used.
const FREE: u64 = 20;

/// The rows.
///
/// # Errors
/// When the kernel does not tell this process's memory.
pub(crate) fn rows(form: Form) -> Result<Vec<Row>> {
    // Each is kept to the end, so that none is made in memory that another has given back.
    let (mut rows, _large) = large(form)?;
    let used = form.pick(100_000, 1_000_000);
    let dense = |i: u64| IpAddr::V6(Ipv6Addr::from_bits((0xfd00_u128 << 112) + 1 + u128::from(i)));
    let sparse = |_| {
        IpAddr::V6(Ipv6Addr::from_bits(
            (0xfd00_u128 << 112) + u128::from(fastrand::u64(..)),
        ))
    };
    let what = "memory of the set for each used address, v6 /64";
    let (dense, _dense) = weight(&format!("{what}, as agents choose"), 10 * used, dense)?;
    let (sparse, _sparse) = weight(&format!("{what}, anywhere"), used, sparse)?;
    rows.extend([dense, sparse, view(used)?]);
    Ok(rows)
}

/// A 95 %-full /8: memory for each used address, and the time of a choice.
fn large(form: Form) -> Result<(Vec<Row>, AddressSet)> {
    let before = resident_bytes()?;
    let span = Span {
        first: number(Ipv4Addr::new(10, 0, 0, 1).into()),
        last: number(Ipv4Addr::new(10, 255, 255, 254).into()),
    };
    let mut set = AddressSet::default();
    let mut random = fastrand::Rng::with_seed(7);
    for bits in u32::from(Ipv4Addr::new(10, 0, 0, 1))..=u32::from(Ipv4Addr::new(10, 255, 255, 254)) {
        if random.u64(..FREE) != 0 {
            set.insert(Ipv4Addr::from_bits(bits).into());
        }
    }
    let bytes = resident_bytes()?.saturating_sub(before) as f64 / set.len() as f64;
    let mut times = Figure::default();
    for _ in 0..form.pick(5, 15) {
        let free = span.len() - set.count(span);
        let tries = 1000;
        let started = Instant::now();
        for _ in 0..tries {
            // As a claim does: how many are free, then one of them.
            let free = black_box(span.len() - set.count(span)).min(free);
            let n = random.u128(..free);
            black_box(set.nth_free(span, n).context("a free address was not found")?);
        }
        times.push(started.elapsed().as_secs_f64() * 1e6 / f64::from(tries));
    }
    let rows = vec![
        Row::new(
            "finding a free address in a 95 %-full /8",
            "µs",
            &times,
            None,
            None,
        ),
        Row::new(
            "memory of the set for each used address, v4 /8 95 % full",
            "B",
            &Figure::from(vec![bytes]),
            None,
            None,
        ),
    ];
    Ok((rows, set))
}

/// Memory of a set for each of so many addresses.
fn weight(what: &str, count: u64, nth: impl Fn(u64) -> IpAddr) -> Result<(Row, AddressSet)> {
    let before = resident_bytes()?;
    let mut set = AddressSet::default();
    for i in 0..count {
        set.insert(nth(i));
    }
    let bytes = resident_bytes()?.saturating_sub(before) as f64 / set.len() as f64;
    Ok((Row::new(what, "B", &Figure::from(vec![bytes]), None, None), set))
}

/// Memory of an agent's whole view for each endpoint with its claim, that of a network it takes part in.
fn view(count: u64) -> Result<Row> {
    let prefix = Prefix::default();
    let network = NetworkName::new("large")?;
    let mut snapshot = Snapshot::new(prefix.clone(), NodeName::new("host1")?);
    let before = resident_bytes()?;
    for which in [
        Scope::Endpoints(network.clone()),
        Scope::Addresses(network.clone()),
    ] {
        // Taken in by parts, as the bytes of a listing do not stay.
        let mut entries = Vec::new();
        for i in 0..count {
            let name = EndpointRef {
                network: network.clone(),
                node: NodeName::new(&format!("host{}", 2 + i % 1000))?,
                id: EndpointId::new(&format!("e{i:07}"))?,
            };
            let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(i)?));
            let (key, value) = if matches!(which, Scope::Endpoints(_)) {
                let document = EndpointDocument {
                    addresses: vec![address.to_string()],
                    mac: Some(Mac::from_address(address).to_string()),
                    ..endpoint(i)
                };
                (Key::Endpoint(name), encode(&document))
            } else {
                let claim = AddressClaimDocument::of(&name.node, &name.id);
                (Key::Address(network.clone(), address), encode(&claim))
            };
            entries.push(weft_core::record::Change::Put(Entry {
                key: prefix.key(&key).into_bytes(),
                value,
                create_revision: 5,
                mod_revision: 5,
            }));
            if entries.len() == 1000 {
                snapshot.apply_changes(&entries);
                entries.clear();
            }
        }
        snapshot.apply_changes(&entries);
    }
    let members = snapshot.members(&network).context("nothing was taken in")?;
    let held: BTreeSet<bool> = [
        members.count() as u64 == count,
        members.claims().count() as u64 == count,
    ]
    .into();
    anyhow::ensure!(
        held == BTreeSet::from([true]),
        "the view does not hold {count} endpoints"
    );
    let bytes = resident_bytes()?.saturating_sub(before) as f64 / count as f64;
    let what = format!("memory of the whole view for each endpoint with its claim, {count} of them");
    Ok(Row::new(what, "B", &Figure::from(vec![bytes]), None, None))
}
