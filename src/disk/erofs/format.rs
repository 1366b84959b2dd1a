//! The on-disk format, shared by reader and writer: structure sizes, field offsets, values and the checksum. Offsets are in bytes.

use crate::disk::little_endian::{u16_at, u32_at, u64_at};

/// Offset of the superblock (`struct erofs_super_block`) in the image.
pub const SUPERBLOCK: u64 = 1024;
/// Size of the superblock.
pub const SUPERBLOCK_SIZE: usize = 128;
/// The superblock's magic number.
pub const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
/// `feature_compat`: the superblock has a checksum.
pub const HAS_CHECKSUM: u32 = 1;
/// `feature_compat`: times are modification times.
pub const HAS_MTIME: u32 = 2;

/// Unit of inode numbers, in bytes.
pub const SLOT: u64 = 32;
/// Size of `struct erofs_inode_compact`.
pub const COMPACT: u64 = 32;
/// Size of `struct erofs_inode_extended`, for a file of 4 GiB or more.
pub const EXTENDED: u64 = 64;
/// Bit of `i_format`: the inode is extended.
pub const IS_EXTENDED: u16 = 1;
/// Data layout, in `i_format` above [`IS_EXTENDED`]: consecutive blocks.
pub const PLAIN: u16 = 0;
/// Data layout: consecutive blocks, and the last block's content after the inode.
pub const INLINE: u16 = 2;
/// Data layout: chunks, listed in a table after the inode.
pub const CHUNKS: u16 = 4;

/// Bits of a mode that hold the file type.
pub const TYPE_MASK: u16 = 0o170_000;
/// File type of a directory.
pub const DIRECTORY: u16 = 0o040_000;
/// File type of a regular file.
pub const REGULAR: u16 = 0o100_000;

/// Size of a directory entry (`struct erofs_dirent`), without its name.
pub const DIRENT: usize = 12;

/// Field offsets in the superblock.
pub mod superblock {
    pub const CHECKSUM: usize = 4;
    pub const FEATURE_COMPAT: usize = 8;
    pub const BLOCK_BITS: usize = 12;
    pub const ROOT: usize = 14;
    pub const INODES: usize = 16;
    pub const BLOCKS: usize = 36;
    pub const META_BLOCK: usize = 40;
    pub const UUID: usize = 48;
    pub const LABEL: usize = 64;
    pub const FEATURE_INCOMPAT: usize = 80;
}

/// Field offsets in an inode. `LINKS` has one offset in each form.
pub mod inode {
    pub const FORMAT: usize = 0;
    pub const XATTR_COUNT: usize = 2;
    pub const MODE: usize = 4;
    pub const COMPACT_LINKS: usize = 6;
    pub const SIZE: usize = 8;
    pub const BLOCK: usize = 16;
    pub const NUMBER: usize = 20;
    pub const EXTENDED_LINKS: usize = 44;
}

/// The fields of a superblock that the reader uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErofsSuperblock {
    /// The checksum, if the image has one.
    pub checksum: Option<u32>,
    /// Block size as a power of two.
    pub block_bits: u8,
    /// Inode number of the root directory.
    pub root: u16,
    /// Block of inode 0.
    pub meta_block: u32,
    /// Features that a reader must know.
    pub feature_incompat: u32,
}

impl ErofsSuperblock {
    /// The fields of the superblock in `bytes`.
    pub fn parse(bytes: &[u8; SUPERBLOCK_SIZE]) -> Option<Self> {
        let has_checksum = u32_at(bytes, superblock::FEATURE_COMPAT)? & HAS_CHECKSUM != 0;
        Some(Self {
            checksum: u32_at(bytes, superblock::CHECKSUM).filter(|_| has_checksum),
            block_bits: *bytes.get(superblock::BLOCK_BITS)?,
            root: u16_at(bytes, superblock::ROOT)?,
            meta_block: u32_at(bytes, superblock::META_BLOCK)?,
            feature_incompat: u32_at(bytes, superblock::FEATURE_INCOMPAT)?,
        })
    }
}

/// The fields of an inode that the reader uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct InodeFields {
    /// Data layout.
    pub layout: u16,
    /// Number of extended attributes, in units that follow a header.
    pub xattr_count: u16,
    /// File type and permissions.
    pub mode: u16,
    /// Size of the content in bytes.
    pub size: u64,
    /// First block of the content, or the format of its chunks.
    pub block: u32,
}

impl InodeFields {
    /// The fields of the inode in `bytes`, of either form.
    pub fn parse(bytes: &[u8; EXTENDED as usize]) -> Option<Self> {
        let format = u16_at(bytes, inode::FORMAT)?;
        Some(Self {
            layout: format >> 1 & 7,
            xattr_count: u16_at(bytes, inode::XATTR_COUNT)?,
            mode: u16_at(bytes, inode::MODE)?,
            size: if format & IS_EXTENDED != 0 { u64_at(bytes, inode::SIZE)? } else { u32_at(bytes, inode::SIZE)?.into() },
            block: u32_at(bytes, inode::BLOCK)?,
        })
    }
}

/// CRC-32C (RFC 3720, section 12.1) without the final inversion: EROFS stores it so, as Linux computes it with `crc32c(~0, …)`.
pub fn crc32c_uninverted(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes
        .iter()
        .fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_the_rfc() {
        // RFC 3720, appendix B.4, which inverts at the end.
        assert_eq!(!crc32c_uninverted(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c_uninverted(b"123456789"), 0xE306_9283);
    }
}
