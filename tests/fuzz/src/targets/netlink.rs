//! Datagrams of the kernel: answers to what the agent asks, and notifications.

use weft_kernel::fuzzing;

use super::gist;
use crate::Target;

/// Datagrams taken for answers.
pub const ANSWERS: Target = Target {
    name: "answers",
    run: |datagram| gist(&fuzzing::answers(datagram)),
    words: WORDS,
};

/// Datagrams taken for notifications.
pub const NOTIFICATIONS: Target = Target {
    name: "notifications",
    run: |datagram| gist(&fuzzing::notifications(datagram)),
    words: WORDS,
};

/// Types of messages, and beginnings of attributes.
const WORDS: &[&[u8]] = &[
    b"\x10\x00",
    b"\x11\x00",
    b"\x14\x00",
    b"\x18\x00",
    b"\x1c\x00",
    b"\x1d\x00",
    b"\x58\x00",
    b"\x02\x00",
    b"\x04\x00",
    b"\x05\x00",
    b"\x08\x00",
    b"\x14\x00\x00\x00",
    b"\x04\x00\x12\x80",
    b"\x08\x00\x01\x00",
    b"vxlan\x00",
    b"bridge\x00",
    b"veth\x00",
    b"br0\x00",
    b"vx4\x00",
    b"eth0\x00",
    b"weft blue/host1/web x\x00",
];
