//! An open EROFS file system image, by blocks: its superblock, and reads within its length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{ErofsSuperblock, SUPERBLOCK, SUPERBLOCK_SIZE, crc32c_uninverted, superblock};

/// Block sizes as powers of two, from a sector to Linux's largest page.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=16;
/// Bits of `feature_incompat` that do not change how inodes are read. Files that use compression or another device are refused one
/// by one.
const KNOWN_FEATURES: u32 = 0x7f;

/// Why an image, or a file in it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// A read failed.
    #[error("cannot read {len} bytes at {at}")]
    Read {
        /// Offset in the image, in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The cause.
        source: io::Error,
    },
    /// A structure refers to bytes past the end of the image.
    #[error("it is damaged: it refers to {len} bytes at {at}, past its end at {end}")]
    Beyond {
        /// Offset in the image, in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The image's length in bytes.
        end: u64,
    },
    /// The superblock's checksum is wrong.
    #[error("its superblock is damaged: its checksum is {found:#010x}, and {expected:#010x} is expected")]
    Checksum {
        /// The checksum in the superblock.
        expected: u32,
        /// The checksum of its content.
        found: u32,
    },
    /// The block size does not exist.
    #[error("its superblock is damaged: a block size of 2^{0} bytes is not valid")]
    BlockSize(u8),
    /// The image needs a newer reader.
    #[error("it uses features of EROFS that are not known here ({0:#x}); make it with fewer options")]
    Features(u32),
    /// The file is compressed.
    #[error("the file is compressed; an uncompressed image is expected: make it without mkfs.erofs's option -z")]
    Compressed,
    /// The file's content is on another device.
    #[error("the file's content is on another device; a single image is expected: make it without mkfs.erofs's option --blobdev")]
    Device,
    /// An inode is damaged.
    #[error("it is damaged: inode {number} {fault}")]
    Inode {
        /// The inode's number.
        number: u64,
        /// The damage.
        fault: &'static str,
    },
}

impl ErofsError {
    /// Whether the image may be whole, and needs a reader that knows more of EROFS.
    #[must_use]
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Compressed | Self::Device | Self::Features(_))
    }
}

impl From<ErofsError> for io::Error {
    fn from(error: ErofsError) -> Self {
        let kind = match &error {
            ErofsError::Read { source, .. } => source.kind(),
            unsupported if unsupported.is_unsupported() => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// An open image. It is untrusted: every offset is checked against the length before it is read.
#[derive(Debug)]
pub struct ErofsVolume {
    pub(super) file: File,
    /// Length in bytes.
    pub len: u64,
    /// Block size as a power of two.
    pub block_bits: u8,
    /// Offset of inode 0, in bytes.
    pub inodes: u64,
    /// Inode number of the root directory.
    pub root: u64,
    /// Features that a reader must know.
    pub features: u32,
}

impl ErofsVolume {
    /// Reads the superblock of the image in `file`, of `len` bytes.
    ///
    /// # Errors
    /// Fails if the superblock is damaged, or has unknown features.
    pub fn open(file: File, len: u64) -> Result<Self, ErofsError> {
        let mut volume = Self { file, len, block_bits: 0, inodes: 0, root: 0, features: 0 };
        let mut bytes = [0; SUPERBLOCK_SIZE];
        volume.read(SUPERBLOCK, &mut bytes)?;
        let ErofsSuperblock { checksum, block_bits, root, meta_block, feature_incompat } =
            ErofsSuperblock::parse(&bytes).unwrap_or_default();
        if !BLOCK_BITS.contains(&block_bits) {
            return Err(ErofsError::BlockSize(block_bits));
        }
        volume.block_bits = block_bits;
        checksum.map_or(Ok(()), |expected| volume.verify_superblock(expected))?;
        if feature_incompat & !KNOWN_FEATURES != 0 {
            return Err(ErofsError::Features(feature_incompat & !KNOWN_FEATURES));
        }
        volume.inodes = volume.block(meta_block);
        volume.root = root.into();
        volume.features = feature_incompat;
        Ok(volume)
    }

    /// The checksum covers the first block from the superblock on, with zeros in place of the checksum.
    fn verify_superblock(&self, expected: u32) -> Result<(), ErofsError> {
        let block = self.block_size();
        let len = if block > SUPERBLOCK { block - SUPERBLOCK } else { block };
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.read(SUPERBLOCK, &mut bytes)?;
        bytes.iter_mut().skip(superblock::CHECKSUM).take(4).for_each(|byte| *byte = 0);
        let found = crc32c_uninverted(&bytes);
        if found == expected { Ok(()) } else { Err(ErofsError::Checksum { expected, found }) }
    }

    /// Fills `into` with the bytes at offset `at`.
    ///
    /// # Errors
    /// Fails if they are not within the image, or cannot be read.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), ErofsError> {
        let len = into.len() as u64;
        self.check(at, len)?;
        self.file.read_exact_at(into, at).map_err(|source| ErofsError::Read { at, len, source })
    }

    /// Checks that `len` bytes at offset `at` are within the image.
    ///
    /// # Errors
    /// Fails with [`ErofsError::Beyond`].
    pub fn check(&self, at: u64, len: u64) -> Result<(), ErofsError> {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.len);
        if fits { Ok(()) } else { Err(ErofsError::Beyond { at, len, end: self.len }) }
    }

    /// Offset of a block, in bytes.
    pub fn block(&self, number: u32) -> u64 {
        u64::from(number) << self.block_bits
    }

    /// Block size in bytes.
    pub fn block_size(&self) -> u64 {
        1 << self.block_bits
    }
}
