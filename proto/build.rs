//! Generates the API's messages, clients and servers from proto/weft/v1/weft.proto, and the descriptor set that
//! the agent's reflection service hands out.
//!
//! Needs `protoc` on PATH or named by PROTOC, with Google's well-known types.

use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptor_set = PathBuf::from(env::var("OUT_DIR")?).join("weft_v1.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptor_set)
        .compile_protos(&["proto/weft/v1/weft.proto"], &["proto"])
        .map_err(|why| {
            format!(
                "weft.proto does not compile (is protobuf-compiler installed, with libprotobuf-dev?): {why}"
            )
        })?;
    Ok(())
}
