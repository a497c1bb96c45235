//! weft's part of the kernel against a real kernel. Each test has a host of its own: a network namespace that
//! its thread lives in, with private directories. They need root, and fail without it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod announcements;
mod attachments;
mod errors;
mod foreign;
mod ground;
mod hazards;
mod leftovers;
mod lookups;
mod notices;
mod operations;
mod random;
mod scale;
mod teardown;
mod underlay;
