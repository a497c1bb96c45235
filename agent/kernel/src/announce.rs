//! Telling local containers that an address has another MAC: gratuitous ARP and unsolicited neighbour
//! advertisements, as the new holder itself would send them on a network that floods.
//!
//! Each is sent out of the host end of a container's veth, so it reaches that container and nobody else: neither
//! the bridge nor the tunnel sees it. Nothing depends on it but how soon a container that had talked to the last
//! holder finds the new one, so what cannot be sent is let be.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _, sendto};
use weft_core::{
    announce::{Announcement, Announcements},
    ownership,
};
use weft_store_schema::{IfName, Mac, NetworkName};

use crate::{Kernel, KernelError, links};

const ETH_ARP: u16 = 0x0806;
const ETH_IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethernet address of ff02::1, all nodes (RFC 2464 section 7).
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

impl Kernel {
    /// Tells the local endpoints of each network, but the new holder, of addresses that have another MAC than before.
    pub fn announce(&mut self, announcements: &Announcements) {
        for (network, changed) in announcements {
            if let Err(error) = self.announce_in(network, changed) {
                // Once: a right that is missing is missing for good.
                if !std::mem::replace(&mut self.mute, true) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(
                        %network, %error, cause,
                        "cannot announce new MACs to containers (CAP_NET_RAW is needed); those that knew another find \
                         out by themselves, within a minute"
                    );
                }
            } else {
                self.mute = false;
            }
        }
    }

    fn announce_in(&mut self, network: &NetworkName, changed: &[Announcement]) -> Result<(), KernelError> {
        let Some(namespace) = self.enter(network)? else {
            return Ok(());
        };
        let error = |source| KernelError::Socket {
            place: format!("for announcements in {}", ownership::namespace_name(network)),
            source,
        };
        let ends: Vec<_> = links::dump(&mut namespace.channel, network.as_str())?
            .into_iter()
            .filter(|link| link.is_veth() && ownership::is_port_name(&link.name))
            .collect();
        let packets = namespace.packets().map_err(error)?;
        for announcement in changed {
            let (frame, protocol) = frame(announcement.address, announcement.mac);
            let others = ends
                .iter()
                .filter(|end| announcement.holder.as_ref().map(IfName::as_str) != Some(&end.name));
            for end in others {
                let to = out_of(end.index, protocol).map_err(error)?;
                if let Err(why) = sendto(packets.as_raw_fd(), &frame, &to, MsgFlags::MSG_DONTWAIT) {
                    // A device that is going, or down: there is nobody to tell.
                    tracing::debug!(port = end.name, address = %announcement.address, %why, "not announced");
                }
            }
        }
        Ok(())
    }
}

/// The address of a link as something to send out of.
fn out_of(index: u32, protocol: u16) -> io::Result<LinkAddr> {
    let link = nix::libc::sockaddr_ll {
        sll_family: nix::libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let size = size_of::<nix::libc::sockaddr_ll>() as nix::libc::socklen_t;
    #[expect(unsafe_code, reason = "nix has no other way to make such an address")]
    // SAFETY: the pointer is to a whole `sockaddr_ll` that lives until after the call, which copies it; its family and
    // size are what the function looks at.
    let address = unsafe { LinkAddr::from_raw((&raw const link).cast(), Some(size)) };
    address.ok_or_else(|| io::Error::other("not a link's address"))
}

/// An announcement as an Ethernet frame, with its protocol.
fn frame(address: IpAddr, mac: Mac) -> (Vec<u8>, u16) {
    let (to, protocol, payload) = match address {
        IpAddr::V4(address) => (BROADCAST, ETH_ARP, arp(address, mac)),
        IpAddr::V6(address) => (ALL_NODES, ETH_IPV6, advertisement(address, mac)),
    };
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(to);
    frame.extend(mac.bytes());
    frame.extend(protocol.to_be_bytes());
    frame.extend(payload);
    (frame, protocol)
}

/// An ARP announcement: a request for one's own address (RFC 5227 section 2.3). Linux believes it at once, where it
/// ignores a second answer within a second of the first.
fn arp(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    // Ethernet, IPv4, lengths of their addresses, request.
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(mac.bytes());
    packet.extend(address.octets());
    packet.extend([0; 6]);
    packet.extend(address.octets());
    packet
}

/// An unsolicited neighbour advertisement that overrides what is known (RFC 4861 sections 4.4 and 7.2.6).
fn advertisement(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, code 0, the checksum's place, the override flag; at the end the MAC as an option of 8 bytes.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac.bytes());
    let length = message.len() as u16;
    let checksum = checksum([
        &address.octets()[..],
        &all_nodes.octets()[..],
        &[
            0,
            0,
            length.to_be_bytes()[0],
            length.to_be_bytes()[1],
            0,
            0,
            0,
            58,
        ][..],
        &message[..],
    ]);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    // Version 6, payload length, ICMPv6, a hop limit that no router lets through.
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([58, 255]);
    packet.extend(address.octets());
    packet.extend(all_nodes.octets());
    packet.extend(message);
    packet
}

/// The internet checksum (RFC 1071) of parts of even length.
fn checksum<const N: usize>(parts: [&[u8]; N]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_their_rfcs_have_them() {
        let mac = Mac::new([2, 0x42, 10, 1, 0, 9]).unwrap();
        let (arp, _) = frame("10.1.0.9".parse().unwrap(), mac);
        assert_eq!(arp.len(), 42);
        assert_eq!(arp[28..32], arp[38..42]);
        let (advertisement, _) = frame("fd00:1::9".parse().unwrap(), mac);
        assert_eq!(advertisement.len(), 14 + 40 + 32);
        // Summed with its checksum, the message gives zero.
        let (addresses, message) = (&advertisement[22..54], &advertisement[54..]);
        let rest = [0, 0, 0, 32, 0, 0, 0, 58];
        assert_eq!(checksum([addresses, &rest[..], message]), 0);
    }
}
