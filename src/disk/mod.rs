//! The format of a disk, for those who write it and those who read it: its file system, and the image layout and catalog in it.

pub mod catalog;
#[cfg(feature = "host")]
pub mod erofs;
#[cfg(feature = "host")]
pub mod ext4;
#[cfg(feature = "host")]
pub mod label;
pub mod layout;
#[cfg(feature = "host")]
pub mod squashfs;
#[cfg(any(feature = "guest", feature = "host"))]
pub mod superblock;
