//! The agent's API: gRPC on a Unix socket.
//!
//! In: something that implements [`Control`], a socket's path and a token for shutdown. Out: a served socket,
//! every failure a status with typed details. It must not know etcd, netlink, or how anything is carried out.

mod control;
mod error;
mod events;
mod page;
mod serve;
mod service;
mod socket;

pub use control::{
    AuditStream, Call, Caller, Control, EndpointFilter, EndpointList, EventStream, NodeFilter, RemovalStream,
};
pub use error::{ApiError, ERROR_DOMAIN, Subject};
pub use events::EventHub;
pub use serve::{Limits, ServeError, serve};
#[doc(hidden)]
pub use service::Bytes;
pub use socket::{ListenError, Listener, ListenerConfig};
