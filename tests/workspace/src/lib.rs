//! The workspace as cargo sees it, for the tests beside this file. Reads manifests, never the product's code.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};
use serde::Deserialize;

/// The top of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Packages, dependencies and the resolved graph for the first target of deny.toml, with all features. Tried without
/// the network first: after a build everything is there.
///
/// # Errors
/// When cargo fails both ways, for example because Cargo.lock does not fit the manifests.
pub fn metadata() -> Result<Metadata> {
    let target = deny()?
        .graph
        .targets
        .first()
        .cloned()
        .context("deny.toml names no target")?;
    let ask = |more: &[&str]| {
        let mut options = vec!["--locked".to_owned(), "--all-features".to_owned()];
        options.extend(["--filter-platform".to_owned(), target.clone()]);
        options.extend(more.iter().map(|option| (*option).to_owned()));
        MetadataCommand::new()
            .manifest_path(root().join("Cargo.toml"))
            .other_options(options)
            .exec()
    };
    match ask(&["--offline"]).or_else(|_| ask(&[])) {
        Ok(metadata) => Ok(metadata),
        Err(error) => bail!("cargo metadata --locked: {error}"),
    }
}

/// What the tests need of deny.toml. Unknown keys are cargo-deny's own business.
#[derive(Debug, Deserialize)]
pub struct Deny {
    /// What is looked at.
    pub graph: Graph,
    /// Allowed licences.
    pub licenses: Licenses,
    /// Crates that may not come in.
    pub bans: Bans,
    /// Where crates may come from.
    pub sources: Sources,
}

/// `[graph]`
#[derive(Debug, Deserialize)]
pub struct Graph {
    /// Target triples.
    pub targets: Vec<String>,
}

/// `[licenses]`
#[derive(Debug, Deserialize)]
pub struct Licenses {
    /// SPDX names, with `WITH` exceptions.
    pub allow: Vec<String>,
}

/// `[bans]`
#[derive(Debug, Deserialize)]
pub struct Bans {
    /// Crates that may not be in the graph.
    pub deny: Vec<BannedCrate>,
}

/// An entry of `bans.deny`.
#[derive(Debug, Deserialize)]
pub struct BannedCrate {
    /// Its name.
    #[serde(rename = "crate")]
    pub name: String,
    /// Why not.
    pub reason: String,
}

/// `[sources]`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sources {
    /// Registry indexes.
    pub allow_registry: Vec<String>,
    /// Git repositories.
    pub allow_git: Vec<String>,
}

/// Reads deny.toml.
///
/// # Errors
/// When it is missing or not as expected.
pub fn deny() -> Result<Deny> {
    let path = root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))
}
