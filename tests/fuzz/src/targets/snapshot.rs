//! Many records together, as an agent takes them in: keys and values in turns, each ended by a byte 255, which no text
//! has. An empty value deletes the key.

use std::collections::BTreeSet;

use weft_core::{
    audit,
    chores::{self, Chore},
    claims::Choosing,
    dataplane::Observed,
    desired::{Host, look_into},
    diff,
    dirty::Dirty,
    record::{Change, Entry, Scope},
    snapshot::Snapshot,
};
use weft_store_schema::{NetworkName, NodeName, PeerDocument, Prefix};

use super::{outline, records::WORDS};
use crate::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "snapshot",
    run,
    words: WORDS,
};

/// Records taken in; more only cost time.
const MOST: usize = 64;

fn run(bytes: &[u8]) -> u64 {
    let prefix = Prefix::default();
    let (Ok(node), Ok(peer)) = (
        "host1".parse::<NodeName>(),
        weft_store_schema::decode::<PeerDocument>(br#"{"vteps":["10.99.0.1","fd00:99::1"],"mtu":1500}"#),
    ) else {
        return 0;
    };
    let host = Host {
        v4: "10.99.0.1".parse().ok(),
        v6: "fd00:99::1".parse().ok(),
        mtu: 1500,
        port: 4789,
    };
    let mut parts = bytes.split(|byte| *byte == 0xff);
    let mut entries: Vec<Entry> = Vec::new();
    let mut changes = Vec::new();
    let mut revision = 10;
    while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
        revision += 1;
        let key = [prefix.as_str().as_bytes(), key].concat();
        entries.retain(|entry| entry.key != key);
        changes.push(if value.is_empty() {
            Change::Deleted {
                key,
                mod_revision: revision,
            }
        } else {
            let entry = Entry {
                key,
                value: value.to_vec(),
                create_revision: revision,
                mod_revision: revision,
            };
            entries.push(entry.clone());
            Change::Put(entry)
        });
        if changes.len() == MOST {
            break;
        }
    }

    let mut snapshot = Snapshot::new(prefix.clone(), node.clone());
    let all = [Scope::Networks, Scope::Peers, Scope::Removed, Scope::Vnis];
    for scope in &all {
        snapshot.apply_listing(scope, 1, 10, &[]);
    }
    snapshot.apply_changes(&changes);
    let networks: Vec<NetworkName> = snapshot.networks().map(|(name, _)| name.clone()).collect();
    for network in networks {
        for scope in [
            Scope::Endpoints(network.clone()),
            Scope::Addresses(network.clone()),
            Scope::Released(network),
        ] {
            let directory = weft_core::snapshot::directory(&prefix, &node, &scope);
            let of_scope: Vec<Entry> = entries
                .iter()
                .filter(|entry| entry.key.starts_with(directory.as_bytes()))
                .cloned()
                .collect();
            snapshot.apply_listing(&scope, 1, revision, &of_scope);
        }
    }

    let mut observed = Observed::default();
    let _places = look_into(&snapshot, &Dirty::everything());
    let (plan, assessment) = diff::plan(&snapshot, &host, &observed, &Dirty::everything());
    for (network, ops) in &plan.networks {
        ops.iter().for_each(|op| observed.record(network, op));
    }
    let (rest, _) = diff::plan(&snapshot, &host, &observed, &Dirty::everything());
    assert!(
        rest.is_empty(),
        "a plan that was carried out leaves something to do: {rest:?}"
    );
    let owed: Vec<Chore> = chores::chores(&snapshot, &peer, &Dirty::everything());
    for chore in &owed {
        let _transaction = chores::transaction(&snapshot, &peer, chore, &Choosing::default());
    }
    let judged = audit::audit(
        &prefix,
        &entries,
        &BTreeSet::new(),
        &node,
        &audit::Held::default(),
    );
    let problems: Vec<&str> = snapshot.problems().values().map(|p| p.message.as_str()).collect();
    outline(&(
        plan.len(),
        problems,
        assessment.by_key.values().collect::<Vec<_>>(),
    )) ^ outline(&judged.findings)
}
