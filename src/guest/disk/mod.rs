//! The disks to serve. What enters are the choices of the settings; what leaves is each disk that they mean, mounted read-only below
//! [`ROOT`]. It never writes to a disk, never takes one that is not meant, and waits for none for ever.
//!
//! ```text
//! choices ─ device ─▶ attach ─▶ a root each ─▶ the store ─▶ the registry
//!              ▲                                                ▲
//! kernel's notifications ─ follow (a disk comes, is gone) ──────┘
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
use super::net::changes;
use crate::config::disks::{DiskBy, DiskChoice};
use crate::disk::superblock::{FileSystem, Superblock};

pub use device::Device;

/// Below it is a folder for each disk, named as its device is.
pub const ROOT: &str = "/disks";

/// Time between two looks for the disks.
const POLL: Duration = Duration::from_millis(20);
/// How long a disk that is there may take to be read and mounted: as long as a response waits for one.
const ANSWER: Duration = Duration::from_secs(30);
/// Notifications of the kernel itself about devices (netlink(7), `NETLINK_KOBJECT_UEVENT`).
const KERNEL_EVENTS: u32 = 1;

/// A disk that is mounted.
#[derive(Debug, Clone)]
pub struct Attached {
    /// What it is.
    pub device: Device,
    /// Where it is.
    pub root: PathBuf,
}

/// A disk that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is none that is meant.
    #[error("no disk {} after {} s; the virtio disks here are {}; {}", meant(by), wait.as_secs(), seen(found), remedy(by))]
    Missing {
        /// Which was looked for.
        by: DiskBy,
        /// How long.
        wait: Duration,
        /// Those that are there.
        found: Vec<Device>,
    },
    /// The device cannot be read.
    #[error("read the superblock of {device}")]
    Read {
        /// The device.
        device: Device,
        /// Why.
        source: io::Error,
    },
    /// It does not answer.
    #[error("{what} did not answer within {} s: its host has stopped it, or is far too busy", ANSWER.as_secs())]
    Hung {
        /// Which.
        what: String,
    },
    /// No superblock that is known.
    #[error("{device}, {bytes} bytes: no file system known; expected EROFS, ext4 or squashfs, as `localregistry pack` makes")]
    Unknown {
        /// The device.
        device: Device,
        /// Its size.
        bytes: u64,
    },
    /// The file system is longer than the device.
    #[error("{device} has {bytes} bytes; its {fs} file system has {expected}: copy the disk anew")]
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
    /// The kernel does not mount it.
    #[error("{device} is damaged, or the kernel lacks its file system")]
    Mount {
        /// The device.
        device: Device,
        /// Why.
        source: MountError,
    },
    /// The kernel says nothing of disks that come.
    #[error("listen for disks that come and go")]
    Notify(#[source] io::Error),
}

impl DiskError {
    /// Stable name of the fault.
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

/// Says whenever a device comes or goes, from now on.
///
/// # Errors
/// When the kernel does not notify.
pub fn notified() -> Result<watch::Receiver<()>, DiskError> {
    changes::notified(SockProtocol::NetlinkKObjectUEvent, KERNEL_EVENTS, "devices").map_err(DiskError::Notify)
}

/// Waits up to `wait` for the disks that `choices` mean, and mounts them.
///
/// # Errors
/// When there is none where boot waits for one, or one holds nothing that can be mounted.
pub async fn attach(choices: &[DiskChoice], wait: Duration) -> Result<Vec<Attached>, DiskError> {
    let deadline = Instant::now() + wait;
    let meant = loop {
        let devices = look(choices, Vec::new()).await?;
        match device::pick(choices, &devices) {
            Ok(picked) => break picked,
            Err(missing) if Instant::now() >= deadline => {
                return Err(DiskError::Missing { by: missing.by.clone(), wait, found: devices });
            }
            Err(_) => sleep(POLL).await,
        }
    };
    let mut attached = Vec::new();
    for device in meant {
        attached.push(mount(device).await?);
    }
    Ok(attached)
}

/// The devices that there are.
async fn look(choices: &[DiskChoice], known: Vec<Device>) -> Result<Vec<Device>, DiskError> {
    let choices = choices.to_vec();
    in_time("a disk whose label was to be read", move || Ok(device::list(&choices, &known))).await
}

/// Mounts one disk.
async fn mount(device: Device) -> Result<Attached, DiskError> {
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
        mount::attach(&row).map_err(|source| DiskError::Mount { device: device.clone(), source })?;
        Ok(Attached { device, root })
    };
    in_time(&what, mounting).await
}

/// Unmounts a disk. What is still open of it keeps it a while.
fn unmount(attached: &Attached) {
    if let Err(error) = umount2(&attached.root, MntFlags::MNT_DETACH) {
        console::say(&format!("unmount {}: {error}", attached.root.display()));
    }
}

/// What `work` gives, on a thread that may wait for a disk; or that the disk hangs.
async fn in_time<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    let hung = || DiskError::Hung { what: what.to_owned() };
    match timeout(ANSWER, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.unwrap_or_else(|_| Err(hung())),
        Err(_) => Err(hung()),
    }
}

/// Options for mount(2). ext4's journal cannot be replayed on a disk that is read-only.
const fn mount_options(fs: FileSystem) -> Option<&'static str> {
    match fs {
        FileSystem::Ext4 => Some("noload"),
        FileSystem::Erofs | FileSystem::Squashfs => None,
    }
}

/// Judges `start`, the first bytes of a device of `bytes`.
fn examine(device: &Device, bytes: u64, start: &[u8]) -> Result<Superblock, DiskError> {
    match Superblock::detect(start) {
        None => Err(DiskError::Unknown { device: device.clone(), bytes }),
        Some(Superblock { fs, bytes: Some(expected) }) if expected > bytes => {
            Err(DiskError::Truncated { device: device.clone(), bytes, fs: fs.name(), expected })
        }
        Some(superblock) => Ok(superblock),
    }
}

/// Which disk is meant, in words.
fn meant(by: &DiskBy) -> String {
    match by {
        DiskBy::Serial(serial) => format!("with the serial \"{serial}\""),
        DiskBy::Label(label) => format!("with the label \"{label}\""),
        DiskBy::Device(name) => format!("/dev/{name}"),
    }
}

/// What to do where it is not there.
fn remedy(by: &DiskBy) -> String {
    match by {
        DiskBy::Serial(serial) => format!("give QEMU -device virtio-blk-pci,serial={serial}"),
        DiskBy::Label(label) => format!("pack one with --label {label}, or give QEMU another -device virtio-blk-pci"),
        DiskBy::Device(_) => "give QEMU another -device virtio-blk-pci".to_owned(),
    }
}

fn seen(found: &[Device]) -> String {
    if found.is_empty() {
        return "none".to_owned();
    }
    let one = |Device { name, serial, label, .. }: &Device| match label {
        Some(label) => format!("{name} ({serial:?}, label {label:?})"),
        None => format!("{name} ({serial:?})"),
    };
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
