//! What deny.toml says of dependencies, checked without cargo-deny and without a network.

use anyhow::{Context as _, Result};
use spdx::{Expression, Licensee, ParseMode};
use weft_workspace_tests::{deny, metadata};

#[test]
fn every_licence_is_allowed() -> Result<()> {
    let allow = deny()?.licenses.allow;
    let allowed = allow
        .iter()
        .map(|text| Licensee::parse(text).with_context(|| format!("licence {text:?} in deny.toml")));
    let allowed: Vec<_> = allowed.collect::<Result<_>>()?;
    let mut wrong = Vec::new();
    for package in metadata()?.packages {
        // Lax: some crates still write "MIT/Apache-2.0".
        let text = package.license.clone().unwrap_or_default();
        let fits = Expression::parse_mode(&text, ParseMode::LAX).is_ok_and(|expression| {
            expression.evaluate(|wanted| allowed.iter().any(|a| a.satisfies(wanted)))
        });
        if !fits {
            wrong.push(format!("{} {}: {text:?}", package.name, package.version));
        }
    }
    assert!(wrong.is_empty(), "licences not allowed by deny.toml: {wrong:#?}");
    Ok(())
}

#[test]
fn an_unknown_licence_would_be_noticed() -> Result<()> {
    let allowed = Licensee::parse("MIT")?;
    let fits = |text: &str| -> Result<bool> {
        Ok(Expression::parse_mode(text, ParseMode::LAX)?.evaluate(|wanted| allowed.satisfies(wanted)))
    };
    assert!(fits("MIT OR GPL-3.0-only")? && fits("MIT/Apache-2.0")?);
    assert!(!fits("MIT AND GPL-3.0-only")? && !fits("GPL-3.0-or-later")?);
    Ok(())
}

#[test]
fn everything_comes_from_allowed_sources() -> Result<()> {
    let sources = deny()?.sources;
    assert!(
        sources.allow_git.is_empty(),
        "a version in git cannot be pinned by number"
    );
    for package in metadata()?.packages {
        // Without a source it lies in this workspace.
        let Some(source) = &package.source else { continue };
        let allowed = source
            .repr
            .strip_prefix("registry+")
            .is_some_and(|url| sources.allow_registry.iter().any(|a| a == url));
        assert!(
            allowed,
            "{} {} comes from {source}",
            package.name, package.version
        );
    }
    Ok(())
}

#[test]
fn banned_crates_are_not_there() -> Result<()> {
    let packages = metadata()?.packages;
    for banned in deny()?.bans.deny {
        let found = packages
            .iter()
            .find(|package| package.name == banned.name.as_str());
        assert!(
            found.is_none(),
            "{} is in the graph: {}",
            banned.name,
            banned.reason
        );
    }
    Ok(())
}

#[test]
fn the_workspace_has_one_licence_and_its_text() -> Result<()> {
    let metadata = metadata()?;
    for package in metadata.workspace_packages() {
        assert_eq!(package.license.as_deref(), Some("Apache-2.0"), "{}", package.name);
    }
    let text = std::fs::read_to_string(metadata.workspace_root.join("LICENSE"))?;
    assert!(text.contains("Apache License") && text.contains("Version 2.0"));
    Ok(())
}
