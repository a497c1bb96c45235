//! Networks and their VNIs, and the marks of removed nodes.

use std::collections::{BTreeMap, BTreeSet};

use weft_store_schema::{Key, NetworkName, NodeName, PeerKind, Vni, VniClaimDocument, encode};

use super::{
    CLAIM_HELD, Finding, FindingKind,
    records::{Record, Records},
};
use crate::record::{Guard, Scope, Transaction, Write};

pub(super) fn check(records: &Records, findings: &mut Vec<Finding>) {
    let mut users: BTreeMap<Vni, Vec<&NetworkName>> = BTreeMap::new();
    for (name, record) in &records.networks {
        if let Some(vni) = record.value.as_ref().and_then(|network| network.vni) {
            users.entry(vni).or_default().push(name);
        }
    }
    let vnis: BTreeSet<&Vni> = records.vnis.keys().chain(users.keys()).collect();
    for vni in vnis {
        let users = users.get(vni).map_or(&[][..], Vec::as_slice);
        check_vni(records, *vni, users, findings);
    }
    for (node, record) in &records.removed {
        findings.extend(present(records, node, record.mod_revision));
    }
}

fn check_vni(records: &Records, vni: Vni, users: &[&NetworkName], findings: &mut Vec<Finding>) {
    let record = records.vnis.get(&vni);
    let claimed = record.map(|record| record.value.as_ref().map(|claim| &claim.network));
    // Whose it is if several name it, as on every host: who holds the claim, then who was there first.
    let owner = users.iter().copied().min_by_key(|name| {
        let created = records.networks.get(*name).map(|record| record.create_revision);
        (claimed.flatten() != Some(*name), created, *name)
    });
    for user in users {
        if Some(*user) != owner {
            let owner = owner.map(ToString::to_string).unwrap_or_default();
            findings.push(Finding {
                key: Key::Network((*user).clone()).to_string(),
                kind: FindingKind::VniTwice,
                message: format!("names VNI {vni}, which is network {owner}'s"),
                remedy: "give it another VNI, or none: then a free one is chosen".to_owned(),
                mend: None,
                after: None,
            });
        }
    }
    let only_user = match users {
        [one] => Some(*one),
        _ => None,
    };
    match (record, claimed) {
        (None, _) => {
            if let Some(user) = owner {
                findings.push(not_claimed(records, vni, user, only_user));
            }
        }
        (Some(_), Some(Some(holder))) if users.contains(&holder) => {}
        (Some(record), Some(Some(holder))) => {
            findings.extend(stray(
                records,
                vni,
                (record.mod_revision, holder),
                (users, only_user),
            ));
        }
        // A claim that cannot be read is told of already.
        (Some(_), _) => {}
    }
}

fn not_claimed(records: &Records, vni: Vni, user: &NetworkName, only_user: Option<&NetworkName>) -> Finding {
    let is_held = records.held().contains(&Key::Vni(vni));
    let mend = only_user
        .filter(|_| !is_held)
        .and_then(|user| records.network(user))
        .map(|(_, unchanged)| Transaction {
            guards: vec![unchanged, Guard::Absent(Key::Vni(vni))],
            writes: vec![Write::Put(Key::Vni(vni), encode(&VniClaimDocument::of(user)))],
        });
    Finding {
        key: Key::Network(user.clone()).to_string(),
        kind: FindingKind::VniNotClaimed,
        message: format!("names VNI {vni}, which is not claimed"),
        remedy: match mend {
            Some(_) => format!("claim VNI {vni} for it"),
            None if is_held => CLAIM_HELD.to_owned(),
            None => "give the other networks that name it another VNI".to_owned(),
        },
        mend,
        after: None,
    }
}

/// A claim for a network that does not name the VNI.
fn stray(
    records: &Records,
    vni: Vni,
    (claimed_at, holder): (i64, &NetworkName),
    (users, only_user): (&[&NetworkName], Option<&NetworkName>),
) -> Option<Finding> {
    let key = Key::Vni(vni);
    let finding = |message: String, remedy: String, mend| Finding {
        key: key.to_string(),
        kind: FindingKind::VniClaimWithoutNetwork,
        message,
        remedy,
        mend,
        after: None,
    };
    let mut guards = vec![Guard::Unchanged(key.clone(), claimed_at)];
    let why = match records.networks.get(holder) {
        // It is as it was.
        None if records.has_network(holder) => return of_another(vni, holder, users),
        None if records.with_endpoints.contains(holder) => {
            return Some(finding(
                format!("claimed for network {holder}, which has endpoints and no record"),
                format!(
                    "put the record networks/{holder} back (weft resync --republish on a host with endpoints in it), \
                     or delete its endpoints"
                ),
                None,
            ));
        }
        // What is reserved ends by itself, and then the VNI is freed.
        None if records.is_reserved_in(holder) && users.is_empty() => return None,
        None if records.is_claimed_in(holder) => {
            return Some(finding(
                format!(
                    "claimed for network {holder}, which does not exist, and addresses of it are claimed"
                ),
                "it is freed when they are given up".to_owned(),
                None,
            ));
        }
        None => {
            guards.push(Guard::Absent(Key::Network(holder.clone())));
            guards.push(Guard::Empty(Scope::Endpoints(holder.clone())));
            guards.push(Guard::Empty(Scope::Addresses(holder.clone())));
            format!("claimed for network {holder}, which does not exist")
        }
        Some(Record {
            value: Some(network),
            mod_revision,
            ..
        }) => match network.vni {
            Some(other) => {
                guards.push(Guard::Unchanged(Key::Network(holder.clone()), *mod_revision));
                format!("claimed for network {holder}, which has VNI {other}")
            }
            // It is about to be given the VNI that it has claimed.
            None => return of_another(vni, holder, users),
        },
        // Nobody knows what it has.
        Some(_) => return of_another(vni, holder, users),
    };
    Some(match (users, only_user) {
        ([], _) => {
            let writes = vec![Write::Delete(key.clone())];
            finding(why, "free it".to_owned(), Some(Transaction { guards, writes }))
        }
        (_, Some(user)) => {
            guards.extend(records.network(user).map(|(_, unchanged)| unchanged));
            let writes = vec![Write::Put(key.clone(), encode(&VniClaimDocument::of(user)))];
            finding(
                format!("{why}, and network {user} names it"),
                format!("make it network {user}'s"),
                Some(Transaction { guards, writes }),
            )
        }
        _ => finding(
            format!("{why}, and {} networks name it", users.len()),
            "give all of them but one another VNI".to_owned(),
            None,
        ),
    })
}

fn of_another(vni: Vni, holder: &NetworkName, users: &[&NetworkName]) -> Option<Finding> {
    users.first().map(|user| Finding {
        key: Key::Network((*user).clone()).to_string(),
        kind: FindingKind::VniOfAnother,
        message: format!("names VNI {vni}, which is claimed for network {holder}"),
        remedy: "give it another VNI, or none: then a free one is chosen".to_owned(),
        mend: None,
        after: None,
    })
}

/// A node's agent clears its mark away in the transaction that makes it a peer again.
fn present(records: &Records, node: &NodeName, mark_at: i64) -> Option<Finding> {
    let peer = records.peers.get(node)?;
    let mark = records.removed.get(node)?.value.as_ref()?;
    let same_life = match &peer.value {
        Some(peer) => {
            peer.kind == PeerKind::Agent && mark.incarnation.as_deref() == peer.incarnation.as_deref()
        }
        None => return None,
    };
    let key = Key::Removed(node.clone());
    let mend = (!same_life).then(|| Transaction {
        guards: vec![
            Guard::Unchanged(key.clone(), mark_at),
            Guard::Unchanged(Key::Peer(node.clone()), peer.mod_revision),
        ],
        writes: vec![Write::Delete(key.clone())],
    });
    Some(Finding {
        key: key.to_string(),
        kind: FindingKind::RemovedButPresent,
        message: format!("says that {node} was removed, and there is a record peers/{node}"),
        remedy: match mend {
            Some(_) => "delete the mark, which is from an earlier life of the node".to_owned(),
            None => format!("start the agent of {node}, which clears it up; or delete peers/{node}"),
        },
        mend,
        after: None,
    })
}
