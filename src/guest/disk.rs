//! The disk to serve. What enters is its virtio serial; what leaves is the disk mounted read-only at [`ROOT`]. It never writes to
//! a disk and never takes another one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::mount::{self, Mount, MountError};
use crate::superblock::{FileSystem, START, Superblock};

/// Where the disk is mounted.
pub const ROOT: &str = "/disk";

/// Time between two looks for the disk.
const POLL: Duration = Duration::from_millis(20);

/// A disk that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk has the serial.
    #[error(
        "no disk with the serial {serial:?} after {} s; the virtio disks here are {}; give QEMU -device virtio-blk-pci,serial={serial}",
        wait.as_secs(), seen(found)
    )]
    Missing {
        /// The serial looked for.
        serial: String,
        /// How long.
        wait: Duration,
        /// Name and serial of each disk there is.
        found: Vec<(String, String)>,
    },
    /// The device cannot be read.
    #[error("read the superblock of {device}, the disk with the serial {serial:?}")]
    Read {
        /// The device.
        device: String,
        /// Its serial.
        serial: String,
        /// Why.
        source: io::Error,
    },
    /// No superblock that is known.
    #[error(
        "{device}, the disk with the serial {serial:?}, {bytes} bytes: no file system known; \
         expected EROFS, ext4 or squashfs, as `localregistry pack` makes"
    )]
    Unknown {
        /// The device.
        device: String,
        /// Its serial.
        serial: String,
        /// Its size.
        bytes: u64,
    },
    /// The file system is longer than the device.
    #[error(
        "{device}, the disk with the serial {serial:?}, has {bytes} bytes; its {fs} file system has {expected}: copy the disk anew"
    )]
    Truncated {
        /// The device.
        device: String,
        /// Its serial.
        serial: String,
        /// Its size.
        bytes: u64,
        /// Type of the file system.
        fs: &'static str,
        /// The file system's size.
        expected: u64,
    },
    /// The kernel does not mount it.
    #[error("the disk with the serial {serial:?} is damaged, or the kernel lacks its file system")]
    Mount {
        /// Its serial.
        serial: String,
        /// Why.
        source: MountError,
    },
}

impl DiskError {
    /// Stable name of the fault.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "NO_DISK",
            Self::Read { .. } | Self::Unknown { .. } | Self::Mount { .. } => "BAD_DISK",
            Self::Truncated { .. } => "TRUNCATED",
        }
    }
}

/// Waits up to `wait` for the disk with `serial` and mounts it at [`ROOT`].
///
/// # Errors
/// When there is none, or it holds nothing that can be mounted.
pub async fn attach(serial: &str, wait: Duration) -> Result<(), DiskError> {
    let name = find(serial, wait).await?;
    let device = format!("/dev/{name}");
    let superblock = examine(&device, serial, size(&name), &read_start(&device, serial)?)?;
    mount::attach(&Mount {
        source: &device,
        target: ROOT,
        fs: superblock.fs.name(),
        flags: mount::DISK_FLAGS,
        data: mount_options(superblock.fs),
    })
    .map_err(|source| DiskError::Mount { serial: serial.to_owned(), source })
}

/// Options for mount(2). ext4's journal cannot be replayed on a disk that is read-only.
const fn mount_options(fs: FileSystem) -> Option<&'static str> {
    match fs {
        FileSystem::Ext4 => Some("noload"),
        FileSystem::Erofs | FileSystem::Squashfs => None,
    }
}

async fn find(serial: &str, wait: Duration) -> Result<String, DiskError> {
    let deadline = Instant::now() + wait;
    loop {
        let found = disks();
        if let Some((name, _)) = found.iter().find(|(_, own)| own == serial) {
            return Ok(name.clone());
        }
        if Instant::now() >= deadline {
            return Err(DiskError::Missing { serial: serial.to_owned(), wait, found });
        }
        sleep(POLL).await;
    }
}

/// Name and serial of each virtio disk, by name.
fn disks() -> Vec<(String, String)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("vd"));
    let serial = |name: &str| fs::read_to_string(Path::new("/sys/block").join(name).join("serial")).unwrap_or_default();
    let mut disks: Vec<_> =
        names.map(|name| (serial(&name).trim_end().to_owned(), name)).map(|(serial, name)| (name, serial)).collect();
    disks.sort();
    disks
}

/// Size of a disk in bytes; sysfs counts in sectors of 512 whatever the disk's own are.
fn size(name: &str) -> u64 {
    let text = fs::read_to_string(Path::new("/sys/block").join(name).join("size")).unwrap_or_default();
    text.trim_end().parse::<u64>().map_or(0, |sectors| sectors.saturating_mul(512))
}

fn read_start(device: &str, serial: &str) -> Result<Vec<u8>, DiskError> {
    let mut start = Vec::with_capacity(START);
    match File::open(device).and_then(|file| file.take(START as u64).read_to_end(&mut start)) {
        Ok(_) => Ok(start),
        Err(source) => Err(DiskError::Read { device: device.to_owned(), serial: serial.to_owned(), source }),
    }
}

/// Judges `start`, the first bytes of a device of `bytes`.
fn examine(device: &str, serial: &str, bytes: u64, start: &[u8]) -> Result<Superblock, DiskError> {
    let (device, serial) = (device.to_owned(), serial.to_owned());
    match Superblock::find(start) {
        None => Err(DiskError::Unknown { device, serial, bytes }),
        Some(Superblock { fs, bytes: Some(expected) }) if expected > bytes => {
            Err(DiskError::Truncated { device, serial, bytes, fs: fs.name(), expected })
        }
        Some(superblock) => Ok(superblock),
    }
}

fn seen(found: &[(String, String)]) -> String {
    if found.is_empty() {
        return "none".to_owned();
    }
    found.iter().map(|(name, serial)| format!("{name} ({serial:?})")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(start: &[u8], bytes: u64) -> (&'static str, String) {
        let error = examine("/dev/vda", "images", bytes, start).unwrap_err();
        (error.code(), error.to_string())
    }

    #[test]
    fn a_disk_without_a_file_system_is_refused() {
        let expected = "/dev/vda, the disk with the serial \"images\", 1048576 bytes: no file system known; \
                        expected EROFS, ext4 or squashfs, as `localregistry pack` makes";
        assert_eq!(refusal(&[0; START], 1 << 20), ("BAD_DISK", expected.to_owned()));
        assert_eq!(refusal(b"", 1 << 20), ("BAD_DISK", expected.to_owned()));
    }

    #[test]
    fn a_disk_shorter_than_its_file_system_is_refused() {
        let mut start = [0; START];
        start[..4].copy_from_slice(b"hsqs");
        start[40..48].copy_from_slice(&5000_u64.to_le_bytes());
        let expected = "/dev/vda, the disk with the serial \"images\", has 4096 bytes; \
                        its squashfs file system has 5000: copy the disk anew";
        assert_eq!(refusal(&start, 4096), ("TRUNCATED", expected.to_owned()));
        assert!(examine("/dev/vda", "images", 5120, &start).is_ok());
    }

    #[test]
    fn a_missing_disk_names_those_that_are_there() {
        let missing = |found: &[(&str, &str)]| {
            let found = found.iter().map(|(name, serial)| ((*name).to_owned(), (*serial).to_owned())).collect();
            DiskError::Missing { serial: "images".to_owned(), wait: Duration::from_secs(5), found }.to_string()
        };
        assert_eq!(
            missing(&[]),
            "no disk with the serial \"images\" after 5 s; the virtio disks here are none; \
             give QEMU -device virtio-blk-pci,serial=images"
        );
        assert_eq!(
            missing(&[("vda", "root"), ("vdb", "")]),
            "no disk with the serial \"images\" after 5 s; the virtio disks here are vda (\"root\"), vdb (\"\"); \
             give QEMU -device virtio-blk-pci,serial=images"
        );
    }
}
