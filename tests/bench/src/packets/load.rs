//! What is sent, and what of it is counted, at the receiver; always from the one processor to the other.

use std::{
    io::{ErrorKind, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg},
        time::TimeValLike as _,
    },
    unistd::Pid,
};
use weft_lab::eventually;

use crate::path::Path;

/// The sender's processor and the receiver's, for all peers alike.
pub(crate) const PROCESSORS: [usize; 2] = [0, 1];

/// Bytes in a datagram.
pub(crate) const PAYLOAD: usize = 64;

/// Datagrams in a call.
const AT_ONCE: usize = 32;

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    Stream,
    Streams,
    Packets,
    /// The sender's processor time for a datagram, softirqs in its context included.
    Cost,
    Half,
    Tail,
}

impl Quantity {
    pub(crate) const ALL: [Self; 6] = [
        Self::Stream,
        Self::Streams,
        Self::Packets,
        Self::Cost,
        Self::Half,
        Self::Tail,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Stream => "TCP, 1 stream",
            Self::Streams => "TCP, 4 streams",
            Self::Packets => "UDP, 64 bytes",
            Self::Cost => "sender's CPU time for a datagram",
            Self::Half => "round trip, p50",
            Self::Tail => "round trip, p99",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Stream | Self::Streams => "Gbit/s",
            Self::Packets => "packets/s",
            Self::Cost => "ns",
            Self::Half | Self::Tail => "µs",
        }
    }

    pub(crate) fn is_time(self) -> bool {
        matches!(self, Self::Cost | Self::Half | Self::Tail)
    }
}

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// TCP over so many connections.
    Tcp(usize),
    /// Small datagrams, as many as go.
    Packets,
    /// One small datagram there and back, one after another.
    RoundTrips,
}

impl Load {
    pub(crate) const ALL: [Self; 4] = [Self::Tcp(1), Self::Tcp(4), Self::Packets, Self::RoundTrips];
}

/// A path with a receiver of TCP on it, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) path: Path,
    server: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Peer {
    /// Starts the receiver, and waits until the way is open.
    pub(crate) fn start(path: Path) -> Result<Self> {
        let mut server = path.to.command("iperf3");
        let server = server
            .args(["--server", "--bind", &path.address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting iperf3 (Debian package iperf3)")?;
        let peer = Self { path, server };
        let what = format!("TCP arrives by {}", peer.path.name);
        eventually(Duration::from_secs(15), &what, || {
            peer.iperf(&["--connect-timeout", "500", "--bytes", "1"])
        })?;
        Ok(peer)
    }

    /// Sends for that long.
    pub(crate) fn measure(&self, load: Load, time: Duration) -> Result<Vec<(Quantity, f64)>> {
        let of = || format!("{load:?} by {}", self.path.name);
        match load {
            Load::Tcp(streams) => self.tcp(streams, time).map(|rate| {
                let quantity = if streams == 1 {
                    Quantity::Stream
                } else {
                    Quantity::Streams
                };
                vec![(quantity, rate)]
            }),
            Load::Packets => self.packets(time),
            Load::RoundTrips => self.round_trips(time),
        }
        .with_context(of)
    }

    fn tcp(&self, streams: usize, time: Duration) -> Result<f64> {
        // It knows whole seconds alone.
        let seconds = time.as_secs().max(1).to_string();
        let said = self.iperf(&["--time", &seconds, "--parallel", &streams.to_string()])?;
        let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.context("iperf3 does not say what was received")? / 1e9)
    }

    fn iperf(&self, args: &[&str]) -> Result<serde_json::Value> {
        let pinned = format!("{},{}", PROCESSORS[0], PROCESSORS[1]);
        let mut client: Command = self.path.from.command("iperf3");
        let output = client
            .args(["--json", "--client", &self.path.address.to_string()])
            .args(["--affinity", &pinned])
            .args(args)
            .output()
            .context("starting iperf3")?;
        let said: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("what iperf3 printed")?;
        ensure!(
            output.status.success() && said["error"].is_null(),
            "iperf3: {}",
            said["error"]
        );
        Ok(said)
    }

    /// Sockets at both ends, the first one's connected to the second.
    fn sockets(&self) -> Result<[UdpSocket; 2]> {
        let address = self.path.address;
        let receiver = self.path.to.within(|| UdpSocket::bind((address, 0)))??;
        let to = receiver.local_addr()?;
        let any: IpAddr = if address.is_ipv4() {
            [0; 4].into()
        } else {
            [0_u16; 8].into()
        };
        let sender = self.path.from.within(|| {
            let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
            socket.connect(to)?;
            Ok::<_, std::io::Error>(socket)
        })??;
        for socket in [&sender, &receiver] {
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        }
        Ok([sender, receiver])
    }

    /// Datagrams a second that arrived, and what one cost who sent it.
    fn packets(&self, time: Duration) -> Result<Vec<(Quantity, f64)>> {
        let [sender, receiver] = self.sockets()?;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| flood(&sender, &is_over));
            let receiving = scope.spawn(|| count(&receiver, time));
            let counted = receiving
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            is_over.store(true, Ordering::Relaxed);
            let sent = sending
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok(vec![(Quantity::Cost, sent?), (Quantity::Packets, counted?)])
        })
    }

    /// Median and 99th percentile, microseconds.
    fn round_trips(&self, time: Duration) -> Result<Vec<(Quantity, f64)>> {
        let [sender, receiver] = self.sockets()?;
        let mut took = std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&sender, time));
            let answering = scope.spawn(|| answer(&receiver));
            let took = asking
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let answered = answering
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            answered.and(took)
        })?;
        took.sort_unstable();
        let at = |part: f64| {
            let index = (took.len() as f64 * part) as usize;
            took.get(index)
                .map(|took| took.as_secs_f64() * 1e6)
                .context("no round trip at all")
        };
        Ok(vec![(Quantity::Half, at(0.5)?), (Quantity::Tail, at(0.99)?)])
    }
}

/// Keeps the calling thread on one processor.
fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("staying on processor {processor}"))
}

/// Sends as fast as it goes; nanoseconds of processor time for each datagram.
fn flood(socket: &UdpSocket, is_over: &AtomicBool) -> Result<f64> {
    stay_on(PROCESSORS[0])?;
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
        let (user, system) = (usage.user_time(), usage.system_time());
        Ok::<_, Errno>((user + system).num_microseconds() as f64 * 1e3)
    };
    let before = used()?;
    let mut all = 0;
    let payload = [0x77; PAYLOAD];
    let slices = [[IoSlice::new(&payload)]; AT_ONCE];
    let nobody = [None::<()>; AT_ONCE];
    let mut headers = MultiHeaders::preallocate(AT_ONCE, None);
    while !is_over.load(Ordering::Relaxed) {
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            slices.iter(),
            nobody,
            [],
            MsgFlags::empty(),
        );
        match sent.map(Iterator::count) {
            Ok(sent) => all += sent,
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("sending"),
        }
    }
    Ok((used()? - before) / all as f64)
}

/// Datagrams a second, once they have been arriving for a while.
fn count(socket: &UdpSocket, time: Duration) -> Result<f64> {
    stay_on(PROCESSORS[1])?;
    let mut buffers = [[0_u8; PAYLOAD]; AT_ONCE];
    let mut headers = MultiHeaders::preallocate(AT_ONCE, None);
    let mut receive = || receive(socket, &mut headers, &mut buffers);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(50) {
        receive()?;
    }
    let started = Instant::now();
    let mut received = 0;
    while started.elapsed() < time {
        received += receive()?;
    }
    ensure!(received > 0, "nothing arrived");
    Ok(received as f64 / started.elapsed().as_secs_f64())
}

/// Takes what is there, and waits for the first.
fn receive(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    buffers: &mut [[u8; PAYLOAD]; AT_ONCE],
) -> Result<usize> {
    let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
    let received = recvmmsg(
        socket.as_raw_fd(),
        headers,
        slices.iter_mut(),
        MsgFlags::MSG_WAITFORONE,
        None,
    );
    match received.map(Iterator::count) {
        // Whoever sends may not get to it for a while on a busy machine.
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(0),
        received => received.context("receiving"),
    }
}

fn ask(socket: &UdpSocket, time: Duration) -> Result<Vec<Duration>> {
    stay_on(PROCESSORS[0])?;
    let mut took = Vec::with_capacity(1 << 16);
    let begun = Instant::now();
    let mut answer = [0; PAYLOAD];
    let over = loop {
        let number = took.len() as u64;
        let mut question = [0; PAYLOAD];
        question[..8].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        socket.send(&question).context("asking")?;
        match socket.recv(&mut answer) {
            Ok(_) if answer[..8] == question[..8] => took.push(sent.elapsed()),
            Ok(_) => break Err(anyhow::anyhow!("an answer to another question")),
            Err(error) => break Err(error).context("no answer"),
        }
        if begun.elapsed() >= time {
            break Ok(());
        }
    };
    // An empty one ends the other side, also after a failure.
    socket.send(&[]).context("ending")?;
    over.map(|()| took)
}

fn answer(socket: &UdpSocket) -> Result<()> {
    stay_on(PROCESSORS[1])?;
    let mut question = [0; PAYLOAD];
    loop {
        match socket.recv_from(&mut question) {
            Ok((0, _)) => return Ok(()),
            Ok((length, from)) => {
                socket.send_to(&question[..length], from).context("answering")?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("no question arrives"),
            Err(error) => return Err(error).context("waiting for a question"),
        }
    }
}
