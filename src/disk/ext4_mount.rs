//! What Linux checks of an ext4 image and the `ext4-view` library does not: superblock and group descriptors before it mounts the file
//! system read-only (`fs/ext4/super.c`, `ext4_fill_super` and `ext4_check_descriptors`), and each inode before it opens a file
//! (`fs/ext4/inode.c`, `ext4_iget`; `fs/ext4/extents.c`, `ext4_ext_check`). A disk that fails here can be read, but not in the guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::little_endian::{u16_at, u32_at};

/// Offset of the superblock, and its size in bytes.
const SUPERBLOCK: (u64, usize) = (1024, 1024);
/// Largest block that Linux mounts where pages have 4096 bytes, in bytes.
const MAX_BLOCK: u64 = 4096;
/// Size of an inode's fixed part, in bytes, and of a whole inode in revision 0.
const INODE: u64 = 128;
/// The first inode number that is not reserved, as mke2fs sets it. Linux opens no file of a lower number.
const FIRST_INODE: u64 = 11;

// Features.
const COMPAT_ORPHAN_FILE: u64 = 0x1000;
const INCOMPAT_64BIT: u64 = 0x80;
const INCOMPAT_FLEX_BG: u64 = 0x200;
const RO_COMPAT_BIGALLOC: u64 = 0x200;
const RO_COMPAT_METADATA_CSUM: u64 = 0x400;
const RO_COMPAT_GDT_CSUM: u64 = 0x10;
const COMPAT_DIR_INDEX: u64 = 0x20;

/// The flag of a group whose inodes were never written.
const INODE_UNINIT: u64 = 1;
// Flags of inodes.
const INDEXED: u64 = 0x1000;
const EXTENTS: u64 = 0x8_0000;
/// Content of an attribute, content in the inode, names without case. `ext4-view` supports none of the features that these need.
const UNSUPPORTED: u64 = 0x20_0000 | 0x1000_0000 | 0x4000_0000;
/// Offset of the extents in an inode, size of their header and of each in bytes, and how many fit.
const EXTENT_TREE: (usize, usize, usize, u64) = (0x28, 12, 12, 4);
/// Length from which on an extent counts as unwritten, with that much subtracted.
const UNWRITTEN: u64 = 0x8000;

/// Checks that Linux would mount the image in `file`, which `ext4-view` has opened.
///
/// # Errors
/// Fails with what is wrong, or if the file cannot be read.
pub fn check(file: &File) -> io::Result<()> {
    let mut bytes = vec![0; SUPERBLOCK.1];
    file.read_exact_at(&mut bytes, SUPERBLOCK.0)?;
    let fields = Fields(&bytes);
    let layout = Layout::of(&fields).map_err(refused)?;
    let mut descriptor = vec![0; usize::try_from(layout.descriptor).map_err(io::Error::other)?];
    // The descriptors follow the superblock's block.
    let table = (SUPERBLOCK.0 / layout.block + 1) * layout.block;
    let (mut zones, mut tables) = (vec![(0, layout.content)], Vec::new());
    for group in 0..layout.groups {
        file.read_exact_at(&mut descriptor, table + group * layout.descriptor)?;
        tables.push(layout.check_group(group, &Fields(&descriptor), &mut zones).map_err(refused)?);
    }
    zones.sort_unstable();
    let are_apart = zones.is_sorted_by(|(at, count), (next, _)| at + count <= *next);
    expect(are_apart, "bitmaps or inodes of its groups overlap").map_err(refused)?;
    for (at, count) in tables {
        let mut inodes = vec![0; usize::try_from(layout.block).map_err(io::Error::other)?];
        let size = usize::try_from(layout.inode).map_err(io::Error::other)?;
        for number in 0..(count * layout.inode).div_ceil(layout.block) {
            file.read_exact_at(&mut inodes, (at + number) * layout.block)?;
            inodes.chunks_exact(size).try_for_each(|inode| layout.check_inode(&Fields(inode), &zones)).map_err(refused)?;
        }
    }
    Ok(())
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("Linux cannot mount it: {what}"))
}

/// The first block of what belongs to the file system itself, and how many blocks it has.
type Zone = (u64, u64);

/// Little-endian fields by their offset in bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or_default().into()
    }

    fn u16(&self, at: usize) -> u64 {
        u16_at(self.0, at).unwrap_or_default().into()
    }

    fn u32(&self, at: usize) -> u64 {
        u32_at(self.0, at).unwrap_or_default().into()
    }
}

/// The sizes and counts of a file system, in bytes and blocks.
struct Layout {
    block: u64,
    blocks: u64,
    first_block: u64,
    /// The first block after the superblock, the descriptors and what is reserved for them.
    content: u64,
    group_blocks: u64,
    groups: u64,
    inode: u64,
    group_inodes: u64,
    descriptor: u64,
    /// Whether descriptors tell which inodes were never written.
    has_unused: bool,
    has_indexes: bool,
    is_wide: bool,
    is_flexible: bool,
}

impl Layout {
    /// Reads and checks the superblock.
    fn of(fields: &Fields<'_>) -> Result<Self, &'static str> {
        let has = |at: usize, feature: u64| fields.u32(at) & feature != 0;
        let (is_wide, is_flexible) = (has(0x60, INCOMPAT_64BIT), has(0x60, INCOMPAT_FLEX_BG));
        let is_clustered = has(0x64, RO_COMPAT_BIGALLOC);
        let size = |at: usize| 1024_u64.checked_shl(u32::try_from(fields.u32(at)).unwrap_or(u32::MAX)).unwrap_or(u64::MAX);
        let (block, cluster) = (size(0x18), size(0x1c));
        expect(block <= MAX_BLOCK, "its blocks are larger than 4096 bytes")?;
        let ratio = cluster / block;
        expect(if is_clustered { ratio > 0 && ratio <= 1 << 20 } else { ratio == 1 }, "its cluster size is wrong")?;

        let is_old = fields.u32(0x4c) == 0;
        let inode = fields.u16(0x58);
        let inode_fits = inode.is_power_of_two() && (INODE..=block).contains(&inode) && (!is_old || inode == INODE);
        expect(inode_fits, "its inode size is wrong")?;
        expect(is_old || fields.u32(0x54) == FIRST_INODE, "its first inode is a wrong one")?;
        let extra = fields.u16(0x15c).max(fields.u16(0x15e));
        expect(inode == INODE || extra <= inode - INODE, "its inodes have more extra space than they have bytes")?;

        let (group_blocks, group_clusters, group_inodes) = (fields.u32(0x20), fields.u32(0x24), fields.u32(0x28));
        // The bitmap of a group has one block.
        let bits = block * 8;
        let group_fits = group_blocks > 0 && group_clusters <= bits && Some(group_blocks) == group_clusters.checked_mul(ratio);
        expect(group_fits, "its number of blocks in a group is wrong")?;
        expect((block / inode..=bits).contains(&group_inodes), "its number of inodes in a group is wrong")?;
        let descriptor = if is_wide { fields.u16(0xfe) } else { 32 };
        let descriptor_fits = !is_wide || descriptor.is_power_of_two() && (64..=1024).contains(&descriptor);
        expect(descriptor_fits, "its group descriptors have a wrong size")?;
        expect(fields.u16(0xce) <= block / 4, "it reserves too many blocks for group descriptors")?;

        let blocks = if is_wide { fields.u32(0x150) << 32 | fields.u32(4) } else { fields.u32(4) };
        let first_block = fields.u32(0x14);
        expect(first_block == u64::from(block == 1024 && ratio == 1) && first_block < blocks, "its first block is a wrong one")?;
        let groups = (blocks - first_block).div_ceil(group_blocks);
        expect(groups.checked_mul(group_inodes) == Some(fields.u32(0)), "its number of inodes is wrong")?;

        expect(fields.u32(0x48) != 1 || !is_wide, "it is of the Hurd, which has no 64-bit file systems")?;
        expect(fields.byte(0xfc) <= 5, "its default hash is unknown")?;
        expect(!is_flexible || fields.byte(0x174) < 32, "its groups of groups are too large")?;
        expect(!has(0x64, RO_COMPAT_METADATA_CSUM) || fields.byte(0x175) == 1, "its kind of checksums is unknown")?;
        expect(!has(0x5c, COMPAT_ORPHAN_FILE) || fields.u32(0x280) >= FIRST_INODE, "its file of orphans is missing")?;
        let has_unused = has(0x64, RO_COMPAT_METADATA_CSUM | RO_COMPAT_GDT_CSUM);
        let has_indexes = has(0x5c, COMPAT_DIR_INDEX);
        Ok(Self {
            block,
            blocks,
            first_block,
            content: 1024 / block + 1 + (groups * descriptor).div_ceil(block) + fields.u16(0xce),
            group_blocks,
            groups,
            inode,
            group_inodes,
            descriptor,
            has_unused,
            has_indexes,
            is_wide,
            is_flexible,
        })
    }

    /// Checks where a group has its bitmaps and its inodes: in itself, or anywhere if groups are flexible. Returns the first block of the
    /// inodes, and how many were ever written. Adds all of these to `zones`.
    fn check_group(&self, group: u64, fields: &Fields<'_>, zones: &mut Vec<Zone>) -> Result<(u64, u64), &'static str> {
        let own = self.first_block + group * self.group_blocks;
        let (first, end) =
            if self.is_flexible { (self.first_block, self.blocks) } else { (own, self.blocks.min(own + self.group_blocks)) };
        let at = |low: usize| if self.is_wide { fields.u32(low + 0x20) << 32 | fields.u32(low) } else { fields.u32(low) };
        let is_inside =
            |at: u64, count: u64| at >= first.max(self.content) && at.checked_add(count).is_some_and(|after| after <= end);
        let table = (at(8), self.group_inodes * self.inode / self.block);
        expect(is_inside(at(0), 1), "a group's block bitmap is outside of it")?;
        expect(is_inside(at(4), 1), "a group's inode bitmap is outside of it")?;
        expect(is_inside(table.0, table.1), "a group's inodes are outside of it")?;
        zones.extend([(at(0), 1), (at(4), 1), table]);
        let unused = if self.is_wide { fields.u16(0x32) << 16 | fields.u16(0x1c) } else { fields.u16(0x1c) };
        let used = match (self.has_unused, fields.u16(0x12) & INODE_UNINIT) {
            (true, 0) => self.group_inodes.saturating_sub(unused),
            (true, _) => 0,
            (false, _) => self.group_inodes,
        };
        Ok((at(8), used))
    }

    /// Checks an inode if it is in use. Its content is outside of `zones`, which are sorted.
    fn check_inode(&self, fields: &Fields<'_>, zones: &[Zone]) -> Result<(), &'static str> {
        let (mode, links, flags) = (fields.u16(0), fields.u16(0x1a), fields.u32(0x20));
        if mode == 0 || links == 0 {
            return Ok(());
        }
        expect(flags & UNSUPPORTED == 0 && (self.has_indexes || flags & INDEXED == 0), "an inode has flags of missing features")?;
        let extra = if self.inode > INODE { fields.u16(0x80) } else { 0 };
        expect(extra <= self.inode - INODE && extra % 4 == 0, "an inode's extra space is wrong")?;
        let is_block = |at: u64, count: u64| {
            let after = at.saturating_add(count);
            let before = zones.partition_point(|(zone, _)| *zone < after);
            let last = before.checked_sub(1).and_then(|before| zones.get(before));
            after <= self.blocks && last.is_some_and(|(zone, blocks)| zone + blocks <= at)
        };
        let attributes = fields.u16(0x76) << 32 | fields.u32(0x68);
        expect(attributes == 0 || is_block(attributes, 1), "an inode's attributes are outside of the file system")?;
        if flags & EXTENTS == 0 {
            return Ok(());
        }
        let (start, head, size, room) = EXTENT_TREE;
        let (entries, max, depth) = (fields.u16(start + 2), fields.u16(start + 4), fields.u16(start + 6));
        expect((1..=room).contains(&max) && entries <= max, "an inode's number of extents is wrong")?;
        let mut after = 0;
        for (_, at) in (0..entries).zip((start + head..).step_by(size)) {
            let (first, block) = (fields.u32(at), fields.u16(at + 6) << 32 | fields.u32(at + 8));
            // An entry of an inner node leads to one block of the tree.
            let count = match (depth, fields.u16(at + 4)) {
                (0, count) if count > UNWRITTEN => count - UNWRITTEN,
                (0, count) => count,
                _ => 1,
            };
            let block = if depth == 0 { block } else { fields.u16(at + 8) << 32 | fields.u32(at + 4) };
            expect(first >= after && count > 0 && is_block(block, count), "an inode's extent is wrong")?;
            after = first + count;
        }
        Ok(())
    }
}

fn expect(holds: bool, fault: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(fault) }
}
