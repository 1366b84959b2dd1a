//! The contracts of `proto/`, generated: the disk's catalog, the guest's config, its events and the commands it takes.
#![allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/localregistry.v1.rs"));
include!(concat!(env!("OUT_DIR"), "/localregistry.v1.serde.rs"));
