//! What the end-to-end tests share: a cluster of agents on a lab, all-pairs echo, captures of the underlay, and short
//! ways to what the kernel and the agents say.
//!
//! It knows records, the command line and the kernel's own listings; it must not know how weft works inside.

mod ask;
mod capture;
mod cluster;
mod mesh;
mod see;

pub use ask::{addresses, attach, fails, refused};
pub use capture::{Capture, Frame, Inner};
pub use cluster::{Cluster, SOON, Station};
pub use mesh::unanswered;
pub use see::{
    Fdb, counter, fdb, has_problem, link, neighbours, no_problem, problems, remote_fdb, status, writes,
};
