//! The API as clients meet it: over a real Unix socket, with an agent behind it that is only made up.

mod access;
mod addresses;
mod calls;
mod cluster;
mod fake;
