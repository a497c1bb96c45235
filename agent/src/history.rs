//! Which store this host last agreed with: identity of the etcd cluster and a revision, in a file, so that an agent
//! that starts after the store was emptied, replaced or restored does not believe that everything is gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Remembers the store.
#[derive(Debug)]
pub(crate) struct History {
    path: PathBuf,
    known: Option<Known>,
}

/// The store as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    cluster_id: u64,
    revision: i64,
}

/// The file is rewritten when the store has come this much further.
const STRIDE: i64 = 1000;

impl History {
    /// Reads what a former agent remembered. A file that cannot be understood is told of and counts as none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("store.json");
        let known = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(
                    |error| tracing::warn!(path = %path.display(), %error, "cannot understand this file"),
                )
                .ok(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(Self { path, known })
    }

    /// Whether nothing is known: a first start, or a lost file.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_none()
    }

    /// Why a store at this position is not the one that was known, if it is not.
    pub(crate) fn contradicts(&self, (cluster_id, revision): (u64, i64)) -> Option<String> {
        let known = self.known?;
        if known.cluster_id != cluster_id {
            Some(format!(
                "the store is another cluster ({cluster_id:x}) than before this agent started ({:x})",
                known.cluster_id
            ))
        } else if revision < known.revision {
            Some(format!(
                "the store is at revision {revision}, and was at {} before this agent started, as if restored from a backup",
                known.revision
            ))
        } else {
            None
        }
    }

    /// Remembers a position, if it is far enough from what is remembered, or `now`.
    pub(crate) fn note(&mut self, (cluster_id, revision): (u64, i64), now: bool) {
        let known = Known { cluster_id, revision };
        let near = self
            .known
            .is_some_and(|k| k.cluster_id == cluster_id && (0..STRIDE).contains(&(revision - k.revision)));
        if self.known == Some(known) || (near && !now) {
            return;
        }
        let new = self.path.with_extension("new");
        let written = serde_json::to_vec(&known)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &self.path));
        match written {
            Ok(()) => self.known = Some(known),
            // An older position only notices less.
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remember the store's position");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_or_an_older_store_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        assert_eq!(history.contradicts((1, 10)), None);
        history.note((1, 100), false);
        history.note((1, 200), false);
        let again = History::open(dir.path()).unwrap();
        assert_eq!(again.contradicts((1, 100)), None);
        assert!(again.contradicts((2, 500)).unwrap().contains("another cluster"));
        assert!(again.contradicts((1, 99)).unwrap().contains("revision 99"));
        history.note((1, 200), true);
        assert!(History::open(dir.path()).unwrap().contradicts((1, 150)).is_some());
    }
}
