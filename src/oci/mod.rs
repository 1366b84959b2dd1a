//! The specification's nouns as types: what is parsed once at the edge and never travels as a raw `String` after it. Pure: no
//! input or output here.

mod digest;
pub mod manifest;
pub mod media_type;
mod name;
mod platform;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use name::{Host, ImageName, MAX_REPOSITORY, MAX_TAG, NameError, Reference, Repository, Tag};
pub use platform::PlatformError;
