//! The agent's gRPC API: messages, clients and servers generated from `proto/weft/v1/weft.proto`, and nothing else.
//!
//! In: the .proto file, which documents every service, message and field. Out: [`v1`] and its descriptors.
//! It must not know how anything is carried out, stored or shown.

/// Version 1 of the API: package `weft.v1`.
#[allow(
    missing_docs,
    clippy::all,
    unused_qualifications,
    reason = "generated; the messages and fields carry the .proto file's comments, the code around them carries none"
)]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// The compiled descriptors of `weft.v1` and of what it imports, for gRPC reflection: an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("weft_v1");
