//! What is refused, and the exact words (`bad-records.txt`): they name the field and say what would be right.

use std::fs;

use weft_store_schema::{EndpointDocument, MAX_RECORD_BYTES, RecordError, check_room, decode, set_fields};

use crate::kinds::{here, kind};

/// What a record of a kind needs, in the place of `...`.
fn sound(kind: &str) -> &'static str {
    match kind {
        "network" => r#""subnets":[{"cidr":"10.1.0.0/16"}]"#,
        "endpoint" => r#""attachment":{"netns":"/run/netns/web"}"#,
        "peer" => r#""vteps":["10.99.0.1"]"#,
        "address" => r#""endpoint":"host1/web""#,
        "vni" => r#""network":"blue""#,
        other => panic!("no sound record of kind {other:?}"),
    }
}

/// What a record is refused with.
fn refusal(line: &str) -> String {
    let (name, record) = line.split_once(' ').unwrap_or((line, ""));
    let record = if record.contains("...") {
        record.replacen("...", sound(name), 1)
    } else {
        record.to_owned()
    };
    let Err(error) = (kind(name).judge)(record.as_bytes()) else {
        return "(accepted)".to_owned();
    };
    let text = error.to_string();
    match &error {
        RecordError::Field { field, why } => assert_eq!(text, format!("{field}: {why}")),
        RecordError::Version { .. } => assert_eq!(error.field_path(), Some("version")),
        _ => assert_eq!(error.field_path(), None),
    }
    text
}

#[test]
fn each_bad_record_is_refused_with_these_words() {
    let path = here("tests/records/bad-records.txt");
    let file = fs::read_to_string(&path).unwrap();
    let mut now = String::new();
    let mut lines = file.lines();
    while let Some(line) = lines.next() {
        now += line;
        now += "\n";
        if !line.is_empty() && !line.starts_with('#') {
            assert!(
                lines.next().is_some_and(|l| l.starts_with("    ")),
                "no message after {line}"
            );
            now += &format!("    {}\n", refusal(line));
        }
    }
    assert!(!now.contains("(accepted)"), "{now}");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let file = fs::read_to_string(&path).unwrap();
    for (is, was) in now.lines().zip(file.lines()) {
        assert_eq!(is, was, "if that is meant, run with UPDATE_GOLDEN=1");
    }
}

#[test]
fn a_large_value_is_refused_whatever_it_holds() {
    let padding = "x".repeat(1 << 20);
    let sound = format!(r#"{{"attachment":{{"netns":"/run/netns/web"}},"note":"{padding}"}}"#);
    let error = decode::<EndpointDocument>(sound.as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the value has {} bytes; a record may have at most 262144",
            sound.len()
        )
    );
    let fitting = format!(
        r#"{{"attachment":{{"netns":"/run/netns/web"}},"note":"{}"}}"#,
        &padding[..MAX_RECORD_BYTES - 100]
    );
    assert!(decode::<EndpointDocument>(fitting.as_bytes()).is_ok());
}

/// What is written is what can be read.
#[test]
fn no_record_is_written_that_is_too_large_to_be_read() {
    let label = |bytes: usize| EndpointDocument {
        labels: [("a".to_owned(), "x".repeat(bytes))].into(),
        ..EndpointDocument::default()
    };
    let error = check_room(&label(MAX_RECORD_BYTES - 4096)).unwrap_err();
    assert!(
        error.to_string().starts_with("labels: makes a record of 258"),
        "{error}"
    );
    assert!(check_room(&label(MAX_RECORD_BYTES - 4096 - 200)).is_ok());
    let full = format!(r#"{{"note":"{}"}}"#, "x".repeat(MAX_RECORD_BYTES - 20));
    let error = set_fields(full.as_bytes(), [("mac", "02:42:0a:01:00:02".into())]).unwrap_err();
    assert!(matches!(error, RecordError::TooLarge { .. }), "{error}");
}

#[test]
fn more_than_lists_may_hold_is_counted_not_shown() {
    let many = |n: usize, one: &dyn Fn(usize) -> String| (0..n).map(one).collect::<Vec<_>>().join(",");
    let subnets = |n| many(n, &|i| format!(r#"{{"cidr":"10.{i}.0.0/24"}}"#));
    let reserved = |n| many(n, &|i| format!(r#""10.1.{}.{}""#, i / 250, i % 250 + 1));
    let network = kind("network");
    for (record, message) in [
        (
            format!(r#"{{"subnets":[{}]}}"#, subnets(65)),
            "subnets: 65 subnets; at most 64 are allowed",
        ),
        (
            format!(
                r#"{{"subnets":[{{"cidr":"10.1.0.0/16","reserved":[{}]}}]}}"#,
                reserved(1025)
            ),
            "subnets[0].reserved: 1025 entries; at most 1024 are allowed, a range counts as one",
        ),
    ] {
        assert_eq!(
            (network.judge)(record.as_bytes()).unwrap_err().to_string(),
            message
        );
    }
    assert!((network.judge)(format!(r#"{{"subnets":[{}]}}"#, subnets(64)).as_bytes()).is_ok());
    let peer = format!(
        r#"{{"vteps":["10.99.0.1"],"agent_version":"{}"}}"#,
        "1".repeat(129)
    );
    assert_eq!(
        (kind("peer").judge)(peer.as_bytes()).unwrap_err().to_string(),
        "agent_version: longer than 128 bytes, or with control characters"
    );
    let long = "x".repeat(5000);
    let path = format!(r#"{{"attachment":{{"netns":"/run/netns/{long}"}}}}"#);
    let error = (kind("endpoint").judge)(path.as_bytes()).unwrap_err().to_string();
    assert!(
        error.starts_with("attachment.netns: \"/run/netns/xxx") && error.len() < 250,
        "{error}"
    );
}
