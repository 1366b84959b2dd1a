//! What is on a disk, from its first bytes. What enters is the start of a device; what leaves is the file system there and the
//! size that it says it has. It never decides whether that is good: the guest does before it mounts, the launcher before it boots.

/// Bytes of the device's start that [`Superblock::find`] wants.
pub const START: usize = 4096;

/// A file system that the guest can serve, and the host look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// What `localregistry pack` makes.
    Erofs,
    /// ext4, and ext2 and ext3 with it.
    Ext4,
    /// squashfs 4.
    Squashfs,
}

impl FileSystem {
    /// Name of the type for mount(2).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }
}

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The file system.
    pub fs: FileSystem,
    /// Bytes that the file system takes, where the superblock says so in a way that makes sense.
    pub bytes: Option<u64>,
}

/// Where each file system has its label, 16 bytes padded with zeros: `volume_name` of `struct erofs_super_block`, `s_volume_name` of
/// `struct ext4_super_block`. squashfs has none.
#[cfg(feature = "guest")]
const LABELS: [(FileSystem, usize); 2] = [(FileSystem::Erofs, 1024 + 64), (FileSystem::Ext4, 1024 + 120)];
/// Bytes of a label.
#[cfg(feature = "guest")]
const LABEL: usize = 16;

/// Where each file system has its magic number: offset from the device's start, bytes.
const MAGICS: [(FileSystem, usize, &[u8]); 3] = [
    (FileSystem::Erofs, 1024, &0xE0F5_E1E2_u32.to_le_bytes()),
    (FileSystem::Ext4, 1024 + 56, &0xEF53_u16.to_le_bytes()),
    (FileSystem::Squashfs, 0, b"hsqs"),
];

impl Superblock {
    /// The superblock in `start`, the first [`START`] bytes of a device or all it has.
    #[must_use]
    pub fn find(start: &[u8]) -> Option<Self> {
        let known = |(_, offset, magic): &&(FileSystem, usize, &[u8])| start.get(*offset..*offset + magic.len()) == Some(*magic);
        let (fs, _, _) = MAGICS.iter().find(known)?;
        let bytes = match fs {
            FileSystem::Erofs => erofs_bytes(start),
            FileSystem::Ext4 => ext4_bytes(start),
            FileSystem::Squashfs => u64_at(start, 40),
        };
        Some(Self { fs: *fs, bytes })
    }
}

/// The label of the file system in `start`, where it has one that is text.
#[cfg(feature = "guest")]
#[must_use]
pub fn label(start: &[u8]) -> Option<&str> {
    let found = Superblock::find(start)?;
    let (_, offset) = LABELS.iter().find(|(fs, _)| *fs == found.fs)?;
    let bytes = start.get(*offset..*offset + LABEL)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(LABEL);
    str::from_utf8(bytes.get(..end)?).ok().filter(|text| !text.is_empty())
}

/// `blocks << blkszbits` of `struct erofs_super_block` (Linux, `fs/erofs/erofs_fs.h`).
fn erofs_bytes(start: &[u8]) -> Option<u64> {
    let block_bits = *start.get(1024 + 12)?;
    u64::from(u32_at(start, 1024 + 36)?).checked_mul(1_u64.checked_shl(u32::from(block_bits))?)
}

/// `s_blocks_count << (10 + s_log_block_size)` of `struct ext4_super_block` (Linux, `fs/ext4/ext4.h`), whose upper half counts
/// with the feature `64bit` (0x80) only.
fn ext4_bytes(start: &[u8]) -> Option<u64> {
    let wide = u32_at(start, 1024 + 96)? & 0x80 != 0;
    let high = if wide { u64::from(u32_at(start, 1024 + 0x150)?) } else { 0 };
    let blocks = high << 32 | u64::from(u32_at(start, 1024 + 4)?);
    // A shift alone would drop bits of a size that is too large.
    blocks.checked_mul(1_u64.checked_shl(u32_at(start, 1024 + 24)?)?)?.checked_mul(1024)
}

fn u32_at(start: &[u8], offset: usize) -> Option<u32> {
    start.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(start: &[u8], offset: usize) -> Option<u64> {
    start.get(offset..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut start = vec![0; START];
        for (offset, bytes) in fields {
            start[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        start
    }

    #[test]
    fn each_file_system_is_told_by_its_magic_and_gives_its_size() {
        let erofs = disk(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), (1036, &[12]), (1060, &5_u32.to_le_bytes())]);
        assert_eq!(Superblock::find(&erofs), Some(Superblock { fs: FileSystem::Erofs, bytes: Some(5 * 4096) }));

        let ext4 = disk(&[(1080, &[0x53, 0xef]), (1028, &7_u32.to_le_bytes()), (1048, &2_u32.to_le_bytes()), (0x550, &[1])]);
        assert_eq!(Superblock::find(&ext4), Some(Superblock { fs: FileSystem::Ext4, bytes: Some(7 * 4096) }));

        let wide = disk(&[(1080, &[0x53, 0xef]), (1028, &[7]), (1120, &[0x80]), (1024 + 0x150, &[1])]);
        assert_eq!(Superblock::find(&wide), Some(Superblock { fs: FileSystem::Ext4, bytes: Some(((1 << 32) + 7) * 1024) }));

        let squashfs = disk(&[(0, b"hsqs"), (40, &9_999_u64.to_le_bytes())]);
        assert_eq!(Superblock::find(&squashfs), Some(Superblock { fs: FileSystem::Squashfs, bytes: Some(9_999) }));
    }

    #[cfg(feature = "guest")]
    #[test]
    fn a_label_is_text_up_to_16_bytes() {
        let (erofs, ext4) = ([0xe2, 0xe1, 0xf5, 0xe0], [0x53, 0xef]);
        let of = |bytes: &[u8]| disk(&[(1024, &erofs), (1088, bytes)]);
        assert_eq!(label(&of(b"images")), Some("images"));
        assert_eq!(label(&of(b"0123456789abcdefmore")), Some("0123456789abcdef"));
        assert_eq!((label(&of(b"")), label(&of(&[0xff])), label(&[]), label(&of(b"x")[..1090])), (None, None, None, None));
        assert_eq!(label(&disk(&[(1080, &ext4), (1144, b"disk-2")])), Some("disk-2"));
        assert_eq!(label(&disk(&[(0, b"hsqs"), (1088, b"no"), (1144, b"no")])), None);
    }

    #[test]
    fn anything_else_is_nothing() {
        for start in
            [vec![], vec![0; 100], vec![0; START], vec![0xff; START], disk(&[(0, b"sqsh")]), disk(&[(1024, &[0xe2, 0xe1])])]
        {
            assert_eq!(Superblock::find(&start), None);
        }
    }

    #[test]
    fn a_size_that_makes_no_sense_is_none() {
        let erofs = disk(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), (1036, &[200]), (1060, &[1])]);
        assert_eq!(Superblock::find(&erofs), Some(Superblock { fs: FileSystem::Erofs, bytes: None }));
        for shift in [53, 54, 63, 64, u32::MAX] {
            let ext4 = disk(&[(1080, &[0x53, 0xef]), (1028, &2_u32.to_le_bytes()), (1048, &shift.to_le_bytes())]);
            assert_eq!(Superblock::find(&ext4), Some(Superblock { fs: FileSystem::Ext4, bytes: None }), "{shift}");
        }
        let short = erofs[..1030].to_vec();
        assert_eq!(Superblock::find(&short), Some(Superblock { fs: FileSystem::Erofs, bytes: None }));
    }
}
