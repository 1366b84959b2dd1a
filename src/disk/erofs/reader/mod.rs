//! An EROFS image as a [`Tree`], as far as disks have it: uncompressed, on one device (Linux, `fs/erofs/erofs_fs.h`). What enters is an
//! image that nobody vouches for: every offset is held against its length before it is read, nothing recurses, and what makes no
//! sense is an error. It never decompresses, never follows symbolic links, and keeps no file's content.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::directory::Directory;
use super::inode::{Inode, Kind};
use crate::disk::layout::{Content, Tree};

/// Where the superblock is, in bytes.
const SUPERBLOCK: u64 = 1024;
/// Bytes of it that are read.
const SUPERBLOCK_LEN: usize = 128;
/// Block sizes as powers of two: from a sector to the largest page that Linux has.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=16;
/// In `feature_compat`: the superblock has a checksum.
const CHECKSUM: u32 = 1;
/// In `feature_incompat`: what can be read or, being compression or a further device, is refused for the files that use it. What is
/// missing from here changes how every inode is read.
const KNOWN_FEATURES: u32 = 0x7f;
/// Largest folder that is read, in bytes: some three million blobs.
const MAX_FOLDER: u64 = 256 << 20;
/// Unit of inode numbers in bytes.
pub(crate) const SLOT: u64 = 32;

/// Why an image, or a file of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ErofsFault {
    /// The device under it.
    #[error("cannot read {len} bytes at {at}")]
    Read {
        /// Offset in the image, in bytes.
        at: u64,
        /// Bytes wanted.
        len: u64,
        /// Why not.
        source: io::Error,
    },
    /// Something is said to be where the image is not.
    #[error("it is damaged: {len} bytes at {at} are referred to, and it ends at {end}")]
    Beyond {
        /// Offset in the image, in bytes.
        at: u64,
        /// Bytes wanted.
        len: u64,
        /// The image's length in bytes.
        end: u64,
    },
    /// The superblock is not as it was written.
    #[error("its superblock is damaged: it has the checksum {found:#010x}, and says {expected:#010x}")]
    Checksum {
        /// What the superblock says.
        expected: u32,
        /// What it has.
        found: u32,
    },
    /// Blocks of a size that does not exist.
    #[error("its superblock is damaged: it gives blocks of 2^{0} bytes")]
    BlockSize(u8),
    /// A later form of EROFS.
    #[error("it uses features of EROFS that are not known here ({0:#x}); make it with fewer options")]
    Features(u32),
    /// Compressed content.
    #[error("the file is compressed; an uncompressed image is expected: make it without mkfs.erofs's option -z")]
    Compressed,
    /// Content on a second device.
    #[error("the file's content is on another device; a single image is expected: make it without mkfs.erofs's option --blobdev")]
    Device,
    /// An inode that makes no sense.
    #[error("it is damaged: inode {number} {fault}")]
    Inode {
        /// The inode's number.
        number: u64,
        /// What is wrong.
        fault: &'static str,
    },
}

impl ErofsFault {
    fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Read { source, .. } => source.kind(),
            Self::Compressed | Self::Device | Self::Features(_) => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, self)
    }
}

/// An open image.
#[derive(Debug)]
pub struct Erofs {
    file: File,
    pub(crate) len: u64,
    /// Block size as a power of two.
    pub(crate) block_bits: u8,
    /// Where inode 0 is or would be, in bytes.
    pub(crate) inodes: u64,
    root: u64,
    /// Folders read so far, by their inodes: a layout has five, one of them large.
    directories: Mutex<HashMap<u64, Arc<Directory>>>,
}

impl Erofs {
    /// Reads the superblock of the image in `file`, of `len` bytes.
    ///
    /// # Errors
    /// [`ErofsFault`], where it is damaged or of a kind that is not known.
    pub fn open(file: File, len: u64) -> Result<Self, ErofsFault> {
        let mut image = Self { file, len, block_bits: 0, inodes: 0, root: 0, directories: Mutex::default() };
        let mut superblock = [0; SUPERBLOCK_LEN];
        image.read(SUPERBLOCK, &mut superblock)?;
        let block_bits = superblock.get(12).copied().unwrap_or_default();
        if !BLOCK_BITS.contains(&block_bits) {
            return Err(ErofsFault::BlockSize(block_bits));
        }
        image.block_bits = block_bits;
        if u32_at(&superblock, 8) & CHECKSUM != 0 {
            image.check_sum(u32_at(&superblock, 4))?;
        }
        let features = u32_at(&superblock, 80);
        if features & !KNOWN_FEATURES != 0 {
            return Err(ErofsFault::Features(features & !KNOWN_FEATURES));
        }
        image.inodes = image.block(u32_at(&superblock, 40));
        image.root = u64::from(u16_at(&superblock, 14));
        Ok(image)
    }

    /// The checksum is of the superblock's block from the superblock on, with zeros in its own place.
    fn check_sum(&self, expected: u32) -> Result<(), ErofsFault> {
        let block = self.block_size();
        let len = if block > SUPERBLOCK { block - SUPERBLOCK } else { block };
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.read(SUPERBLOCK, &mut bytes)?;
        bytes.iter_mut().skip(4).take(4).for_each(|byte| *byte = 0);
        let found = crc32c(&bytes);
        if found == expected { Ok(()) } else { Err(ErofsFault::Checksum { expected, found }) }
    }

    /// Opens the regular file at `path`.
    fn find(&self, path: &str) -> Result<Option<Inode>, ErofsFault> {
        let mut number = self.root;
        for name in path.split('/') {
            let directory = self.directory(number)?;
            let Some(next) = directory.find(name) else { return Ok(None) };
            number = next;
        }
        self.inode(number).map(Some)
    }

    fn directory(&self, number: u64) -> Result<Arc<Directory>, ErofsFault> {
        let mut known = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = known.get(&number) {
            return Ok(Arc::clone(directory));
        }
        let fault = |fault| ErofsFault::Inode { number, fault };
        let inode = self.inode(number)?;
        if inode.kind != Kind::Directory {
            return Err(fault("is expected to be a folder"));
        }
        if inode.size > self.len.min(MAX_FOLDER) {
            return Err(fault("is a folder larger than any that there is room or need for"));
        }
        let mut content = vec![0; usize::try_from(inode.size).unwrap_or_default()];
        self.fill(&inode, &mut content)?;
        let block = usize::try_from(self.block_size()).unwrap_or(usize::MAX);
        let directory = Arc::new(Directory::parse(&content, block).map_err(fault)?);
        known.insert(number, Arc::clone(&directory));
        Ok(directory)
    }

    fn fill(&self, inode: &Inode, content: &mut [u8]) -> Result<(), ErofsFault> {
        let mut done = 0;
        while let Some(rest) = content.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let count = self.read_part(inode, done as u64, rest)?;
            if count == 0 {
                return Err(ErofsFault::Inode { number: inode.number, fault: "has less content than it says" });
            }
            done += count;
        }
        Ok(())
    }

    /// Reads content of `inode` from its byte `from` on: as much as lies in one piece, and no more than `into` takes. 0 at the end.
    fn read_part(&self, inode: &Inode, from: u64, into: &mut [u8]) -> Result<usize, ErofsFault> {
        let Some(extent) = self.extent(inode, from)? else { return Ok(0) };
        let count = usize::try_from(extent.len).unwrap_or(usize::MAX).min(into.len());
        let part = into.get_mut(..count).unwrap_or_default();
        match extent.at {
            Some(at) => self.read(at, part)?,
            None => part.fill(0),
        }
        Ok(count)
    }

    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> Result<(), ErofsFault> {
        let len = into.len() as u64;
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(ErofsFault::Beyond { at, len, end: self.len });
        }
        self.file.read_exact_at(into, at).map_err(|source| ErofsFault::Read { at, len, source })
    }

    /// Where a block begins, in bytes.
    pub(crate) fn block(&self, number: u32) -> u64 {
        u64::from(number) << self.block_bits
    }

    pub(crate) fn block_size(&self) -> u64 {
        1 << self.block_bits
    }
}

impl Tree for Erofs {
    fn open(&self, path: &str) -> io::Result<Content<'_>> {
        let inode = self.find(path).map_err(ErofsFault::into_io)?;
        let inode = inode.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the disk has no such file"))?;
        if inode.kind != Kind::File {
            return Err(io::Error::other("it is not a regular file"));
        }
        self.check(&inode).map_err(ErofsFault::into_io)?;
        let size = inode.size;
        Ok(Content { reader: Box::new(Body { image: self, inode, at: 0 }), size })
    }
}

/// A file's content, read where it lies: many may be read at once.
struct Body<'a> {
    image: &'a Erofs,
    inode: Inode,
    at: u64,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.image.read_part(&self.inode, self.at, buffer).map_err(ErofsFault::into_io)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// CRC-32C with all bits set before, and none turned after, as Linux's `crc32c(~0, …)`.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ POLYNOMIAL })
    })
}

/// Little-endian numbers of a structure that is known to be long enough; 0 where it is not.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
