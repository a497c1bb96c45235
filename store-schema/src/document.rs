//! Records as bytes: bounded decoding, and rewriting that keeps what this version does not know.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Value, value::RawValue};

use crate::RecordError;

/// No record is larger than this. etcd itself refuses requests over 1.5 MiB by default.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// So much is left in a new record for what agents fill in: addresses, a MAC, a VNI.
const ROOM: usize = 4096;

/// The newest record version that this code reads, and the one it writes. A record without `version` is
/// of version 1.
pub const RECORD_VERSION: u64 = 1;

/// Decodes a stored record.
///
/// # Errors
/// When the value is too large, of a newer version, or not the record's JSON.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    check_size(bytes)?;
    // serde_json does not look into strings that it skips: a field that this version does not know could hold
    // bytes that no rewrite can keep.
    let text = std::str::from_utf8(bytes).map_err(|error| RecordError::Json {
        why: format!("not UTF-8 text from byte {} on", error.valid_up_to()),
    })?;
    from_object(text).map_err(|error| match from_object(text) {
        // A newer version may well have fields of other types: that is the cause then, not the symptom.
        Ok(Versioned { version }) if version != RECORD_VERSION => RecordError::Version {
            found: version,
            known: RECORD_VERSION,
        },
        _ if error.is_data() => wrong_type::<T>(text, &error),
        _ => RecordError::Json {
            why: shorten(&error.to_string()),
        },
    })
}

fn check_size(bytes: &[u8]) -> Result<(), RecordError> {
    match bytes.len() {
        0..=MAX_RECORD_BYTES => Ok(()),
        bytes => Err(RecordError::TooLarge {
            bytes,
            limit: MAX_RECORD_BYTES,
        }),
    }
}

/// Whether a new record is one that agents can read, also with what they fill in.
///
/// # Errors
/// When it is too large: the field that takes most of it.
pub fn check_room<T: Serialize>(document: &T) -> Result<(), RecordError> {
    let most = MAX_RECORD_BYTES - ROOM;
    let bytes = encode(document);
    if bytes.len() <= most {
        return Ok(());
    }
    let object: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&bytes).unwrap_or_default();
    let largest = object.iter().max_by_key(|(_, value)| value.get().len());
    let why = format!("makes a record of {} bytes; {most} are allowed", bytes.len());
    Err(RecordError::field(
        largest.map_or("record", |(name, _)| name.as_str()),
        why,
    ))
}

/// The error with the field that has the wrong type. Sought only once there is an error.
fn wrong_type<T: DeserializeOwned>(text: &str, error: &serde_json::Error) -> RecordError {
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let again: Result<T, _> = object(serde_path_to_error::Deserializer::new(&mut json, &mut track));
    let path = track.path();
    let text = error.to_string();
    if let Some(missing) = text
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split('`').next())
    {
        let within = path.to_string();
        let field = if path.iter().next().is_none() {
            missing.to_owned()
        } else {
            format!("{within}.{missing}")
        };
        return RecordError::field(shorten(&field), "is missing");
    }
    if again.is_ok() || path.iter().next().is_none() {
        return RecordError::Json {
            why: shorten(&error.to_string()),
        };
    }
    // The path tells where; what is left is for people who do not know serde's words.
    let why = error.to_string();
    let why = why.rfind(" at line ").map_or(&*why, |at| &why[..at]);
    let why = [
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected a JSON object"),
    ]
    .iter()
    .find_map(|(serde, plain)| Some(format!("{}{plain}", why.strip_suffix(serde)?)))
    .unwrap_or_else(|| why.to_owned());
    RecordError::field(shorten(&path.to_string()), shorten(&why))
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

fn from_object<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = object(&mut json)?;
    json.end()?;
    Ok(value)
}

/// Deserialises from a JSON object only. serde reads a struct from an array too, field by field in the order
/// of this code: no form that anybody means, nor one that could be rewritten.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    from.deserialize_map(Object(PhantomData))
}

/// Deserialises a list of JSON objects; see [`object`].
pub(crate) fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Object<T>(T);
    impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            object(from).map(Object)
        }
    }
    let objects: Vec<Object<T>> = Vec::deserialize(from)?;
    Ok(objects.into_iter().map(|object| object.0).collect())
}

/// serde quotes the offending input: a bad record must neither fill a log nor drive a terminal.
fn shorten(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().count() <= 200 {
        return text;
    }
    // The end tells what was expected, or line and column: keep it.
    let tail = text
        .rfind(", expected ")
        .or_else(|| text.rfind(" at line "))
        .map_or("", |at| &text[at..]);
    let cut = |text: &str, n| text.chars().take(n).collect::<String>();
    format!("{}…{}", cut(&text, 120), cut(tail, 80))
}

pub(crate) fn check_version(version: Option<u64>) -> Result<(), RecordError> {
    match version {
        None | Some(RECORD_VERSION) => Ok(()),
        Some(found) => Err(RecordError::Version {
            found,
            known: RECORD_VERSION,
        }),
    }
}

/// Encodes a record for storing: compact JSON, absent fields left out.
pub fn encode<T: Serialize>(document: &T) -> Vec<u8> {
    // The documents are plain data with string keys: serialising them cannot fail.
    serde_json::to_vec(document)
        .unwrap_or_else(|error| unreachable!("a document does not serialise: {error}"))
}

/// The record with these top-level fields set and every other field's value kept byte by byte, also of fields
/// that this version does not know. The fields come out in the order of their names.
///
/// # Errors
/// When the stored value is not a JSON object, or what comes out is too large for a record.
pub fn set_fields(
    stored: &[u8],
    fields: impl IntoIterator<Item = (&'static str, Value)>,
) -> Result<Vec<u8>, RecordError> {
    // Not as `Value`s: these have no place for numbers beyond 64 bits, nor for nesting deeper than 128.
    let mut object: BTreeMap<String, Box<RawValue>> = decode(stored)?;
    for (name, value) in fields {
        let value = serde_json::value::to_raw_value(&value)
            .unwrap_or_else(|error| unreachable!("a value does not serialise: {error}"));
        object.insert(name.to_owned(), value);
    }
    let record = encode(&object);
    check_size(&record)?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_survive_a_rewrite() {
        let stored =
            br#"{"zeta":{"deep":[1,2,{"x":null}]},"vni":1,"subnets":[{"cidr":"10.0.0.0/8","hue":"b"}]}"#;
        let rewritten = set_fields(stored, [("vni", Value::from(7))]).unwrap();
        let value: Value = serde_json::from_slice(&rewritten).unwrap();
        assert_eq!(value["zeta"]["deep"][2]["x"], Value::Null);
        assert_eq!(value["subnets"][0]["hue"], "b");
        assert_eq!(value["vni"], 7);
    }

    #[test]
    fn numbers_that_json_allows_survive_a_rewrite() {
        let rewritten = set_fields(br#"{"big":18446744073709551615,"f":0.1}"#, []).unwrap();
        assert_eq!(rewritten, br#"{"big":18446744073709551615,"f":0.1}"#);
    }

    #[test]
    fn what_a_value_has_no_place_for_survives_a_rewrite() {
        let deep = format!("{}0{}", "[".repeat(500), "]".repeat(500));
        let unknown = format!(
            r#""a":123456789012345678901234567890,"b":1e999,"c":0.10,"d":-0,"e":"\ud800","f":{deep},"g":{{"y":1,"x":2}}"#
        );
        let rewritten = set_fields(
            format!("{{{unknown},\"vni\":1}}").as_bytes(),
            [("vni", Value::from(7))],
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(rewritten).unwrap(),
            format!("{{{unknown},\"vni\":7}}")
        );
    }

    #[test]
    fn what_is_read_can_be_rewritten() {
        for bytes in [
            &b"{\"subnets\":[],\"x\":\"\xff\"}"[..],
            br#"[null,[{"cidr":"10.1.0.0/16"}],null,null,false,{},{}]"#,
            br#"{"subnets":[["10.1.0.0/16",null,null,[]]]}"#,
        ] {
            let text = String::from_utf8_lossy(bytes);
            assert!(decode::<crate::NetworkDocument>(bytes).is_err(), "{text}");
        }
        let array = br#"{"attachment":["/run/netns/web",null]}"#;
        assert!(decode::<crate::EndpointDocument>(array).is_err());
    }

    #[test]
    fn a_wrong_value_does_not_reach_a_terminal_as_it_is() {
        let bad = br#"{"vteps":[],"kind":"\u001b[2J"}"#;
        let error = decode::<crate::PeerDocument>(bad).unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }

    #[test]
    fn a_long_wrong_value_makes_a_short_message() {
        let text = format!("{{\"mtu\":\"{}\"}}", "x".repeat(100_000));
        let error = decode::<crate::NetworkDocument>(text.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.len() < 300 && error.starts_with("mtu: "), "{error}");
        assert!(error.ends_with("expected a whole number, 0 or more"), "{error}");
    }

    #[test]
    fn a_large_value_is_refused_unread() {
        let error = decode::<Value>(&vec![b'['; 1 << 20]).unwrap_err();
        assert!(matches!(error, RecordError::TooLarge { .. }));
    }

    #[test]
    fn a_newer_version_is_named_even_when_its_types_differ() {
        let error = decode::<crate::NetworkDocument>(br#"{"version":9,"subnets":"all"}"#).unwrap_err();
        assert_eq!(error, RecordError::Version { found: 9, known: 1 });
    }
}
