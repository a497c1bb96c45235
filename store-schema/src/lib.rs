//! What lies in etcd: key layout, records and their validation.
//!
//! Input is bytes as an operator or an agent wrote them; output is either a valid, typed record or a
//! [`RecordError`] that names the field and says what is allowed. Records as they are *stored* (the
//! `…Document` types, plain serde) are kept apart from records as they are *used* (parsed once, every
//! precondition in a type).
//!
//! This crate does no I/O, knows no clock and no etcd client, and never decides what to program.

mod address;
mod addresses;
mod claim;
mod document;
mod endpoint;
mod error;
mod key;
mod name;
mod network;
mod number;
mod peer;
mod schema;
mod status;

pub use address::{AddressRange, parse_reserved};
pub use addresses::Addresses;
pub use claim::{AddressClaim, AddressClaimDocument, Holder, ReleasedDocument, VniClaim, VniClaimDocument};
pub use document::{MAX_RECORD_BYTES, RECORD_VERSION, check_room, decode, encode, set_fields};
pub use endpoint::{Attachment, AttachmentDocument, DEFAULT_IFNAME, Endpoint, EndpointDocument};
pub use error::RecordError;
pub use key::{BarrierRef, EndpointRef, Key, KeyError, Kind, Prefix};
pub use name::{EndpointId, IfName, NameError, NetworkName, NodeName};
pub use network::{Network, NetworkDocument, Subnet, SubnetDocument};
pub use number::{Family, Mac, Mtu, ParseMacError, Vni};
pub use peer::{Peer, PeerDocument, PeerKind, RemovedDocument};
pub use schema::{json_schemas, render_json_schema};
/// A JSON value, as [`set_fields`] takes it.
pub use serde_json::Value;
pub use status::{AliveDocument, BarrierDocument, PassedDocument, StatusDocument, StatusProblem};
