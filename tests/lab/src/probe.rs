//! Echo requests sent from a namespace, with exact counts.
//!
//! Not `ping(8)`: stopped by a signal, it counts the request in flight as lost, which makes "no packet lost"
//! impossible to assert; and it gives up when the address has no route yet.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Namespace;

/// How long the receiver sleeps at most before it looks whether it is to stop.
const TICK: Duration = Duration::from_millis(20);
/// How long answers to the last requests are waited for.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// A running stream of echo requests.
#[derive(Debug)]
pub struct PingStream {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
    /// One per request: when it was sent and when it was answered.
    requests: Mutex<Vec<Request>>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    sent: Instant,
    answered: Option<Instant>,
}

/// What came of a stream.
#[derive(Debug, Clone)]
pub struct PingSummary {
    /// Requests sent, also those the kernel refused to send for want of a route.
    pub sent: u64,
    /// Requests answered, each counted once.
    pub received: u64,
    /// The longest time between two answers that follow each other; zero with fewer than two.
    pub longest_gap: Duration,
    /// When the first answer came.
    pub first_answer: Option<Instant>,
    /// When the first and the last of the requests were sent that were not answered.
    pub lost_from_to: Option<(Instant, Instant)>,
    /// Median round trip; `None` without answers.
    pub median_rtt: Option<Duration>,
}

impl PingSummary {
    /// Requests that were not answered.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl Shared {
    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_answered(&self) -> bool {
        self.requests().iter().all(|request| request.answered.is_some())
    }

    fn summary(&self) -> PingSummary {
        let requests = self.requests();
        let mut answers: Vec<_> = requests.iter().filter_map(|request| request.answered).collect();
        answers.sort_unstable();
        let mut rtts: Vec<_> = requests
            .iter()
            .filter_map(|r| Some(r.answered?.duration_since(r.sent)))
            .collect();
        rtts.sort_unstable();
        let lost = |request: &&Request| request.answered.is_none();
        let first_lost = requests.iter().find(lost);
        let last_lost = requests.iter().rev().find(lost);
        PingSummary {
            lost_from_to: first_lost.zip(last_lost).map(|(a, b)| (a.sent, b.sent)),
            sent: requests.len() as u64,
            received: answers.len() as u64,
            longest_gap: answers
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .max()
                .unwrap_or_default(),
            first_answer: answers.first().copied(),
            median_rtt: rtts.get(rtts.len() / 2).copied(),
        }
    }
}

impl PingStream {
    pub(crate) fn start(netns: &Namespace, target: IpAddr, rate: u32) -> Result<Self> {
        let pinger = Arc::new(netns.within(|| Pinger::open(target))??);
        let shared = Arc::new(Shared {
            stop_sending: AtomicBool::new(false),
            stop_receiving: AtomicBool::new(false),
            requests: Mutex::new(Vec::new()),
        });
        let interval = Duration::from_secs(1) / rate.max(1);
        let receiver = spawn(&pinger, &shared, receive_loop)?;
        let sender = spawn(&pinger, &shared, move |pinger, shared| {
            send_loop(pinger, shared, interval);
        })?;
        Ok(Self {
            shared,
            threads: vec![sender, receiver],
        })
    }

    /// The counts so far. Requests in flight count as sent, not as received.
    #[must_use]
    pub fn so_far(&self) -> PingSummary {
        self.shared.summary()
    }

    /// Stops sending, waits up to a second for the last answers, and answers the counts.
    #[must_use]
    pub fn stop(mut self) -> PingSummary {
        self.finish(STRAGGLERS);
        self.shared.summary()
    }

    fn finish(&mut self, patience: Duration) {
        self.shared.stop_sending.store(true, Ordering::Release);
        let deadline = Instant::now() + patience;
        // The sender first, so that nothing is sent after the wait for answers begins.
        let mut threads = std::mem::take(&mut self.threads).into_iter();
        let sender = threads.next();
        if let Some(thread) = sender {
            let _ = thread.join();
        }
        while !self.shared.all_answered() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.shared.stop_receiving.store(true, Ordering::Release);
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for PingStream {
    fn drop(&mut self) {
        self.finish(Duration::ZERO);
    }
}

fn spawn(
    pinger: &Arc<Pinger>,
    shared: &Arc<Shared>,
    run: impl FnOnce(&Pinger, &Shared) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let (pinger, shared) = (Arc::clone(pinger), Arc::clone(shared));
    std::thread::Builder::new()
        .name("ping".to_owned())
        .spawn(move || run(&pinger, &shared))
        .context("starting a thread")
}

fn send_loop(pinger: &Pinger, shared: &Shared, interval: Duration) {
    let mut next = Instant::now();
    while !shared.stop_sending.load(Ordering::Acquire) {
        let sequence = {
            let mut requests = shared.requests();
            requests.push(Request {
                sent: Instant::now(),
                answered: None,
            });
            requests.len() as u64 - 1
        };
        // No route yet, or no longer: an unanswered request like any other.
        let _ = pinger.send(sequence);
        next += interval;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn receive_loop(pinger: &Pinger, shared: &Shared) {
    while !shared.stop_receiving.load(Ordering::Acquire) {
        let Some(sequence) = pinger.receive() else {
            continue;
        };
        let now = Instant::now();
        let index = usize::try_from(sequence).unwrap_or(usize::MAX);
        if let Some(request) = shared.requests().get_mut(index) {
            request.answered.get_or_insert(now);
        }
    }
}

/// Sends one request and waits for its answer.
pub(crate) fn once(netns: &Namespace, target: IpAddr, patience: Duration) -> Result<bool> {
    let mut pinger = netns.within(|| Pinger::open(target))??;
    Ok(pinger.ask(target, patience).is_some())
}

/// Single echo requests from a namespace: a raw ICMP socket that stays open between them.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    target: IpAddr,
    identifier: u16,
    asked: u64,
}

impl Pinger {
    /// Sends one request to an address of the family that it was opened for; how long the answer took. None without
    /// one within `patience`, or without a route.
    pub fn ask(&mut self, target: IpAddr, patience: Duration) -> Option<Duration> {
        self.target = target;
        // A late answer to an earlier one is none to this one.
        self.asked += 1;
        let sent = Instant::now();
        self.send(self.asked).ok()?;
        while sent.elapsed() < patience {
            if self.receive() == Some(self.asked) {
                return Some(sent.elapsed());
            }
        }
        None
    }

    /// Opens the socket in the namespace of the calling thread.
    pub(crate) fn open(target: IpAddr) -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .context("opening a raw ICMP socket")?;
        let tick = TimeVal::milliseconds(i64::try_from(TICK.as_millis()).unwrap_or(20));
        setsockopt(&socket, sockopt::ReceiveTimeout, &tick).context("setting the receive timeout")?;
        // It hears the answers of all others in the namespace: on a busy machine many wait before the thread runs, and
        // one that finds no room is a loss that no network has had.
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).context("setting the receive buffer")?;
        // Different in every process and call; raw sockets see the answers of all others in the namespace.
        let low = u16::try_from(std::process::id() & 0xff).unwrap_or(0);
        let identifier = NEXT.fetch_add(1, Ordering::Relaxed) << 8 | low;
        Ok(Self {
            socket,
            target,
            asked: 0,
            identifier,
        })
    }

    fn send(&self, sequence: u64) -> Result<()> {
        let kind = if self.target.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(self.identifier.to_be_bytes());
        packet.extend(
            (sequence & 0xffff)
                .to_be_bytes()
                .last_chunk::<2>()
                .copied()
                .unwrap_or_default(),
        );
        // The whole number besides: the field of the header wraps after eleven minutes at 100 a second.
        packet.extend(sequence.to_be_bytes());
        let flags = MsgFlags::empty();
        let sent = match self.target {
            IpAddr::V4(address) => {
                // The kernel fills in the checksum for ICMPv6 only.
                let sum = checksum(&packet);
                packet[2..4].copy_from_slice(&sum.to_be_bytes());
                let to = SockaddrIn::from(SocketAddrV4::new(address, 0));
                sendto(self.socket.as_raw_fd(), &packet, &to, flags)
            }
            IpAddr::V6(address) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(address, 0, 0, 0));
                sendto(self.socket.as_raw_fd(), &packet, &to, flags)
            }
        };
        sent.map(drop)
            .map_err(|error| anyhow!("sending to {}: {error}", SocketAddr::new(self.target, 0)))
    }

    /// The sequence number of the next answer; `None` after a tick without one, or after somebody else's packet.
    fn receive(&self) -> Option<u64> {
        let mut buffer = [0_u8; 256];
        let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(_) => {
                // The error of an earlier send, reported here; it must not make a busy loop.
                std::thread::yield_now();
                return None;
            }
        };
        let packet = buffer.get(..length)?;
        let (icmp, reply) = match self.target {
            // Raw IPv4 sockets get the IP header too.
            IpAddr::V4(_) => (packet.get(usize::from(packet.first()? & 0xf) * 4..)?, 0),
            IpAddr::V6(_) => (packet, 129),
        };
        let identifier = u16::from_be_bytes(icmp.get(4..6)?.try_into().ok()?);
        if *icmp.first()? != reply || identifier != self.identifier {
            return None;
        }
        Some(u64::from_be_bytes(icmp.get(8..16)?.try_into().ok()?))
    }
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_an_echo_request() {
        // Type 8, code 0, identifier 1, sequence 1: 0x0800 + 1 + 1, complemented.
        assert_eq!(checksum(&[8, 0, 0, 0, 0, 1, 0, 1]), !0x0802);
    }
}
