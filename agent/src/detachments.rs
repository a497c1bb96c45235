//! Endpoints detached on this host whose records the store still has: kept in a file, so that neither an
//! etcd outage nor the agent's own end brings a detached endpoint back.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use weft_store_schema::EndpointRef;

use crate::state_file;

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
        source: io::Error,
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
    path: PathBuf,
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
    pub(crate) fn open(state_dir: &Path) -> Result<Self, DetachmentsError> {
        let path = state_dir.join("detached.json");
        let error = |action| {
            let path = path.clone();
            move |source| DetachmentsError::Io { action, path, source }
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
            path,
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

    /// Remembers an endpoint; it is in the file when this returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn insert(&mut self, endpoint: &EndpointRef, created: i64) -> Result<(), DetachmentsError> {
        let before = self.present.insert(endpoint.clone(), created);
        if before == Some(created) {
            return Ok(());
        }
        self.write().inspect_err(|_| {
            // What is not in the file is not remembered: the next try has to write it.
            match before {
                Some(created) => self.present.insert(endpoint.clone(), created),
                None => self.present.remove(endpoint),
            };
        })
    }

    /// Forgets an endpoint.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn remove(&mut self, endpoint: &EndpointRef) -> Result<(), DetachmentsError> {
        if self.present.remove(endpoint).is_some() {
            self.unknown.remove(endpoint);
            self.write()
        } else {
            Ok(())
        }
    }

    fn write(&self) -> Result<(), DetachmentsError> {
        let understood = self.present.iter().map(|(e, created)| {
            serde_json::to_value(Stored {
                network: e.network.to_string(),
                node: e.node.to_string(),
                id: e.id.to_string(),
                created: *created,
                unknown: self.unknown.get(e).cloned().unwrap_or_default(),
            })
        });
        let others = self.not_understood.iter().cloned().map(Ok);
        let stored: serde_json::Result<Vec<Value>> = understood.chain(others).collect();
        let write = || state_file::replace(&self.path, &serde_json::to_vec(&stored?)?);
        write().map_err(|source| DetachmentsError::Io {
            action: "write",
            path: self.path.clone(),
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

    #[test]
    fn what_a_newer_version_remembers_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("detached.json");
        let newer = r#"[{"network":"blue","node":"h1","id":"web","created":7,"moons":1},{"galaxy":{"x":2}}]"#;
        fs::write(&path, newer).unwrap();
        let mut detachments = Detachments::open(dir.path()).unwrap();
        let other = EndpointRef {
            network: "blue".parse().unwrap(),
            node: "h1".parse().unwrap(),
            id: "db".parse().unwrap(),
        };
        detachments.insert(&other, 1).unwrap();
        detachments.remove(&other).unwrap();
        let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(read(&fs::read(&path).unwrap()), read(newer.as_bytes()));
    }

    #[test]
    fn what_is_remembered_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = EndpointRef {
            network: "blue".parse().unwrap(),
            node: "h1".parse().unwrap(),
            id: "web".parse().unwrap(),
        };
        Detachments::open(dir.path())
            .unwrap()
            .insert(&endpoint, 7)
            .unwrap();
        let mut again = Detachments::open(dir.path()).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), [(&endpoint, &7)]);
        again.remove(&endpoint).unwrap();
        assert_eq!(Detachments::open(dir.path()).unwrap().iter().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("detached.json"), "[{").unwrap();
        let error = Detachments::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("detached.json") && error.contains("remove it"),
            "{error}"
        );
    }
}
