//! Reads files without waiting for the disk, as far as the page cache has their bytes.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::fs::fstatfs;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// `f_type` of file systems (statfs(2)).
const EROFS: u32 = 0xE0F5_E1E2;
const SQUASHFS: u32 = 0x7371_7368;
const TMPFS: u32 = 0x0102_1994;

/// Reads what the page cache has at `offset`. `None` if it has nothing, or if the file system does not support such reads.
pub(super) fn read_cached(file: &File, offset: u64, space: &mut [u8]) -> io::Result<Option<usize>> {
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
pub(super) enum Cache {
    /// [`read_cached`] tells what is in it.
    Known,
    /// All that is read passes through it, and nothing tells what is in it.
    Unknown,
    /// It may have none.
    None,
}

impl Cache {
    pub fn of(file: &File) -> Self {
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
