//! Records as files: what an operator writes is read, and what weft writes is just so. A change here is a
//! change of what lies in people's clusters.

use serde_json::Value;
use weft_store_schema::{
    AddressClaim, AddressClaimDocument, AliveDocument, AttachmentDocument, BarrierDocument, EndpointDocument,
    NetworkDocument, PassedDocument, PeerDocument, PeerKind, ReleasedDocument, RemovedDocument,
    StatusDocument, StatusProblem, SubnetDocument, VniClaimDocument, encode, set_fields,
};

use crate::kinds::{KINDS, golden, here, kind};

fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn every_kind_is_read_and_loses_nothing() {
    for kind in KINDS {
        for form in ["minimal", "full"] {
            let name = format!("{}-{form}.json", kind.name);
            let bytes = golden(&name);
            if let Err(error) = (kind.judge)(&bytes) {
                panic!("{name}: {error}");
            }
            let once = (kind.reencode)(&bytes).unwrap();
            // A kind that says the default is written without it.
            assert_eq!(value(&once), value(&bytes), "{name} changes its meaning");
            assert_eq!((kind.reencode)(&once).unwrap(), once, "{name} is not stable");
        }
    }
}

fn boot_id() -> String {
    "0d6c3b1e-5f0a-4c57-9a5d-6f3f2f9f8b11".to_owned()
}

/// Each record as weft writes it, by its golden file.
fn written() -> Vec<(&'static str, Vec<u8>)> {
    let network = NetworkDocument {
        subnets: vec![
            SubnetDocument {
                cidr: "10.1.0.0/16".to_owned(),
                ..SubnetDocument::default()
            },
            SubnetDocument {
                cidr: "fd00:1::/64".to_owned(),
                gateway: Some("fd00:1::1".to_owned()),
                ..SubnetDocument::default()
            },
        ],
        ..NetworkDocument::default()
    };
    let endpoint = EndpointDocument {
        name: Some("web".to_owned()),
        attachment: AttachmentDocument {
            netns: "/run/netns/web".to_owned(),
            ifname: None,
        },
        addresses: vec!["10.1.0.2".to_owned(), "fd00:1::2".to_owned()],
        mac: Some("02:42:0a:01:00:02".to_owned()),
        ..EndpointDocument::default()
    };
    let by_hand = br#"{ "mine": {"x": 1.0}, "attachment": {"netns":"/run/netns/web"} }"#;
    let addresses = Value::from(endpoint.addresses.clone());
    let completed = set_fields(
        by_hand,
        [("addresses", addresses), ("mac", endpoint.mac.clone().into())],
    );
    let peer = PeerDocument {
        version: None,
        vteps: vec!["10.99.0.1".to_owned(), "fd99::1".to_owned()],
        mtu: Some(1500),
        kind: PeerKind::Agent,
        boot_id: Some(boot_id()),
        incarnation: Some("9f2d41c07be35a68".to_owned()),
        agent_version: Some("0.1.0".to_owned()),
    };
    let status = StatusDocument {
        applied_revision: 1234,
        networks: 1,
        local_endpoints: 2,
        remote_endpoints: 3,
        problems: vec![StatusProblem {
            key: "networks/red".to_owned(),
            field: Some("vni".to_owned()),
            message: "0 is not from 1 to 16777215".to_owned(),
        }],
        problem_count: 1,
    };
    vec![
        ("network-written.json", encode(&network)),
        (
            "network-completed.json",
            set_fields(&golden("network-minimal.json"), [("vni", 4711.into())]).unwrap(),
        ),
        ("endpoint-written.json", encode(&endpoint)),
        ("endpoint-completed.json", completed.unwrap()),
        ("peer-written.json", encode(&peer)),
        (
            "address-written.json",
            encode(&AddressClaimDocument::of(
                &"host1".parse().unwrap(),
                &"web".parse().unwrap(),
            )),
        ),
        (
            "vni-written.json",
            encode(&VniClaimDocument {
                version: None,
                network: "blue".to_owned(),
            }),
        ),
        (
            "alive-written.json",
            encode(&AliveDocument {
                boot_id: boot_id(),
                since: 1_760_000_000,
                agent_version: "0.1.0".to_owned(),
            }),
        ),
        ("status-written.json", encode(&status)),
        (
            "removed-written.json",
            encode(&RemovedDocument {
                version: None,
                incarnation: Some("9f2d41c07be35a68".to_owned()),
                by: Some("host2".to_owned()),
                endpoints: 3,
                held: vec!["blue/web 10.1.0.5 fd00::5".to_owned()],
            }),
        ),
        (
            "released-written.json",
            encode(&ReleasedDocument::of(
                &"host1".parse().unwrap(),
                &"web".parse().unwrap(),
            )),
        ),
        (
            "barrier-written.json",
            encode(&BarrierDocument {
                version: None,
                lease: 7_587_862_094_884_012_345,
            }),
        ),
        (
            "passed-written.json",
            encode(&PassedDocument {
                version: None,
                applied_revision: 1234,
            }),
        ),
    ]
}

#[test]
fn what_weft_writes_is_just_so() {
    let mut wrong = Vec::new();
    for (name, bytes) in written() {
        let path = here("tests/records/golden").join(name);
        let text = String::from_utf8(bytes.clone()).unwrap() + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{name}: now {text}"));
        }
        let kind = kind(name.split('-').next().unwrap());
        if let Err(error) = (kind.judge)(&bytes) {
            wrong.push(format!("{name} is not read: {error}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nif that is meant, run with UPDATE_GOLDEN=1",
        wrong.join("\n")
    );
}

#[test]
fn a_claim_reads_back_as_written() {
    let claim = AddressClaim::decode(&golden("address-written.json")).unwrap();
    assert_eq!((claim.node.as_str(), claim.id.as_str()), ("host1", "web"));
}
