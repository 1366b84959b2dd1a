//! The calls that read the files of blobs, and those that do so without waiting for the disk. In a simulation, its disks take part in them.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use rustix::fs::fstatfs;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

#[cfg(test)]
use crate::registry::simulation::disks as simulation;

/// `f_type` of file systems (statfs(2)).
const EROFS: u32 = 0xE0F5_E1E2;
const SQUASHFS: u32 = 0x7371_7368;
const TMPFS: u32 = 0x0102_1994;

/// Reads at `offset`, waiting for the disk. Returns 0 at the end of the file, or if there is no space.
pub(super) fn read_at(file: &File, space: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match read_once(file, space, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Fills all of `space` from `offset` on, waiting for the disk. Fails if the file ends before.
pub(super) fn read_exact_at(file: &File, mut space: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !space.is_empty() {
        let count = read_at(file, space, offset)?;
        if count == 0 {
            return Err(short(offset));
        }
        (space, offset) = (space.get_mut(count..).unwrap_or_default(), offset + count as u64);
    }
    Ok(())
}

fn read_once(file: &File, space: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(test)]
    if let Some(read) = simulation::read(file, space, offset) {
        return read;
    }
    file.read_at(space, offset)
}

/// Reads what the page cache has at `offset`. `None` if it has nothing, or if the file system does not support such reads.
pub(super) fn read_cached(file: &File, offset: u64, space: &mut [u8]) -> io::Result<Option<usize>> {
    #[cfg(test)]
    if let Some(read) = simulation::read_cached(file, space, offset) {
        return read;
    }
    match preadv2(file, &mut [IoSliceMut::new(space)], offset, ReadWriteFlags::NOWAIT) {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the page cache has the byte.
pub(super) fn is_cached(file: &File, offset: u64) -> bool {
    read_cached(file, offset, &mut [0]).is_ok_and(|read| read == Some(1))
}

/// What is known of a file system's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::registry) enum Cache {
    /// [`read_cached`] tells what is in it.
    Known,
    /// All that is read passes through it, and nothing tells what is in it.
    Unknown,
    /// It may have none.
    None,
}

impl Cache {
    pub fn of(file: &File) -> Self {
        #[cfg(test)]
        if let Some(cache) = simulation::cache(file) {
            return cache;
        }
        match preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT) {
            // `f_type` is signed on some processors, and wider than its values.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => match fstatfs(file).map(|file_system| file_system.f_type as u32) {
                Ok(EROFS | SQUASHFS | TMPFS) => Self::Unknown,
                _ => Self::None,
            },
            _ => Self::Known,
        }
    }
}

pub(super) fn short(offset: u64) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends at byte {offset}, before its range does"))
}
