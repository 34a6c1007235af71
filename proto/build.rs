//! Compiles the `.proto` files in pure Rust (protox), so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] =
        ["leno/v1/discovery.proto", "leno/v1/identity.proto", "leno/v1/operator.proto", "leno/v1/replicas.proto"];
    println!("cargo:rerun-if-changed=leno");
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
