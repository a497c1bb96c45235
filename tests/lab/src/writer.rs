//! Writes to etcd over one connection, by its JSON gateway: as fast as etcd takes them. Knows just enough of HTTP for it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Namespace;

/// How long etcd may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to one member of etcd.
#[derive(Debug)]
pub struct Writer {
    connection: BufReader<TcpStream>,
    to: SocketAddr,
}

impl Writer {
    pub(crate) fn connect(netns: &Namespace, to: SocketAddr) -> Result<Self> {
        let connection = netns
            .within(|| TcpStream::connect_timeout(&to, PATIENCE))?
            .with_context(|| format!("connecting to {to}"))?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            connection: BufReader::new(connection),
            to,
        })
    }

    /// Puts keys in one transaction, at most 128. Answers the revision.
    ///
    /// # Errors
    /// When etcd refuses or does not answer.
    pub fn put_all(&mut self, records: &[(String, String)]) -> Result<i64> {
        let puts = records.iter().map(|(key, value)| {
            let (key, value) = (base64(key.as_bytes()), base64(value.as_bytes()));
            format!(r#"{{"requestPut":{{"key":"{key}","value":"{value}"}}}}"#)
        });
        let puts = puts.collect::<Vec<_>>().join(",");
        let answer = self.post("/v3/kv/txn", &format!(r#"{{"success":[{puts}]}}"#))?;
        revision(&answer)
    }

    /// Deletes a key. Answers the revision.
    ///
    /// # Errors
    /// When etcd refuses or does not answer.
    pub fn delete(&mut self, key: &str) -> Result<i64> {
        let key = base64(key.as_bytes());
        let answer = self.post("/v3/kv/deleterange", &format!(r#"{{"key":"{key}"}}"#))?;
        revision(&answer)
    }

    /// Raises the alarm that a member's database is full: as long as it stands, no member takes anything that needs space.
    /// `etcdctl alarm disarm` takes it back.
    ///
    /// # Errors
    /// When etcd refuses or does not answer.
    pub fn raise_no_space(&mut self, member: u64) -> Result<()> {
        let alarm = format!(r#"{{"action":"ACTIVATE","memberID":"{member}","alarm":"NOSPACE"}}"#);
        self.post("/v3/maintenance/alarm", &alarm).map(drop)
    }

    fn post(&mut self, path: &str, body: &str) -> Result<Value> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.to,
            body.len()
        );
        self.connection.get_mut().write_all(request.as_bytes())?;
        let answer = answer(&mut self.connection).with_context(|| path.to_owned())?;
        serde_json::from_str(&answer).with_context(|| format!("{path}: {answer:?}"))
    }
}

fn revision(answer: &Value) -> Result<i64> {
    let revision = answer["header"]["revision"].as_str();
    Ok(revision
        .with_context(|| format!("no revision in {answer}"))?
        .parse()?)
}

/// Asks for a page.
pub(crate) fn get(netns: &Namespace, from: SocketAddr, path: &str) -> Result<String> {
    let Writer { mut connection, to } = Writer::connect(netns, from)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes())?;
    answer(&mut connection).with_context(|| path.to_owned())
}

/// The body of an answer, which must be a good one.
fn answer(connection: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = || -> Result<String> {
        let mut line = String::new();
        ensure!(connection.read_line(&mut line)? > 0, "the connection ended");
        Ok(line.trim_end().to_owned())
    };
    let status = line()?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = line()?.to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("content-length", value)) => length = Some(value.trim().parse::<usize>()?),
            Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
            Some(_) => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut line = String::new();
            connection.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).with_context(|| format!("chunk {line:?}"))?;
            let mut chunk = vec![0; size + 2];
            connection.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            body.extend(chunk.get(..size).unwrap_or_default());
        }
    } else if let Some(length) = length {
        body = vec![0; length];
        connection.read_exact(&mut body)?;
    } else {
        connection.read_to_end(&mut body)?;
    }
    let body = String::from_utf8(body)?;
    ensure!(status.contains(" 200 "), "{status}: {body}");
    Ok(body)
}

/// Standard base64 with padding, as JSON carries bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap_or(0);
            text.push(if place <= group.len() {
                char::from(DIGITS[digit])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_every_length() {
        for (bytes, text) in [
            ("", ""),
            ("h", "aA=="),
            ("ha", "aGE="),
            ("hal", "aGFs"),
            ("hallo", "aGFsbG8="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
