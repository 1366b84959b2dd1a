//! Compiles `proto/` to Rust with prost, and to proto3 JSON with pbjson. No `protoc` is needed: protox parses.

use std::error::Error;

const PROTOS: [&str; 5] = [
    "localregistry/v1/catalog.proto",
    "localregistry/v1/config.proto",
    "localregistry/v1/control.proto",
    "localregistry/v1/event.proto",
    IMAGES,
];

/// What `pack --spec` reads, by its descriptors.
const IMAGES: &str = "localregistry/v1/images.proto";

/// What passes between launcher and guest, which `schema` describes: with its comments.
const MESSAGES: [&str; 3] = ["localregistry/v1/event.proto", "localregistry/v1/control.proto", "localregistry/v1/config.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");

    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let encoded = prost::Message::encode_to_vec(&descriptors);
    prost_build::Config::new().bytes([".localregistry.v1.Catalog"]).compile_fds(descriptors)?;
    pbjson_build::Builder::new().register_descriptors(&encoded)?.build(&[".localregistry.v1"])?;

    for (name, protos) in [("images.binpb", &[IMAGES][..]), ("messages.binpb", &MESSAGES)] {
        let descriptors = prost::Message::encode_to_vec(&protox::compile(protos, ["proto"])?);
        std::fs::write(std::path::Path::new(&std::env::var("OUT_DIR")?).join(name), descriptors)?;
    }

    println!("cargo:rustc-env=BUILD_EPOCH={}", build_epoch());
    println!("cargo:rustc-env=BUILD_TARGET={}", std::env::var("TARGET")?);
    Ok(())
}

/// The time that no guest clock may lie before, in seconds since 1970: `SOURCE_DATE_EPOCH` where the build sets it, else the day
/// of this version, so that building twice gives one binary.
fn build_epoch() -> u64 {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(RELEASED)
}

/// The day of this version, moved forward with each release: 2026-11-01.
const RELEASED: u64 = 1_793_491_200;
