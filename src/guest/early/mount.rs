//! Mounts file systems from a table of rows. [`power`](crate::guest::power) unmounts them.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

/// One mount.
#[derive(Debug, Clone)]
pub struct Mount<'a> {
    /// Device, or any name for a file system without one.
    pub source: &'a str,
    /// Mount point, which is created if it is missing.
    pub target: &'a str,
    /// Type, as the kernel names it.
    pub fs: &'a str,
    /// Flags for mount(2).
    pub flags: MsFlags,
    /// Options of the file system.
    pub data: Option<&'a str>,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// The mounts of every boot, in order.
#[rustfmt::skip]
const API_FILE_SYSTEMS: [Mount<'static>; 6] = [
    Mount { source: "devtmpfs", target: "/dev",  fs: "devtmpfs", flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), data: Some("mode=0755") },
    Mount { source: "proc",     target: "/proc", fs: "proc",     flags: SAFE, data: None },
    Mount { source: "sysfs",    target: "/sys",  fs: "sysfs",    flags: SAFE, data: None },
    Mount { source: "tmpfs",    target: "/run",  fs: "tmpfs",    flags: SAFE, data: Some("mode=0755,size=8m") },
    // The mount points of the disks.
    Mount { source: "tmpfs",    target: DISKS,   fs: "tmpfs",    flags: SAFE, data: Some("mode=0755,size=1m") },
    // The root, whose folders are there now, is only read from here on.
    Mount { source: "rootfs",   target: "/",     fs: "rootfs",   flags: MsFlags::MS_REMOUNT.union(MsFlags::MS_RDONLY), data: None },
];

/// Each disk is mounted on a folder in here, named after its device.
pub const DISKS: &str = "/disks";

/// The mount that takes the place of the kernel's fw_cfg files, for those that come after a freeze. Among them may be keys.
pub const FIRMWARE: Mount<'static> =
    Mount { source: "tmpfs", target: "/sys/firmware", fs: "tmpfs", flags: SAFE, data: Some("mode=0700,size=32m") };

/// Flags for served disks: read-only, without devices, setuid or executable files.
pub const DISK_FLAGS: MsFlags = SAFE.union(MsFlags::MS_RDONLY);

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be created.
    #[error("cannot create the directory {target} to mount {fs} on")]
    Target {
        /// The directory.
        target: String,
        /// Type of the file system.
        fs: String,
        /// Why.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("cannot mount {device} on {target} (type {fs}, {flags}, options {data:?})")]
    Mount {
        /// The device.
        device: String,
        /// The directory.
        target: String,
        /// Type of the file system.
        fs: String,
        /// Flags of mount(2), by name.
        flags: String,
        /// Options of the file system.
        data: String,
        /// Why.
        source: Errno,
    },
}

/// Mounts the API file systems, through which the kernel talks to programs: `/dev`, `/proc`, `/sys`, `/run`.
///
/// # Errors
/// Fails if a mount fails. A mount point that the kernel has already populated is skipped.
pub fn mount_api_file_systems() -> Result<(), MountError> {
    API_FILE_SYSTEMS.iter().try_for_each(|row| match mount_file_system(row) {
        Err(MountError::Mount { source: Errno::EBUSY, .. }) => Ok(()),
        result => result,
    })
}

/// Mounts a file system, and creates its mount point if it is missing.
///
/// # Errors
/// Fails if the mount point cannot be created or mount(2) fails.
pub fn mount_file_system(row: &Mount<'_>) -> Result<(), MountError> {
    if !Path::new(row.target).is_dir() {
        fs::create_dir_all(row.target).map_err(|source| MountError::Target {
            target: row.target.to_owned(),
            fs: row.fs.to_owned(),
            source,
        })?;
    }
    mount(Some(row.source), row.target, Some(row.fs), row.flags, row.data).map_err(|source| MountError::Mount {
        device: row.source.to_owned(),
        target: row.target.to_owned(),
        fs: row.fs.to_owned(),
        flags: row.flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("|"),
        data: row.data.unwrap_or_default().to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_error_names_every_operand() {
        let row = Mount { source: "/no/device", target: "/proc", fs: "erofs", flags: DISK_FLAGS, data: Some("noload") };
        let error = MountError::Mount {
            device: row.source.into(),
            target: row.target.into(),
            fs: row.fs.into(),
            flags: row.flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("|"),
            data: row.data.unwrap_or_default().into(),
            source: Errno::ENODEV,
        };
        assert_eq!(
            error.to_string(),
            "cannot mount /no/device on /proc (type erofs, MS_RDONLY|MS_NOSUID|MS_NODEV|MS_NOEXEC, options \"noload\")"
        );
    }
}
