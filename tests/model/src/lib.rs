//! The claim protocol against a reference: agents whose every decision is the product's own, a model of etcd, and between
//! them whatever can happen: views that lag, crashes between any two steps, answers that are lost, requests that
//! arrive long after they were given up, leases that end.
//!
//! `deed` says what can happen, `world` lets it, `agent`, `doing`, `steps` and `calls` tie the pure core as `weftd` does.
//! `reference` sees nothing but etcd's history and says after each step what must hold; `oracle` counts by itself what an
//! agent may choose from what it sees; `rest` says what must be true in the end. `fault` breaks it on purpose, `runs`
//! runs it by the thousand. Not modelled: the kernel's side, and how etcd itself comes to be of one mind.

mod agent;
mod calls;
mod deed;
mod doing;
pub mod etcd;
mod fault;
mod names;
mod oracle;
mod reference;
mod rest;
mod runs;
mod steps;
mod world;

pub use deed::{Ask, Deed, Loss, Schedule, Start};
pub use fault::Fault;
pub use runs::{Failure, Runner, known};
pub use world::Tally;
