//! Every kind of record by the name of its golden files and of its schema.

use std::{fs, path::PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use weft_store_schema::{
    AddressClaim, AddressClaimDocument, AliveDocument, BarrierDocument, Endpoint, EndpointDocument, Key,
    Network, NetworkDocument, PassedDocument, Peer, PeerDocument, RecordError, ReleasedDocument,
    RemovedDocument, StatusDocument, VniClaim, VniClaimDocument, decode, encode,
};

/// One kind of record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordKind {
    /// As in `network-minimal.json`.
    pub(crate) name: &'static str,
    /// Decodes and validates.
    pub(crate) judge: fn(&[u8]) -> Result<(), RecordError>,
    /// Decodes, and encodes what was decoded.
    pub(crate) reencode: fn(&[u8]) -> Result<Vec<u8>, RecordError>,
}

/// All of them.
pub(crate) const KINDS: [RecordKind; 11] = [
    RecordKind {
        name: "network",
        judge: |bytes| Network::decode(bytes).map(drop),
        reencode: reencode::<NetworkDocument>,
    },
    RecordKind {
        name: "endpoint",
        judge: |bytes| Endpoint::decode(bytes).map(drop),
        reencode: reencode::<EndpointDocument>,
    },
    RecordKind {
        name: "peer",
        judge: |bytes| Peer::decode(bytes).map(drop),
        reencode: reencode::<PeerDocument>,
    },
    RecordKind {
        name: "address",
        judge: |bytes| AddressClaim::decode(bytes).map(drop),
        reencode: reencode::<AddressClaimDocument>,
    },
    RecordKind {
        name: "vni",
        judge: |bytes| VniClaim::decode(bytes).map(drop),
        reencode: reencode::<VniClaimDocument>,
    },
    RecordKind {
        name: "alive",
        judge: |bytes| decode::<AliveDocument>(bytes).map(drop),
        reencode: reencode::<AliveDocument>,
    },
    RecordKind {
        name: "status",
        judge: |bytes| decode::<StatusDocument>(bytes).map(drop),
        reencode: reencode::<StatusDocument>,
    },
    RecordKind {
        name: "removed",
        judge: |bytes| RemovedDocument::decode(bytes).map(drop),
        reencode: reencode::<RemovedDocument>,
    },
    RecordKind {
        name: "released",
        judge: |bytes| ReleasedDocument::decode(bytes).map(drop),
        reencode: reencode::<ReleasedDocument>,
    },
    RecordKind {
        name: "barrier",
        judge: |bytes| BarrierDocument::decode(bytes).map(drop),
        reencode: reencode::<BarrierDocument>,
    },
    RecordKind {
        name: "passed",
        judge: |bytes| decode::<PassedDocument>(bytes).map(drop),
        reencode: reencode::<PassedDocument>,
    },
];

/// The kind of this name.
pub(crate) fn kind(name: &str) -> RecordKind {
    *KINDS
        .iter()
        .find(|kind| kind.name == name)
        .unwrap_or_else(|| panic!("no kind {name}"))
}

/// The kind of the record under this key.
pub(crate) fn kind_of(key: &Key) -> RecordKind {
    kind(match key {
        Key::Network(_) => "network",
        Key::Vni(_) => "vni",
        Key::Peer(_) => "peer",
        Key::Alive(_) => "alive",
        Key::Endpoint(_) => "endpoint",
        Key::Address(..) => "address",
        Key::Status(_) => "status",
        Key::Removed(_) => "removed",
        Key::Released(..) => "released",
        Key::Barrier(..) => "barrier",
        Key::Passed(..) => "passed",
    })
}

fn reencode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<Vec<u8>, RecordError> {
    Ok(encode(&decode::<T>(bytes)?))
}

/// A file of this crate.
pub(crate) fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A golden file's bytes, without the newline at its end.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = here("tests/records/golden").join(name);
    let mut bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(bytes.pop(), Some(b'\n'), "{name} does not end with a newline");
    bytes
}
