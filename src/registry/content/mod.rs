//! The content that is served: which names and digests exist, and bodies that read them from the disk.

pub mod body;
pub mod buffers;
pub mod disk_errors;
pub(crate) mod manifest_cache;
pub mod snapshot;
pub mod store;
pub(crate) mod verify;
