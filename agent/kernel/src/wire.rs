//! Bytes of the kernel's answers and notifications, taken apart into messages.
//!
//! In: one datagram, whatever is in it. Out: its messages, and what the kernel says of a refused request. It
//! asks nobody anything, and no bytes make it panic.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;

use crate::channel::Refusal;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

/// One message of a datagram, not yet understood.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The message, its header included.
    bytes: &'a [u8],
}

/// The messages of one datagram, up to the first that cannot be one.
pub(crate) fn split(mut rest: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        if length < HEADER {
            return None;
        }
        let bytes = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Raw {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            bytes,
        })
    })
}

/// A message of a kind that this code has no use for, or that the packet crate cannot read, is skipped: the
/// kernel may know objects that weft does not.
pub(crate) fn decode(raw: Raw<'_>) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = raw.kind;
    match RouteNetlinkMessage::deserialize(&header, raw.bytes.get(HEADER..)?) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::debug!(kind = raw.kind, %error, "a netlink message cannot be read");
            None
        }
    }
}

/// The refusal in an error answer (or at a dump's end); none for an acknowledgement.
pub(crate) fn error_of(raw: Raw<'_>) -> Option<Refusal> {
    let errno = u32_at(raw.bytes, HEADER).map_or(0, |n| n as i32);
    if errno == 0 {
        return None;
    }
    let mut text = None;
    if raw.flags & NLM_F_ACK_TLVS != 0 {
        // Behind the error number stands the header of the request, and only that (NETLINK_CAP_ACK).
        let mut rest = raw.bytes.get(HEADER + 4 + HEADER..).unwrap_or_default();
        while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
            let length = usize::from(length);
            let Some(value) = rest.get(4..length) else { break };
            if kind & 0x3fff == NLMSGERR_ATTR_MSG {
                let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
                text = Some(String::from_utf8_lossy(&value[..end]).into_owned());
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Some(Refusal::Errno(errno.wrapping_neg(), text))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
