//! The operator's command, asked and refused.

use std::net::IpAddr;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{Container, Host};

/// The exit status of a command that has to fail, and what was said on standard error.
///
/// # Errors
/// When it goes well, panics or fails without a word.
pub fn fails(host: &Host, args: &[&str]) -> Result<(i32, String)> {
    let Output {
        status,
        stderr,
        stdout,
    } = host.weft_output(args)?;
    let said = String::from_utf8_lossy(&stderr).into_owned();
    ensure!(
        !status.success(),
        "{args:?} went well: {}",
        String::from_utf8_lossy(&stdout)
    );
    ensure!(
        !said.contains("panicked") && !said.trim().is_empty(),
        "{args:?}: {said:?}"
    );
    Ok((status.code().context("ended by a signal")?, said))
}

/// Checks status and words of a failure.
///
/// # Errors
/// When it does not fail, or otherwise.
pub fn refused(host: &Host, args: &[&str], status: i32, words: &str) -> Result<()> {
    let (code, said) = fails(host, args)?;
    ensure!(
        code == status && said.contains(words),
        "{args:?}: {code}: {said}; wanted {status} and {words:?}"
    );
    Ok(())
}

/// Attaches a container and answers the endpoint.
///
/// # Errors
/// When it is refused.
pub fn attach(host: &Host, network: &str, container: &Container, id: &str, more: &[&str]) -> Result<Value> {
    let path = container.path();
    host.weft_json(&[&["endpoint", "attach", network, &path, "--id", id], more].concat())
}

/// An endpoint's addresses, without prefix length.
///
/// # Errors
/// When it is none.
pub fn addresses(endpoint: &Value) -> Result<Vec<IpAddr>> {
    let listed = endpoint["addresses"].as_array().context("addresses")?;
    listed
        .iter()
        .map(|a| {
            let text = a.as_str().context("text")?;
            Ok(text.split('/').next().unwrap_or_default().parse()?)
        })
        .collect()
}
