//! Hears from the kernels of hosts when forwarding to an endpoint is there, or gone: a netlink socket in the network's
//! namespace on each host, with the kernel's own announcements of neighbours and forwarding entries. Knows nothing of
//! weft but which three entries make an endpoint of another host reachable.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
        socket, sockopt,
    },
};
use weft_lab::Namespace;

use crate::Tally;

/// The group of announcements about neighbours, as a bit.
const NEIGHBOURS: u32 = 1 << 2;
const NEW: u16 = 28;
const DELETED: u16 = 29;
const BRIDGE: u8 = 7;
const INET: u8 = 2;
const DESTINATION: u16 = 1;
const LINK_ADDRESS: u16 = 2;

/// What is listened for: the entries of one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Entries {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether they are to go.
    pub gone: bool,
}

/// One of the three entries, as a bit: the tunnel's, the bridge's, the neighbour.
const ALL: u8 = 0b111;

#[derive(Debug)]
struct Listening {
    entries: Entries,
    /// Which entries each host has still to tell of.
    missing: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    listening: Mutex<Option<Listening>>,
    tally: Tally,
    stop: AtomicBool,
}

/// The sockets, and the thread that hears.
#[derive(Debug)]
pub struct Ears {
    hosts: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Ears {
    /// Opens a socket in each of these namespaces.
    ///
    /// # Errors
    /// When one cannot be.
    pub fn open(namespaces: &[Namespace]) -> Result<Self> {
        let mut sockets = Vec::new();
        for namespace in namespaces {
            sockets.push(namespace.within(announcements)??);
        }
        let shared = Arc::new(Shared::default());
        let heard = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("ears".to_owned())
            .spawn(move || listen(&sockets, &heard))
            .context("starting a thread")?;
        Ok(Self {
            hosts: namespaces.len(),
            shared,
            thread: Some(thread),
        })
    }

    /// Listens for these entries from now on.
    pub fn expect(&self, entries: Entries) {
        self.shared.tally.expect(self.hosts);
        let mut listening = self
            .shared
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *listening = Some(Listening {
            entries,
            missing: vec![ALL; self.hosts],
        });
    }

    /// Waits until all hosts' kernels have told of all three; when the last one did.
    ///
    /// # Errors
    /// When one has not within `patience`.
    pub fn last(&self, patience: Duration) -> Result<Instant> {
        self.shared.tally.last(patience)
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn announcements() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )
    .context("opening a netlink socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).context("setting the receive buffer")?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NEIGHBOURS)).context("joining the group of neighbours")?;
    Ok(socket)
}

fn listen(sockets: &[OwnedFd], shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    while !shared.stop.load(Ordering::Relaxed) {
        let mut polled: Vec<_> = sockets
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        // Looks now and then whether it is to stop.
        if poll(&mut polled, PollTimeout::from(100_u8)).is_err() {
            continue;
        }
        let ready: Vec<_> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (host, socket) in sockets.iter().enumerate().filter(|(host, _)| ready[*host]) {
            loop {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => take_in(shared, host, &buffer[..length], Instant::now()),
                    Err(Errno::EINTR) => {}
                    // Nothing more; or announcements were lost, which whoever waits will notice.
                    Err(_) => break,
                }
            }
        }
    }
}

fn take_in(shared: &Shared, host: usize, mut datagram: &[u8], at: Instant) {
    let mut listening = shared.listening.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(listening) = listening.as_mut() else {
        return;
    };
    while let Some((kind, message, rest)) = message(datagram) {
        datagram = rest;
        if kind != if listening.entries.gone { DELETED } else { NEW } {
            continue;
        }
        let Some(missing) = listening.missing.get_mut(host) else {
            return;
        };
        if *missing == 0 {
            return;
        }
        *missing &= !which(message, listening.entries);
        if *missing == 0 {
            shared.tally.arrived(host, at);
        }
    }
}

/// The first message of a datagram: its kind, what follows its header, and the rest.
fn message(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    let message = datagram.get(16..length)?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message, rest))
}

/// Which of an endpoint's entries a message about a neighbour is about; 0 for none.
fn which(message: &[u8], entries: Entries) -> u8 {
    let family = message.first().copied().unwrap_or_default();
    let attribute = |wanted: u16| {
        let mut attributes = message.get(12..)?;
        loop {
            let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
            if kind == wanted {
                return attributes.get(4..length);
            }
            attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
        }
    };
    let destination = attribute(DESTINATION);
    let is_its_mac = attribute(LINK_ADDRESS) == Some(&entries.mac[..]);
    match family {
        BRIDGE if is_its_mac && destination.is_some() => 0b001,
        BRIDGE if is_its_mac => 0b010,
        INET if destination == Some(&entries.address.octets()[..]) && (is_its_mac || entries.gone) => 0b100,
        _ => 0,
    }
}
