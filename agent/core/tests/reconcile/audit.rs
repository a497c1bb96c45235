//! The audit: what the agents' own transactions make is clean, every kind of damage is found, and a repair mends
//! what it says it can and touches nothing else.

mod damages;

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection, prelude::*};
use weft_core::{
    audit::{Audit, FindingKind, Held, audit},
    record::{Committed, Guard, Write},
};
use weft_store_schema::{AddressClaim, Holder, Key, Prefix};

use crate::{
    claims::{Cluster, Deed, deed},
    convergence::config,
    records::{Edit, any_edit, node},
    store::Store,
};
use damages::{DAMAGES, WORLD, world};

/// The model knows no leases: what is reserved lies under one, unless it was written by hand.
fn leases(store: &Store) -> BTreeSet<Vec<u8>> {
    let reserved = store.entries().filter(|entry| {
        let claim = AddressClaim::decode(&entry.value);
        claim.is_ok_and(|claim| claim.holder == Holder::Reservation && claim.id.as_str() != "forever")
    });
    reserved.map(|entry| entry.key.clone()).collect()
}

fn look(store: &Store) -> Audit {
    look_holding(store, &Held::default())
}

fn look_holding(store: &Store, held: &Held) -> Audit {
    let entries: Vec<_> = store.entries().cloned().collect();
    audit(&Prefix::default(), &entries, &leases(store), &node("host1"), held)
}

/// A cluster whose nodes are all known, as they are once their agents have started.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.come_to_rest();
    cluster
}

/// Mends all that can be mended, and checks that each mend is what it should be.
fn repair(store: &mut Store) -> usize {
    let found = look(store);
    let mut mended = 0;
    for finding in &found.findings {
        let Some(transaction) = &finding.mend else {
            continue;
        };
        for write in &transaction.writes {
            let harmless = match write {
                Write::Put(key, _) => {
                    matches!(key, Key::Address(..) | Key::Vni(_) | Key::Released(..))
                }
                Write::Delete(key) => {
                    matches!(
                        key,
                        Key::Address(..) | Key::Vni(_) | Key::Released(..) | Key::Removed(_)
                    )
                }
                Write::DeleteAll(scope) => {
                    matches!(scope, weft_core::record::Scope::Released(_))
                }
                Write::PutLeased(..) => false,
            };
            assert!(harmless, "{finding:#?}");
            // What it takes away or overwrites, it has seen.
            if let Write::Put(key @ (Key::Address(..) | Key::Vni(_)), _) | Write::Delete(key) = write
                && !matches!(key, Key::Released(..))
            {
                let guarded = transaction
                    .guards
                    .iter()
                    .any(|guard| matches!(guard, Guard::Absent(k) | Guard::Unchanged(k, _) if k == key));
                assert!(guarded, "{finding:#?}");
            }
        }
        let committed = store.commit(transaction, &node("host1"));
        assert!(
            matches!(committed, Committed::Yes { .. }),
            "what was just seen does not hold: {finding:#?}"
        );
        mended += 1;
    }
    mended
}

/// All records, without their revisions.
fn contents(store: &Store) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = store.entries();
    entries.map(|e| (e.key.clone(), e.value.clone())).collect()
}

fn kinds(found: &Audit) -> BTreeSet<FindingKind> {
    found.findings.iter().map(|finding| finding.kind).collect()
}

#[test]
fn a_sound_world_is_clean_and_counted() {
    let found = look(&world());
    assert_eq!(found.findings, []);
    let counts = found.counts;
    assert_eq!(
        (
            counts.networks,
            counts.endpoints,
            counts.pending,
            counts.claims,
            counts.reservations
        ),
        (2, 3, 1, 2, 1)
    );
    assert_eq!((counts.vnis, counts.peers, counts.released), (2, 2, 1));
}

#[test]
fn every_kind_of_damage_is_found_and_mended_if_it_says_so() {
    let mut told: BTreeSet<FindingKind> = BTreeSet::new();
    for damage in DAMAGES {
        let mut store = world();
        damage.apply(&mut store);
        let found = look(&store);
        let Some(finding) = damage.finding(&found) else {
            panic!("{:?} of {} is not found: {found:#?}", damage.kind, damage.key)
        };
        assert!(!finding.message.is_empty() && !finding.remedy.is_empty());
        assert_eq!(finding.mend.is_some(), damage.mended, "{finding:#?}");
        told.insert(damage.kind);
        let before = contents(&store);
        repair(&mut store);
        let after = look(&store);
        assert_eq!(
            damage.finding(&after).is_some(),
            !damage.mended,
            "{:?} of {}: {after:#?}",
            damage.kind,
            damage.key
        );
        // Nothing that was not found fault with is touched.
        let at_fault: BTreeSet<Vec<u8>> = found
            .findings
            .iter()
            .flat_map(|finding| finding.mend.iter().flat_map(|mend| &mend.writes))
            .filter_map(|write| Some(Prefix::default().key(write.key()?).into_bytes()))
            .collect();
        let (now, gone): (BTreeMap<_, _>, &str) = (contents(&store), "released/green/");
        for (key, value) in &before {
            let expected = at_fault.contains(key) || key.starts_with(&Store::key(gone));
            assert!(
                expected || now.get(key) == Some(value),
                "{} was touched by the repair of {:?}",
                String::from_utf8_lossy(key),
                damage.kind
            );
        }
    }
    let untold: Vec<_> = FindingKind::ALL
        .iter()
        // What is held is no damage of the records.
        .filter(|kind| !told.contains(kind) && **kind != FindingKind::Held)
        .collect();
    assert!(untold.is_empty(), "no test makes {untold:?}");
}

/// What is claimed for an endpoint of another node may still be on its container's interface.
#[test]
fn only_its_node_gives_up_what_a_container_may_have() {
    let mut store = world();
    store.delete(&Store::key("endpoints/blue/host1/a"));
    store.delete(&Store::key("endpoints/blue/host2/b"));
    store.put(
        &Store::key("addresses/blue/10.1.0.50"),
        br#"{"endpoint":"host3/gone"}"#,
    );
    let found = look(&store);
    let told: Vec<_> = found
        .findings
        .iter()
        .map(|f| (f.key.as_str(), f.mend.is_some(), f.after.is_some()))
        .collect();
    assert_eq!(
        told,
        [
            ("addresses/blue/10.1.0.2", true, true),
            ("addresses/blue/10.1.0.3", false, false),
            ("addresses/blue/10.1.0.50", true, false),
        ]
    );
    assert!(found.findings[1].remedy.contains("on host2: weft audit --repair"));
}

#[test]
fn a_mend_that_is_late_does_nothing() {
    for damage in DAMAGES.iter().filter(|damage| damage.mended) {
        let mut store = world();
        damage.apply(&mut store);
        let found = look(&store);
        let mend = damage
            .finding(&found)
            .and_then(|finding| finding.mend.clone())
            .unwrap();
        // Everything that exists is written anew: it is what it was, and somebody has looked at it since.
        for (key, value) in contents(&store) {
            store.put(&key, &value);
        }
        let before = contents(&store);
        let by_absence = mend
            .guards
            .iter()
            .all(|guard| !matches!(guard, Guard::Unchanged(..)));
        let committed = store.commit(&mend, &node("host1"));
        assert_eq!(
            matches!(committed, Committed::Yes { .. }),
            by_absence,
            "{:?}",
            damage.kind
        );
        assert!(by_absence || contents(&store) == before);
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever agents and API do, and at whatever moment one looks: nothing is found.
    #[test]
    fn what_agents_do_is_clean_at_every_moment(deeds in collection::vec(deed(), 1..60)) {
        let mut cluster = cluster();
        for deed in &deeds {
            cluster.take(deed);
            let found = look(&cluster.store);
            prop_assert_eq!(&found.findings, &[], "after {:?}", deed);
        }
        cluster.come_to_rest();
        let found = look(&cluster.store);
        prop_assert_eq!(&found.findings, &[]);
    }

    /// Whatever people write and delete by hand: repairing comes to an end, after which nothing is left that could
    /// be mended; and what agents made and nobody has touched stays as it is.
    #[test]
    fn a_repair_ends_and_leaves_alone_what_is_right(
        deeds in collection::vec(deed(), 1..40),
        edits in collection::vec(any_edit(), 1..8),
    ) {
        let mut cluster = cluster();
        for deed in &deeds {
            cluster.take(deed);
        }
        cluster.come_to_rest();
        let sound = contents(&cluster.store);
        let store = &mut cluster.store;
        for edit in &edits {
            Edit::apply(edit, store);
        }
        let damaged = contents(store);
        for round in 0.. {
            if repair_one_by_one(store) == 0 {
                break;
            }
            prop_assert!(round < 4, "repairing comes to no end");
        }
        let left = look(store);
        prop_assert!(left.findings.iter().all(|finding| finding.mend.is_none()), "{:#?}", left);
        let after = contents(store);
        for (key, value) in &sound {
            let key_text = String::from_utf8_lossy(key);
            let is_theirs = ["networks/", "endpoints/", "peers/"]
                .iter()
                .any(|kind| key_text.starts_with(&format!("/weft/v1/{kind}")));
            if is_theirs {
                prop_assert_eq!(after.get(key), damaged.get(key), "{}", key_text);
            } else if damaged.get(key) == Some(value) && after.get(key) != Some(value) {
                // A claim or a trace was changed that nobody had touched: then what it rested on was.
                let other = sound.iter().any(|(k, v)| damaged.get(k) != Some(v));
                let added = damaged.keys().any(|k| !sound.contains_key(k));
                prop_assert!(other || added, "{} was touched", key_text);
            }
        }
    }
}

/// One damage more beside any others is found just the same.
#[test]
fn damages_do_not_hide_one_another() {
    for damage in DAMAGES {
        let mut store = world();
        damage.apply(&mut store);
        let alone = kinds(&look(&store));
        // A second network, damaged in its own way.
        for (key, value) in WORLD {
            if key.contains("/blue") && !key.starts_with("networks/") {
                store.put(&Store::key(&key.replace("/blue", "/other")), value.as_bytes());
            }
        }
        let both = kinds(&look(&store));
        assert!(both.is_superset(&alone), "{both:?}");
        assert!(both.contains(&FindingKind::EndpointWithoutNetwork));
    }
}

/// As `weft audit --repair` does: each mend as it was found, some of which another has made untrue.
fn repair_one_by_one(store: &mut Store) -> usize {
    let found = look(store);
    let mut mended = 0;
    for mend in found.findings.iter().filter_map(|finding| finding.mend.as_ref()) {
        mended += usize::from(matches!(
            store.commit(mend, &node("host1")),
            Committed::Yes { .. }
        ));
    }
    mended
}

#[test]
fn what_is_written_by_hand_is_a_deed_too() {
    let mut cluster = cluster();
    cluster.take(&Deed::ByHand(Edit {
        key: "addresses/blue/10.1.0.2".to_owned(),
        value: Some(r#"{"endpoint":"host1/nobody"}"#.to_owned()),
    }));
    assert_eq!(
        kinds(&look(&cluster.store)),
        BTreeSet::from([FindingKind::ClaimWithoutEndpoint])
    );
    assert_eq!(repair(&mut cluster.store), 1);
    assert_eq!(look(&cluster.store).findings, []);
}

/// Everything that a slip may take away: without being told that it is held, a repair would give up what containers have.
#[test]
fn what_is_held_is_there_for_the_audit() {
    for lost in [
        "endpoints/",
        "endpoints/blue/",
        "networks/",
        "vnis/",
        "peers/",
        "",
    ] {
        let mut store = world();
        let is_lost = |key: &str| {
            key.starts_with(lost) && !key.starts_with("addresses/") && !key.starts_with("removed/")
        };
        let gone = WORLD.iter().map(|(key, _)| *key).filter(|key| is_lost(key));
        let mut held = Held {
            because: Some("much was deleted at once".to_owned()),
            ..Held::default()
        };
        for key in gone {
            store.delete(&Store::key(key));
            let key = Prefix::default().parse(&Store::key(key)).unwrap();
            held.keys.insert(key);
        }
        let found = look_holding(&store, &held);
        let others = found.findings.iter().filter(|f| f.kind != FindingKind::Held);
        // The agents make the claim of a VNI anew for a network that is there.
        let others: Vec<_> = others
            .filter(|f| f.kind != FindingKind::VniNotClaimed || f.mend.is_some())
            .collect();
        assert!(others.is_empty(), "{lost}: {others:#?}");
        let told: Vec<_> = found
            .findings
            .iter()
            .filter(|f| f.kind == FindingKind::Held)
            .collect();
        assert!(
            matches!(&told[..], [one] if one.mend.is_none()),
            "{lost}: {told:#?}"
        );
        assert!(told[0].remedy.contains("--republish") && told[0].remedy.contains("--accept"));
        let named = held.keys.first().unwrap().to_string();
        assert!(told[0].message.contains(&named), "{}", told[0].message);
    }
}

/// What a claim is for may be lost as well: it is not given to the next who names it.
#[test]
fn what_is_held_is_nobody_elses_to_claim() {
    let mut store = world();
    for key in ["endpoints/blue/host2/b", "networks/red"] {
        store.delete(&Store::key(key));
    }
    store.put(
        &Store::key("endpoints/blue/host1/other"),
        br#"{"attachment":{"netns":"/run/netns/other"},"addresses":["10.1.0.3"],"mac":"02:42:0a:01:00:33"}"#,
    );
    store.put(
        &Store::key("networks/other"),
        br#"{"subnets":[{"cidr":"10.3.0.0/24"}],"vni":5001}"#,
    );
    let mut held = Held::default();
    for (key, kind) in [
        ("addresses/blue/10.1.0.3", FindingKind::AddressNotClaimed),
        ("vnis/5001", FindingKind::VniNotClaimed),
    ] {
        store.delete(&Store::key(key));
        let mends = |held: &Held| {
            let found = look_holding(&store, held);
            let finding = found
                .findings
                .iter()
                .find(|finding| finding.kind == kind)
                .unwrap();
            finding.mend.is_some()
        };
        assert!(mends(&held), "{key}");
        held.keys
            .insert(Prefix::default().parse(&Store::key(key)).unwrap());
        assert!(!mends(&held), "{key}");
    }
}

/// A host that does not follow a network does not know what is held of it.
#[test]
fn what_another_host_may_hold_is_left_alone() {
    let mut store = world();
    for key in ["endpoints/blue/host1/a", "networks/red"] {
        store.delete(&Store::key(key));
    }
    store.put(&Store::key("released/green/10.9.0.2"), b"{}");
    let of_another = Held {
        because: Some("much was deleted at once".to_owned()),
        ..Held::default()
    };
    let found = look_holding(&store, &of_another);
    assert!(found.findings.len() > 3, "{found:#?}");
    assert!(
        found.findings.iter().all(|finding| finding.mend.is_none()),
        "{found:#?}"
    );
    assert!(look(&store).findings.iter().all(|finding| finding.mend.is_some()));
}

/// The network's record is held, and can be put back; the peer's is the node's own.
#[test]
fn what_was_deleted_alone_is_told_with_who_puts_it_back() {
    let mut store = world();
    let (network, peer) = ("networks/blue", "peers/host2");
    for key in [network, peer] {
        store.delete(&Store::key(key));
    }
    let alone = Held {
        keys: [Key::Network("blue".parse().unwrap()), Key::Peer(node("host2"))].into(),
        because: None,
    };
    let found = look_holding(&store, &alone);
    assert_eq!(
        kinds(&found),
        BTreeSet::from([FindingKind::Held, FindingKind::EndpointWithoutPeer])
    );
    let held = found
        .findings
        .iter()
        .find(|f| f.kind == FindingKind::Held)
        .unwrap();
    assert!(
        held.message.contains(network) && !held.message.contains(peer),
        "{}",
        held.message
    );
    assert!(held.remedy.contains("--republish") && !held.remedy.contains("--accept"));
    // What is in the store again is not held.
    let held = Held {
        keys: [Key::Network("blue".parse().unwrap())].into(),
        because: None,
    };
    assert_eq!(look_holding(&world(), &held).findings, []);
}
