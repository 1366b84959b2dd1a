//! Builds the initramfs as a newc archive (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`). The bytes depend
//! only on the content.

use std::io::{self, Write};

use cpio::newc;

use crate::host::boot::modules::Module;

/// An entry of the archive. Its other header fields follow from its position.
struct Entry<'a> {
    path: String,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const CHARACTER_DEVICE_OF_ALL: u32 = 0o020_666;

/// The mount points of PID 1, and the parent folders of the module files.
const FOLDERS: [&str; 7] = ["dev", "disks", "lib", "lib/modules", "proc", "run", "sys"];

/// `/dev/console` (Linux `Documentation/admin-guide/devices.txt`). The kernel opens it for PID 1 before anything is mounted.
const CONSOLE: (u32, u32) = (5, 1);

/// `/dev/null`. On a machine without a console, a Rust program opens it for its standard streams, and aborts if it is missing.
const NULL: (u32, u32) = (1, 3);

/// Builds the archive: `init`, the `modules` in `lib/modules`, and their load order in `lib/modules/order`, one file name per line.
///
/// # Errors
/// Fails if a file is larger than the format allows.
pub fn archive(init: &[u8], modules: &[Module]) -> io::Result<Vec<u8>> {
    let order: String = modules.iter().map(|module| format!("{}\n", module.file)).collect();
    let mut entries: Vec<Entry> = FOLDERS.map(|path| entry(path, FOLDER, &[])).into();
    entries.push(entry("init", PROGRAM, init));
    entries.push(Entry { device: CONSOLE, ..entry("dev/console", CHARACTER_DEVICE, &[]) });
    entries.push(Entry { device: NULL, ..entry("dev/null", CHARACTER_DEVICE_OF_ALL, &[]) });
    entries.push(entry("lib/modules/order", FILE, order.as_bytes()));
    entries.extend(modules.iter().map(|module| entry(&format!("lib/modules/{}", module.file), FILE, &module.content)));
    entries.sort_by(|a, b| a.path.cmp(&b.path));

    let mut archive = Vec::new();
    for (inode, entry) in (1..).zip(entries) {
        append(&mut archive, inode, &entry)?;
    }
    newc::trailer(archive)
}

fn entry<'a>(path: &str, mode: u32, content: &'a [u8]) -> Entry<'a> {
    Entry { path: path.to_owned(), mode, device: (0, 0), content }
}

/// Appends an entry. Owner root and time 0 are the builder's defaults.
fn append(archive: &mut Vec<u8>, inode: u32, entry: &Entry) -> io::Result<()> {
    let size = u32::try_from(entry.content.len()).map_err(io::Error::other)?;
    let (major, minor) = entry.device;
    let header = newc::Builder::new(&entry.path)
        .ino(inode)
        .mode(entry.mode)
        .nlink(if entry.mode == FOLDER { 2 } else { 1 })
        .rdev_major(major)
        .rdev_minor(minor);
    let mut writer = header.write(archive, size);
    writer.write_all(entry.content)?;
    writer.finish()?;
    Ok(())
}
