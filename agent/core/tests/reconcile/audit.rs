//! The audit: what the agents' own transactions make is clean, every kind of damage is found, and a repair mends
//! what it says it can and touches nothing else.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection, prelude::*};
use weft_core::{
    audit::{Audit, Finding, FindingKind, audit},
    record::{Committed, Guard, Write},
};
use weft_store_schema::{AddressClaim, Holder, Key, Prefix};

use crate::{
    claims::{Cluster, Deed, deed},
    convergence::config,
    records::{Edit, any_edit, node},
    store::Store,
};

/// The model knows no leases: what is reserved lies under one, unless it was written by hand.
fn leases(store: &Store) -> BTreeSet<Vec<u8>> {
    let reserved = store.entries().filter(|entry| {
        let claim = AddressClaim::decode(&entry.value);
        claim.is_ok_and(|claim| claim.holder == Holder::Reservation && claim.id.as_str() != "forever")
    });
    reserved.map(|entry| entry.key.clone()).collect()
}

fn look(store: &Store) -> Audit {
    let entries: Vec<_> = store.entries().cloned().collect();
    audit(&Prefix::default(), &entries, &leases(store))
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

/// What can be done to a sound world, what that is called, and whether a repair mends it.
struct Damage {
    edits: &'static [(&'static str, Option<&'static str>)],
    kind: FindingKind,
    key: &'static str,
    mended: bool,
}

const WORLD: &[(&str, &str)] = &[
    (
        "networks/blue",
        r#"{"subnets":[{"cidr":"10.1.0.0/24","gateway":"10.1.0.1"}],"vni":5000}"#,
    ),
    (
        "networks/red",
        r#"{"subnets":[{"cidr":"10.2.0.0/24"}],"vni":5001}"#,
    ),
    ("vnis/5000", r#"{"network":"blue"}"#),
    ("vnis/5001", r#"{"network":"red"}"#),
    ("peers/host1", r#"{"vteps":["10.99.0.1"],"incarnation":"i1"}"#),
    ("peers/host2", r#"{"vteps":["10.99.0.2"],"incarnation":"i2"}"#),
    (
        "endpoints/blue/host1/a",
        r#"{"attachment":{"netns":"/run/netns/a"},"addresses":["10.1.0.2"],"mac":"02:42:0a:01:00:02"}"#,
    ),
    (
        "endpoints/blue/host2/b",
        r#"{"attachment":{"netns":"/run/netns/b"},"addresses":["10.1.0.3"],"mac":"02:42:0a:01:00:03"}"#,
    ),
    (
        "endpoints/blue/host2/new",
        r#"{"attachment":{"netns":"/run/netns/new"}}"#,
    ),
    ("addresses/blue/10.1.0.2", r#"{"endpoint":"host1/a"}"#),
    ("addresses/blue/10.1.0.3", r#"{"endpoint":"host2/b"}"#),
    ("addresses/blue/10.1.0.9", r#"{"reservation":"host1/soon"}"#),
    ("released/blue/10.1.0.8", r#"{"endpoint":"host1/was"}"#),
    ("removed/host9", r#"{"incarnation":"i9","endpoints":0}"#),
];

const DAMAGES: &[Damage] = &[
    Damage {
        edits: &[("addresses/blue/10.1.0.2", Some("{"))],
        kind: FindingKind::Unreadable,
        key: "addresses/blue/10.1.0.2",
        mended: false,
    },
    Damage {
        edits: &[("networks/blue", Some(r#"{"version":7,"subnets":[]}"#))],
        kind: FindingKind::Unreadable,
        key: "networks/blue",
        mended: false,
    },
    Damage {
        edits: &[("adresses/blue/10.1.0.2", Some("{}"))],
        kind: FindingKind::Unreadable,
        key: "adresses/blue/10.1.0.2",
        mended: false,
    },
    Damage {
        edits: &[("endpoints/blue/host1/a", None)],
        kind: FindingKind::ClaimWithoutEndpoint,
        key: "addresses/blue/10.1.0.2",
        mended: true,
    },
    Damage {
        edits: &[("addresses/green/10.3.0.1", Some(r#"{"endpoint":"host1/a"}"#))],
        kind: FindingKind::ClaimWithoutEndpoint,
        key: "addresses/green/10.3.0.1",
        mended: true,
    },
    Damage {
        edits: &[("addresses/blue/10.1.0.77", Some(r#"{"endpoint":"host1/a"}"#))],
        kind: FindingKind::ClaimNotNamed,
        key: "addresses/blue/10.1.0.77",
        mended: true,
    },
    Damage {
        // The claim of one endpoint's address says that it is another's.
        edits: &[("addresses/blue/10.1.0.2", Some(r#"{"endpoint":"host2/b"}"#))],
        kind: FindingKind::ClaimNotNamed,
        key: "addresses/blue/10.1.0.2",
        mended: true,
    },
    Damage {
        edits: &[("addresses/blue/10.1.0.2", Some(r#"{"endpoint":"host3/gone"}"#))],
        kind: FindingKind::ClaimWithoutEndpoint,
        key: "addresses/blue/10.1.0.2",
        mended: true,
    },
    Damage {
        edits: &[(
            "addresses/blue/10.1.0.10",
            Some(r#"{"reservation":"host1/forever"}"#),
        )],
        kind: FindingKind::ReservationWithoutLease,
        key: "addresses/blue/10.1.0.10",
        mended: true,
    },
    Damage {
        edits: &[("addresses/blue/10.7.0.9", Some(r#"{"reservation":"host1/soon"}"#))],
        kind: FindingKind::ClaimOutside,
        key: "addresses/blue/10.7.0.9",
        mended: false,
    },
    Damage {
        edits: &[("addresses/blue/10.1.0.2", None)],
        kind: FindingKind::AddressNotClaimed,
        key: "endpoints/blue/host1/a",
        mended: true,
    },
    Damage {
        // One that is yet to be completed may take up what it held.
        edits: &[("addresses/blue/10.1.0.2", Some(r#"{"endpoint":"host2/new"}"#))],
        kind: FindingKind::AddressOfAnother,
        key: "endpoints/blue/host1/a",
        mended: false,
    },
    Damage {
        edits: &[("addresses/blue/10.1.0.2", Some(r#"{"reservation":"host2/soon"}"#))],
        kind: FindingKind::AddressOfAnother,
        key: "endpoints/blue/host1/a",
        mended: false,
    },
    Damage {
        edits: &[(
            "endpoints/blue/host2/c",
            Some(
                r#"{"attachment":{"netns":"/run/netns/c"},"addresses":["10.1.0.2"],"mac":"02:42:0a:01:00:07"}"#,
            ),
        )],
        kind: FindingKind::AddressTwice,
        key: "endpoints/blue/host2/c",
        mended: false,
    },
    Damage {
        edits: &[(
            "networks/blue",
            Some(r#"{"subnets":[{"cidr":"10.1.0.0/24","gateway":"10.1.0.2"}],"vni":5000}"#),
        )],
        kind: FindingKind::AddressOutside,
        key: "endpoints/blue/host1/a",
        mended: false,
    },
    Damage {
        edits: &[(
            "networks/blue",
            Some(r#"{"subnets":[{"cidr":"10.4.0.0/24"}],"vni":5000}"#),
        )],
        kind: FindingKind::AddressOutside,
        key: "endpoints/blue/host1/a",
        mended: false,
    },
    Damage {
        edits: &[
            (
                "endpoints/blue/host2/c",
                Some(
                    r#"{"attachment":{"netns":"/run/netns/c"},"addresses":["10.1.0.7"],"mac":"02:42:0a:01:00:02"}"#,
                ),
            ),
            ("addresses/blue/10.1.0.7", Some(r#"{"endpoint":"host2/c"}"#)),
        ],
        kind: FindingKind::MacTwice,
        key: "endpoints/blue/host2/c",
        mended: false,
    },
    Damage {
        edits: &[("networks/blue", None)],
        kind: FindingKind::EndpointWithoutNetwork,
        key: "endpoints/blue/host1/a",
        mended: false,
    },
    Damage {
        edits: &[("peers/host1", None)],
        kind: FindingKind::EndpointWithoutPeer,
        key: "endpoints/blue/host1/a",
        mended: false,
    },
    Damage {
        edits: &[("networks/red", None)],
        kind: FindingKind::VniClaimWithoutNetwork,
        key: "vnis/5001",
        mended: true,
    },
    Damage {
        edits: &[("vnis/5002", Some(r#"{"network":"red"}"#))],
        kind: FindingKind::VniClaimWithoutNetwork,
        key: "vnis/5002",
        mended: true,
    },
    Damage {
        edits: &[("vnis/5001", Some(r#"{"network":"blue"}"#))],
        kind: FindingKind::VniClaimWithoutNetwork,
        key: "vnis/5001",
        mended: true,
    },
    Damage {
        edits: &[("vnis/5001", None)],
        kind: FindingKind::VniNotClaimed,
        key: "networks/red",
        mended: true,
    },
    Damage {
        edits: &[
            ("networks/green", Some(r#"{"subnets":[{"cidr":"10.3.0.0/24"}]}"#)),
            ("vnis/5001", Some(r#"{"network":"green"}"#)),
        ],
        kind: FindingKind::VniOfAnother,
        key: "networks/red",
        mended: false,
    },
    Damage {
        edits: &[(
            "networks/green",
            Some(r#"{"subnets":[{"cidr":"10.3.0.0/24"}],"vni":5001}"#),
        )],
        kind: FindingKind::VniTwice,
        key: "networks/green",
        mended: false,
    },
    Damage {
        edits: &[("released/blue/10.1.0.2", Some(r#"{"endpoint":"host1/was"}"#))],
        kind: FindingKind::ReleasedButClaimed,
        key: "released/blue/10.1.0.2",
        mended: true,
    },
    Damage {
        edits: &[("released/green/10.3.0.2", Some(r#"{"endpoint":"host1/was"}"#))],
        kind: FindingKind::ReleasedWithoutNetwork,
        key: "released/green/",
        mended: true,
    },
    Damage {
        edits: &[("removed/host1", Some(r#"{"incarnation":"i0","endpoints":0}"#))],
        kind: FindingKind::RemovedButPresent,
        key: "removed/host1",
        mended: true,
    },
    Damage {
        edits: &[("removed/host1", Some(r#"{"incarnation":"i1","endpoints":0}"#))],
        kind: FindingKind::RemovedButPresent,
        key: "removed/host1",
        mended: false,
    },
];

fn world() -> Store {
    let mut store = Store::new();
    for (key, value) in WORLD {
        store.put(&Store::key(key), value.as_bytes());
    }
    store
}

impl Damage {
    fn apply(&self, store: &mut Store) {
        for (key, value) in self.edits {
            match value {
                Some(value) => store.put(&Store::key(key), value.as_bytes()),
                None => store.delete(&Store::key(key)),
            }
        }
    }

    fn finding<'a>(&self, found: &'a Audit) -> Option<&'a Finding> {
        let mut findings = found.findings.iter();
        findings.find(|finding| finding.kind == self.kind && finding.key == self.key)
    }
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
        .filter(|kind| !told.contains(kind))
        .collect();
    assert!(untold.is_empty(), "no test makes {untold:?}");
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
