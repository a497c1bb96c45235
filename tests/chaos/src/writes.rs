//! Faults of those who write to the store by hand: bursts, flapping, garbage. All of it is put right in the end.

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::json;
use weft_e2e::Cluster;
use weft_lab::Lab;
use weft_storm::fault::Course;
use weft_storm::verdict::Verdict;

use crate::choice::InUse;
use crate::faults::persist;
use crate::steady;

/// How many records are put in one transaction.
const AT_ONCE: usize = 100;
/// Names of ours, to be told from others'.
const JUNK: &str = "junk";

/// Endpoints for containers that are not there, written at once and deleted later.
pub(crate) fn burst(lab: &Lab, host: usize, endpoints: usize, course: &Course<'_>) -> Result<()> {
    let prefix = Cluster::endpoint_key(steady::NETWORK, host, "burst-");
    let records: Vec<(String, String)> = (0..endpoints)
        .map(|number| {
            let netns = format!("/run/netns/{}none-{number}", lab.record().prefix());
            let record = json!({"attachment": {"netns": netns}});
            (format!("{prefix}{number}"), record.to_string())
        })
        .collect();
    for some in records.chunks(AT_ONCE) {
        persist(&"the burst is written", || lab.put_all(some))?;
    }
    course.rest();
    persist(&"the burst is deleted", || lab.del_prefix(&prefix)).map(drop)
}

/// Rewrites a record as fast as it goes, with something new each time and without what its agent has filled in.
pub(crate) fn flap(lab: &Lab, key: &str, course: &Course<'_>, verdict: &Verdict) -> Result<()> {
    let original = read(lab, key)?;
    let mut record: serde_json::Value = serde_json::from_str(&original)?;
    for field in ["addresses", "mac"] {
        record.as_object_mut().context("an object")?.remove(field);
    }
    let mut number = 0;
    while course.from.elapsed() < course.lasts && !verdict.is_over() {
        number += 1;
        record["labels"] = json!({"flap": number.to_string()});
        let done = lab.put(key, &record.to_string());
        verdict.count("faults", if done.is_ok() { "flaps" } else { "flaps refused" }, 1);
    }
    persist(&format!("{key} is put back"), || lab.put(key, &original))
}

/// Keys that make no sense: names that are none, values that are none, records of nothing.
pub(crate) fn garbage(lab: &Lab, salt: u64, keys: usize, course: &Course<'_>) -> Result<()> {
    let mut rng = Rng::with_seed(salt);
    let mut written = Vec::new();
    for number in 0..keys {
        let key = format!("/weft/v1/{}", bad_key(&mut rng, number));
        let value = bad_value(&mut rng);
        let is_written = persist(&format!("garbage in {key}"), || {
            match key.contains("/addresses/") {
                // A claim that is in use is not overwritten: whose the address is would not be told by the records any more.
                true => lab.create(&key, &String::from_utf8_lossy(&value)),
                false => lab.put_bytes(&key, &value).map(|()| true),
            }
        })?;
        written.extend(is_written.then_some(key));
    }
    course.rest();
    for key in written {
        persist(&format!("{key} is deleted"), || lab.del(&key))?;
    }
    Ok(())
}

fn bad_key(rng: &mut Rng, number: usize) -> String {
    let host = rng.usize(1..=5);
    let steady = steady::NETWORK;
    match rng.u32(0..14) {
        0 => format!("networks/{JUNK}{number}"),
        1 => format!("networks/{JUNK}{number}/more"),
        2 => format!("endpoints/{steady}/host{host}/{JUNK}{number}"),
        3 => format!("endpoints/{steady}/{JUNK}/{JUNK}{number}"),
        4 => format!("endpoints/{JUNK}/host{host}/{JUNK}{number}"),
        5 => format!("endpoints/{steady}/host{host}/{JUNK} {number}"),
        6 => format!("peers/{JUNK}{number}"),
        7 => format!("addresses/{steady}/10.20.3.{number}"),
        8 => format!("addresses/{steady}/{JUNK}{number}"),
        9 => format!("vnis/{}", 16_000_000 + number),
        10 => format!("alive/{JUNK}{number}"),
        11 => format!("barriers/{steady}/host{host}/{JUNK}{number}"),
        12 => format!("released/{steady}/10.20.3.{number}"),
        _ => format!("{JUNK}/{number}"),
    }
}

/// No record of any kind.
fn bad_value(rng: &mut Rng) -> Vec<u8> {
    match rng.u32(0..6) {
        0 => (0..rng.usize(1..300)).map(|_| rng.u8(..)).collect(),
        1 => b"{}".to_vec(),
        2 => br#"{"version":99,"subnets":[{"cidr":"10.20.0.0/22"}],"vteps":["10.99.0.1"]}"#.to_vec(),
        3 => br#"{"attachment":{"netns":"etc/passwd"},"subnets":[],"vteps":["x"],"endpoint":7,"network":9}"#
            .to_vec(),
        4 => b"[".repeat(rng.usize(1..5000)),
        _ => br#"{"subnets":"10.20.0.0/22","vteps":{},"endpoint":"","network":[],"attachment":"#.to_vec(),
    }
}

/// A record that is in use turns bad, or is deleted, and is put back.
pub(crate) fn spoil(lab: &Lab, what: InUse, salt: Option<u64>, course: &Course<'_>) -> Result<()> {
    let key = match what {
        InUse::Network => Cluster::network_key(steady::NETWORK),
        InUse::Endpoint(host) => steady::key(host),
        InUse::Peer(host) => format!("/weft/v1/peers/host{host}"),
    };
    let original = read(lab, &key)?;
    let bad = salt.map(|salt| bad_value(&mut Rng::with_seed(salt)));
    persist(&format!("{key} is spoiled"), || match &bad {
        Some(bad) => lab.put_bytes(&key, bad),
        None => lab.del(&key).map(drop),
    })?;
    course.rest();
    match what {
        // Its agent keeps it.
        InUse::Peer(_) => Ok(()),
        _ => persist(&format!("{key} is put back"), || lab.put(&key, &original)),
    }
}

fn read(lab: &Lab, key: &str) -> Result<String> {
    persist(&format!("{key} is read"), || {
        lab.get(key)?.context("it is not there")
    })
}
