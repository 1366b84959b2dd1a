//! An EROFS image (Linux, `fs/erofs/erofs_fs.h`), uncompressed: blobs are compressed already. What enters are the paths and sizes of
//! files; what leaves is the place of each file's content in the image and all bytes between. Pure but for [`Plan::write`]; it never
//! sees content.
//!
//! ```text
//! block 0 …    superblock at 1024, then the folders' inodes, small folders behind their inodes
//! then         the files' inodes; content that fits into a block with its inode behind it
//! then         folders and files that do not, each from a block's start
//! ```
//!
//! Written here, and not by `mkfs.erofs` from a staged tree, so that each byte is read once and written once, and the image depends on
//! no program's version.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::disk::label::Label;
use crate::oci::Digest;

/// Bytes of a block. Linux mounts none larger than its pages, and the guest's have this size.
const BLOCK: u64 = 4096;
/// Where the superblock is, its length, in bytes, and its magic number.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: u64 = 128;
const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
/// Where its label is, in bytes from its start.
const LABEL: usize = 64;
/// Inodes are numbered by their places, in slots of this many bytes.
const SLOT: u64 = 32;
/// Length of an inode, in bytes: compact, and extended for a file of 4 GiB or more.
const COMPACT: u64 = 32;
const EXTENDED: u64 = 64;
/// Length of a folder's entry without its name, and what an entry is of.
const ENTRY: usize = 12;
const FILE_KIND: u8 = 1;
const FOLDER_KIND: u8 = 2;
/// `i_format`: how content is stored, above the bit for an extended inode.
const PLAIN: u16 = 0 << 1;
const INLINE: u16 = 2 << 1;
/// Modes: read-only for everyone, as the disk is.
const FILE_MODE: u16 = 0o100_444;
const FOLDER_MODE: u16 = 0o040_555;
/// `feature_compat`: there is a checksum, and times are times of modification.
const FEATURES: u32 = 0b11;

/// The content has no place in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its content takes {blocks} blocks of {BLOCK} bytes; EROFS has at most {}", u32::MAX)]
pub struct TooLarge {
    /// How many blocks it would take.
    blocks: u64,
}

/// Where a file or folder is in the image.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Place of its inode, in bytes.
    inode: u64,
    /// Place of its content, in bytes.
    content: u64,
    size: u64,
    /// Whether the content stands behind the inode.
    inline: bool,
}

/// An image before it is written.
#[derive(Debug)]
pub struct Plan {
    /// The image's size in bytes: whole blocks.
    pub bytes: u64,
    /// The first blocks: the superblock, the folders' inodes, small folders.
    head: Vec<u8>,
    /// Folders that have blocks of their own: place and content.
    folders: Vec<(u64, Vec<u8>)>,
    files: Vec<Node>,
}

/// The folders by their paths, the root's empty one first. Of what each holds, the name, and the number of a file.
type Folders = BTreeMap<String, BTreeMap<String, Option<usize>>>;

impl Plan {
    /// Plans the image of `files`: paths without `.` and `..`, and sizes in bytes. It gets a UUID from `identity`, so that images
    /// differ in it as they differ in content.
    ///
    /// # Errors
    /// [`TooLarge`], above 16 TiB.
    pub fn new(files: &[(String, u64)], identity: &Digest, label: Option<&Label>) -> Result<Self, TooLarge> {
        let folders = folders(files);
        let mut places = Places { next: SUPERBLOCK + SUPERBLOCK_LEN, nodes: Vec::with_capacity(folders.len() + files.len()) };
        folders.values().for_each(|entries| places.add(content(entries, |_| 0).len() as u64));
        // The checksum is over the first block: no file's content there.
        places.next = places.next.next_multiple_of(BLOCK);
        let head = vec![0; usize::try_from(places.next).unwrap_or_default()];
        files.iter().for_each(|(_, size)| places.add(*size));
        let (mut nodes, bytes) = places.finish();
        let blocks = u32::try_from(bytes / BLOCK).map_err(|_| TooLarge { blocks: bytes / BLOCK })?;

        let root = nodes.first().map_or(0, Node::number);
        let mut superblock = superblock(nodes.len() as u64, root, blocks, &uuid(identity));
        label.iter().for_each(|label| fill(&mut superblock, LABEL, label.as_str().as_bytes()));
        let file_nodes = nodes.split_off(folders.len());
        let mut plan = Self { bytes, head, folders: Vec::new(), files: file_nodes };
        plan.put(SUPERBLOCK, &superblock);
        plan.add_folders(&folders, &nodes);
        let sum = crc32c(plan.head.get(SUPERBLOCK as usize..BLOCK as usize).unwrap_or_default());
        plan.put(SUPERBLOCK + 4, &sum.to_le_bytes());
        Ok(plan)
    }

    /// Where the content of file `number` goes, in bytes from the image's start.
    #[must_use]
    pub fn place(&self, number: usize) -> u64 {
        self.files.get(number).map_or(0, |node| node.content)
    }

    /// Writes all but the files' content into `image`, which reads as zeros elsewhere.
    ///
    /// # Errors
    /// As of writing.
    pub fn write(&self, image: &File) -> io::Result<()> {
        image.write_all_at(&self.head, 0)?;
        for (at, content) in &self.folders {
            image.write_all_at(content, *at)?;
        }
        for node in &self.files {
            image.write_all_at(&inode(node, FILE_MODE, 1), node.inode)?;
        }
        Ok(())
    }

    fn add_folders(&mut self, folders: &Folders, nodes: &[Node]) {
        let numbers: BTreeMap<&str, u64> = folders.keys().map(String::as_str).zip(nodes.iter().map(Node::number)).collect();
        let number_of = |path: &str| numbers.get(path).copied().unwrap_or_default();
        for ((path, entries), node) in folders.iter().zip(nodes) {
            let content = content(entries, |name| match (name, entries.get(name).copied().flatten()) {
                (".", _) => node.number(),
                ("..", _) => number_of(split(path).0),
                (_, Some(file)) => self.files.get(file).map_or(0, Node::number),
                (_, None) => number_of(&join(path, name)),
            });
            let below = entries.values().filter(|file| file.is_none()).count();
            self.put(node.inode, &inode(node, FOLDER_MODE, u16::try_from(2 + below).unwrap_or(u16::MAX)));
            match node.inline {
                true => self.put(node.content, &content),
                false => self.folders.push((node.content, content)),
            }
        }
    }

    /// Puts bytes into the head.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(bytes.len())?));
        if let Some(place) = range.and_then(|range| self.head.get_mut(range)) {
            place.copy_from_slice(bytes);
        }
    }
}

impl Node {
    /// The number of the inode, by which folders name it.
    const fn number(&self) -> u64 {
        self.inode / SLOT
    }
}

/// Hands out places.
struct Places {
    /// Where the next inode may go.
    next: u64,
    nodes: Vec<Node>,
}

impl Places {
    /// Gives an inode its place, and its content where that fits behind it. Neither crosses a block's end.
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

    /// Gives the other content its blocks, behind all inodes; then the image's size in bytes.
    fn finish(mut self) -> (Vec<Node>, u64) {
        let mut end = self.next.next_multiple_of(BLOCK);
        for node in self.nodes.iter_mut().filter(|node| node.size > 0 && !node.inline) {
            node.content = end;
            end = end.saturating_add(node.size.div_ceil(BLOCK).saturating_mul(BLOCK));
        }
        (self.nodes, end)
    }
}

/// The folders that hold `files`.
fn folders(files: &[(String, u64)]) -> Folders {
    let mut folders = Folders::from([(String::new(), BTreeMap::new())]);
    for (number, (path, _)) in files.iter().enumerate() {
        let (mut path, mut file) = (path.as_str(), Some(number));
        loop {
            let (folder, name) = split(path);
            let known = folders.contains_key(folder);
            folders.entry(folder.to_owned()).or_default().insert(name.to_owned(), file);
            if known {
                break;
            }
            (path, file) = (folder, None);
        }
    }
    folders
}

/// A path's folder, empty for the root, and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// A folder's content: in each block the entries (`struct erofs_dirent`), then their names; ordered by name throughout.
fn content(entries: &BTreeMap<String, Option<usize>>, number_of: impl Fn(&str) -> u64) -> Vec<u8> {
    let own = [(".", FOLDER_KIND), ("..", FOLDER_KIND)];
    let kind = |file: &Option<usize>| if file.is_some() { FILE_KIND } else { FOLDER_KIND };
    let mut all: Vec<(&str, u8)> = entries.iter().map(|(name, file)| (name.as_str(), kind(file))).chain(own).collect();
    all.sort_unstable();
    let mut content = Vec::new();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        content.resize(content.len().next_multiple_of(BLOCK as usize), 0);
        let mut used = 0;
        let fits = |(name, _): &&(&str, u8)| {
            used += ENTRY + name.len();
            used <= BLOCK as usize
        };
        let (block, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        let mut name_at = block.len() * ENTRY;
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

/// `struct erofs_super_block`, its checksum 0. Its time is 0, and so is that of every compact inode.
fn superblock(inodes: u64, root: u64, blocks: u32, uuid: &[u8; 16]) -> [u8; SUPERBLOCK_LEN as usize] {
    let mut bytes = [0; SUPERBLOCK_LEN as usize];
    fill(&mut bytes, 0, &MAGIC);
    fill(&mut bytes, 8, &FEATURES.to_le_bytes());
    fill(&mut bytes, 12, &[BLOCK.trailing_zeros() as u8]);
    fill(&mut bytes, 14, &u16::try_from(root).unwrap_or(u16::MAX).to_le_bytes());
    fill(&mut bytes, 16, &inodes.to_le_bytes());
    fill(&mut bytes, 36, &blocks.to_le_bytes());
    fill(&mut bytes, 48, uuid);
    bytes
}

/// `struct erofs_inode_compact`, or `struct erofs_inode_extended` for a file of 4 GiB or more. Everything is root's.
fn inode(node: &Node, mode: u16, links: u16) -> Vec<u8> {
    let number = u32::try_from(node.number()).unwrap_or(u32::MAX);
    let block = if node.inline || node.size == 0 { 0 } else { u32::try_from(node.content / BLOCK).unwrap_or(u32::MAX) };
    let stored = if node.inline { INLINE } else { PLAIN };
    match u32::try_from(node.size) {
        Ok(size) => {
            let mut bytes = vec![0; COMPACT as usize];
            fill(&mut bytes, 0, &stored.to_le_bytes());
            fill(&mut bytes, 4, &mode.to_le_bytes());
            fill(&mut bytes, 6, &links.to_le_bytes());
            fill(&mut bytes, 8, &size.to_le_bytes());
            fill(&mut bytes, 16, &block.to_le_bytes());
            fill(&mut bytes, 20, &number.to_le_bytes());
            bytes
        }
        Err(_) => {
            let mut bytes = vec![0; EXTENDED as usize];
            fill(&mut bytes, 0, &(stored | 1).to_le_bytes());
            fill(&mut bytes, 4, &mode.to_le_bytes());
            fill(&mut bytes, 8, &node.size.to_le_bytes());
            fill(&mut bytes, 16, &block.to_le_bytes());
            fill(&mut bytes, 20, &number.to_le_bytes());
            fill(&mut bytes, 44, &u32::from(links).to_le_bytes());
            bytes
        }
    }
}

fn fill(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}

/// A UUID of version 8, "custom" (RFC 9562, section 5.8), from the first bytes of a digest.
pub fn uuid(identity: &Digest) -> [u8; 16] {
    let mut uuid: [u8; 16] = identity.bytes().first_chunk().copied().unwrap_or_default();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// CRC-32C (RFC 3720, section 12.1), not inverted at the end, as the superblock has it.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes
        .iter()
        .fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Digest {
        Digest::sha256_of(b"")
    }

    #[test]
    fn a_uuid_for_each_content() {
        let hex: String = uuid(&identity()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "e3b0c44298fc8c149afbf4c8996fb924");
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, appendix B.4, which inverts in the end.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn no_inode_and_no_small_content_crosses_a_block() {
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
        taken.extend(plan.folders.iter().map(|(at, content)| (*at, content.len() as u64)));
        taken.retain(|(_, length)| *length > 0);
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "nothing overlaps");
        let (at, length) = taken.last().unwrap();
        assert_eq!(plan.bytes, (at + length).next_multiple_of(BLOCK));
    }

    #[test]
    fn more_than_an_image_holds() {
        let error = Plan::new(&[("a".to_owned(), 1 << 44)], &identity(), None).unwrap_err();
        assert_eq!(error.to_string(), "its content takes 4294967298 blocks of 4096 bytes; EROFS has at most 4294967295");
    }
}
