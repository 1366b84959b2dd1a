//! Reads uncompressed EROFS images (Linux, `fs/erofs/erofs_fs.h`), so that tests need no package to look into a disk, and makes small ones
//! that no tool makes.
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

/// The content of a file in an image that [`image`] makes.
pub enum Content<'a> {
    Bytes(&'a [u8]),
    /// This many bytes, all in holes.
    Holes(u64),
    /// A directory of this many bytes, of which every block is that with the given number.
    Repeated(u64, u32),
}

/// An image with these files in these directories, root first. Each directory has few entries, and is in one block. A path's parent must
/// come before it, unless it is in the root.
pub fn image(directories: &[&str], files: &[(&str, Content<'_>)]) -> Vec<u8> {
    const BLOCK: usize = 4096;
    /// Slots of 32 bytes for an inode of 64 bytes and a table of up to 8 chunks.
    const SLOTS: usize = 4;
    let paths: Vec<&str> = [""].iter().chain(directories).copied().chain(files.iter().map(|(path, _)| *path)).collect();
    let meta = (paths.len() * SLOTS * 32).div_ceil(BLOCK);
    let mut image = vec![0; (1 + meta) * BLOCK];
    let append = |image: &mut Vec<u8>, content: &[u8]| {
        let block = u32::try_from(image.len() / BLOCK).unwrap();
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(BLOCK), 0);
        block
    };
    for (number, path) in paths.iter().enumerate() {
        let file = number.checked_sub(1 + directories.len()).map(|file| &files[file].1);
        let (layout, size, block, table) = match file {
            None => {
                let content = directory(&paths, path, SLOTS);
                (0, content.len() as u64, append(&mut image, &content), Vec::new())
            }
            Some(Content::Bytes(bytes)) => (0, bytes.len() as u64, append(&mut image, bytes), Vec::new()),
            Some(Content::Holes(size)) => (4, *size, 0x1f, vec![u32::MAX]),
            Some(Content::Repeated(size, block)) => (4, *size, 0, vec![*block; 8]),
        };
        let is_directory = matches!(file, None | Some(Content::Repeated(..)));
        let mut inode = vec![0; 64];
        inode[..2].copy_from_slice(&(layout << 1 | 1_u16).to_le_bytes());
        inode[4..6].copy_from_slice(&(if is_directory { DIRECTORY | 0o555 } else { FILE | 0o444 }).to_le_bytes());
        inode[8..16].copy_from_slice(&size.to_le_bytes());
        inode[16..20].copy_from_slice(&block.to_le_bytes());
        table.iter().for_each(|block: &u32| inode.extend_from_slice(&block.to_le_bytes()));
        let at = BLOCK + number * SLOTS * 32;
        image[at..at + inode.len()].copy_from_slice(&inode);
    }
    let blocks = u32::try_from(image.len() / BLOCK).unwrap();
    image[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    image[1024 + 12] = 12;
    image[1024 + 36..1024 + 40].copy_from_slice(&blocks.to_le_bytes());
    image[1024 + 40..1024 + 44].copy_from_slice(&1_u32.to_le_bytes());
    image
}

/// The entries of a directory.
fn directory(paths: &[&str], path: &str, slots: usize) -> Vec<u8> {
    let parent = |path: &str| path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
    let in_it = paths.iter().enumerate().skip(1).filter(|(_, child)| parent(child) == path);
    let mut names: Vec<(&str, usize)> = in_it.map(|(number, child)| (child.rsplit('/').next().unwrap(), number)).collect();
    names.sort_unstable();
    let (mut entries, mut text) = (Vec::new(), Vec::new());
    for (name, number) in &names {
        let offset = u16::try_from(names.len() * 12 + text.len()).unwrap();
        entries.extend_from_slice(&((number * slots) as u64).to_le_bytes());
        entries.extend_from_slice(&offset.to_le_bytes());
        entries.extend_from_slice(&[0, 0]);
        text.extend_from_slice(name.as_bytes());
    }
    [entries, text].concat()
}
