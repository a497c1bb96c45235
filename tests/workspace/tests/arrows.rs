//! Which crate may depend on which. The table is the architecture; cargo's own metadata is held against it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, Package};
use weft_workspace_tests::{metadata, root};

/// Every crate of the workspace and the crates of the workspace it may depend on, of any kind.
const ARROWS: [(&str, &[&str]); 17] = [
    // What lies in etcd, and what is said on the socket: they know nobody.
    ("weft-store-schema", &[]),
    ("weft-proto", &[]),
    // The pure core; its tests use the model of etcd.
    ("weft-core", &["weft-model", "weft-store-schema"]),
    // The three sides of the agent. They never see each other.
    ("weft-store", &["weft-core", "weft-store-schema"]),
    ("weft-kernel", &["weft-core", "weft-store-schema"]),
    ("weft-api", &["weft-core", "weft-proto", "weft-store-schema"]),
    // The wiring.
    (
        "weftd",
        &[
            "weft-api",
            "weft-core",
            "weft-kernel",
            "weft-proto",
            "weft-store",
            "weft-store-schema",
        ],
    ),
    // A client like any other.
    ("weft-cli", &["weft-proto"]),
    // Tests see the product from outside.
    ("weft-lab", &[]),
    ("weft-e2e", &["weft-lab", "weft-proto", "weft-store-schema"]),
    ("weft-chaos", &["weft-e2e", "weft-lab", "weft-storm"]),
    ("weft-faults", &["weft-e2e", "weft-lab"]),
    (
        // Hands bytes to whatever reads them.
        "weft-fuzz",
        &[
            "weft-api",
            "weft-core",
            "weft-kernel",
            "weft-store-schema",
            "weftd",
        ],
    ),
    ("weft-model", &["weft-core", "weft-store-schema"]),
    ("weft-storm", &["weft-e2e", "weft-lab"]),
    (
        // Measures the agent from outside, its parts without it, and many agents' loops without kernels.
        "weft-bench",
        &[
            "weft-core",
            "weft-kernel",
            "weft-lab",
            "weft-proto",
            "weft-store",
            "weft-store-schema",
            "weftd",
        ],
    ),
    ("weft-workspace-tests", &[]),
];

/// External crates, by the beginning of their names, and the only crates that may depend on them directly.
const KEPT_BEHIND: [(&str, &[&str]); 4] = [
    // They break their interface with each release.
    ("netlink-", &["weft-kernel"]),
    ("rtnetlink", &["weft-kernel"]),
    // The benchmark asks etcd without us, to compare.
    ("etcd-client", &["weft-bench", "weft-store"]),
    // Tests and programs may be careless with the types of their errors; libraries may not.
    (
        "anyhow",
        &[
            "weftd",
            "weft-cli",
            "weft-bench",
            "weft-lab",
            "weft-e2e",
            "weft-chaos",
            "weft-faults",
            "weft-storm",
            "weft-workspace-tests",
        ],
    ),
];

/// What the pure crates must not have: a clock, input and output, async.
const NOT_PURE: [&str; 10] = [
    "weft-model",
    "tokio",
    "tokio-stream",
    "futures",
    "nix",
    "libc",
    "tonic",
    "tracing",
    "uuid",
    "fastrand",
];

fn members() -> Result<BTreeMap<String, Package>> {
    let metadata = metadata()?;
    Ok(metadata
        .workspace_packages()
        .into_iter()
        .map(|p| (p.name.to_string(), p.clone()))
        .collect())
}

#[test]
fn the_table_names_exactly_the_crates_there_are() -> Result<()> {
    let there: BTreeSet<_> = members()?.into_keys().collect();
    let table: BTreeSet<_> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(there, table);
    Ok(())
}

#[test]
fn crates_depend_only_along_the_arrows() -> Result<()> {
    let members = members()?;
    let mut wrong = Vec::new();
    for (name, allowed) in ARROWS {
        let package = members.get(name).with_context(|| format!("no crate {name}"))?;
        let inside = package
            .dependencies
            .iter()
            .filter(|dependency| members.contains_key(&dependency.name));
        wrong.extend(
            inside
                .filter(|dependency| !allowed.contains(&dependency.name.as_str()))
                .map(|dependency| format!("{name} → {}", dependency.name)),
        );
    }
    assert!(wrong.is_empty(), "arrows that must not be: {wrong:?}");
    Ok(())
}

#[test]
fn some_crates_are_kept_behind_one_of_ours() -> Result<()> {
    let mut wrong = Vec::new();
    for (name, package) in members()? {
        // A test of a library may use what the library itself may not, except the wire.
        for dependency in &package.dependencies {
            let kept = KEPT_BEHIND
                .iter()
                .find(|(prefix, _)| dependency.name.starts_with(prefix));
            let Some((prefix, allowed)) = kept else { continue };
            let only_tests = dependency.kind == DependencyKind::Development && *prefix == "anyhow";
            if !allowed.contains(&name.as_str()) && !only_tests {
                wrong.push(format!("{name} → {}", dependency.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "these crates may not depend on those: {wrong:?}"
    );
    Ok(())
}

#[test]
fn the_core_and_the_schema_are_pure() -> Result<()> {
    let members = members()?;
    for name in ["weft-core", "weft-store-schema"] {
        let package = members.get(name).with_context(|| format!("no crate {name}"))?;
        let normal = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind == DependencyKind::Normal);
        let wrong: Vec<_> = normal
            .map(|d| d.name.as_str())
            .filter(|name| NOT_PURE.contains(name))
            .collect();
        assert!(wrong.is_empty(), "{name} depends on {wrong:?}");
    }
    Ok(())
}

/// The part of a manifest that cargo's metadata leave out.
#[derive(serde::Deserialize)]
struct Manifest {
    lints: Option<Lints>,
    workspace: Option<Workspace>,
}

#[derive(serde::Deserialize)]
struct Lints {
    workspace: bool,
}

#[derive(serde::Deserialize)]
struct Workspace {
    dependencies: BTreeMap<String, toml::Value>,
}

#[test]
fn every_crate_has_the_lints_of_the_workspace() -> Result<()> {
    for (name, package) in members()? {
        let text = std::fs::read_to_string(&package.manifest_path)?;
        let manifest: Manifest = toml::from_str(&text).with_context(|| package.manifest_path.to_string())?;
        assert!(
            manifest.lints.is_some_and(|lints| lints.workspace),
            "{name} lacks `[lints] workspace = true`"
        );
    }
    Ok(())
}

#[test]
fn versions_are_pinned_in_one_place() -> Result<()> {
    let manifest: Manifest = toml::from_str(&std::fs::read_to_string(root().join("Cargo.toml"))?)?;
    for (name, value) in manifest.workspace.context("no [workspace]")?.dependencies {
        let version = value
            .as_str()
            .or_else(|| value.get("version").and_then(toml::Value::as_str));
        match version {
            Some(version) => assert!(version.starts_with('='), "{name} = {version:?} is not pinned"),
            None => assert!(
                value.get("path").is_some(),
                "{name} has neither a version nor a path"
            ),
        }
    }
    for (name, package) in members()? {
        let loose: Vec<_> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_none() && !dependency.req.to_string().starts_with('='))
            .map(|dependency| dependency.name.as_str())
            .collect();
        assert!(
            loose.is_empty(),
            "{name} does not take these from the workspace: {loose:?}"
        );
    }
    Ok(())
}
