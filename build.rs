//! Generates the wire messages and gRPC service stubs from `src/proto/*.proto` without needing `protoc`.

use std::{error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["tvix.proto", "snix.proto", "store.proto", "castore.proto"]
        .map(|file| format!("src/proto/{file}"));
    for file in &files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["src/proto"])?;
    // For reflection: what the server offers, as a client may ask for it.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(false)
        .build_client(false)
        .compile_fds(descriptors.clone())?;
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    Ok(())
}
