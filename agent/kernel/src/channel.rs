//! A netlink socket of one namespace: requests, dumps and batches, each with its answers.
//!
//! In: typed messages. Out: typed answers, and the kernel's refusals with its own words. It knows nothing of
//! what the messages mean.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};

use crate::fault::{self, Fault, Step};
use crate::wire::{self, NLMSG_DONE, NLMSG_ERROR, Raw};

/// Messages in one send. More gains nothing, and the answers to this many fit into any receive buffer.
const BATCH: usize = 128;
/// Receive buffer in bytes: all error answers of a batch, and a good part of a dump.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The kernel answers at once; only answers that were dropped never come.
const PATIENCE: Duration = Duration::from_secs(5);
/// A dump that keeps being interrupted by changes is taken as it is after so many tries; the notifications
/// of those changes have it looked at again.
const DUMP_TRIES: usize = 10;

const NLM_F_DUMP_INTR: u16 = 0x10;

/// The kernel's answer to a request that it did not carry out.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An error number and, if the kernel gave one, a text.
    Errno(i32, Option<String>),
    /// The answer was lost.
    Lost,
    /// The socket itself failed.
    Socket(io::Error),
}

impl Refusal {
    pub(crate) fn is(&self, errno: nix::errno::Errno) -> bool {
        matches!(self, Self::Errno(n, _) if *n == errno as i32)
    }
}

/// A netlink socket.
pub(crate) struct Channel {
    socket: Socket,
    sequence: u32,
    out: Vec<u8>,
    buffer: Vec<u8>,
    /// Answers were lost: what is left of them is still to come.
    has_leftovers: bool,
}

impl Channel {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Only the header of a refused request comes back, and after it the kernel's words.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        socket.set_netlink_get_strict_chk(true)?;
        let fd = socket.as_fd();
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0),
        )?;
        Ok(Self {
            socket,
            sequence: 0,
            out: Vec::new(),
            buffer: vec![0; 1 << 18],
            has_leftovers: false,
        })
    }

    fn push(&mut self, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = self.out.len();
        // Messages in one send start at multiples of four (NLMSG_ALIGN).
        self.out
            .resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut self.out[start..start + message.buffer_len()]);
        self.sequence
    }

    /// Reads away what is left of answers that nobody waits for any more. The kernel refuses a dump (EBUSY) while another
    /// one on the same socket is not read to its end.
    fn drop_leftovers(&mut self) {
        while std::mem::take(&mut self.has_leftovers) {
            let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT.bits();
            let read = self.socket.recv(&mut &mut self.buffer[..], flags);
            self.has_leftovers = read.is_ok()
                || read.is_err_and(|e| e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32));
        }
    }

    fn send(&mut self) -> Result<(), Refusal> {
        self.drop_leftovers();
        let result = self.socket.send(&self.out, 0);
        self.out.clear();
        result.map(drop).map_err(Refusal::Socket)
    }

    /// Reads one datagram and hands over each message in it.
    fn receive(&mut self, mut each: impl FnMut(Raw<'_>)) -> Result<(), Refusal> {
        let size = loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(size) => break size,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if e.kind() == io::ErrorKind::WouldBlock
                        || e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) =>
                {
                    self.has_leftovers = true;
                    return Err(Refusal::Lost);
                }
                Err(e) => return Err(Refusal::Socket(e)),
            }
        };
        for message in wire::split(&self.buffer[..size]) {
            each(message);
        }
        Ok(())
    }

    /// Sends a request and returns what came before its acknowledgement.
    pub(crate) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let fault = fault::at(step_of(&message));
        fault.refusal()?;
        let wanted = self.push(message, flags | NLM_F_ACK);
        self.send()?;
        fault.loss()?;
        let mut answers = Vec::new();
        let mut end = None;
        while end.is_none() {
            self.receive(|raw| {
                if raw.sequence != wanted {
                    return;
                }
                if raw.kind == NLMSG_ERROR {
                    end = Some(wire::error_of(raw));
                } else if let Some(answer) = wire::decode(raw) {
                    answers.push(answer);
                }
            })?;
        }
        match end.flatten() {
            Some(refusal) => Err(refusal),
            None => Ok(answers),
        }
    }

    /// Sends requests, many in one send, and returns those that were refused by their place in the list.
    /// The kernel carries them out in order, each whatever became of the others.
    pub(crate) fn batch(&mut self, messages: Vec<(RouteNetlinkMessage, u16)>) -> Vec<(usize, Refusal)> {
        let mut refused = Vec::new();
        let total = messages.len();
        let mut messages = messages.into_iter();
        let mut done = 0;
        while done < total {
            let count = BATCH.min(total - done);
            let fault = fault::at(Step::Change);
            let first = self.sequence.wrapping_add(1);
            for (i, (message, flags)) in messages.by_ref().take(count).enumerate() {
                // Refusals are answered always; one acknowledgement at the end says that all were read.
                let ack = if i + 1 == count { NLM_F_ACK } else { 0 };
                self.push(message, flags | ack);
            }
            let last = self.sequence;
            let before = refused.len();
            if let Fault::Refuse(errno) = fault {
                self.out.clear();
                refused.extend((done..done + count).map(|i| (i, Refusal::Errno(errno, None))));
            } else if let Err(error) = self
                .finish_batch(first, last, done, &mut refused)
                .and_then(|()| fault.loss())
            {
                // Whoever asked tells of it, once for each cause.
                tracing::debug!(?error, "the answers to a batch of netlink messages were lost");
                // Those that did arrive are no better known than the others: one answer each.
                refused.truncate(before);
                refused.extend((done..done + count).map(|i| (i, Refusal::Lost)));
            }
            done += count;
        }
        refused
    }

    fn finish_batch(
        &mut self,
        first: u32,
        last: u32,
        offset: usize,
        refused: &mut Vec<(usize, Refusal)>,
    ) -> Result<(), Refusal> {
        self.send()?;
        let mut ended = false;
        while !ended {
            self.receive(|raw| {
                let place = raw.sequence.wrapping_sub(first);
                if raw.kind != NLMSG_ERROR || place > last.wrapping_sub(first) {
                    return;
                }
                if let Some(refusal) = wire::error_of(raw) {
                    refused.push((offset + place as usize, refusal));
                }
                ended |= raw.sequence == last;
            })?;
        }
        Ok(())
    }

    /// Asks for all objects that the message describes.
    pub(crate) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.dump_into(message, Vec::push)
    }

    /// The same, each object taken in as it comes: of a large table not everything is held at a time. What was gathered is
    /// begun anew if the table changed meanwhile.
    pub(crate) fn dump_into<T: Default>(
        &mut self,
        message: &RouteNetlinkMessage,
        mut take: impl FnMut(&mut T, RouteNetlinkMessage),
    ) -> Result<T, Refusal> {
        for last_try in (0..DUMP_TRIES).rev() {
            let fault = fault::at(Step::Question);
            fault.refusal()?;
            let wanted = self.push(message.clone(), NLM_F_DUMP);
            self.send()?;
            self.has_leftovers = fault == Fault::Lose;
            fault.loss()?;
            let (mut taken, mut end) = (T::default(), None);
            let mut interrupted = fault == Fault::Interrupt;
            while end.is_none() {
                self.receive(|raw| {
                    if raw.sequence != wanted {
                        return;
                    }
                    interrupted |= raw.flags & NLM_F_DUMP_INTR != 0;
                    match raw.kind {
                        NLMSG_DONE | NLMSG_ERROR => end = Some(wire::error_of(raw)),
                        _ => wire::decode(raw)
                            .into_iter()
                            .for_each(|object| take(&mut taken, object)),
                    }
                })?;
            }
            if let Some(Some(refusal)) = end {
                return Err(refusal);
            }
            if !interrupted || last_try == 0 {
                return Ok(taken);
            }
        }
        Err(Refusal::Lost)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Channel({})", self.socket.as_raw_fd())
    }
}

/// The kernel's own rule: of each kind of object's four messages the third asks for it.
fn step_of(message: &RouteNetlinkMessage) -> Step {
    if message.message_type() % 4 == 2 {
        Step::Question
    } else {
        Step::Change
    }
}
