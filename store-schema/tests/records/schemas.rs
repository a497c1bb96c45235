//! The schemas in `docs/schema` are those of the code, and hold what the code accepts.
//!
//! A schema says less than the code: forms inside of texts (addresses, names, paths) and what fields say of
//! one another are the code's alone.

use std::fs;

use serde_json::{Map, Value};
use weft_store_schema::{json_schemas, render_json_schema};

use crate::kinds::{KINDS, golden, here};

/// A kind's schema, to judge records by.
///
/// It knows the keywords that our schemas use and no others: one that comes to be used fails every test until
/// it is understood here. (A full validator would bring some forty crates, one of them under a licence that
/// deny.toml does not list.)
pub(crate) struct Validator(Value);

impl Validator {
    pub(crate) fn of(kind: &str) -> Self {
        let (_, schema) = json_schemas()
            .into_iter()
            .find(|(file, _)| file.strip_suffix(".json") == Some(kind))
            .unwrap_or_else(|| panic!("no schema for {kind}"));
        Self(schema.to_value())
    }

    pub(crate) fn is_valid(&self, record: &Value) -> bool {
        self.fits(&self.0, record)
    }

    fn fits(&self, schema: &Value, value: &Value) -> bool {
        let schema: &Map<String, Value> = schema.as_object().unwrap();
        schema.iter().all(|(keyword, wanted)| match keyword.as_str() {
            "$schema" | "title" | "description" | "format" | "$defs" => true,
            "$ref" => {
                let name = wanted.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                self.fits(&self.0["$defs"][name], value)
            }
            "type" => match wanted {
                Value::Array(types) => types.iter().any(|one| is_of_type(one, value)),
                one => is_of_type(one, value),
            },
            "const" => value == wanted,
            "oneOf" => {
                let fitting = wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|one| self.fits(one, value));
                fitting.count() == 1
            }
            "minimum" => value.as_f64().is_none_or(|n| n >= wanted.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|n| n <= wanted.as_f64().unwrap()),
            "minLength" => value
                .as_str()
                .is_none_or(|s| s.chars().count() as u64 >= wanted.as_u64().unwrap()),
            "maxLength" => value
                .as_str()
                .is_none_or(|s| s.chars().count() as u64 <= wanted.as_u64().unwrap()),
            "minItems" => value
                .as_array()
                .is_none_or(|a| a.len() as u64 >= wanted.as_u64().unwrap()),
            "maxItems" => value
                .as_array()
                .is_none_or(|a| a.len() as u64 <= wanted.as_u64().unwrap()),
            "items" => value
                .as_array()
                .is_none_or(|a| a.iter().all(|item| self.fits(wanted, item))),
            "required" => value.as_object().is_none_or(|o| {
                wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|name| o.contains_key(name.as_str().unwrap()))
            }),
            "properties" => value.as_object().is_none_or(|o| {
                wanted
                    .as_object()
                    .unwrap()
                    .iter()
                    .all(|(name, schema)| o.get(name).is_none_or(|value| self.fits(schema, value)))
            }),
            // Our schemas have it only where there are no properties.
            "additionalProperties" => {
                assert!(!schema.contains_key("properties"));
                value
                    .as_object()
                    .is_none_or(|o| o.values().all(|value| self.fits(wanted, value)))
            }
            other => panic!("keyword {other} is not understood"),
        })
    }
}

fn is_of_type(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other} is not understood"),
    }
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
        let validator = Validator::of(kind.name);
        for form in ["minimal", "full", "written"] {
            let record: Value =
                serde_json::from_slice(&golden(&format!("{}-{form}.json", kind.name))).unwrap();
            assert!(validator.is_valid(&record), "{}-{form}", kind.name);
        }
    }
}

#[test]
fn fields_of_later_versions_satisfy_the_schemas() {
    for kind in KINDS {
        let mut record: Value = serde_json::from_slice(&golden(&format!("{}-full.json", kind.name))).unwrap();
        record["of_a_later_version"] = Value::Null;
        assert!(Validator::of(kind.name).is_valid(&record), "{}", kind.name);
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
        ("address", r#"{"endpoint":7}"#),
        ("vni", r#"{"network":7}"#),
    ] {
        let record: Value = serde_json::from_str(record).unwrap();
        assert!(!Validator::of(kind).is_valid(&record), "{kind} {record}");
    }
}
