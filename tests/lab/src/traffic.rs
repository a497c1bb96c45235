//! Traffic that runs while something is done to the lab, and exact account of what it lost.
//!
//! Between two containers: echo requests at a steady rate, and a TCP stream whose every byte comes back. A packet
//! lost is an echo request without an answer; a connection lost is a stream that was reset, or whose bytes are
//! not all back some time after the last was sent.
//!
//! Not counted as lost is what the kernel never sent. It makes its echo replies with one socket for each processor, which all
//! namespaces share (`ipv4_icmp_sk`, net/ipv4/icmp.c): where replies of one container wait for a neighbour that does not
//! answer, a hundred or so use that socket's memory up, and all others' replies on that processor are given up. The container
//! that gave one up counts it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::probe::{PingStream, PingSummary};
use crate::{Container, NeighbourTables, eventually};

/// Echo requests a second, and pieces of the stream a second.
const RATE: u32 = 100;
/// How long the first answer and the connection are waited for.
const BEGIN: Duration = Duration::from_secs(10);
/// How long the last bytes of a stream are waited for.
const STRAGGLERS: Duration = Duration::from_secs(5);
/// How long a thread sleeps in the kernel at most before it looks whether it is to stop.
const TICK: Duration = Duration::from_millis(20);
/// Fewer echo requests than this tell nothing.
const FEW: u64 = 20;

/// Traffic between containers.
#[derive(Debug)]
pub struct Traffic {
    flows: Vec<Flow>,
    tables: NeighbourTables,
}

#[derive(Debug)]
struct Flow {
    /// From where to where, for people.
    path: String,
    /// Who answers, by which family, and how many replies that one's kernel had given up before.
    to: Container,
    family: Family,
    given_up: u64,
    pings: PingStream,
    stream: Stream,
}

/// By which echo replies are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// What became of the traffic from one container to an address of another.
#[derive(Debug, Clone)]
pub struct FlowSummary {
    /// From where to where, for people.
    pub path: String,
    /// The echo requests.
    pub pings: PingSummary,
    /// Those that were received, and whose reply the kernel gave up before it was sent.
    pub given_up: u64,
    /// Why the TCP stream ended before it was asked to, or did not bring back all; `None` if it is whole.
    pub broken: Option<String>,
    /// Bytes of the stream that came back.
    pub echoed: u64,
}

impl FlowSummary {
    /// Echo requests that were lost, or their replies.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.pings.lost() - self.given_up
    }
}

impl fmt::Display for FlowSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PingSummary { sent, .. } = self.pings;
        let (lost, gap) = (self.lost(), self.pings.longest_gap);
        write!(f, "{}: {lost} of {sent} lost, longest gap {gap:?}", self.path)?;
        if self.given_up > 0 {
            write!(f, ", {} replies never sent", self.given_up)?;
        }
        match &self.broken {
            Some(why) => write!(f, "; stream broken after {} bytes: {why}", self.echoed),
            None => write!(f, "; stream whole ({} bytes)", self.echoed),
        }
    }
}

impl Traffic {
    /// Starts traffic from each first container to the address, which is the second one's, and waits until all of it
    /// flows.
    ///
    /// # Errors
    /// When a socket cannot be made, or a pair does not talk within ten seconds.
    pub fn start<'a>(
        flows: impl IntoIterator<Item = (&'a Container, &'a Container, IpAddr)>,
    ) -> Result<Self> {
        let start = |(from, to, address): (&Container, &Container, IpAddr)| {
            let path = format!("{} → {} ({address})", from.name(), to.name());
            eventually(BEGIN, &format!("{path} talks"), || {
                ensure!(from.ping(address), "no answer");
                Ok(())
            })?;
            let stream = Stream::start(from, to, address).with_context(|| path.clone())?;
            let family = Family::of(address);
            let given_up = family.replies_given_up(to)?;
            let pings = from.ping_stream(address, RATE)?;
            Ok(Flow {
                path,
                to: to.clone(),
                family,
                given_up,
                pings,
                stream,
            })
        };
        let tables = NeighbourTables::now();
        let flows = flows.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        let traffic = Self { flows, tables };
        traffic.wait_more(5)?;
        Ok(traffic)
    }

    /// Waits until each flow has sent this many more echo requests: a stretch of time in which it could have lost some.
    ///
    /// # Errors
    /// When they do not get sent.
    pub fn wait_more(&self, more: u64) -> Result<()> {
        let goals: Vec<u64> = self.flows.iter().map(|f| f.pings.so_far().sent + more).collect();
        let patience = BEGIN + Duration::from_secs(more.div_ceil(RATE.into())) * 3;
        eventually(patience, "more echo requests are sent", || {
            let mut flows = self.flows.iter().zip(&goals);
            ensure!(flows.all(|(flow, goal)| flow.pings.so_far().sent >= *goal));
            Ok(())
        })
    }

    /// The echo requests of each flow so far; those in flight count as lost.
    #[must_use]
    pub fn so_far(&self) -> Vec<(String, PingSummary)> {
        let flows = self.flows.iter();
        flows
            .map(|flow| (flow.path.clone(), flow.pings.so_far()))
            .collect()
    }

    /// Stops it, waits for what is in flight, and answers what became of each flow.
    #[must_use]
    pub fn stop(self) -> Vec<FlowSummary> {
        // All at once: each waits a while for what is in flight.
        let end = |flow: Flow| {
            let pings = flow.pings.stop();
            let (broken, echoed) = flow.stream.finish();
            // Of a container that is gone there is nothing to read; then all that was lost was lost.
            let now = flow.family.replies_given_up(&flow.to).unwrap_or_default();
            let summary = FlowSummary {
                path: flow.path,
                pings,
                given_up: 0,
                broken,
                echoed,
            };
            let counted_by = (flow.to.path(), flow.family);
            (counted_by, now.saturating_sub(flow.given_up), summary)
        };
        let ended: Vec<_> = std::thread::scope(|scope| {
            let flows = self.flows.into_iter();
            let threads: Vec<_> = flows.map(|flow| scope.spawn(move || end(flow))).collect();
            let ended = threads.into_iter();
            ended
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        // A container counts what it gave up for all that ask it together: no more than that is taken off theirs.
        let mut left: BTreeMap<(String, Family), u64> = BTreeMap::new();
        for (counted_by, given_up, _) in &ended {
            let most = left.entry(counted_by.clone()).or_default();
            *most = (*most).max(*given_up);
        }
        let summaries = ended.into_iter().map(|(counted_by, _, mut summary)| {
            if let Some(left) = left.get_mut(&counted_by) {
                summary.given_up = summary.pings.lost().min(*left);
                *left -= summary.given_up;
            }
            summary
        });
        summaries.collect()
    }

    /// Stops it, and holds that nothing was lost.
    ///
    /// # Errors
    /// When an echo request was not answered, a stream broke, or too little was sent to tell; says where.
    pub fn nothing_lost(self) -> Result<()> {
        // What was done may have taken less time than it takes to tell.
        self.wait_more(FEW)?;
        let tables = self.tables;
        let flows = self.stop();
        let lost: Vec<String> = flows
            .iter()
            .filter(|flow| flow.lost() > 0 || flow.broken.is_some() || flow.pings.sent < FEW)
            .map(ToString::to_string)
            .collect();
        let excuse = tables.excuse().map_or_else(String::new, |why| format!("\n{why}"));
        ensure!(lost.is_empty(), "traffic was lost:\n{}{excuse}", lost.join("\n"));
        Ok(())
    }
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Echo replies that a container's kernel could not make for want of its socket's memory, since the container began.
    fn replies_given_up(self, container: &Container) -> Result<u64> {
        let (file, name) = match self {
            Self::V4 => ("snmp", "OutErrors"),
            Self::V6 => ("snmp6", "Icmp6OutErrors"),
        };
        let path = format!("/proc/thread-self/net/{file}");
        let text = container.netns().within(|| fs::read_to_string(&path))??;
        let count = match self {
            Self::V4 => in_columns(&text, name),
            Self::V6 => in_lines(&text, name),
        };
        count.with_context(|| format!("{path} has no {name}"))
    }
}

/// A counter of ICMP in `/proc/net/snmp`: names in one line, figures in the next.
fn in_columns(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("Icmp:"));
    let column = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(column)?.parse().ok()
}

/// A counter in `/proc/net/snmp6`: name and figure in a line.
fn in_lines(text: &str, name: &str) -> Option<u64> {
    let figure = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
    text.lines().find_map(figure)
}

/// A connection whose server sends everything back.
#[derive(Debug)]
struct Stream {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    /// Both ends, to end it whatever the path between them is like.
    sockets: [TcpStream; 2],
    client: Option<JoinHandle<Result<()>>>,
    server: Option<JoinHandle<()>>,
}

impl Stream {
    fn start(from: &Container, to: &Container, address: IpAddr) -> Result<Self> {
        let listener = to
            .netns()
            .within(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
        let at = listener.local_addr()?;
        let client = from.netns().within(|| TcpStream::connect_timeout(&at, BEGIN))??;
        let (server, _) = listener.accept()?;
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(TICK))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let echoed = Arc::new(AtomicU64::new(0));
        let sockets = [client.try_clone()?, server.try_clone()?];
        let (end, count) = (Arc::clone(&stop), Arc::clone(&echoed));
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let server = spawn("echo").spawn(move || echo(server))?;
        let client = spawn("stream").spawn(move || converse(client, &end, &count))?;
        Ok(Self {
            stop,
            echoed,
            sockets,
            client: Some(client),
            server: Some(server),
        })
    }

    fn finish(mut self) -> (Option<String>, u64) {
        let result = self.join();
        (
            result.err().map(|e| format!("{e:#}")),
            self.echoed.load(Ordering::Acquire),
        )
    }

    fn end(&self) {
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn join(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        let result = match self.client.take() {
            Some(client) => client
                .join()
                .unwrap_or_else(|_| Err(anyhow!("its thread panicked"))),
            None => Ok(()),
        };
        // The server may never hear that the client has ended.
        self.end();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        result
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
        let _ = self.join();
    }
}

/// Sends everything back until the other side ends or the connection does; the client tells which it was.
fn echo(mut socket: TcpStream) {
    let mut buffer = [0_u8; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if buffer
                    .get(..length)
                    .is_none_or(|bytes| socket.write_all(bytes).is_err())
                {
                    return;
                }
            }
            Err(error) if is_pause(&error) => {}
            Err(_) => return,
        }
    }
}

/// Sends numbers at a steady rate and holds that the same numbers come back in their order.
fn converse(mut socket: TcpStream, stop: &AtomicBool, echoed: &AtomicU64) -> Result<()> {
    let (mut sent, mut received) = (0_u64, Vec::new());
    let mut next = Instant::now();
    let mut back = 0_u64;
    let mut deadline = None;
    loop {
        let stopping = stop.load(Ordering::Acquire);
        if !stopping && Instant::now() >= next {
            socket.write_all(&sent.to_be_bytes()).context("writing")?;
            sent += 1;
            next += Duration::from_secs(1) / RATE;
        }
        if stopping {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + STRAGGLERS);
            if back == sent {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} of {sent} pieces did not come back within {STRAGGLERS:?}",
                sent - back
            );
        }
        let mut buffer = [0_u8; 4096];
        let patience = next
            .saturating_duration_since(Instant::now())
            .clamp(Duration::from_millis(1), TICK);
        socket.set_read_timeout(Some(patience))?;
        match socket.read(&mut buffer) {
            Ok(0) => bail!("the other side ended it"),
            Ok(length) => received.extend(buffer.get(..length).unwrap_or_default()),
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error).context("reading"),
        }
        while let Some((piece, rest)) = received.split_first_chunk::<8>() {
            let number = u64::from_be_bytes(*piece);
            ensure!(number == back, "piece {number} came back where {back} was due");
            back += 1;
            received = rest.to_vec();
        }
        echoed.store(back * 8, Ordering::Release);
    }
}

/// Nothing came yet: neither an end nor an error.
fn is_pause(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_both_forms() {
        let snmp =
            "Icmp: InMsgs InErrors OutMsgs OutErrors\nIcmp: 500 1 323 177\nIcmpMsg: InType8\nIcmpMsg: 500\n";
        assert_eq!(in_columns(snmp, "OutErrors"), Some(177));
        assert_eq!(in_columns(snmp, "Out"), None);
        let snmp6 = "Icmp6OutMsgs                    \t500\nIcmp6OutErrors                  \t12\n";
        assert_eq!(in_lines(snmp6, "Icmp6OutErrors"), Some(12));
        assert_eq!(in_lines(snmp6, "Icmp6Out"), None);
    }
}
