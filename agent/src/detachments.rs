//! Endpoints detached on this host whose records the store still has: kept in a file, so that neither an
//! etcd outage nor the agent's own end brings a detached endpoint back.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use weft_store_schema::EndpointRef;

use crate::state_file::{self, StateFile, Writer, Written};

/// The file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum DetachmentsError {
    /// It cannot be read or written.
    #[error("cannot {action} {}, which remembers detached endpoints", path.display())]
    Io {
        /// What cannot be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// Starting without it could bring endpoints back, so that is for people to decide.
    #[error(
        "{} remembers detached endpoints and is damaged: put it right; or remove it, and then detach once more what was detached while etcd was away",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Remembers detached endpoints.
#[derive(Debug)]
pub(crate) struct Detachments {
    file: StateFile,
    /// With the revision at which the record was created, 0 if that is not known.
    present: BTreeMap<EndpointRef, i64>,
    /// What a newer version has written about them beside that.
    unknown: BTreeMap<EndpointRef, Map<String, Value>>,
    /// What else a newer version remembers here, for when it is back.
    not_understood: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    network: String,
    node: String,
    id: String,
    created: i64,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl Detachments {
    /// Reads what a former agent remembered.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or the directory cannot be made.
    pub(crate) fn open(state_dir: &Path, writer: &Writer) -> Result<Self, DetachmentsError> {
        let path = state_dir.join("detached.json");
        let error = |action| {
            let path = path.clone();
            move |source| DetachmentsError::Io {
                action,
                path,
                source: Arc::new(source),
            }
        };
        fs::create_dir_all(state_dir).map_err(error("make the directory of"))?;
        let stored: Vec<Value> = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| DetachmentsError::Damaged {
                path: path.clone(),
                source,
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(error("read")(e)),
        };
        let mut detachments = Self {
            file: StateFile::new(path, writer),
            present: BTreeMap::new(),
            unknown: BTreeMap::new(),
            not_understood: Vec::new(),
        };
        for value in stored {
            match understand(&value) {
                Some((endpoint, created, unknown)) => {
                    detachments.present.insert(endpoint.clone(), created);
                    detachments.unknown.insert(endpoint, unknown);
                }
                None => detachments.not_understood.push(value),
            }
        }
        Ok(detachments)
    }

    /// What is remembered.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&EndpointRef, &i64)> {
        self.present.iter()
    }

    /// Remembers an endpoint: in the file once the answer says so.
    pub(crate) fn insert(&mut self, endpoint: &EndpointRef, created: i64) -> Remembered {
        let before = self.present.insert(endpoint.clone(), created);
        let written = match before {
            Some(known) if known == created => self.written(),
            _ => self.write(),
        };
        self.remembered(written)
    }

    /// There is nothing to remember.
    pub(crate) fn nothing(&self) -> Remembered {
        self.remembered(state_file::written_already())
    }

    /// Forgets an endpoint. That one which is over stays remembered for a while does no harm.
    pub(crate) fn remove(&mut self, endpoint: &EndpointRef) {
        if self.present.remove(endpoint).is_some() {
            self.unknown.remove(endpoint);
            // Nobody waits for it.
            drop(self.write());
        }
    }

    /// All that is remembered until now, on its way to the disk.
    pub(crate) fn written(&mut self) -> Written {
        if self.file.is_written() {
            return state_file::written_already();
        }
        self.write()
    }

    fn remembered(&self, written: Written) -> Remembered {
        Remembered {
            path: self.file.path().to_owned(),
            written,
        }
    }

    fn write(&mut self) -> Written {
        let understood = self.present.iter().map(|(e, created)| Stored {
            network: e.network.to_string(),
            node: e.node.to_string(),
            id: e.id.to_string(),
            created: *created,
            unknown: self.unknown.get(e).cloned().unwrap_or_default(),
        });
        let (understood, others): (Vec<Stored>, _) = (understood.collect(), self.not_understood.clone());
        self.file.replace(move || {
            let understood = understood.iter().map(serde_json::to_value);
            let all: serde_json::Result<Vec<Value>> = understood.chain(others.into_iter().map(Ok)).collect();
            Ok(serde_json::to_vec(&all?)?)
        })
    }
}

/// A detachment on its way to the disk.
#[derive(Debug)]
#[must_use]
pub(crate) struct Remembered {
    path: PathBuf,
    written: Written,
}

impl Remembered {
    /// Waits until it is there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) async fn on_disk(self) -> Result<(), DetachmentsError> {
        let lost = |_| Err(Arc::new(io::Error::other("its thread has ended")));
        let written = self.written.await.unwrap_or_else(lost);
        written.map_err(|source| DetachmentsError::Io {
            action: "write",
            path: self.path,
            source,
        })
    }
}

fn understand(value: &Value) -> Option<(EndpointRef, i64, Map<String, Value>)> {
    let stored = Stored::deserialize(value).ok()?;
    let endpoint = EndpointRef {
        network: stored.network.parse().ok()?,
        node: stored.node.parse().ok()?,
        id: stored.id.parse().ok()?,
    };
    Some((endpoint, stored.created, stored.unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Detachments {
        Detachments::open(dir, &Writer::default()).unwrap()
    }

    #[tokio::test]
    async fn what_a_newer_version_remembers_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("detached.json");
        let newer = r#"[{"network":"blue","node":"h1","id":"web","created":7,"moons":1},{"galaxy":{"x":2}}]"#;
        fs::write(&path, newer).unwrap();
        let mut detachments = open(dir.path());
        let other = EndpointRef {
            network: "blue".parse().unwrap(),
            node: "h1".parse().unwrap(),
            id: "db".parse().unwrap(),
        };
        detachments.insert(&other, 1).on_disk().await.unwrap();
        detachments.remove(&other);
        // It is the newest that is waited for.
        detachments.written().await.unwrap().unwrap();
        let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(read(&fs::read(&path).unwrap()), read(newer.as_bytes()));
    }

    fn web() -> EndpointRef {
        EndpointRef {
            network: "blue".parse().unwrap(),
            node: "h1".parse().unwrap(),
            id: "web".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn what_is_remembered_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = web();
        open(dir.path()).insert(&endpoint, 7).on_disk().await.unwrap();
        let mut again = open(dir.path());
        assert_eq!(again.iter().collect::<Vec<_>>(), [(&endpoint, &7)]);
        again.insert(&endpoint, 7).on_disk().await.unwrap();
        again.remove(&endpoint);
        again.written().await.unwrap().unwrap();
        assert_eq!(open(dir.path()).iter().count(), 0);
    }

    /// What could not be written is not taken for remembered the next time.
    #[tokio::test]
    async fn what_could_not_be_written_is_written_when_it_is_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = web();
        let mut detachments = open(dir.path());
        let in_the_way = dir.path().join("detached.new");
        fs::create_dir(&in_the_way).unwrap();
        for _ in 0..2 {
            let error = detachments.insert(&endpoint, 7).on_disk().await.unwrap_err();
            assert!(error.to_string().contains("cannot write"), "{error}");
        }
        fs::remove_dir(&in_the_way).unwrap();
        detachments.insert(&endpoint, 7).on_disk().await.unwrap();
        assert_eq!(open(dir.path()).iter().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("detached.json"), "[{").unwrap();
        let error = Detachments::open(dir.path(), &Writer::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("detached.json") && error.contains("remove it"),
            "{error}"
        );
    }
}
