//! The messages of `proto/`, generated: the disk's catalog, the guest's config, its events and its commands.
#![allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/localregistry.v1.rs"));
include!(concat!(env!("OUT_DIR"), "/localregistry.v1.serde.rs"));
