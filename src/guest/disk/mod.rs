//! The disks to serve. Selects them by the config and mounts each read-only below [`ROOT`]. It never writes to a disk and never
//! mounts one that the config does not select.
//!
//! ```text
//! choices ─ device ─▶ attach ─▶ mount points ─▶ the store ─▶ the registry
//!              ▲                                               ▲
//! kernel's notifications ─ hotplug (disks added, removed) ─────┘
//! ```

pub mod device;
pub mod hotplug;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::socket::SockProtocol;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::early::console;
use super::early::mount::{self, Mount, MountError};
use super::net::notifications;
use crate::config::disks::{DiskBy, DiskChoice};
use crate::disk::superblock::{FileSystem, Superblock};

pub use device::Device;

pub use super::early::mount::DISKS as ROOT;

/// Time between two checks for the disks.
const POLL: Duration = Duration::from_millis(20);
/// How long a disk may take to be read and mounted: as long as a response waits for a disk.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Multicast group of the kernel's device notifications (netlink(7), `NETLINK_KOBJECT_UEVENT`).
const KERNEL_EVENTS: u32 = 1;

/// A mounted disk.
#[derive(Debug, Clone)]
pub struct MountedDisk {
    /// The device.
    pub device: Device,
    /// Its mount point.
    pub root: PathBuf,
}

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk matches a choice.
    #[error("no disk {} after {} s; virtio disks found: {}; {}", describe(by), wait.as_secs(), list(found), remedy(by))]
    Missing {
        /// The choice.
        by: DiskBy,
        /// How long boot waited.
        wait: Duration,
        /// The disks found.
        found: Vec<Device>,
    },
    /// The device cannot be read.
    #[error("cannot read the superblock of {device}")]
    Read {
        /// The device.
        device: Device,
        /// Why.
        source: io::Error,
    },
    /// The disk does not respond.
    #[error("{what} did not respond within {} s; the host has stopped it or is overloaded", TIMEOUT.as_secs())]
    Hung {
        /// The disk, or the operation on it.
        what: String,
    },
    /// No known superblock.
    #[error("{device}, {bytes} bytes, has no known file system; expected EROFS, ext4 or squashfs, as `localregistry pack` makes")]
    Unknown {
        /// The device.
        device: Device,
        /// Its size.
        bytes: u64,
    },
    /// The file system is longer than the device.
    #[error("{device} has {bytes} bytes; its {fs} file system has {expected}: copy the disk again")]
    Truncated {
        /// The device.
        device: Device,
        /// Its size.
        bytes: u64,
        /// Type of the file system.
        fs: &'static str,
        /// The file system's size.
        expected: u64,
    },
    /// The kernel cannot mount it.
    #[error("{device} is damaged, or the kernel lacks its file system")]
    Mount {
        /// The device.
        device: Device,
        /// Why.
        source: MountError,
    },
    /// The kernel's notifications are not available.
    #[error("cannot watch for disks that are attached or removed")]
    Notify(#[source] io::Error),
}

impl DiskError {
    /// Stable code of the error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "NO_DISK",
            Self::Read { .. } | Self::Unknown { .. } | Self::Mount { .. } | Self::Notify(_) => "BAD_DISK",
            Self::Truncated { .. } => "TRUNCATED",
            Self::Hung { .. } => "DISK_HUNG",
        }
    }
}

/// Signals when devices are added or removed, from now on.
///
/// # Errors
/// Fails if the kernel refuses.
pub fn watch() -> Result<watch::Receiver<()>, DiskError> {
    notifications::subscribe(SockProtocol::NetlinkKObjectUEvent, KERNEL_EVENTS, "devices").map_err(DiskError::Notify)
}

/// Waits up to `wait` for the disks that `choices` select, and mounts them.
///
/// # Errors
/// Fails if a required disk is missing, or a disk cannot be mounted.
pub async fn attach(choices: &[DiskChoice], wait: Duration) -> Result<Vec<MountedDisk>, DiskError> {
    let deadline = Instant::now() + wait;
    let selected = loop {
        let devices = list_devices(choices, Vec::new()).await?;
        match device::pick(choices, &devices) {
            Ok(picked) => break picked,
            Err(missing) if Instant::now() >= deadline => {
                return Err(DiskError::Missing { by: missing.by.clone(), wait, found: devices });
            }
            Err(_) => sleep(POLL).await,
        }
    };
    let mut attached = Vec::new();
    for device in selected {
        attached.push(mount(device).await?);
    }
    Ok(attached)
}

/// Lists the devices.
async fn list_devices(choices: &[DiskChoice], known: Vec<Device>) -> Result<Vec<Device>, DiskError> {
    let choices = choices.to_vec();
    with_timeout("the disk whose label was being read", move || Ok(device::list(&choices, &known))).await
}

/// Mounts one disk.
async fn mount(device: Device) -> Result<MountedDisk, DiskError> {
    let what = device.to_string();
    let mounting = move || {
        let start = device.start().map_err(|source| DiskError::Read { device: device.clone(), source })?;
        let superblock = examine(&device, device.bytes(), &start)?;
        let root = PathBuf::from(ROOT).join(&device.name);
        let row = Mount {
            source: &device.path(),
            target: &root.to_string_lossy(),
            fs: superblock.fs.name(),
            flags: mount::DISK_FLAGS,
            data: mount_options(superblock.fs),
        };
        mount::mount_file_system(&row).map_err(|source| DiskError::Mount { device: device.clone(), source })?;
        Ok(MountedDisk { device, root })
    };
    with_timeout(&what, mounting).await
}

/// Unmounts a disk. Files that are still open keep it until they are closed.
fn unmount(attached: &MountedDisk) {
    if let Err(error) = umount2(&attached.root, MntFlags::MNT_DETACH) {
        console::log(&format!("cannot unmount {}: {error}", attached.root.display()));
    }
}

/// Runs `task` on a blocking thread. Fails with [`DiskError::Hung`] after [`TIMEOUT`].
pub(super) async fn with_timeout<T, E>(what: &str, task: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<DiskError> + Send + 'static,
{
    let hung = || DiskError::Hung { what: what.to_owned() }.into();
    match timeout(TIMEOUT, tokio::task::spawn_blocking(task)).await {
        Ok(result) => result.unwrap_or_else(|_| Err(hung())),
        Err(_) => Err(hung()),
    }
}

/// Options for mount(2). The journal of ext4 cannot be replayed on a read-only disk.
const fn mount_options(fs: FileSystem) -> Option<&'static str> {
    match fs {
        FileSystem::Ext4 => Some("noload"),
        FileSystem::Erofs | FileSystem::Squashfs => None,
    }
}

/// Checks the superblock in `start`, the first bytes of a device of `bytes`.
fn examine(device: &Device, bytes: u64, start: &[u8]) -> Result<Superblock, DiskError> {
    match Superblock::detect(start) {
        None => Err(DiskError::Unknown { device: device.clone(), bytes }),
        Some(Superblock { fs, bytes: Some(expected) }) if expected > bytes => {
            Err(DiskError::Truncated { device: device.clone(), bytes, fs: fs.name(), expected })
        }
        Some(superblock) => Ok(superblock),
    }
}

/// Describes which disk a choice selects.
fn describe(by: &DiskBy) -> String {
    match by {
        DiskBy::Serial(serial) => format!("with the serial \"{serial}\""),
        DiskBy::Label(label) => format!("with the label \"{label}\""),
        DiskBy::Device(name) => format!("/dev/{name}"),
    }
}

/// What to do about a missing disk.
fn remedy(by: &DiskBy) -> String {
    match by {
        DiskBy::Serial(serial) => format!("give QEMU -device virtio-blk-pci,serial={serial}"),
        DiskBy::Label(label) => format!("pack one with --label {label}, or give QEMU another -device virtio-blk-pci"),
        DiskBy::Device(_) => "give QEMU another -device virtio-blk-pci".to_owned(),
    }
}

fn list(found: &[Device]) -> String {
    if found.is_empty() {
        return "none".to_owned();
    }
    let describe = |Device { name, serial, label, .. }: &Device| match label {
        Some(label) => format!("{name} ({serial:?}, label {label:?})"),
        None => format!("{name} ({serial:?})"),
    };
    found.iter().map(describe).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
