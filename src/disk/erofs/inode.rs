//! Inodes of EROFS: what kind of file each is, and where its content lies. What enters are an inode's number and bytes of the image;
//! what leaves are pieces of the image that are known to lie within it once they are read.

use super::reader::{Erofs, ErofsFault, SLOT, u16_at, u32_at, u64_at};

/// Length of a compact inode, and of an extended one, in bytes.
const COMPACT: u64 = 32;
const EXTENDED: u64 = 64;
/// The bits of a mode that give the kind of file, and the two kinds that count here.
const KIND_MASK: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
/// In the format of a chunked file: the chunk's size beyond the block's, as a power of two; whether its table has entries of 8 bytes
/// that name a device; what is known at all.
const CHUNK_BITS: u16 = 0x1f;
const CHUNK_INDEXES: u16 = 0x20;
/// A chunk without a block: a hole.
const HOLE: u32 = u32::MAX;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A link, a device, a FIFO, a socket.
    Other,
}

/// Where the content of an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// In blocks one after another from this byte on.
    Plain { at: u64 },
    /// The same, but for the last block, whose content is behind the inode.
    Inline { at: u64, tail: u64 },
    /// In chunks of 2^bits bytes, listed in a table.
    Chunks { table: u64, bits: u32, indexes: bool },
}

/// An inode.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Its number.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Size of its content in bytes.
    pub size: u64,
    layout: Layout,
}

/// A piece of a file: where in the image it lies, nowhere for a hole, and its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub at: Option<u64>,
    pub len: u64,
}

impl Erofs {
    /// Reads the inode with this number.
    pub(crate) fn inode(&self, number: u64) -> Result<Inode, ErofsFault> {
        let fault = |fault| ErofsFault::Inode { number, fault };
        let at = number.checked_mul(SLOT).and_then(|at| self.inodes.checked_add(at));
        let at = at.ok_or_else(|| fault("is beyond every image"))?;
        let mut bytes = [0; EXTENDED as usize];
        let (head, rest) = bytes.split_at_mut(COMPACT as usize);
        self.read(at, head)?;
        let format = u16_at(head, 0);
        let extended = format & 1 != 0;
        if extended {
            self.read(at + COMPACT, rest)?;
        }
        let kind = match u16_at(&bytes, 4) & KIND_MASK {
            REGULAR => Kind::File,
            DIRECTORY => Kind::Directory,
            _ => Kind::Other,
        };
        let size = if extended { u64_at(&bytes, 8) } else { u64::from(u32_at(&bytes, 8)) };
        let xattrs = match u64::from(u16_at(&bytes, 2)) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let behind = at + if extended { EXTENDED } else { COMPACT } + xattrs;
        let place = u32_at(&bytes, 16);
        let layout = match format >> 1 & 7 {
            0 => Layout::Plain { at: self.block(place) },
            2 => Layout::Inline { at: self.block(place), tail: behind },
            4 => self.chunks(place, behind).ok_or_else(|| fault("has chunks of a form that is not known"))?,
            1 | 3 => return Err(ErofsFault::Compressed),
            _ => return Err(fault("has a form that is not known")),
        };
        Ok(Inode { number, kind, size, layout })
    }

    fn chunks(&self, format: u32, behind: u64) -> Option<Layout> {
        let format = u16::try_from(format).ok().filter(|format| format & !(CHUNK_BITS | CHUNK_INDEXES) == 0)?;
        let bits = u32::from(self.block_bits) + u32::from(format & CHUNK_BITS);
        let indexes = format & CHUNK_INDEXES != 0;
        let unit = if indexes { 8 } else { 4 };
        Some(Layout::Chunks { table: behind.checked_next_multiple_of(unit)?, bits, indexes })
    }

    /// Holds what can be known at once of where a file's content lies against the image's length.
    pub(crate) fn check(&self, inode: &Inode) -> Result<(), ErofsFault> {
        let whole = match inode.layout {
            Layout::Plain { at } => (at, inode.size),
            Layout::Inline { at, .. } => (at, self.last_block(inode.size)),
            Layout::Chunks { .. } => return Ok(()),
        };
        let (at, len) = whole;
        if len > 0 && at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(ErofsFault::Beyond { at, len, end: self.len });
        }
        Ok(())
    }

    /// The piece of the content of `inode` that begins with its byte `from`; none at its end.
    pub(crate) fn extent(&self, inode: &Inode, from: u64) -> Result<Option<Extent>, ErofsFault> {
        let Some(left) = inode.size.checked_sub(from).filter(|left| *left > 0) else { return Ok(None) };
        let fault = |fault| ErofsFault::Inode { number: inode.number, fault };
        let beyond = || fault("has content beyond every image");
        let (at, len) = match inode.layout {
            Layout::Plain { at } => (Some(at.checked_add(from).ok_or_else(beyond)?), left),
            Layout::Inline { at, tail } => {
                let last = self.last_block(inode.size);
                match last.checked_sub(from).filter(|whole| *whole > 0) {
                    Some(whole) => (Some(at.checked_add(from).ok_or_else(beyond)?), whole),
                    None if tail % self.block_size() + (inode.size - last) > self.block_size() => {
                        return Err(fault("has a tail that leaves its block"));
                    }
                    None => (Some(tail.checked_add(from - last).ok_or_else(beyond)?), left),
                }
            }
            Layout::Chunks { table, bits, indexes } => {
                let chunk = 1_u64.checked_shl(bits).ok_or_else(beyond)?;
                let within = from % chunk;
                let at = self.chunk(table, from / chunk, indexes)?;
                let at = at.map(|at| at.checked_add(within).ok_or_else(beyond)).transpose()?;
                (at, left.min(chunk - within))
            }
        };
        Ok(Some(Extent { at, len }))
    }

    /// Where the last block of content of `size` bytes begins in it.
    fn last_block(&self, size: u64) -> u64 {
        size.saturating_sub(1) >> self.block_bits << self.block_bits
    }

    /// Where a chunk lies, in bytes.
    fn chunk(&self, table: u64, number: u64, indexes: bool) -> Result<Option<u64>, ErofsFault> {
        let mut entry = [0; 8];
        let unit = if indexes { 8 } else { 4 };
        let (entry, _) = entry.split_at_mut(unit);
        let at = number.checked_mul(unit as u64).and_then(|at| table.checked_add(at));
        self.read(at.ok_or(ErofsFault::Beyond { at: table, len: number, end: self.len })?, entry)?;
        let block = u32_at(entry, unit - 4);
        if indexes && block != HOLE && u16_at(entry, 2) != 0 {
            return Err(ErofsFault::Device);
        }
        Ok((block != HOLE).then(|| self.block(block)))
    }
}
