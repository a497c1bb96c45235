//! The pure heart of weft: records in, plan out.
//!
//! No clock, I/O, environment or async. Whatever cannot be made sense of becomes a `Problem` beside the
//! result and never blocks the rest.

pub mod address_map;
pub mod address_set;
pub mod announce;
pub mod answer;
mod assess;
pub mod audit;
pub mod barrier;
mod changes;
pub mod chores;
pub mod claims;
pub mod complaint;
pub mod dataplane;
pub mod desired;
pub mod diff;
pub mod dirty;
pub mod fence;
mod hash;
pub mod headroom;
pub mod identity;
mod listing;
pub mod lost;
pub mod members;
pub mod ownership;
pub mod plan;
pub mod problem;
mod puts;
mod recall;
pub mod record;
pub mod removal;
pub mod snapshot;
pub mod suspicion;
mod touch;
