//! Compiles `proto/` to Rust with prost, and to proto3 JSON with pbjson. No `protoc` is needed: protox parses.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use protox::prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

const PROTOS: [&str; 6] = [
    "localregistry/v1/catalog.proto",
    "localregistry/v1/config.proto",
    "localregistry/v1/control.proto",
    "localregistry/v1/event.proto",
    FAULTS,
    IMAGES,
];

/// The schema of what `pack --spec` reads.
const IMAGES: &str = "localregistry/v1/images.proto";

/// The schema of a plan of faults.
const FAULTS: &str = "localregistry/v1/faults.proto";

/// The messages between launcher and guest. `localregistry schema` prints them with their comments.
const MESSAGES: [&str; 3] = ["localregistry/v1/event.proto", "localregistry/v1/control.proto", "localregistry/v1/config.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");

    let out = std::env::var("OUT_DIR")?;
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let config = DescriptorPool::from_file_descriptor_set(descriptors.clone())?.get_message_by_name("localregistry.v1.Config");
    let mut keys = String::new();
    write_keys(&config.ok_or("proto/ has no message Config")?, "", &mut keys)?;
    std::fs::write(Path::new(&out).join("config_keys.rs"), format!("pub(crate) const KEYS: &[Key] = &[\n{keys}];\n"))?;

    let encoded = prost::Message::encode_to_vec(&descriptors);
    prost_build::Config::new().bytes([".localregistry.v1.Catalog"]).compile_fds(descriptors)?;
    pbjson_build::Builder::new().register_descriptors(&encoded)?.build(&[".localregistry.v1"])?;

    for (name, protos) in [("images.binpb", &[IMAGES][..]), ("faults.binpb", &[FAULTS]), ("messages.binpb", &MESSAGES)] {
        let descriptors = prost::Message::encode_to_vec(&protox::compile(protos, ["proto"])?);
        std::fs::write(Path::new(&out).join(name), descriptors)?;
    }

    // Relocations of a static program in 4 kB rather than 260. Only musl reads them in static programs.
    if std::env::var("TARGET")? == "x86_64-unknown-linux-musl" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }

    println!("cargo:rustc-env=BUILD_EPOCH={}", build_epoch());
    println!("cargo:rustc-env=BUILD_TARGET={}", std::env::var("TARGET")?);
    Ok(())
}

/// Writes a row of `config::keys::KEYS` for each field of `message`, and of the messages inside it, in the order of their numbers.
fn write_keys(message: &MessageDescriptor, prefix: &str, rows: &mut String) -> Result<(), Box<dyn Error>> {
    for field in message.fields() {
        let path = format!("{prefix}{}", field.json_name());
        let kind = match field.kind() {
            Kind::Message(_) if field.name() == "faults" => "Plan".to_owned(),
            Kind::Message(_) if field.is_list() => "Objects".to_owned(),
            Kind::Message(_) => "Object".to_owned(),
            Kind::Enum(values) => {
                let names: Vec<_> = values.values().map(|value| value.name().to_owned()).collect();
                format!("Choice(&{names:?})")
            }
            Kind::String if field.is_list() => "Texts".to_owned(),
            Kind::String => "Text".to_owned(),
            Kind::Uint32 => "Number".to_owned(),
            Kind::Double => "Real".to_owned(),
            Kind::Bool => "Bool".to_owned(),
            other => return Err(format!("config key {path} has the type {other:?}, which config/keys.rs does not know").into()),
        };
        writeln!(rows, "    Key {{ path: {path:?}, kind: Kind::{kind} }},")?;
        if let Kind::Message(inner) = field.kind()
            && field.name() != "faults"
        {
            if field.is_list() {
                writeln!(rows, "    Key {{ path: \"{path}.*\", kind: Kind::Object }},")?;
            }
            write_keys(&inner, &format!("{path}{}", if field.is_list() { ".*." } else { "." }), rows)?;
        }
    }
    Ok(())
}

/// The earliest time that a guest clock may show, in seconds since 1970: `SOURCE_DATE_EPOCH` if the build sets it, else the release
/// date. It is not the time of the build, so that two builds give the same binary.
fn build_epoch() -> u64 {
    let from_environment = std::env::var("SOURCE_DATE_EPOCH").ok();
    from_environment.and_then(|text| text.parse().ok()).unwrap_or(RELEASED)
}

/// Release date of this version: 2026-11-01. It moves forward with each release.
const RELEASED: u64 = 1_793_491_200;
