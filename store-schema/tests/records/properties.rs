//! What holds for every record and key that could be written.
//!
//! `PROPTEST_CASES` sets how many are tried.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{collection, prelude::*, sample::select, test_runner::FileFailurePersistence};
use serde_json::{Map, Value, value::RawValue};
use weft_store_schema::{
    EndpointRef, IfName, Key, Mac, NetworkName, NodeName, Prefix, Vni, parse_reserved, set_fields,
};

use crate::{
    kinds::{KINDS, RecordKind, golden},
    schemas::Validator,
};

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// No message is longer, whatever the record holds.
const LONGEST_MESSAGE: usize = 1500;

fn any_kind() -> impl Strategy<Value = RecordKind> {
    select(&KINDS[..])
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        select(vec![
            "10.1.0.0/16",
            "10.1.0.9",
            "fd00::/64",
            "fd00::9",
            "10.1.0.9-10.1.0.12",
            "host1/web",
            "/run/netns/web"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            collection::btree_map(any_field(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_field() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec![
            "version",
            "subnets",
            "cidr",
            "gateway",
            "range",
            "reserved",
            "vni",
            "mtu",
            "multicast",
            "labels",
            "options",
            "name",
            "attachment",
            "netns",
            "ifname",
            "requested_addresses",
            "addresses",
            "mac",
            "vteps",
            "kind",
            "boot_id",
            "endpoint",
            "network",
            "problems",
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ]
}

/// Almost a record: a sound one with some fields overwritten, taken away or added.
fn damaged() -> impl Strategy<Value = (RecordKind, Vec<u8>)> {
    let change = (any_field(), proptest::option::of(any_json()));
    (any_kind(), collection::vec(change, 0..4)).prop_map(|(kind, changes)| {
        let mut record: Map<String, Value> =
            serde_json::from_slice(&golden(&format!("{}-full.json", kind.name))).unwrap();
        for (field, value) in changes {
            match value {
                Some(value) => drop(record.insert(field, value)),
                None => drop(record.remove(&field)),
            }
        }
        (kind, serde_json::to_vec(&record).unwrap())
    })
}

/// A sound record with bytes flipped, put in and cut off.
fn mangled() -> impl Strategy<Value = (RecordKind, Vec<u8>)> {
    let cut = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        collection::vec(any::<u8>(), 0..4),
    );
    (any_kind(), collection::vec(cut, 1..4)).prop_map(|(kind, cuts)| {
        let mut bytes = golden(&format!("{}-full.json", kind.name));
        for (from, length, new) in cuts {
            let from = from.index(bytes.len() + 1);
            let to = from + length.index(8).min(bytes.len() - from);
            bytes.splice(from..to, new);
        }
        (kind, bytes)
    })
}

/// What holds for any bytes: an answer, and a short one.
fn judged(kind: RecordKind, bytes: &[u8]) -> Result<(), TestCaseError> {
    match (kind.judge)(bytes) {
        Ok(()) => {
            let once = (kind.reencode)(bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert!((kind.judge)(&once).is_ok(), "what is written is not read");
            prop_assert_eq!((kind.reencode)(&once).ok(), Some(once));
            let record: Value = serde_json::from_slice(bytes).unwrap();
            prop_assert!(
                Validator::of(kind.name).is_valid(&record),
                "the schema refuses what the code accepts"
            );
            prop_assert!(
                set_fields(bytes, []).is_ok(),
                "a record that is read cannot be rewritten"
            );
        }
        Err(error) => {
            let text = error.to_string();
            prop_assert!(text.len() <= LONGEST_MESSAGE, "{} bytes: {text}", text.len());
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            prop_assert!(!text.is_empty());
        }
    }
    Ok(())
}

/// A network name, node name or endpoint id, as text.
fn name() -> impl Strategy<Value = String> + Clone {
    prop_oneof!["[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "[a-c]"]
}

fn any_key() -> impl Strategy<Value = Key> {
    let network = name().prop_map(|n| NetworkName::new(&n).unwrap());
    let node = name().prop_map(|n| NodeName::new(&n).unwrap());
    let endpoint = (network.clone(), node.clone(), name()).prop_map(|(network, node, id)| EndpointRef {
        network,
        node,
        id: id.parse().unwrap(),
    });
    prop_oneof![
        network.clone().prop_map(Key::Network),
        (u64::from(Vni::MIN)..=u64::from(Vni::MAX)).prop_map(|n| Key::Vni(Vni::new(n).unwrap())),
        node.clone().prop_map(Key::Peer),
        node.clone().prop_map(Key::Alive),
        node.prop_map(Key::Status),
        endpoint.prop_map(Key::Endpoint),
        (network, any::<IpAddr>()).prop_map(|(network, address)| Key::Address(network, address)),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_get_a_short_answer(kind in any_kind(), bytes in collection::vec(any::<u8>(), 0..200)) {
        judged(kind, &bytes)?;
    }

    #[test]
    fn any_json_gets_a_short_answer(kind in any_kind(), json in any_json()) {
        judged(kind, json.to_string().as_bytes())?;
    }

    #[test]
    fn a_damaged_record_gets_a_short_answer((kind, bytes) in damaged()) {
        judged(kind, &bytes)?;
    }

    #[test]
    fn a_mangled_record_gets_a_short_answer((kind, bytes) in mangled()) {
        judged(kind, &bytes)?;
    }

    #[test]
    fn a_long_value_gets_a_short_answer(
        (kind, bytes) in damaged(),
        long in select(vec!["x", "ä", "\u{1b}", "\u{10ffff}", "\\\"", " "]),
        at in any::<prop::sample::Index>(),
    ) {
        // In the place of one quote, so that texts, fields and rubbish of all sorts grow long.
        let text = String::from_utf8(bytes).unwrap();
        let quotes: Vec<_> = text.match_indices('"').map(|(i, _)| i + 1).collect();
        prop_assume!(!quotes.is_empty());
        let at = quotes[at.index(quotes.len())];
        let text = format!("{}{}{}", &text[..at], long.repeat(3000), &text[at..]);
        judged(kind, text.as_bytes())?;
    }

    #[test]
    fn a_rewrite_sets_its_fields_and_keeps_all_else(
        before in collection::btree_map(any_field(), any_json(), 0..8),
        set in collection::vec((select(vec!["vni", "addresses", "mac", "new"]), any_json()), 0..4),
    ) {
        let stored = serde_json::to_vec(&before).unwrap();
        let rewritten = set_fields(&stored, set.clone()).unwrap();
        // Compared as texts: a number is to keep its digits.
        let raw = |bytes: &[u8]| -> BTreeMap<String, String> {
            let raw: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes).unwrap();
            raw.into_iter().map(|(field, value)| (field, value.get().to_owned())).collect()
        };
        let mut want = raw(&stored);
        for (field, value) in set {
            want.insert(field.to_owned(), value.to_string());
        }
        prop_assert_eq!(raw(&rewritten), want);
    }

    #[test]
    fn only_objects_are_rewritten(json in any_json()) {
        let text = json.to_string();
        prop_assert_eq!(set_fields(text.as_bytes(), [("vni", 7.into())]).is_ok(), json.is_object());
    }

    #[test]
    fn a_key_reads_back_as_written(key in any_key(), prefix in "(/?[a-z0-9.-]{1,8}){1,4}/?") {
        let prefix = Prefix::new(&prefix).unwrap();
        let text = prefix.key(&key);
        prop_assert_eq!(prefix.parse(text.as_bytes()), Ok(key.clone()));
        prop_assert_eq!(text, format!("{prefix}{key}"));
    }

    #[test]
    fn no_two_texts_are_one_key(rest in prop_oneof![
        "(networks|vnis|peers|alive|status|endpoints|addresses)(/[a-z0-9.:_-]{0,4}){0,4}",
        "vnis/[+0]{0,2}[0-9]{1,9}",
        "addresses/a/[0-9a-f.:]{2,12}",
        ".{0,40}",
    ]) {
        let text = format!("/weft/v1/{rest}");
        match Prefix::default().parse(text.as_bytes()) {
            Ok(key) => prop_assert_eq!(Prefix::default().key(&key), text),
            Err(error) => prop_assert!(error.to_string().len() <= LONGEST_MESSAGE),
        }
    }

    #[test]
    fn any_bytes_as_a_key_get_an_answer(key in collection::vec(any::<u8>(), 0..80), under in any::<bool>()) {
        let key = if under { [b"/weft/v1/", &key[..]].concat() } else { key };
        if let Err(error) = Prefix::default().parse(&key) {
            prop_assert!(error.to_string().len() <= LONGEST_MESSAGE);
        }
    }

    #[test]
    fn names_are_safe_in_paths_and_aliases(text in prop_oneof![".{0,70}", "[a-zA-Z0-9/._ %:-]{0,70}"]) {
        if let Ok(name) = NetworkName::new(&text) {
            prop_assert!(!name.as_str().contains(['/', ' ', '\0', '%', ':']) && !name.as_str().starts_with('.'));
        }
        if let Ok(name) = IfName::new(&text) {
            prop_assert!(name.as_str().len() <= 15 && !name.as_str().contains(['/', ' ', '\0', '%', ':']));
        }
    }

    #[test]
    fn a_mac_reads_back_as_written(bytes in any::<[u8; 6]>()) {
        if let Some(mac) = Mac::new(bytes) {
            prop_assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
            prop_assert_eq!(mac.to_string().to_uppercase().replace(':', "-").parse::<Mac>(), Ok(mac));
        }
    }

    #[test]
    fn a_range_reads_back_as_written(a in any::<IpAddr>(), b in any::<IpAddr>()) {
        match parse_reserved(&format!("{a}-{b}")) {
            Ok(range) => {
                prop_assert!(range.contains(a) && range.contains(b));
                prop_assert_eq!(parse_reserved(&range.to_string()), Ok(range));
            }
            Err(_) => prop_assert!(a.is_ipv4() != b.is_ipv4() || a > b),
        }
    }
}
