//! The programs the lab shells out to, and where the product's binaries lie. Fails clearly when one is missing:
//! a lab is never skipped silently.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("nsenter", "util-linux"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
];

/// Checks that this process is root and that every program the lab needs is on the path.
///
/// # Errors
/// Names what is missing and the Debian package that has it.
pub fn require_root_and_tools() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces and needs root: run `make test`, or `sudo -E env PATH=\"$PATH\" …`"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
        .map(|(tool, package)| format!("{tool} (package {package})"))
        .collect();
    ensure!(
        missing.is_empty(),
        "the lab needs {}: run `make setup`",
        missing.join(", ")
    );
    Ok(())
}

/// The directory that holds `weftd` and `weft`: `WEFT_BIN_DIR`, or the target directory of the running executable.
///
/// # Errors
/// When it holds no `weftd`.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("WEFT_BIN_DIR").map(PathBuf::from) {
        ensure!(
            dir.join("weftd").is_file(),
            "WEFT_BIN_DIR={} holds no weftd",
            dir.display()
        );
        // Agents are started from other directories: a relative path would not survive.
        return dir
            .canonicalize()
            .with_context(|| format!("WEFT_BIN_DIR={}", dir.display()));
    }
    let exe = std::env::current_exe().context("where the running executable lies")?;
    // target/<profile>/weft-lab, or target/<profile>/deps/<test>-<hash>.
    let Some(dir) = exe
        .ancestors()
        .skip(1)
        .take(2)
        .find(|dir| dir.join("weftd").is_file())
    else {
        bail!(
            "no weftd beside {}: run `cargo build -p weftd -p weft-cli` or set WEFT_BIN_DIR",
            exe.display()
        );
    };
    Ok(dir.to_path_buf())
}

/// Keeps Ctrl-C in the terminal from a command: it is for the lab's owner, who then ends everything in order, and a
/// command cut short in between would look like a failure.
pub(crate) fn apart(command: &mut Command) -> &mut Command {
    command.process_group(0)
}

/// Runs a command to its end and answers its standard output.
///
/// # Errors
/// When it cannot be started or fails; the text holds the command and its standard error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let output = apart(command)
        .output()
        .with_context(|| format!("starting {what}"))?;
    crate::successful(&what, &output)
}

/// Runs a command with `input` on its standard input and answers its standard output.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    use std::io::Write as _;
    use std::process::Stdio;

    let what = format!("{command:?}");
    let mut child = apart(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {what}"))?;
    // Taken, so that it is closed after the write: the program reads to the end. A program that ends before it has
    // read everything says so by its status.
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input));
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {what}"))?;
    let stdout = crate::successful(&what, &output)?;
    written.with_context(|| format!("writing to {what}"))?;
    Ok(stdout)
}

/// The last `lines` lines of a file, `None` when it is missing or empty.
pub(crate) fn tail(path: &Path, lines: usize) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    (!all.is_empty()).then(|| all[all.len().saturating_sub(lines)..].join("\n"))
}
