//! Copies of the records that this host needs back if the store loses them, in a file: its own endpoints, the networks,
//! and the peers that no agent speaks for. Read by an agent that starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use weft_core::record::Entry;

use crate::state_file::{StateFile, Writer, Written};

/// The file.
#[derive(Debug, Clone)]
pub(crate) struct OwnRecords {
    path: PathBuf,
    writer: Writer,
}

/// A record as it lies in the file. Values are JSON, which is text.
#[derive(Serialize, Deserialize)]
struct Stored {
    key: String,
    value: String,
    created: i64,
    written: i64,
}

impl OwnRecords {
    /// The file in this directory.
    pub(crate) fn new(state_dir: &Path, writer: &Writer) -> Self {
        Self {
            writer: writer.clone(),
            path: state_dir.join("records.json"),
        }
    }

    /// What a former agent wrote down. Nothing if it cannot be read, which is told: it only matters where the store has
    /// lost records, too.
    pub(crate) fn read(&self) -> Vec<Entry> {
        let read = match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice::<Vec<Stored>>(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => Err(error),
        };
        let stored = read.unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "cannot read the copies of this host's records");
            Vec::new()
        });
        let entry = |stored: Stored| Entry {
            key: stored.key.into_bytes(),
            value: stored.value.into_bytes(),
            create_revision: stored.created,
            mod_revision: stored.written,
        };
        stored.into_iter().map(entry).collect()
    }

    /// Has them written down, instead of those before.
    pub(crate) fn write(&self, entries: Vec<Entry>) -> Written {
        StateFile::new(self.path.clone(), &self.writer).replace(move || {
            let stored = entries.into_iter().filter_map(|entry| {
                Some(Stored {
                    key: String::from_utf8(entry.key).ok()?,
                    value: String::from_utf8(entry.value).ok()?,
                    created: entry.create_revision,
                    written: entry.mod_revision,
                })
            });
            Ok(serde_json::to_vec(&stored.collect::<Vec<_>>())?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_broken_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let records = OwnRecords::new(dir.path(), &Writer::default());
        assert_eq!(records.read(), []);
        let entry = Entry {
            key: b"/weft/v1/networks/blue".to_vec(),
            value: br#"{"subnets":[{"cidr":"10.1.0.0/24"}],"unknown":1}"#.to_vec(),
            create_revision: 7,
            mod_revision: 9,
        };
        records
            .write(vec![entry.clone()])
            .blocking_recv()
            .unwrap()
            .unwrap();
        assert_eq!(records.read(), [entry]);
        fs::write(dir.path().join("records.json"), "[").unwrap();
        assert_eq!(records.read(), []);
    }
}
