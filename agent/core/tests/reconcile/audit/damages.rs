//! A sound world, and all that can be done to it.

use weft_core::audit::{Audit, Finding, FindingKind};

use crate::store::Store;

/// What can be done to a sound world, what that is called, and whether a repair mends it.
pub(super) struct Damage {
    edits: &'static [(&'static str, Option<&'static str>)],
    pub(super) kind: FindingKind,
    pub(super) key: &'static str,
    pub(super) mended: bool,
}

pub(super) const WORLD: &[(&str, &str)] = &[
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

pub(super) const DAMAGES: &[Damage] = &[
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
        edits: &[("addresses/blue/10.1.0.3", Some(r#"{"endpoint":"host1/a"}"#))],
        kind: FindingKind::ClaimNotNamed,
        key: "addresses/blue/10.1.0.3",
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

/// A world in which all fits together.
pub(super) fn world() -> Store {
    let mut store = Store::new();
    for (key, value) in WORLD {
        store.put(&Store::key(key), value.as_bytes());
    }
    store
}

impl Damage {
    pub(super) fn apply(&self, store: &mut Store) {
        for (key, value) in self.edits {
            match value {
                Some(value) => store.put(&Store::key(key), value.as_bytes()),
                None => store.delete(&Store::key(key)),
            }
        }
    }

    pub(super) fn finding<'a>(&self, found: &'a Audit) -> Option<&'a Finding> {
        let mut findings = found.findings.iter();
        findings.find(|finding| finding.kind == self.kind && finding.key == self.key)
    }
}
