//! `docs/records.md` against the code: its examples are sound records, its tables name the fields of the
//! schemas, and the messages it quotes are those given.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use weft_store_schema::{Prefix, json_schemas};

use crate::{
    kinds::{KINDS, here, kind, kind_of},
    schemas::Validator,
};

fn reference() -> String {
    fs::read_to_string(here("../docs/records.md")).unwrap()
}

/// The reference's sections, each with the kind that it is about.
fn sections() -> Vec<(String, String)> {
    let text = reference();
    let sections: Vec<_> = text
        .split("\n## ")
        .skip(1)
        .filter_map(|section| {
            let (title, body) = section.split_once('\n')?;
            let title = title.strip_prefix('`')?.strip_suffix('`')?;
            let (file, _) = json_schemas()
                .into_iter()
                .find(|(_, schema)| schema.get("title") == Some(&Value::from(title)))
                .unwrap_or_else(|| panic!("no record is called {title}"));
            Some((file.strip_suffix(".json")?.to_owned(), body.to_owned()))
        })
        .collect();
    assert_eq!(sections.len(), KINDS.len());
    sections
}

/// Every field of a schema, those of objects inside by their path.
fn fields(schema: &Value, at: &Value, path: &str, into: &mut BTreeSet<String>) {
    if let Some(name) = at["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return fields(schema, &schema["$defs"][name], path, into);
    }
    if at["items"].is_object() {
        return fields(schema, &at["items"], &format!("{path}[]"), into);
    }
    for (name, property) in at["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        fields(schema, property, &path, into);
        into.insert(path);
    }
}

/// The cells of a table's row, without the quotes around code.
fn row(line: &str) -> Option<Vec<&str>> {
    let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
    Some(
        cells
            .split(" | ")
            .map(|cell| cell.trim_matches(['`', ' ']))
            .collect(),
    )
}

#[test]
fn each_field_is_described() {
    for (name, body) in sections() {
        let (_, schema) = json_schemas()
            .into_iter()
            .find(|(file, _)| *file == format!("{name}.json"))
            .unwrap();
        let mut wanted = BTreeSet::new();
        fields(schema.as_value(), schema.as_value(), "", &mut wanted);
        let described: BTreeSet<String> = body
            .lines()
            .skip_while(|line| !line.starts_with("| field |"))
            .take_while(|line| line.starts_with('|'))
            .skip(2)
            .filter_map(|line| Some(row(line)?[0].to_owned()))
            .collect();
        assert_eq!(described, wanted, "fields of {name}");
    }
}

#[test]
fn each_example_is_sound() {
    let text = reference();
    let mut count = 0;
    for block in text.split("```json ").skip(1) {
        let (key, rest) = block.split_once('\n').unwrap();
        let record = rest.split_once("```").unwrap().0;
        let key = Prefix::default()
            .parse(format!("/weft/v1/{key}").as_bytes())
            .unwrap();
        let kind = kind_of(&key);
        if let Err(error) = (kind.judge)(record.as_bytes()) {
            panic!("the example of {key}: {error}");
        }
        let record: Value = serde_json::from_str(record).unwrap();
        assert!(Validator::of(kind.name).is_valid(&record), "the example of {key}");
        count += 1;
    }
    assert!(count > KINDS.len());
}

#[test]
fn each_message_is_the_one_given() {
    let mut count = 0;
    for (name, body) in sections() {
        let refused = body
            .lines()
            .skip_while(|line| !line.starts_with("| record |"))
            .take_while(|line| line.starts_with('|'))
            .skip(2);
        for line in refused {
            let [record, message] = row(line).unwrap()[..] else {
                panic!("not two cells: {line}");
            };
            // Code that ends with a backtick is quoted by two of them.
            let message = if message.matches('`').count() % 2 == 1 {
                format!("{message}`")
            } else {
                message.to_owned()
            };
            let Err(error) = (kind(&name).judge)(record.as_bytes()) else {
                panic!("{name} {record} is accepted");
            };
            assert_eq!(error.to_string(), message);
            count += 1;
        }
    }
    assert!(count > 20);
}
