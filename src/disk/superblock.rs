//! Detects a disk's file system, its size and its label from the first bytes. The guest and the launcher decide what to do with them.

use std::fs::File;
use std::io::{self, Read, Seek};

use super::little_endian::{u32_at, u64_at};

/// Bytes at the start of a device that [`Superblock::detect`] needs.
pub const HEAD_LEN: usize = 4096;

/// Reads the first [`HEAD_LEN`] bytes of a file, or all if it is shorter. Its position is its start afterwards.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn read_head(mut file: &File) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_LEN);
    file.rewind()?;
    file.take(HEAD_LEN as u64).read_to_end(&mut head)?;
    file.rewind()?;
    Ok(head)
}

/// A file system that the guest can mount and the host can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// EROFS, the default of `localregistry pack`.
    Erofs,
    /// ext4, ext3 or ext2.
    Ext4,
    /// squashfs 4.
    Squashfs,
}

impl FileSystem {
    /// The name for mount(2).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }
}

/// A detected file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The file system.
    pub fs: FileSystem,
    /// Size of the file system in bytes; `None` if the superblock has no valid size.
    pub bytes: Option<u64>,
}

/// Offset of each file system's label, padded with zeros: `volume_name` of `struct erofs_super_block`, `s_volume_name` of
/// `struct ext4_super_block`. squashfs has no label.
#[cfg(feature = "guest")]
const LABELS: [(FileSystem, usize); 2] = [(FileSystem::Erofs, 1024 + 64), (FileSystem::Ext4, 1024 + 120)];
/// Length of a label in bytes.
#[cfg(feature = "guest")]
const LABEL_LEN: usize = 16;

/// Each file system's magic number: offset from the start of the device, and bytes.
const MAGICS: [(FileSystem, usize, &[u8]); 3] = [
    (FileSystem::Erofs, 1024, &0xE0F5_E1E2_u32.to_le_bytes()),
    (FileSystem::Ext4, 1024 + 56, &0xEF53_u16.to_le_bytes()),
    (FileSystem::Squashfs, 0, b"hsqs"),
];

impl Superblock {
    /// The file system in `head`, the first [`HEAD_LEN`] bytes of a device, or all if it is shorter.
    #[must_use]
    pub fn detect(head: &[u8]) -> Option<Self> {
        let known = |(_, offset, magic): &&(FileSystem, usize, &[u8])| head.get(*offset..*offset + magic.len()) == Some(*magic);
        let (fs, _, _) = MAGICS.iter().find(known)?;
        let bytes = match fs {
            FileSystem::Erofs => erofs_bytes(head),
            FileSystem::Ext4 => ext4_bytes(head),
            FileSystem::Squashfs => u64_at(head, 40),
        };
        Some(Self { fs: *fs, bytes })
    }
}

/// The label of the file system in `head`. Returns `None` if it has no label in UTF-8.
#[cfg(feature = "guest")]
#[must_use]
pub fn label(head: &[u8]) -> Option<&str> {
    let found = Superblock::detect(head)?;
    let (_, offset) = LABELS.iter().find(|(fs, _)| *fs == found.fs)?;
    let bytes = head.get(*offset..*offset + LABEL_LEN)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(LABEL_LEN);
    str::from_utf8(bytes.get(..end)?).ok().filter(|text| !text.is_empty())
}

/// `blocks << blkszbits` of `struct erofs_super_block` (Linux, `fs/erofs/erofs_fs.h`).
fn erofs_bytes(head: &[u8]) -> Option<u64> {
    let block_bits = *head.get(1024 + 12)?;
    u64::from(u32_at(head, 1024 + 36)?).checked_mul(1_u64.checked_shl(u32::from(block_bits))?)
}

/// `s_blocks_count << (10 + s_log_block_size)` of `struct ext4_super_block` (Linux, `fs/ext4/ext4.h`). The upper half counts only with
/// the feature `64bit` (0x80).
fn ext4_bytes(head: &[u8]) -> Option<u64> {
    let wide = u32_at(head, 1024 + 96)? & 0x80 != 0;
    let high = if wide { u64::from(u32_at(head, 1024 + 0x150)?) } else { 0 };
    let blocks = high << 32 | u64::from(u32_at(head, 1024 + 4)?);
    // A plain shift would drop the high bits of a size that is too large.
    blocks.checked_mul(1_u64.checked_shl(u32_at(head, 1024 + 24)?)?)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut start = vec![0; HEAD_LEN];
        for (offset, bytes) in fields {
            start[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        start
    }

    #[test]
    fn file_systems_are_detected_with_their_size() {
        let erofs = disk(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), (1036, &[12]), (1060, &5_u32.to_le_bytes())]);
        assert_eq!(Superblock::detect(&erofs), Some(Superblock { fs: FileSystem::Erofs, bytes: Some(5 * 4096) }));

        let ext4 = disk(&[(1080, &[0x53, 0xef]), (1028, &7_u32.to_le_bytes()), (1048, &2_u32.to_le_bytes()), (0x550, &[1])]);
        assert_eq!(Superblock::detect(&ext4), Some(Superblock { fs: FileSystem::Ext4, bytes: Some(7 * 4096) }));

        let wide = disk(&[(1080, &[0x53, 0xef]), (1028, &[7]), (1120, &[0x80]), (1024 + 0x150, &[1])]);
        assert_eq!(Superblock::detect(&wide), Some(Superblock { fs: FileSystem::Ext4, bytes: Some(((1 << 32) + 7) * 1024) }));

        let squashfs = disk(&[(0, b"hsqs"), (40, &9_999_u64.to_le_bytes())]);
        assert_eq!(Superblock::detect(&squashfs), Some(Superblock { fs: FileSystem::Squashfs, bytes: Some(9_999) }));
    }

    #[cfg(feature = "guest")]
    #[test]
    fn labels_are_text_of_up_to_16_bytes() {
        let (erofs, ext4) = ([0xe2, 0xe1, 0xf5, 0xe0], [0x53, 0xef]);
        let of = |bytes: &[u8]| disk(&[(1024, &erofs), (1088, bytes)]);
        assert_eq!(label(&of(b"images")), Some("images"));
        assert_eq!(label(&of(b"0123456789abcdefmore")), Some("0123456789abcdef"));
        assert_eq!((label(&of(b"")), label(&of(&[0xff])), label(&[]), label(&of(b"x")[..1090])), (None, None, None, None));
        assert_eq!(label(&disk(&[(1080, &ext4), (1144, b"disk-2")])), Some("disk-2"));
        assert_eq!(label(&disk(&[(0, b"hsqs"), (1088, b"no"), (1144, b"no")])), None);
    }

    #[test]
    fn unknown_content_is_not_a_file_system() {
        for start in
            [vec![], vec![0; 100], vec![0; HEAD_LEN], vec![0xff; HEAD_LEN], disk(&[(0, b"sqsh")]), disk(&[(1024, &[0xe2, 0xe1])])]
        {
            assert_eq!(Superblock::detect(&start), None);
        }
    }

    #[test]
    fn invalid_size_is_ignored() {
        let erofs = disk(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), (1036, &[200]), (1060, &[1])]);
        assert_eq!(Superblock::detect(&erofs), Some(Superblock { fs: FileSystem::Erofs, bytes: None }));
        for shift in [53, 54, 63, 64, u32::MAX] {
            let ext4 = disk(&[(1080, &[0x53, 0xef]), (1028, &2_u32.to_le_bytes()), (1048, &shift.to_le_bytes())]);
            assert_eq!(Superblock::detect(&ext4), Some(Superblock { fs: FileSystem::Ext4, bytes: None }), "{shift}");
        }
        let short = erofs[..1030].to_vec();
        assert_eq!(Superblock::detect(&short), Some(Superblock { fs: FileSystem::Erofs, bytes: None }));
    }
}
