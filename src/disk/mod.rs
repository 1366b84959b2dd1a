//! The format of a disk, for its writer and its readers: file systems, and the image layout and catalog in them.

pub mod catalog;
#[cfg(feature = "host")]
pub mod erofs;
#[cfg(feature = "host")]
pub mod ext4;
#[cfg(feature = "host")]
mod ext4_mount;
#[cfg(feature = "host")]
pub mod label;
pub mod layout;
#[cfg(any(feature = "guest", feature = "host"))]
pub(crate) mod little_endian;
#[cfg(feature = "host")]
pub mod squashfs;
#[cfg(any(feature = "guest", feature = "host"))]
pub mod superblock;
