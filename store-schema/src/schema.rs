//! JSON Schemas of the records, made from the types themselves.

use schemars::{Schema, schema_for};

use crate::{
    AddressClaimDocument, AliveDocument, BarrierDocument, EndpointDocument, NetworkDocument, PassedDocument,
    PeerDocument, ReleasedDocument, RemovedDocument, StatusDocument, VniClaimDocument,
};

/// Every record's schema with the name of its file in `docs/schema/`.
pub fn json_schemas() -> Vec<(&'static str, Schema)> {
    vec![
        ("network.json", schema_for!(NetworkDocument)),
        ("endpoint.json", schema_for!(EndpointDocument)),
        ("peer.json", schema_for!(PeerDocument)),
        ("removed.json", schema_for!(RemovedDocument)),
        ("address.json", schema_for!(AddressClaimDocument)),
        ("released.json", schema_for!(ReleasedDocument)),
        ("vni.json", schema_for!(VniClaimDocument)),
        ("alive.json", schema_for!(AliveDocument)),
        ("status.json", schema_for!(StatusDocument)),
        ("barrier.json", schema_for!(BarrierDocument)),
        ("passed.json", schema_for!(PassedDocument)),
    ]
}

/// A schema as it is kept in a file.
pub fn render_json_schema(schema: &Schema) -> String {
    let text = serde_json::to_string_pretty(schema)
        .unwrap_or_else(|e| unreachable!("a schema does not serialise: {e}"));
    text + "\n"
}
