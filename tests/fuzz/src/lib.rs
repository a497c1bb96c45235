//! Arbitrary bytes for everything in weft that reads bytes which others wrote: keys and records of etcd, requests of the
//! API, datagrams of the kernel. Nothing may panic, and nothing may take long.
//!
//! Each [`Target`] is a function of bytes. The same functions are run here, by a stable toolchain, over the corpus
//! and mutations of it ([`Session`]), and under libFuzzer with coverage (`libfuzzer/`, for `cargo fuzz`).

mod mutate;
mod session;
pub mod targets;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use session::{Failure, Session};

/// Something that reads bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its directory in the corpus.
    pub name: &'static str,
    /// Hands it bytes. What comes back tells roughly what was made of them: bytes with a new answer are worth building
    /// on.
    pub run: fn(&[u8]) -> u64,
    /// What may well appear in its input.
    pub words: &'static [&'static [u8]],
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    targets::keys::TARGET,
    targets::records::TARGET,
    targets::snapshot::TARGET,
    targets::requests::TARGET,
    targets::netlink::ANSWERS,
    targets::netlink::NOTIFICATIONS,
];

/// Where a target's corpus is.
#[must_use]
pub fn corpus_of(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

/// A target's corpus, ordered by name.
///
/// # Errors
/// When it cannot be read.
pub fn corpus(target: &Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files: Vec<PathBuf> = fs::read_dir(corpus_of(target))?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    files.sort();
    let read = |path: PathBuf| Ok((path.clone(), fs::read(path)?));
    files.into_iter().map(read).collect()
}
