//! What is mounted in the directories of namespaces: a namespace comes to its file by a mount, which inotify
//! does not tell of.
//!
//! In: directories, and the kernel's table of mounts, whose change wakes up whoever polls it. Out: paths.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use tokio::task::JoinHandle;

/// The mounts of this process; pollable (`POLLPRI`), unlike most of /proc.
pub(crate) const TABLE: &str = "/proc/self/mountinfo";

/// The mount's number and what is mounted, for a namespace `net:[…]`. The kernel uses numbers again.
type Source = (u64, Vec<u8>);

/// What is mounted in some directories. The table is read on a thread for what blocks: on a host with thousands of mounts
/// that takes long, and each container that comes or goes changes it.
#[derive(Debug)]
pub(crate) struct Mounts {
    table: PathBuf,
    dirs: Vec<PathBuf>,
    /// None while the table is being read.
    known: Option<Known>,
    reading: Option<JoinHandle<(Known, io::Result<BTreeSet<PathBuf>>)>>,
    /// What is to be forgotten when it has been read.
    forgotten: BTreeSet<PathBuf>,
    /// What was forgotten then: told of in any case when it has been read once more, for what is mounted there may have come and
    /// gone in between.
    uncertain: BTreeSet<PathBuf>,
}

/// Where something is mounted, and which mount of what it is.
#[derive(Debug, Default)]
struct Known(BTreeSet<(PathBuf, Source)>);

impl Mounts {
    /// What is mounted now; waits for the table.
    pub(crate) fn read(table: &Path, dirs: Vec<PathBuf>) -> io::Result<Self> {
        let known = Known(read(table, &dirs)?);
        Ok(Self {
            table: table.to_owned(),
            dirs,
            known: Some(known),
            reading: None,
            forgotten: BTreeSet::new(),
            uncertain: BTreeSet::new(),
        })
    }

    /// A file came or went: what was known to be mounted there is not what is mounted there next, even if it
    /// should bear the same numbers.
    pub(crate) fn forget(&mut self, path: &Path) {
        match &mut self.known {
            Some(known) => known.forget(path),
            None => drop(self.forgotten.insert(path.to_owned())),
        }
    }

    /// Whether the table is being read. What changes in it meanwhile may be in what is read, or not.
    pub(crate) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// The table has changed: reads it. To be called within the runtime, when it is not being read.
    pub(crate) fn look(&mut self) {
        let mut known = self.known.take().unwrap_or_default();
        let (table, dirs) = (self.table.clone(), self.dirs.clone());
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let changed = known.compare(&table, &dirs);
            (known, changed)
        }));
    }

    /// Where something was mounted or unmounted since the last time, once the table has been read; never, if it is not
    /// being read. Cancelling loses nothing.
    pub(crate) async fn changed(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        let Some(reading) = &mut self.reading else {
            return std::future::pending().await;
        };
        let read = reading.await;
        self.reading = None;
        let (mut known, changed) = read.map_err(io::Error::other)?;
        let forgotten = std::mem::take(&mut self.forgotten);
        forgotten.iter().for_each(|path| known.forget(path));
        self.known = Some(known);
        if !forgotten.is_empty() {
            // What was read may have been from before, or from after.
            self.look();
        }
        let mut changed = changed?;
        changed.append(&mut std::mem::replace(&mut self.uncertain, forgotten));
        Ok(changed)
    }
}

impl Known {
    fn forget(&mut self, path: &Path) {
        self.0.retain(|(known, _)| known != path);
    }

    fn compare(&mut self, table: &Path, dirs: &[PathBuf]) -> io::Result<BTreeSet<PathBuf>> {
        let now = read(table, dirs)?;
        let changed = now.symmetric_difference(&self.0);
        let changed = changed.map(|(path, _)| path.clone()).collect();
        self.0 = now;
        Ok(changed)
    }
}

fn read(table: &Path, dirs: &[PathBuf]) -> io::Result<BTreeSet<(PathBuf, Source)>> {
    // The table names directories by what they are, the configuration perhaps by a link (/var/run).
    let real: Vec<_> = dirs
        .iter()
        .map(|dir| (fs::canonicalize(dir).unwrap_or_else(|_| dir.clone()), dir))
        .collect();
    let table = fs::read(table)?;
    let mounts = table.split(|b| *b == b'\n').filter_map(mount);
    Ok(mounts
        .flat_map(|(path, source)| {
            real.iter()
                .filter_map(|(real, dir)| {
                    let name = path.strip_prefix(real).ok()?;
                    let is_inside = name.components().count() == 1;
                    is_inside.then(|| (dir.join(name), source.clone()))
                })
                .collect::<Vec<_>>()
        })
        .collect())
}

/// Where a line of the table says that something is mounted, and what.
fn mount(line: &[u8]) -> Option<(PathBuf, Source)> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let what = fields.nth(2)?.to_vec();
    let path = unescape(fields.next()?);
    Some((PathBuf::from(path), (id, what)))
}

/// Blank, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table() {
        let line = br"341 28 0:4 net:[4026532281] /run/netns/a\040b\134 rw shared:190 - nsfs nsfs rw";
        assert_eq!(
            mount(line),
            Some((
                PathBuf::from(r"/run/netns/a b\"),
                (341, b"net:[4026532281]".to_vec())
            ))
        );
        assert_eq!(mount(b""), None);
        assert_eq!(mount(b"1 2 3"), None);
    }

    /// A table that takes as long to read as it likes: until it is written.
    #[tokio::test]
    async fn nobody_waits_for_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let (table, netns) = (dir.path().join("table"), dir.path().join("netns"));
        fs::create_dir(&netns).unwrap();
        let line = |n: u32, file: &str| {
            let netns = fs::canonicalize(&netns).unwrap();
            format!(
                "{n} 28 0:4 net:[{n}] {}/{file} rw - nsfs nsfs rw\n",
                netns.display()
            )
        };
        fs::write(&table, line(1, "a")).unwrap();
        let mut mounts = Mounts::read(&table, vec![netns.clone()]).unwrap();
        fs::remove_file(&table).unwrap();
        nix::unistd::mkfifo(&table, nix::sys::stat::Mode::S_IRWXU).unwrap();

        mounts.look();
        let soon = std::time::Duration::from_millis(20);
        assert!(
            tokio::time::timeout(soon, mounts.changed()).await.is_err(),
            "it is being read"
        );
        // A file goes and comes meanwhile, and what is mounted there then has the number of what was.
        mounts.forget(&netns.join("a"));
        assert!(mounts.is_reading());
        let write = |text: String| {
            let table = table.clone();
            tokio::task::spawn_blocking(move || fs::write(table, text).unwrap())
        };
        write(line(1, "a") + &line(2, "b")).await.unwrap();
        let told = |names: &[&str]| names.iter().map(|name| netns.join(name)).collect::<BTreeSet<_>>();
        assert_eq!(mounts.changed().await.unwrap(), told(&["b"]));
        // So it is read once more by itself.
        assert!(mounts.is_reading());
        write(line(1, "a") + &line(2, "b")).await.unwrap();
        assert_eq!(mounts.changed().await.unwrap(), told(&["a"]));
        assert!(!mounts.is_reading());

        // The same, and what was mounted is gone when it is read again.
        mounts.look();
        mounts.forget(&netns.join("a"));
        write(line(3, "a") + &line(2, "b")).await.unwrap();
        assert_eq!(mounts.changed().await.unwrap(), told(&["a"]), "mounted anew");
        write(line(2, "b")).await.unwrap();
        assert_eq!(mounts.changed().await.unwrap(), told(&["a"]), "and gone");
        assert!(!mounts.is_reading());
    }
}
