//! The types of the OCI specifications. Text is parsed where it enters. No input or output.

mod descriptor;
mod digest;
pub mod graph;
pub mod json;
mod manifest;
pub mod media_type;
mod name;
mod platform;
mod reference;
pub mod upstreams;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use manifest::{MAX_MANIFEST_SIZE, Manifest, ManifestError};
pub use name::{COSIGN_SUFFIXES, Host, MAX_REPOSITORY, MAX_TAG, NameError, Repository, Tag};
pub use platform::{Platform, PlatformError};
pub use reference::{ImageName, Reference};
