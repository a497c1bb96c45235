//! Raw netlink, as thin as it can be: what programming cannot be faster than, and eyes that are not weft's. Many messages a
//! send, acknowledged by the last; dumps and notifications of forwarding entries and neighbours.

use std::{
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, send,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::records::Remote;

/// More in one send gains nothing.
const BATCH: usize = 128;
const BUFFER: usize = 8 << 20;

const NEW: u16 = 28;
const DELETE: u16 = 29;
const GET: u16 = 30;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const REPLACE_OR_CREATE: u16 = 0x500;
const NEIGHBOURS: u32 = 1 << 2;

const BRIDGE: u8 = 7;
const INET: u8 = 2;
/// `NTF_SELF | NTF_MASTER | NTF_EXT_LEARNED`: the tunnel's table and the bridge's at once.
const BOTH_TABLES: u8 = 0x16;
const EXT_LEARNED: u8 = 0x10;
const STATIC: u16 = 0x42;
const NOARP: u16 = 0x40;
const DST: u16 = 1;
const LLADDR: u16 = 2;
const PROTOCOL: u16 = 12;
/// weft's own number, so that the same is written.
const OURS: u8 = 87;

/// A row of one of the three tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    /// In a tunnel's table: this MAC is at this VTEP.
    Tunnel([u8; 6], IpAddr),
    /// In the bridge's table: this MAC is behind the device with this index.
    Bridge([u8; 6], u32),
    /// A neighbour.
    Neighbour(IpAddr, [u8; 6]),
}

/// A socket in one namespace.
#[derive(Debug)]
pub(crate) struct Wire {
    fd: OwnedFd,
    sequence: u32,
    out: Vec<u8>,
    buffer: Vec<u8>,
}

impl Wire {
    /// In the calling thread's namespace; hears of changes of neighbours if it is to listen.
    pub(crate) fn open(listen: bool) -> Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .context("opening a netlink socket")?;
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(20))?;
        bind(
            fd.as_raw_fd(),
            &NetlinkAddr::new(0, if listen { NEIGHBOURS } else { 0 }),
        )?;
        Ok(Self {
            fd,
            sequence: 0,
            out: Vec::new(),
            buffer: vec![0; 1 << 18],
        })
    }

    fn begin(&mut self, kind: u16, flags: u16) -> usize {
        self.sequence += 1;
        let start = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(&kind.to_ne_bytes());
        self.out.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.out.extend_from_slice(&self.sequence.to_ne_bytes());
        self.out.extend_from_slice(&[0; 4]);
        start
    }

    fn subject(&mut self, family: u8, index: u32, state: u16, flags: u8) {
        self.out.extend_from_slice(&[family, 0, 0, 0]);
        self.out.extend_from_slice(&index.to_ne_bytes());
        self.out.extend_from_slice(&state.to_ne_bytes());
        self.out.extend_from_slice(&[flags, 0]);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.out
            .extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.out.extend_from_slice(&kind.to_ne_bytes());
        self.out.extend_from_slice(value);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }

    fn end(&mut self, start: usize) {
        let length = (self.out.len() - start) as u32;
        self.out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Puts or deletes all entries of these endpoints: first the forwarding entries, then the neighbours.
    pub(crate) fn program(
        &mut self,
        remotes: &[Remote],
        tunnel: u32,
        bridge: u32,
        put: bool,
    ) -> Result<Duration> {
        let started = Instant::now();
        let (kind, flags) = if put {
            (NEW, REPLACE_OR_CREATE)
        } else {
            (DELETE, 0)
        };
        for forwarding in [true, false] {
            for some in remotes.chunks(BATCH) {
                for (i, remote) in some.iter().enumerate() {
                    let ack = if i + 1 == some.len() { ACK } else { 0 };
                    let start = self.begin(kind, flags | ack);
                    if forwarding {
                        self.subject(BRIDGE, tunnel, STATIC, BOTH_TABLES);
                        self.attribute(LLADDR, &remote.mac.bytes());
                        self.attribute(DST, &remote.vtep.octets());
                    } else {
                        self.subject(INET, bridge, NOARP, EXT_LEARNED);
                        self.attribute(DST, &remote.address.octets());
                        if put {
                            self.attribute(LLADDR, &remote.mac.bytes());
                            self.attribute(PROTOCOL, &[OURS]);
                        }
                    }
                    self.end(start);
                }
                self.exchange()?;
            }
        }
        Ok(started.elapsed())
    }

    /// Sends what was gathered and waits for the last one's acknowledgement.
    fn exchange(&mut self) -> Result<()> {
        send(self.fd.as_raw_fd(), &self.out, MsgFlags::empty()).context("sending to the kernel")?;
        self.out.clear();
        let last = self.sequence;
        loop {
            let mut ended = false;
            let mut refused = None;
            self.receive(|kind, sequence, body| {
                if kind == ERROR {
                    let errno = i32_at(body, 0);
                    if errno != 0 {
                        refused = Some(Errno::from_raw(-errno));
                    }
                    ended |= sequence == last;
                }
            })?;
            if let Some(errno) = refused {
                bail!("the kernel refuses an entry: {errno}");
            }
            if ended {
                return Ok(());
            }
        }
    }

    fn receive(&mut self, mut each: impl FnMut(u16, u32, &[u8])) -> Result<()> {
        let size = {
            let mut into = [IoSliceMut::new(&mut self.buffer)];
            let got = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut into, None, MsgFlags::empty())
                .context("the kernel does not answer")?;
            ensure!(
                !got.flags.contains(MsgFlags::MSG_TRUNC),
                "a datagram was cut short"
            );
            got.bytes
        };
        let mut rest = &self.buffer[..size];
        while rest.len() >= 16 {
            let length = i32_at(rest, 0) as usize;
            ensure!((16..=rest.len()).contains(&length), "a message of {length} bytes");
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            each(kind, i32_at(rest, 8) as u32, &rest[16..length]);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn ask(&mut self, family: u8, mut each: impl FnMut(&[u8])) -> Result<()> {
        let start = self.begin(GET, DUMP);
        self.subject(family, 0, 0, 0);
        self.end(start);
        send(self.fd.as_raw_fd(), &self.out, MsgFlags::empty()).context("asking the kernel")?;
        self.out.clear();
        let mut ended = false;
        while !ended {
            self.receive(|kind, _, body| match kind {
                DONE | ERROR => ended = true,
                _ => each(body),
            })?;
        }
        Ok(())
    }

    /// Reads all forwarding entries and neighbours, taking nothing of them apart: the time that the kernel needs to tell.
    pub(crate) fn time_dump(&mut self) -> Result<(Duration, usize)> {
        let started = Instant::now();
        let mut count = 0;
        self.ask(BRIDGE, |_| count += 1)?;
        self.ask(INET, |_| count += 1)?;
        Ok((started.elapsed(), count))
    }

    /// All rows of the three tables that were made and not learned or automatic.
    pub(crate) fn rows(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        self.ask(BRIDGE, |body| {
            if body[10] & EXT_LEARNED == 0 {
                return;
            }
            let (dst, mac) = addresses(body);
            if let Some(mac) = mac {
                rows.push(match dst {
                    Some(vtep) => Row::Tunnel(mac, vtep),
                    None => Row::Bridge(mac, i32_at(body, 4) as u32),
                });
            }
        })?;
        self.ask(INET, |body| {
            if let (Some(address), Some(mac)) = addresses(body)
                && body[10] & EXT_LEARNED != 0
            {
                rows.push(Row::Neighbour(address, mac));
            }
        })?;
        Ok(rows)
    }

    /// Waits until the kernel tells that it has a neighbour for this address.
    pub(crate) fn wait_for(&mut self, wanted: Ipv4Addr) -> Result<Instant> {
        loop {
            let mut there = false;
            self.receive(|kind, _, body| {
                there |= kind == NEW && body[0] == INET && addresses(body).0 == Some(IpAddr::V4(wanted));
            })
            .with_context(|| format!("waiting for the neighbour {wanted}"))?;
            if there {
                return Ok(Instant::now());
            }
        }
    }
}

/// The address and the MAC in a message about a neighbour.
fn addresses(body: &[u8]) -> (Option<IpAddr>, Option<[u8; 6]>) {
    let (mut dst, mut mac) = (None, None);
    let mut rest = body.get(12..).unwrap_or_default();
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let Some(value) = rest.get(4..length) else { break };
        match (u16::from_ne_bytes([rest[2], rest[3]]), value.len()) {
            (DST, 4) => dst = <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            (DST, 16) => dst = <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            (LLADDR, 6) => mac = value.try_into().ok(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (dst, mac)
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes)
}
