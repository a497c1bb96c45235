//! What holds of the text of the project as a whole.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use weft_workspace_tests::root;

/// All files of the project below `dir`, without what is built or hidden (but with `.ci`).
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "target" || (name.starts_with('.') && name != ".ci") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[test]
fn scripts_parse() -> Result<()> {
    let mut scripts = 0;
    for path in files(&root())? {
        let text = std::fs::read(&path)?;
        let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let is_bash = first.starts_with(b"#!") && (first.ends_with(b"bash") || first.ends_with(b"sh"));
        if !is_bash && path.extension().is_none_or(|extension| extension != "sh") {
            continue;
        }
        scripts += 1;
        let output = Command::new("bash").arg("-n").arg(&path).output()?;
        ensure!(
            output.status.success(),
            "{}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    ensure!(scripts >= 5, "only {scripts} scripts were found");
    Ok(())
}

#[test]
fn unsafe_code_is_in_the_kernel_crate_only() -> Result<()> {
    let root = root();
    // Written in two parts, so that this file is not found.
    let marks = ["allow(unsafe", "expect(unsafe"].map(|mark| format!("{mark}_code"));
    for path in files(&root)? {
        if path.extension().is_none_or(|extension| extension != "rs")
            || path.starts_with(root.join("agent/kernel"))
        {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        ensure!(
            !marks.iter().any(|mark| text.contains(mark)),
            "{} lets unsafe code in",
            path.display()
        );
    }
    Ok(())
}
