//! The served content: the disks, the catalog of their images, and response bodies that read blobs from them.

pub(crate) mod blob_reader;
pub mod body;
pub mod buffers;
pub(crate) mod delivery;
pub(in crate::registry) mod disk_calls;
pub mod disk_errors;
pub(crate) mod file_sender;
pub(crate) mod manifest_cache;
pub mod snapshot;
pub mod store;
mod verify;
