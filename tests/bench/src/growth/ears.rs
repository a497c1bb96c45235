//! Hears when kernels have got entries: a netlink socket in each network's namespace, and one thread that reads them all and
//! notes the time.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
        socket, sockopt,
    },
};
use weft_lab::Namespace;

/// `RTNLGRP_NEIGH` as a bit.
const NEIGHBOURS: u32 = 1 << 2;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
/// `AF_BRIDGE`, the family of forwarding entries.
const BRIDGE: u8 = 7;
/// `NDA_LLADDR`.
const MAC: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

/// An entry that came or went.
#[derive(Debug, Clone, Copy)]
struct Heard {
    place: usize,
    came: bool,
    forwarding: bool,
    mac: [u8; 6],
    at: Instant,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Ears {
    heard: Receiver<Heard>,
    places: usize,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ears {
    /// Starts to listen in these namespaces.
    ///
    /// # Errors
    /// When one cannot be entered.
    pub(crate) fn open(places: &[Namespace]) -> Result<Self> {
        let sockets: Vec<OwnedFd> = places
            .iter()
            .map(|place| {
                place
                    .within(listen)?
                    .with_context(|| place.path().display().to_string())
            })
            .collect::<Result<_>>()?;
        let (tell, heard) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("ears".to_owned())
            .spawn(move || {
                while !told.load(Ordering::Relaxed) {
                    for (place, datagram, at) in read(&sockets) {
                        for (came, forwarding, mac) in entries(&datagram) {
                            let heard = Heard {
                                place,
                                came,
                                forwarding,
                                mac,
                                at,
                            };
                            if tell.send(heard).is_err() {
                                return;
                            }
                        }
                    }
                }
            })
            .context("starting a thread")?;
        Ok(Self {
            heard,
            places: places.len(),
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until every place has forwarding entry and neighbour of a MAC; when each had both.
    ///
    /// # Errors
    /// When one does not have them within twenty seconds.
    pub(crate) fn all_have(&self, mac: [u8; 6]) -> Result<Vec<Instant>> {
        self.until(mac, true, |seen| seen == [true, true])
    }

    /// Waits until no place forwards to a MAC any more.
    ///
    /// # Errors
    /// When one still does after twenty seconds.
    pub(crate) fn all_lost(&self, mac: [u8; 6]) -> Result<()> {
        self.until(mac, false, |[forwarding, _]| forwarding).map(drop)
    }

    fn until(&self, mac: [u8; 6], came: bool, enough: impl Fn([bool; 2]) -> bool) -> Result<Vec<Instant>> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen: BTreeMap<usize, [bool; 2]> = BTreeMap::new();
        let mut when = BTreeMap::new();
        while when.len() < self.places {
            match self
                .heard
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(heard) if heard.mac == mac && heard.came == came => {
                    let seen = seen.entry(heard.place).or_default();
                    seen[usize::from(!heard.forwarding)] = true;
                    if enough(*seen) {
                        when.entry(heard.place).or_insert(heard.at);
                    }
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!(
                    "only {} of {} kernels had the change after {PATIENCE:?}",
                    when.len(),
                    self.places
                ),
                Err(RecvTimeoutError::Disconnected) => bail!("nobody listens any more"),
            }
        }
        Ok(when.into_values().collect())
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been told of.
            let _ = thread.join();
        }
    }
}

fn listen() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NEIGHBOURS))?;
    Ok(socket)
}

/// What is there to read, after a while at most.
fn read(sockets: &[OwnedFd]) -> Vec<(usize, Vec<u8>, Instant)> {
    let mut waiting: Vec<_> = sockets
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
        .collect();
    if poll(&mut waiting, PollTimeout::from(50_u8)).is_err() {
        return Vec::new();
    }
    let at = Instant::now();
    let mut read = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    for (place, socket) in sockets.iter().enumerate() {
        if waiting[place].any() != Some(true) {
            continue;
        }
        while let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            read.push((place, buffer[..length].to_vec(), at));
        }
    }
    read
}

/// The entries that a datagram tells of: whether it came, whether it is a forwarding entry, and its MAC.
fn entries(datagram: &[u8]) -> Vec<(bool, bool, [u8; 6])> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some(length) = number32(rest, 0) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(message) = rest.get(..length).filter(|message| message.len() >= 28) else {
            break;
        };
        let kind = number16(message, 4);
        if let (Some(NEWNEIGH | DELNEIGH), Some(mac)) = (kind, mac(&message[28..])) {
            found.push((kind == Some(NEWNEIGH), message[16] == BRIDGE, mac));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn mac(mut attributes: &[u8]) -> Option<[u8; 6]> {
    loop {
        let length = usize::from(number16(attributes, 0)?);
        if number16(attributes, 2)? == MAC {
            return attributes.get(4..10)?.try_into().ok();
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
