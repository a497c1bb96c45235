//! What an agent tells Prometheus, read as Prometheus reads it: by HTTP, at one moment.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The samples of one scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Asks whoever listens on a Unix socket.
    ///
    /// # Errors
    /// When nobody answers within ten seconds, or not with metrics.
    pub fn scrape(socket: &Path) -> Result<Self> {
        let whole = || -> Result<String> {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: weftd\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = whole().with_context(|| format!("asking {} for metrics", socket.display()))?;
        Self::parse(&answer)
    }

    /// Reads an HTTP answer.
    ///
    /// # Errors
    /// When it is not one with metrics.
    pub fn parse(answer: &str) -> Result<Self> {
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        ensure!(head.contains("application/openmetrics-text"), "{head}");
        ensure!(body.ends_with("# EOF\n"), "cut short: {body}");
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let read = |line: &str| {
            let (name, value) = line.rsplit_once(' ').context("no value")?;
            Ok((name.to_owned(), value.parse()?))
        };
        Ok(Self(samples.map(read).collect::<Result<_>>()?))
    }

    /// The value of a sample, by its name with its labels as they are written: `weft_endpoints{location="local"}`.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, sample: &str) -> Result<f64> {
        let found = self.0.get(sample).copied();
        found.with_context(|| format!("no {sample} among {:?}", self.0.keys()))
    }

    /// All samples.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}
