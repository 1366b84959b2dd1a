//! Reads uncompressed EROFS images (Linux, `fs/erofs/erofs_fs.h`), so that tests need no package to look into a disk.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const DIRECTORY: u16 = 0o040_000;
const FILE: u16 = 0o100_000;

struct Image<'a> {
    bytes: &'a [u8],
    block: usize,
    inodes: usize,
}

/// Extracts an uncompressed image into the new folder `into`, with modes.
pub fn extract(bytes: &[u8], into: &Path) {
    let block = 1 << bytes[1024 + 12];
    let image = Image { bytes, block, inodes: u32_at(bytes, 1024 + 40) as usize * block };
    image.write(u16_at(bytes, 1024 + 14).into(), into);
}

impl Image<'_> {
    fn write(&self, number: u64, path: &Path) {
        let (mode, content) = self.inode(number);
        match mode & 0o170_000 {
            FILE => fs::write(path, content).unwrap(),
            DIRECTORY => {
                fs::create_dir(path).unwrap();
                for (name, number) in content.chunks(self.block).flat_map(entries) {
                    if name != "." && name != ".." {
                        self.write(number, &path.join(name));
                    }
                }
            }
            other => panic!("{} has the type {other:o}", path.display()),
        }
        fs::set_permissions(path, Permissions::from_mode((mode & 0o7777).into())).unwrap();
    }

    /// Mode and content of an inode.
    fn inode(&self, number: u64) -> (u16, Vec<u8>) {
        let inode = &self.bytes[self.inodes + 32 * number as usize..];
        let format = u16_at(inode, 0);
        let extended = format & 1 == 1;
        assert_eq!(u16_at(inode, 2), 0, "no extended attributes are expected");
        let size =
            if extended { u64::from_le_bytes(inode[8..16].try_into().unwrap()) as usize } else { u32_at(inode, 8) as usize };
        let start = u32_at(inode, 16) as usize * self.block;
        let in_blocks = match format >> 1 & 7 {
            0 => size,
            // The tail of the content follows the inode.
            2 => size / self.block * self.block,
            other => panic!("the data layout {other} is not expected"),
        };
        let behind = if extended { 64 } else { 32 };
        let blocks = if in_blocks == 0 { &[] } else { &self.bytes[start..start + in_blocks] };
        (u16_at(inode, 4), [blocks, &inode[behind..behind + size - in_blocks]].concat())
    }
}

/// Names and inode numbers in one block of a directory.
fn entries(block: &[u8]) -> Vec<(String, u64)> {
    let offset = |index: usize| usize::from(u16_at(block, 12 * index + 8));
    let count = offset(0) / 12;
    let entry = |index: usize| {
        let end = if index + 1 < count { offset(index + 1) } else { block.len() };
        let name = block[offset(index)..end].split(|byte| *byte == 0).next().unwrap();
        (String::from_utf8(name.to_vec()).unwrap(), u64::from_le_bytes(block[12 * index..12 * index + 8].try_into().unwrap()))
    };
    (0..count).map(entry).collect()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
