//! Echo among many: one thread and two sockets a container, all targets at once.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Station;

/// Most neighbour entries that all containers together may have: the kernel's tables are one for all namespaces of a
/// machine, and dynamic entries beyond 1024 of a family (`gc_thresh3`) are refused.
const ENTRIES: usize = 800;

/// How long a request waits for its answer before it is sent again.
const AGAIN: Duration = Duration::from_millis(500);

/// Sends echo requests from each station to each address of every other one, again while there is no answer, and
/// names the pairs that have had none for this long. Many stations take turns, so that they fit on one machine.
///
/// Not for questions about the very first packet: the kernel drops what it has no neighbour entry left for, and that
/// limit is one for all namespaces of the machine, so of all tests that run at the same time.
///
/// # Errors
/// When a container cannot be entered.
pub fn unanswered(stations: &[Station], patience: Duration) -> Result<Vec<String>> {
    // Whoever asks and whoever answers have each an entry for the other.
    let at_once = (ENTRIES / (2 * stations.len()).max(1)).max(1);
    let mut all = Vec::new();
    for asking in stations.chunks(at_once) {
        all.extend(ask(asking, stations, patience)?);
        if at_once < stations.len() {
            each(stations, |station| {
                station
                    .container
                    .exec(&["ip", "neigh", "flush", "all"])
                    .map(|_| Vec::new())
            })?;
        }
    }
    Ok(all)
}

fn ask(asking: &[Station], stations: &[Station], patience: Duration) -> Result<Vec<String>> {
    let deadline = Instant::now() + patience;
    each(asking, |from| {
        let targets: Vec<(&str, IpAddr)> = stations
            .iter()
            .filter(|to| to.id != from.id || to.network != from.network)
            .flat_map(|to| to.addresses.iter().map(|a| (to.id.as_str(), *a)))
            .collect();
        let missing = from.container.netns().within(|| silent(&targets, deadline))??;
        Ok(missing
            .into_iter()
            .map(|(to, address)| format!("{} -> {to} ({address})", from.id))
            .collect())
    })
}

/// Does something for each station, all at once.
fn each(stations: &[Station], job: impl Fn(&Station) -> Result<Vec<String>> + Sync) -> Result<Vec<String>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = stations
            .iter()
            .map(|station| scope.spawn(|| job(station)))
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            let done = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.extend(done?);
        }
        Ok(all)
    })
}

/// Targets that do not answer, asked from the namespace of the calling thread.
fn silent<'a>(targets: &[(&'a str, IpAddr)], deadline: Instant) -> Result<Vec<(&'a str, IpAddr)>> {
    let mut families = Vec::new();
    for v4 in [true, false] {
        let targets: Vec<_> = targets
            .iter()
            .filter(|(_, a)| a.is_ipv4() == v4)
            .copied()
            .collect();
        if targets.is_empty() {
            continue;
        }
        let waiting: BTreeSet<usize> = (0..targets.len()).collect();
        families.push((v4, open(v4)?, targets, waiting));
    }
    let mut send_at = Instant::now();
    while families.iter().any(|(.., waiting)| !waiting.is_empty()) && Instant::now() < deadline {
        let due = Instant::now() >= send_at;
        if due {
            send_at += AGAIN;
        }
        for (v4, socket, targets, waiting) in families.iter_mut().filter(|(.., waiting)| !waiting.is_empty())
        {
            for number in waiting.iter().filter(|_| due) {
                // Without a route there is no answer either.
                let _ = sendto(
                    socket.as_raw_fd(),
                    &request(*v4, u16::try_from(*number)?),
                    &SockaddrStorage::from(SocketAddr::new(targets[*number].1, 0)),
                    MsgFlags::empty(),
                );
            }
            if let Some(number) = reply(socket, *v4) {
                waiting.remove(&number.into());
            }
        }
    }
    Ok(families
        .into_iter()
        .flat_map(|(_, _, targets, waiting)| waiting.into_iter().map(move |number| targets[number]))
        .collect())
}

/// The identifier of all our requests: every namespace has its own answers.
const IDENTIFIER: u16 = 0x77e7;

fn open(v4: bool) -> Result<OwnedFd> {
    let (family, protocol) = if v4 {
        (AddressFamily::Inet, SockProtocol::Icmp)
    } else {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    };
    let socket =
        socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("opening an ICMP socket")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))
        .context("setting the receive timeout")?;
    // Raw sockets hear the requests of all others too.
    setsockopt(&socket, sockopt::RcvBufForce, &(1 << 20)).context("setting the receive buffer")?;
    Ok(socket)
}

fn request(v4: bool, number: u16) -> Vec<u8> {
    let kind = if v4 { 8_u8 } else { 128 };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(IDENTIFIER.to_be_bytes());
    packet.extend(number.to_be_bytes());
    if v4 {
        // RFC 1071; the kernel fills it in for ICMPv6 only.
        let sum = u32::from(kind) * 256 + u32::from(IDENTIFIER) + u32::from(number);
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn reply(socket: &OwnedFd, v4: bool) -> Option<u16> {
    let mut buffer = [0_u8; 256];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
    let packet = buffer.get(..length)?;
    // Raw IPv4 sockets get the IP header too.
    let icmp = if v4 {
        packet.get(usize::from(packet.first()? & 0xf) * 4..)?
    } else {
        packet
    };
    let word = |at: usize| Some(u16::from_be_bytes(icmp.get(at..at + 2)?.try_into().ok()?));
    let kind = if v4 { 0 } else { 129 };
    (*icmp.first()? == kind && word(4)? == IDENTIFIER).then(|| word(6))?
}
