//! Compiles the protos with protox, in Rust: no protoc is needed on the machine.

use std::path::PathBuf;

use prost::Message as _;

// Cargo speaks to build scripts through the environment alone.
#[allow(clippy::disallowed_methods)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    for folder in ["isle/storage/v1", "isle/v1"] {
        for entry in std::fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "proto") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut descriptors = protox::compile(&files, [&root])?;
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .bytes(".")
        // Maps in key order, so that equal messages encode to equal bytes.
        .btree_map(".")
        .compile_fds(descriptors.clone())?;

    // Reflection has no use for comments and positions, which are most of the descriptors' bytes.
    descriptors.file.iter_mut().for_each(|file| file.source_code_info = None);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    Ok(())
}
