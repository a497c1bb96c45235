//! The pure heart of weft: records in, plan out.
//!
//! No clock, I/O, environment or async. Whatever cannot be made sense of becomes a `Problem` beside the
//! result and never blocks the rest.

pub mod dataplane;
pub mod ownership;
pub mod plan;
pub mod record;
