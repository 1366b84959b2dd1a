//! Container images: pulled from registries, packed into a disk, written from scratch, and the sample image.

pub(in crate::host) mod bounded;
pub mod pack;
pub mod platforms;
pub mod pull;
pub mod sample;
pub mod scratch;
pub(in crate::host) mod virtual_layout;
mod work_dir;
