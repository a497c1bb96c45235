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

/// The mounts of this process; pollable (`POLLPRI`), unlike most of /proc.
pub(crate) const TABLE: &str = "/proc/self/mountinfo";

/// The mount's number and what is mounted, for a namespace `net:[…]`. The kernel uses numbers again.
type Source = (u64, Vec<u8>);

/// What is mounted in some directories.
#[derive(Debug)]
pub(crate) struct Mounts {
    dirs: Vec<PathBuf>,
    /// Where, and which mount of what it is.
    known: BTreeSet<(PathBuf, Source)>,
}

impl Mounts {
    pub(crate) fn read(dirs: Vec<PathBuf>) -> io::Result<Self> {
        let known = read(&dirs)?;
        Ok(Self { dirs, known })
    }

    /// A file came or went: what was known to be mounted there is not what is mounted there next, even if it
    /// should bear the same numbers.
    pub(crate) fn forget(&mut self, path: &Path) {
        self.known.retain(|(known, _)| known != path);
    }

    /// Where something was mounted or unmounted since the last call.
    pub(crate) fn changed(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        let now = read(&self.dirs)?;
        let changed = now
            .symmetric_difference(&self.known)
            .map(|(path, _)| path.clone())
            .collect();
        self.known = now;
        Ok(changed)
    }
}

fn read(dirs: &[PathBuf]) -> io::Result<BTreeSet<(PathBuf, Source)>> {
    // The table names directories by what they are, the configuration perhaps by a link (/var/run).
    let real: Vec<_> = dirs
        .iter()
        .map(|dir| (fs::canonicalize(dir).unwrap_or_else(|_| dir.clone()), dir))
        .collect();
    let table = fs::read(TABLE)?;
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
}
