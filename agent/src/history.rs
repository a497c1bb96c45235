//! Which store this host last agreed with, and which life of the node this is, in a file.
//!
//! Identity of the etcd cluster and a revision, so that an agent that starts after the store was emptied, replaced or
//! restored does not believe that everything is gone. And the incarnation, which ends when an operator removes the
//! node from the cluster, with what it held until people have taken notice of that.

use std::{fs, io, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::state_file::{self, StateFile, Writer, Written};

/// Remembers the store, and this life of the node.
#[derive(Debug)]
pub(crate) struct History {
    file: StateFile,
    stored: Stored,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    known: Option<Known>,
    incarnation: String,
    /// The revision of the mark that began this life; 0 if none did.
    #[serde(skip_serializing_if = "is_none")]
    mark: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<Removed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Held>,
    /// What a newer version remembers here, for when it is back.
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

/// The store as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    cluster_id: u64,
    revision: i64,
}

/// Records are kept that the store has lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Why.
    pub(crate) because: String,
    /// Since when.
    pub(crate) since: SystemTime,
}

/// The end of the node's last life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    /// The node on which that was asked for, if it is known.
    pub(crate) by: Option<String>,
    /// How many endpoints were released.
    pub(crate) endpoints: u64,
    /// Some of them: `<network>/<id>` and their addresses.
    pub(crate) held: Vec<String>,
}

/// The file is rewritten when the store has come this much further, or when it is time.
const STRIDE: i64 = 1000;

/// Whether no mark began this life.
fn is_none(mark: &i64) -> bool {
    *mark == 0
}

fn new_incarnation() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl History {
    /// Reads what a former agent remembered. A file that cannot be understood is told of, kept under another name, and
    /// counts as none: then this is another life.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(crate) fn open(state_dir: &Path, writer: &Writer) -> io::Result<Self> {
        let path = state_dir.join("store.json");
        let stored: Stored = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(stored) => stored,
                Err(error) => {
                    let kept = path.with_extension("json.unreadable");
                    tracing::warn!(path = %path.display(), kept = %kept.display(), %error, "cannot understand this file");
                    fs::rename(&path, kept)?;
                    Stored::default()
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(e) => return Err(e),
        };
        let mut stored = stored;
        if stored.incarnation.is_empty() {
            stored.incarnation = new_incarnation();
            // At once: nobody waits for the loop yet, and nobody is to hear of a life that is not written.
            let written = serde_json::to_vec(&stored)
                .map_err(io::Error::from)
                .and_then(|bytes| state_file::replace(&path, &bytes));
            if let Err(error) = written {
                tracing::warn!(path = %path.display(), %error, "cannot write this file; tried again");
            }
        }
        Ok(Self {
            file: StateFile::new(path, writer),
            stored,
        })
    }

    /// Which life of the node this is.
    pub(crate) fn incarnation(&self) -> &str {
        &self.stored.incarnation
    }

    /// How the node's last life ended, until somebody has taken notice.
    pub(crate) fn removed(&self) -> Option<&Removed> {
        self.stored.removed.as_ref()
    }

    /// The revision of the mark of a removal that this life began with, 0 if it did not: it is there until this life is
    /// published, perhaps by another process.
    pub(crate) fn heeded(&self) -> i64 {
        self.stored.mark
    }

    /// Starts another life: an operator has ended the last one, by the mark of this revision. Nobody is to hear of it before
    /// it is written.
    pub(crate) fn begin_anew(&mut self, mark: i64, mut removed: Removed) -> Written {
        // Removed again before anybody took notice of the first time: all of it is to be told.
        if let Some(before) = &self.stored.removed {
            removed.endpoints += before.endpoints;
            let more: Vec<_> = before
                .held
                .iter()
                .filter(|held| !removed.held.contains(held))
                .collect();
            let more: Vec<String> = more.into_iter().cloned().collect();
            removed.held.extend(more);
        }
        self.write(Stored {
            known: self.stored.known,
            incarnation: new_incarnation(),
            mark,
            removed: Some(removed),
            held: self.stored.held.clone(),
            unknown: self.stored.unknown.clone(),
        })
    }

    /// Somebody has taken notice of the end of the last life.
    pub(crate) fn acknowledge(&mut self) {
        drop(self.write(Stored {
            removed: None,
            ..self.stored.clone()
        }));
    }

    /// Why and since when records are kept that the store has lost, if they are.
    pub(crate) fn held(&self) -> Option<&Held> {
        self.stored.held.as_ref()
    }

    /// Remembers why records are kept that the store has lost, or that none are any more.
    pub(crate) fn hold(&mut self, because: Option<&str>) {
        if self.stored.held.as_ref().map(|held| &*held.because) == because {
            return;
        }
        let since = self.stored.held.as_ref().map(|held| held.since);
        let held = because.map(|because| Held {
            because: because.to_owned(),
            since: since.unwrap_or_else(SystemTime::now),
        });
        drop(self.write(Stored {
            held,
            ..self.stored.clone()
        }));
    }

    /// Whether nothing is known: a first start, or a lost file.
    pub(crate) fn is_empty(&self) -> bool {
        self.stored.known.is_none()
    }

    /// The revision up to which the store was known, if it was.
    pub(crate) fn revision(&self) -> Option<i64> {
        self.stored.known.map(|known| known.revision)
    }

    /// Why a store at this position is not the one that was known, if it is not.
    pub(crate) fn contradicts(&self, (cluster_id, revision): (u64, i64)) -> Option<String> {
        let known = self.stored.known?;
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
            .stored
            .known
            .is_some_and(|k| k.cluster_id == cluster_id && (0..STRIDE).contains(&(revision - k.revision)));
        let is_known = self.stored.known == Some(known) || (near && !now);
        // What could not be written is tried again.
        if is_known && !self.file.is_refused() {
            return;
        }
        let known = if is_known { self.stored.known } else { Some(known) };
        drop(self.write(Stored {
            known,
            ..self.stored.clone()
        }));
    }

    /// Whether what is remembered is still being written.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.file.is_written() && !self.file.is_refused()
    }

    /// All that is remembered until now, on its way to the disk.
    pub(crate) fn written(&mut self) -> Written {
        if self.file.is_written() {
            return state_file::written_already();
        }
        self.write(self.stored.clone())
    }

    fn write(&mut self, stored: Stored) -> Written {
        self.stored = stored.clone();
        self.file.replace(move || Ok(serde_json::to_vec(&stored)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an agent that is started when all is on the disk.
    fn open(dir: &Path) -> History {
        History::open(dir, &Writer::default()).unwrap()
    }

    fn reopened(dir: &Path, history: &mut History) -> History {
        history.written().blocking_recv().unwrap().unwrap();
        open(dir)
    }

    #[test]
    fn another_or_an_older_store_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = open(dir.path());
        assert_eq!(history.contradicts((1, 10)), None);
        history.note((1, 100), false);
        history.note((1, 200), false);
        let again = reopened(dir.path(), &mut history);
        assert_eq!(again.contradicts((1, 100)), None);
        assert!(again.contradicts((2, 500)).unwrap().contains("another cluster"));
        assert!(again.contradicts((1, 99)).unwrap().contains("revision 99"));
        history.note((1, 200), true);
        let again = reopened(dir.path(), &mut history);
        assert!(again.contradicts((1, 150)).is_some());
    }

    #[test]
    fn a_life_goes_on_until_it_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = open(dir.path());
        let first = history.incarnation().to_owned();
        assert!(!first.is_empty() && history.is_empty());
        history.note((1, 100), true);
        let mut history = reopened(dir.path(), &mut history);
        assert_eq!(history.incarnation(), first);
        let removed = |held: &str| Removed {
            by: Some("host2".to_owned()),
            endpoints: 1,
            held: vec![held.to_owned()],
        };
        drop(history.begin_anew(7, removed("blue/a")));
        assert_ne!(history.incarnation(), first);
        let written = history.begin_anew(9, removed("blue/b"));
        written.blocking_recv().unwrap().unwrap();
        let mut history = open(dir.path());
        assert_eq!(history.contradicts((1, 100)), None);
        assert_eq!(history.removed().unwrap().held, ["blue/b", "blue/a"]);
        assert_eq!(history.heeded(), 9, "the mark may be there yet");
        let third = history.incarnation().to_owned();
        history.acknowledge();
        let history = reopened(dir.path(), &mut history);
        assert_eq!((history.removed(), history.incarnation()), (None, &*third));
    }

    #[test]
    fn what_is_held_is_remembered_with_the_time_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = open(dir.path());
        history.hold(Some("a slip"));
        let since = history.held().unwrap().since;
        history.hold(Some("another"));
        let mut again = reopened(dir.path(), &mut history);
        let held = again.held().unwrap();
        assert_eq!((&*held.because, held.since), ("another", since));
        again.hold(None);
        assert_eq!(reopened(dir.path(), &mut again).held(), None);
    }

    #[test]
    fn a_file_from_before_lives_had_names_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("store.json"), r#"{"cluster_id":1,"revision":7}"#).unwrap();
        let history = open(dir.path());
        assert!(history.contradicts((1, 6)).is_some() && !history.incarnation().is_empty());
        fs::write(dir.path().join("store.json"), "{").unwrap();
        let again = open(dir.path());
        assert!(again.is_empty() && again.incarnation() != history.incarnation());
        let kept = fs::read_to_string(dir.path().join("store.json.unreadable")).unwrap();
        assert_eq!(kept, "{");
    }

    #[test]
    fn what_a_newer_version_remembers_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.json");
        let newer = r#"{"cluster_id":1,"revision":7,"incarnation":"x","moons":{"io":[1,2]}}"#;
        fs::write(&path, newer).unwrap();
        let mut history = open(dir.path());
        history.note((1, 8), true);
        reopened(dir.path(), &mut history);
        let written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let wanted: serde_json::Value = serde_json::from_str(&newer.replace(":7", ":8")).unwrap();
        assert_eq!(written, wanted);
    }

    #[test]
    fn a_position_that_could_not_be_written_is_written_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = open(dir.path());
        let in_the_way = dir.path().join("store.new");
        fs::create_dir(&in_the_way).unwrap();
        history.note((1, 100), false);
        history.written().blocking_recv().unwrap().unwrap_err();
        fs::remove_dir(&in_the_way).unwrap();
        history.note((1, 101), false);
        assert!(reopened(dir.path(), &mut history).contradicts((1, 99)).is_some());
    }
}
