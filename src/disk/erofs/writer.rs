//! Plans and writes an EROFS image from the paths and sizes of its files. It writes all structures; its user writes the files' content
//! to the offsets that [`Plan::content_offset`] gives. Blobs are compressed already, so the image is not.
//!
//! ```text
//! block 0 …    superblock at 1024, then the directories' inodes; small directories follow their inodes
//! then         the files' inodes; content that fits into a block with its inode follows it
//! then         other directories and files, each at the start of a block
//! ```
//!
//! `mkfs.erofs` would need a staged copy of all content, and the image would depend on its version.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{
    COMPACT, DIRECTORY, DIRENT, EXTENDED, HAS_CHECKSUM, HAS_MTIME, INLINE, IS_EXTENDED, MAGIC, PLAIN, REGULAR, SLOT, SUPERBLOCK,
    SUPERBLOCK_SIZE, crc32c_uninverted, inode as inode_field, superblock as field,
};
use crate::disk::label::Label;
use crate::oci::Digest;

/// Block size in bytes. Linux mounts no block size above its page size, which is this in the guest.
const BLOCK: u64 = 4096;
/// File types in directory entries.
const FILE_TYPE: u8 = 1;
const DIRECTORY_TYPE: u8 = 2;
/// Modes. All files are read-only, as the disk is.
const FILE_MODE: u16 = REGULAR | 0o444;
const DIRECTORY_MODE: u16 = DIRECTORY | 0o555;

/// The content is larger than the largest image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its content takes {blocks} blocks of {BLOCK} bytes; EROFS has at most {}", u32::MAX)]
pub struct TooLarge {
    /// Blocks that the content needs.
    blocks: u64,
}

/// A file or directory in the image. Offsets are in bytes.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Offset of the inode.
    inode: u64,
    /// Offset of the content.
    content: u64,
    /// Size of the content in bytes.
    size: u64,
    /// Whether the content follows the inode.
    inline: bool,
}

/// The layout of an image that is not written yet.
#[derive(Debug)]
pub struct Plan {
    /// The image's size in bytes, a multiple of the block size.
    pub bytes: u64,
    /// The first blocks: the superblock, the directories' inodes, small directories.
    head: Vec<u8>,
    /// Directories in blocks of their own: offset and content.
    directories: Vec<(u64, Vec<u8>)>,
    files: Vec<Node>,
}

/// The directories by path. The root's path is empty. Each entry has a name and, if it is a file, the file's number.
type Directories = BTreeMap<String, BTreeMap<String, Option<usize>>>;

impl Plan {
    /// Plans the image of `files`: paths without `.` and `..`, and sizes in bytes. The image's UUID comes from `identity`.
    ///
    /// # Errors
    /// Fails if the image would be larger than 16 TiB.
    pub fn new(files: &[(String, u64)], identity: &Digest, label: Option<&Label>) -> Result<Self, TooLarge> {
        let directories = directories(files);
        let nodes = Vec::with_capacity(directories.len() + files.len());
        let mut allocator = Allocator { next: SUPERBLOCK + SUPERBLOCK_SIZE as u64, nodes };
        directories.values().for_each(|entries| allocator.add(content(entries, |_| 0).len() as u64));
        // The checksum covers the first block, so no file's content may be there.
        allocator.next = allocator.next.next_multiple_of(BLOCK);
        let head = vec![0; usize::try_from(allocator.next).unwrap_or_default()];
        files.iter().for_each(|(_, size)| allocator.add(*size));
        let (mut nodes, bytes) = allocator.finish();
        let blocks = u32::try_from(bytes / BLOCK).map_err(|_| TooLarge { blocks: bytes / BLOCK })?;

        let root = nodes.first().map_or(0, Node::number);
        let mut superblock = superblock(nodes.len() as u64, root, blocks, &uuid(identity));
        label.iter().for_each(|label| fill(&mut superblock, field::LABEL, label.as_str().as_bytes()));
        let file_nodes = nodes.split_off(directories.len());
        let mut plan = Self { bytes, head, directories: Vec::new(), files: file_nodes };
        plan.put(SUPERBLOCK, &superblock);
        plan.add_directories(&directories, &nodes);
        let sum = crc32c_uninverted(plan.head.get(SUPERBLOCK as usize..BLOCK as usize).unwrap_or_default());
        plan.put(SUPERBLOCK + field::CHECKSUM as u64, &sum.to_le_bytes());
        Ok(plan)
    }

    /// Offset in the image of the content of file `number`, in bytes.
    #[must_use]
    pub fn content_offset(&self, number: usize) -> u64 {
        self.files.get(number).map_or(0, |node| node.content)
    }

    /// Writes everything except the files' content to `image`. The rest of `image` must read as zeros.
    ///
    /// # Errors
    /// Fails if `image` cannot be written.
    pub fn write(&self, image: &File) -> io::Result<()> {
        image.write_all_at(&self.head, 0)?;
        for (at, content) in &self.directories {
            image.write_all_at(content, *at)?;
        }
        for node in &self.files {
            image.write_all_at(&inode(node, FILE_MODE, 1), node.inode)?;
        }
        Ok(())
    }

    fn add_directories(&mut self, directories: &Directories, nodes: &[Node]) {
        let numbers: BTreeMap<&str, u64> = directories.keys().map(String::as_str).zip(nodes.iter().map(Node::number)).collect();
        let number_of = |path: &str| numbers.get(path).copied().unwrap_or_default();
        for ((path, entries), node) in directories.iter().zip(nodes) {
            let content = content(entries, |name| match (name, entries.get(name).copied().flatten()) {
                (".", _) => node.number(),
                ("..", _) => number_of(split(path).0),
                (_, Some(file)) => self.files.get(file).map_or(0, Node::number),
                (_, None) => number_of(&join(path, name)),
            });
            let children = entries.values().filter(|file| file.is_none()).count();
            self.put(node.inode, &inode(node, DIRECTORY_MODE, u16::try_from(2 + children).unwrap_or(u16::MAX)));
            match node.inline {
                true => self.put(node.content, &content),
                false => self.directories.push((node.content, content)),
            }
        }
    }

    /// Copies bytes into the head, at their offset in the image.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(bytes.len())?));
        if let Some(target) = range.and_then(|range| self.head.get_mut(range)) {
            target.copy_from_slice(bytes);
        }
    }
}

impl Node {
    /// The inode's number.
    const fn number(&self) -> u64 {
        self.inode / SLOT
    }
}

/// Assigns offsets to inodes and content.
struct Allocator {
    /// First free offset for an inode, in bytes.
    next: u64,
    nodes: Vec<Node>,
}

impl Allocator {
    /// Assigns an offset to an inode, and to its content if that fits after it. Neither crosses the end of a block.
    fn add(&mut self, size: u64) {
        let inline = size > 0 && COMPACT + size <= BLOCK;
        let length = if inline {
            COMPACT + size
        } else if size > u64::from(u32::MAX) {
            EXTENDED
        } else {
            COMPACT
        };
        let start = self.next.next_multiple_of(SLOT);
        let left = BLOCK - start % BLOCK;
        let inode = if length > left { start + left } else { start };
        self.nodes.push(Node { inode, content: inode + COMPACT, size, inline });
        self.next = inode + length;
    }

    /// Assigns blocks after all inodes to the other content. Returns the nodes and the image's size in bytes.
    fn finish(mut self) -> (Vec<Node>, u64) {
        let mut end = self.next.next_multiple_of(BLOCK);
        for node in self.nodes.iter_mut().filter(|node| node.size > 0 && !node.inline) {
            node.content = end;
            end = end.saturating_add(node.size.div_ceil(BLOCK).saturating_mul(BLOCK));
        }
        (self.nodes, end)
    }
}

/// The directories that hold `files`.
fn directories(files: &[(String, u64)]) -> Directories {
    let mut directories = Directories::from([(String::new(), BTreeMap::new())]);
    for (number, (path, _)) in files.iter().enumerate() {
        let (mut path, mut file) = (path.as_str(), Some(number));
        loop {
            let (directory, name) = split(path);
            let known = directories.contains_key(directory);
            directories.entry(directory.to_owned()).or_default().insert(name.to_owned(), file);
            if known {
                break;
            }
            (path, file) = (directory, None);
        }
    }
    directories
}

/// The path of the directory, empty for the root, and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// A directory's content. Each block has entries (`struct erofs_dirent`), then their names. All are sorted by name.
fn content(entries: &BTreeMap<String, Option<usize>>, number_of: impl Fn(&str) -> u64) -> Vec<u8> {
    let own = [(".", DIRECTORY_TYPE), ("..", DIRECTORY_TYPE)];
    let kind = |file: &Option<usize>| if file.is_some() { FILE_TYPE } else { DIRECTORY_TYPE };
    let mut all: Vec<(&str, u8)> = entries.iter().map(|(name, file)| (name.as_str(), kind(file))).chain(own).collect();
    all.sort_unstable();
    let mut content = Vec::new();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        content.resize(content.len().next_multiple_of(BLOCK as usize), 0);
        let mut used = 0;
        let fits = |(name, _): &&(&str, u8)| {
            used += DIRENT + name.len();
            used <= BLOCK as usize
        };
        let (block, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        let mut name_at = block.len() * DIRENT;
        for (name, kind) in block {
            content.extend_from_slice(&number_of(name).to_le_bytes());
            content.extend_from_slice(&u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
            content.extend_from_slice(&[*kind, 0]);
            name_at += name.len();
        }
        block.iter().for_each(|(name, _)| content.extend_from_slice(name.as_bytes()));
        rest = later;
    }
    content
}

/// `struct erofs_super_block` with checksum 0. Its time, which is that of every compact inode, is 0.
fn superblock(inodes: u64, root: u64, blocks: u32, uuid: &[u8; 16]) -> [u8; SUPERBLOCK_SIZE] {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    fill(&mut bytes, 0, &MAGIC);
    fill(&mut bytes, field::FEATURE_COMPAT, &(HAS_CHECKSUM | HAS_MTIME).to_le_bytes());
    fill(&mut bytes, field::BLOCK_BITS, &[BLOCK.trailing_zeros() as u8]);
    fill(&mut bytes, field::ROOT, &u16::try_from(root).unwrap_or(u16::MAX).to_le_bytes());
    fill(&mut bytes, field::INODES, &inodes.to_le_bytes());
    fill(&mut bytes, field::BLOCKS, &blocks.to_le_bytes());
    fill(&mut bytes, field::UUID, uuid);
    bytes
}

/// `struct erofs_inode_compact`, or `struct erofs_inode_extended` for a file of 4 GiB or more. The owner is root.
fn inode(node: &Node, mode: u16, links: u16) -> Vec<u8> {
    let number = u32::try_from(node.number()).unwrap_or(u32::MAX);
    let block = if node.inline || node.size == 0 { 0 } else { u32::try_from(node.content / BLOCK).unwrap_or(u32::MAX) };
    let layout = if node.inline { INLINE } else { PLAIN };
    let is_extended = u32::try_from(node.size).is_err();
    let mut bytes = vec![0; if is_extended { EXTENDED } else { COMPACT } as usize];
    fill(&mut bytes, inode_field::FORMAT, &(layout << 1 | if is_extended { IS_EXTENDED } else { 0 }).to_le_bytes());
    fill(&mut bytes, inode_field::MODE, &mode.to_le_bytes());
    fill(&mut bytes, inode_field::BLOCK, &block.to_le_bytes());
    fill(&mut bytes, inode_field::NUMBER, &number.to_le_bytes());
    match u32::try_from(node.size) {
        Ok(size) => {
            fill(&mut bytes, inode_field::SIZE, &size.to_le_bytes());
            fill(&mut bytes, inode_field::COMPACT_LINKS, &links.to_le_bytes());
        }
        Err(_) => {
            fill(&mut bytes, inode_field::SIZE, &node.size.to_le_bytes());
            fill(&mut bytes, inode_field::EXTENDED_LINKS, &u32::from(links).to_le_bytes());
        }
    }
    bytes
}

fn fill(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(target) = bytes.get_mut(at..at + field.len()) {
        target.copy_from_slice(field);
    }
}

/// A UUID of version 8 (RFC 9562, section 5.8) from the first bytes of a digest.
pub fn uuid(identity: &Digest) -> [u8; 16] {
    let mut uuid: [u8; 16] = identity.bytes().first_chunk().copied().unwrap_or_default();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Digest {
        Digest::sha256_of(b"")
    }

    #[test]
    fn uuid_is_derived_from_the_digest() {
        let hex: String = uuid(&identity()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "e3b0c44298fc8c149afbf4c8996fb924");
    }

    #[test]
    fn inodes_and_inline_content_do_not_cross_blocks() {
        let sizes = [0, 1, 4064, 4065, 4096, 5000, u64::from(u32::MAX), 1 << 32, 900, 3000];
        let files: Vec<(String, u64)> = (0..1000).map(|n| (format!("a/{n:04}"), sizes[n % sizes.len()])).collect();
        let plan = Plan::new(&files, &identity(), None).unwrap();
        let mut taken: Vec<(u64, u64)> = vec![(0, plan.head.len() as u64)];
        for (node, (_, size)) in plan.files.iter().zip(&files) {
            let length = if *size > u64::from(u32::MAX) { EXTENDED } else { COMPACT };
            assert_eq!(node.inode / BLOCK, (node.inode + length - 1) / BLOCK);
            taken.push((node.inode, length));
            match node.inline {
                true => assert_eq!(node.inode / BLOCK, (node.content + size - 1) / BLOCK),
                false => assert!(*size == 0 || node.content % BLOCK == 0),
            }
            taken.push((node.content, *size));
        }
        taken.extend(plan.directories.iter().map(|(at, content)| (*at, content.len() as u64)));
        taken.retain(|(_, length)| *length > 0);
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "nothing overlaps");
        let (at, length) = taken.last().unwrap();
        assert_eq!(plan.bytes, (at + length).next_multiple_of(BLOCK));
    }

    #[test]
    fn image_larger_than_16_tib_is_refused() {
        let error = Plan::new(&[("a".to_owned(), 1 << 44)], &identity(), None).unwrap_err();
        assert_eq!(error.to_string(), "its content takes 4294967298 blocks of 4096 bytes; EROFS has at most 4294967295");
    }
}
