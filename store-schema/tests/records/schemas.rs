//! The schemas in `docs/schema` are those of the code, and hold what the code accepts.
//!
//! A schema says less than the code: forms inside of texts (addresses, names, paths) and what fields say of
//! one another are the code's alone.

use std::fs;

use jsonschema::Validator;
use serde_json::Value;
use weft_store_schema::{json_schemas, render_json_schema};

use crate::kinds::{KINDS, golden, here};

/// The validator of a kind's schema.
pub(crate) fn validator(kind: &str) -> Validator {
    let (_, schema) = json_schemas()
        .into_iter()
        .find(|(file, _)| file.strip_suffix(".json") == Some(kind))
        .unwrap_or_else(|| panic!("no schema for {kind}"));
    jsonschema::validator_for(schema.as_value()).unwrap()
}

#[test]
fn the_files_are_those_of_the_code() {
    let directory = here("../docs/schema");
    let update = std::env::var_os("UPDATE_SCHEMAS").is_some();
    let mut stale = Vec::new();
    for (file, schema) in json_schemas() {
        let (path, text) = (directory.join(file), render_json_schema(&schema));
        if update {
            fs::create_dir_all(&directory).unwrap();
            fs::write(&path, &text).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            stale.push(file);
        }
    }
    assert!(
        stale.is_empty(),
        "docs/schema is behind the code, run with UPDATE_SCHEMAS=1: {stale:?}"
    );
    let known: Vec<_> = json_schemas()
        .into_iter()
        .map(|(file, _)| file.to_owned())
        .collect();
    for entry in fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "docs/schema/{name} is nobody's schema");
    }
}

#[test]
fn sound_records_satisfy_their_schemas() {
    for kind in KINDS {
        let validator = validator(kind.name);
        for form in ["minimal", "full", "written"] {
            let record: Value =
                serde_json::from_slice(&golden(&format!("{}-{form}.json", kind.name))).unwrap();
            if let Err(error) = validator.validate(&record) {
                panic!("{}-{form}: {error} at {}", kind.name, error.instance_path());
            }
        }
    }
}

#[test]
fn fields_of_later_versions_satisfy_the_schemas() {
    for kind in KINDS {
        let mut record: Value = serde_json::from_slice(&golden(&format!("{}-full.json", kind.name))).unwrap();
        record["of_a_later_version"] = Value::Null;
        assert!(validator(kind.name).is_valid(&record), "{}", kind.name);
    }
}

#[test]
fn types_and_bounds_are_in_the_schemas() {
    for (kind, record) in [
        ("network", "[]"),
        ("network", "{}"),
        ("network", r#"{"subnets":[]}"#),
        ("network", r#"{"subnets":[["10.1.0.0/16"]]}"#),
        ("network", r#"{"subnets":[{"cidr":"10.1.0.0/16"}],"vni":0}"#),
        (
            "network",
            r#"{"subnets":[{"cidr":"10.1.0.0/16"}],"vni":16777216}"#,
        ),
        ("network", r#"{"subnets":[{"cidr":"10.1.0.0/16"}],"mtu":575}"#),
        ("network", r#"{"subnets":[{"cidr":"10.1.0.0/16"}],"version":2}"#),
        (
            "network",
            r#"{"subnets":[{"cidr":"10.1.0.0/16"}],"labels":{"a":1}}"#,
        ),
        ("endpoint", "{}"),
        (
            "endpoint",
            r#"{"attachment":{"netns":"/run/netns/web","ifname":""}}"#,
        ),
        (
            "endpoint",
            r#"{"attachment":{"netns":"/run/netns/web","ifname":"0123456789abcdef"}}"#,
        ),
        (
            "endpoint",
            r#"{"attachment":{"netns":"/run/netns/web"},"addresses":"10.1.0.5"}"#,
        ),
        ("peer", r#"{"vteps":[]}"#),
        ("peer", r#"{"vteps":["10.99.0.1"],"kind":"router"}"#),
        ("peer", r#"{"vteps":["10.99.0.1"],"mtu":65536}"#),
        ("address", "{}"),
        ("vni", r#"{"network":7}"#),
    ] {
        let record: Value = serde_json::from_str(record).unwrap();
        assert!(!validator(kind).is_valid(&record), "{kind} {record}");
    }
}
