//! Records as bytes: bounded decoding, and rewriting that keeps what this version does not know.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::RecordError;

/// No record is larger than this. etcd itself refuses requests over 1.5 MiB by default.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// The newest record version that this code reads, and the one it writes. A record without `version` is
/// of version 1.
pub const RECORD_VERSION: u64 = 1;

/// Decodes a stored record.
///
/// # Errors
/// When the value is too large, of a newer version, or not the record's JSON.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLarge {
            bytes: bytes.len(),
            limit: MAX_RECORD_BYTES,
        });
    }
    serde_json::from_slice(bytes).map_err(|error| match version(bytes) {
        // A newer version may well have fields of other types: that is the cause then, not the symptom.
        Some(found) if found != RECORD_VERSION => RecordError::Version {
            found,
            known: RECORD_VERSION,
        },
        _ => RecordError::Json {
            why: shorten(&error.to_string()),
        },
    })
}

fn version(bytes: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u64,
    }
    serde_json::from_slice::<Versioned>(bytes).ok().map(|v| v.version)
}

/// serde quotes the offending input; a bad record must not fill a log.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => {
            // The end tells line and column: keep it.
            let tail = text.rfind(" at line ").map_or("", |at| &text[at..]);
            format!("{}…{tail}", &text[..end])
        }
        None => text.to_owned(),
    }
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

/// The record with these top-level fields set and every other byte of meaning kept, also fields that this
/// version does not know.
///
/// # Errors
/// When the stored value is not a JSON object.
pub fn set_fields(
    stored: &[u8],
    fields: impl IntoIterator<Item = (&'static str, Value)>,
) -> Result<Vec<u8>, RecordError> {
    let mut object: Map<String, Value> = decode(stored)?;
    for (name, value) in fields {
        object.insert(name.to_owned(), value);
    }
    Ok(encode(&object))
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
    fn a_long_wrong_value_makes_a_short_message() {
        let text = format!("{{\"mtu\":\"{}\"}}", "x".repeat(100_000));
        let error = decode::<crate::NetworkDocument>(text.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.len() < 400 && error.contains("at line 1"), "{error}");
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
