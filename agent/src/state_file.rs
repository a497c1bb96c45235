//! Small files in the state directory, replaced as a whole: a crash or a power cut leaves the old one or the new one.

use std::{fs, io, path::Path};

/// Replaces a file; it is on the disk when this returns.
///
/// # Errors
/// When it cannot be written; then the old one is still there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    path.parent()
        .map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_or_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        fs::create_dir(dir.path().join("x.new")).unwrap();
        assert!(replace(&path, b"3").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"2");
    }
}
