//! Small files in the state directory, replaced as a whole: a crash or a power cut leaves the old one or the new one.
//!
//! They are written on a thread of their own, in the order in which they were handed over: a disk may take seconds, and the
//! loop must not. Whoever promises something that is in a file waits for [`Written`] before it does.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tokio::sync::oneshot;
use weft_core::complaint::Complaint;

/// Whether a file is on the disk, once that is known. Why it is not is told in the log, too.
pub(crate) type Written = oneshot::Receiver<Result<(), Arc<io::Error>>>;

/// What a file is to hold, made where it is written.
type Content = Box<dyn FnOnce() -> io::Result<Vec<u8>> + Send>;

/// Writes files one after the other; clones share the order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writer {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// At most one of each file: who waits for what an earlier one had, has it with the later one.
    waiting: Vec<Draft>,
    /// There is a thread that writes.
    running: bool,
    /// That files cannot be written.
    complaints: BTreeMap<PathBuf, Complaint>,
}

struct Draft {
    path: PathBuf,
    content: Content,
    number: u64,
    done: Arc<Done>,
    told: Vec<oneshot::Sender<Result<(), Arc<io::Error>>>>,
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Which of the drafts of a file, by number, was the last that could be written, and the last that could not.
#[derive(Debug, Default)]
struct Done {
    written: AtomicU64,
    refused: AtomicU64,
}

/// A file that is replaced from time to time.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    writer: Writer,
    /// How often it was handed over.
    number: u64,
    done: Arc<Done>,
}

impl StateFile {
    /// A file as it is now.
    pub(crate) fn new(path: PathBuf, writer: &Writer) -> Self {
        Self {
            path,
            writer: writer.clone(),
            number: 0,
            done: Arc::default(),
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Has it replaced.
    pub(crate) fn replace(
        &mut self,
        content: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
    ) -> Written {
        self.number += 1;
        let (told, written) = oneshot::channel();
        self.writer.put(Draft {
            path: self.path.clone(),
            content: Box::new(content),
            number: self.number,
            done: Arc::clone(&self.done),
            told: vec![told],
        });
        written
    }

    /// Whether the last that was handed over is on the disk.
    pub(crate) fn is_written(&self) -> bool {
        self.done.written.load(Ordering::Acquire) == self.number
    }

    /// Whether it could not be written: it is to be handed over again.
    pub(crate) fn is_refused(&self) -> bool {
        self.number > 0 && self.done.refused.load(Ordering::Acquire) == self.number
    }
}

/// Nothing has to be written.
pub(crate) fn written_already() -> Written {
    let (told, written) = oneshot::channel();
    // The receiver is there.
    let _ = told.send(Ok(()));
    written
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, mut draft: Draft) {
        let mut queue = self.lock();
        match queue.waiting.iter_mut().find(|other| other.path == draft.path) {
            Some(earlier) => {
                let mut told = std::mem::take(&mut earlier.told);
                told.append(&mut draft.told);
                *earlier = Draft { told, ..draft };
            }
            None => queue.waiting.push(draft),
        }
        if std::mem::replace(&mut queue.running, true) {
            return;
        }
        drop(queue);
        let writer = self.clone();
        let thread = thread::Builder::new().name("weft-state".to_owned());
        if thread.spawn(move || writer.write_all()).is_err() {
            // No thread to be had: late is better than never.
            self.write_all();
        }
    }

    /// Writes until nothing waits.
    fn write_all(&self) {
        loop {
            let mut queue = self.lock();
            if queue.waiting.is_empty() {
                queue.running = false;
                return;
            }
            let draft = queue.waiting.remove(0);
            drop(queue);
            let result = (draft.content)().and_then(|bytes| replace(&draft.path, &bytes));
            self.tell(&draft.path, result.as_ref().err());
            let done = match result {
                Ok(()) => &draft.done.written,
                Err(_) => &draft.done.refused,
            };
            done.store(draft.number, Ordering::Release);
            let result = result.map_err(Arc::new);
            for told in draft.told {
                // Whoever handed it over need not wait for it.
                let _ = told.send(result.clone());
            }
        }
    }

    /// Says that a file cannot be written, once for each reason: it is tried again, while a disk is full perhaps for days.
    fn tell(&self, path: &Path, error: Option<&io::Error>) {
        let complaints = &mut self.lock().complaints;
        match error {
            None => drop(complaints.remove(path)),
            Some(error) => {
                let complaint = complaints.entry(path.to_owned()).or_default();
                if complaint.is_news(&error.to_string()) {
                    tracing::warn!(path = %path.display(), %error, "cannot write this file; tried again");
                }
            }
        }
    }
}

/// Replaces a file, which only the agent's user can read then; it is on the disk when this returns.
///
/// # Errors
/// When it cannot be written; then the old one is still there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // What networks and endpoints a host has is nobody else's business.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent()
        .map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn content(text: &'static str) -> impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static {
        move || Ok(text.as_bytes().to_vec())
    }

    /// The disk hangs in the midst of writing a file; a byte read from what is returned lets it go on, and it fails.
    fn hang(path: &Path) -> PathBuf {
        let new = path.with_extension("new");
        nix::unistd::mkfifo(&new, nix::sys::stat::Mode::S_IRWXU).unwrap();
        new
    }

    #[test]
    fn whoever_hands_a_file_over_does_not_wait_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (slow, other) = (dir.path().join("slow.json"), dir.path().join("other.json"));
        let writer = Writer::default();
        let [mut slow_file, mut other_file] =
            [&slow, &other].map(|path| StateFile::new(path.clone(), &writer));
        let hangs = hang(&slow);
        let first = slow_file.replace(content("1"));
        // Until that one is being written, the next ones of it would take its place.
        while !writer.lock().waiting.is_empty() {
            thread::yield_now();
        }
        let mut waiting = vec![other_file.replace(content("a")), slow_file.replace(content("2"))];
        waiting.push(slow_file.replace(content("3")));
        assert!(!slow_file.is_written() && !slow_file.is_refused() && !other_file.is_written());
        assert!(waiting.iter_mut().all(|written| written.try_recv().is_err()));
        assert_eq!(writer.lock().waiting.len(), 2, "two of one file are one");

        fs::read(&hangs).unwrap();
        let error = first.blocking_recv().unwrap().unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::InvalidInput,
            "a pipe is not on a disk"
        );
        // It is there still, and a pipe.
        fs::read(&hangs).unwrap();
        let results: Vec<_> = waiting.into_iter().map(|w| w.blocking_recv().unwrap()).collect();
        assert!(
            results[0].is_ok() && results[1].is_err() && results[2].is_err(),
            "{results:?}"
        );
        assert!(other_file.is_written() && !other_file.is_refused());
        assert!(slow_file.is_refused() && !slow_file.is_written());
        assert_eq!(fs::read(&other).unwrap(), b"a");

        fs::remove_file(&hangs).unwrap();
        slow_file.replace(content("4")).blocking_recv().unwrap().unwrap();
        assert!(slow_file.is_written() && !slow_file.is_refused());
        assert_eq!(fs::read(&slow).unwrap(), b"4");
    }

    #[test]
    fn a_file_is_replaced_or_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::create_dir(dir.path().join("x.new")).unwrap();
        assert!(replace(&path, b"3").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"2");
    }
}
