//! Inodes: the type of a file, and the place of its content in the volume.

use super::format::{CHUNKS, COMPACT, DIRECTORY, EXTENDED, INLINE, IS_EXTENDED, InodeFields, PLAIN, REGULAR, SLOT, TYPE_MASK};
use super::volume::{ErofsError, ErofsVolume};

/// In the format of a chunked file: the chunk size relative to the block size, as a power of two.
const CHUNK_BITS: u16 = 0x1f;
/// In the format of a chunked file: the table has entries of 8 bytes, which also name a device.
const CHUNK_INDEXES: u16 = 0x20;
/// Features of an image that has compressed files (`EROFS_FEATURE_INCOMPAT_LZ4_0PADDING`, `…_COMPR_CFGS`). In others they are damage.
const COMPRESSION: u32 = 0x3;
/// The feature of an image with further devices (`EROFS_FEATURE_INCOMPAT_DEVICE_TABLE`). In others Linux ignores the device of a chunk.
const DEVICES: u32 = 0x8;
/// The block number of a hole.
const HOLE: u32 = u32::MAX;

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link, a device, a FIFO or a socket.
    Other,
}

/// The place of an inode's content. Offsets are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataLayout {
    /// Consecutive blocks from `at`.
    Plain { at: u64 },
    /// As `Plain`, except that the last block's content is at `tail`.
    Inline { at: u64, tail: u64 },
    /// Chunks of 2^`bits` bytes, listed in the table at `table`.
    Chunks { table: u64, bits: u32, has_devices: bool },
}

/// An inode.
#[derive(Debug, Clone)]
pub struct Inode {
    number: u64,
    /// File type.
    pub file_type: FileType,
    /// Size of the content in bytes.
    pub size: u64,
    layout: DataLayout,
}

/// A consecutive part of a file: its offset in the image (`None` for a hole) and its length, in bytes.
struct Extent {
    at: Option<u64>,
    len: u64,
}

impl Inode {
    /// Reads the inode with this number.
    pub fn read(volume: &ErofsVolume, number: u64) -> Result<Self, ErofsError> {
        let fault = |fault| ErofsError::Inode { number, fault };
        let at = number.checked_mul(SLOT).and_then(|at| volume.inodes.checked_add(at));
        let at = at.ok_or_else(|| fault("has a number past the end of any image"))?;
        let mut bytes = [0; EXTENDED as usize];
        let (head, rest) = bytes.split_at_mut(COMPACT as usize);
        volume.read(at, head)?;
        let is_extended = head.first().is_some_and(|format| u16::from(*format) & IS_EXTENDED != 0);
        if is_extended {
            volume.read(at + COMPACT, rest)?;
        }
        let fields = InodeFields::parse(&bytes).unwrap_or_default();
        let file_type = match fields.mode & TYPE_MASK {
            REGULAR => FileType::Regular,
            DIRECTORY => FileType::Directory,
            _ => FileType::Other,
        };
        // Extended attributes have a header of 12 bytes and units of 4 bytes; the count includes the header as one.
        let xattrs = match u64::from(fields.xattr_count) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let end = at + if is_extended { EXTENDED } else { COMPACT } + xattrs;
        let layout = match fields.layout {
            PLAIN => DataLayout::Plain { at: volume.block(fields.block) },
            INLINE => DataLayout::Inline { at: volume.block(fields.block), tail: end },
            CHUNKS => chunks(volume, fields.block, end).ok_or_else(|| fault("has an unknown chunk format"))?,
            1 | 3 if volume.features & COMPRESSION != 0 => return Err(ErofsError::Compressed),
            _ => return Err(fault("has an unknown data layout")),
        };
        Ok(Self { number, file_type, size: fields.size, layout })
    }

    /// An error about this inode.
    pub fn error(&self, fault: &'static str) -> ErofsError {
        ErofsError::Inode { number: self.number, fault }
    }

    /// Checks that the content's blocks are within the volume. Chunks are only checked when they are read.
    pub fn check(&self, volume: &ErofsVolume) -> Result<(), ErofsError> {
        let (at, len) = match self.layout {
            DataLayout::Plain { at } => (at, self.size),
            DataLayout::Inline { at, .. } => (at, self.last_block(volume)),
            DataLayout::Chunks { .. } => return Ok(()),
        };
        if len > 0 { volume.check(at, len) } else { Ok(()) }
    }

    /// Reads content from byte `from` on: at most one extent, at most what `into` holds. Returns 0 at the end.
    pub fn read_at(&self, volume: &ErofsVolume, from: u64, into: &mut [u8]) -> Result<usize, ErofsError> {
        let Some(extent) = self.extent(volume, from)? else { return Ok(0) };
        let count = usize::try_from(extent.len).unwrap_or(usize::MAX).min(into.len());
        let part = into.get_mut(..count).unwrap_or_default();
        match extent.at {
            Some(at) => volume.read(at, part)?,
            None => part.fill(0),
        }
        Ok(count)
    }

    /// The extent that begins with the content's byte `from`; `None` at the end.
    fn extent(&self, volume: &ErofsVolume, from: u64) -> Result<Option<Extent>, ErofsError> {
        let Some(left) = self.size.checked_sub(from).filter(|left| *left > 0) else { return Ok(None) };
        let beyond = || self.error("has content past the end of any image");
        let (at, len) = match self.layout {
            DataLayout::Plain { at } => (Some(at.checked_add(from).ok_or_else(beyond)?), left),
            DataLayout::Inline { at, tail } => {
                let last = self.last_block(volume);
                match last.checked_sub(from).filter(|blocks| *blocks > 0) {
                    Some(blocks) => (Some(at.checked_add(from).ok_or_else(beyond)?), blocks),
                    None if tail % volume.block_size() + (self.size - last) > volume.block_size() => {
                        return Err(self.error("has inline content that crosses a block boundary"));
                    }
                    None => (Some(tail.checked_add(from - last).ok_or_else(beyond)?), left),
                }
            }
            DataLayout::Chunks { table, bits, has_devices } => {
                let chunk = 1_u64.checked_shl(bits).ok_or_else(beyond)?;
                let within = from % chunk;
                let at = chunk_offset(volume, table, from / chunk, has_devices)?;
                let at = at.map(|at| at.checked_add(within).ok_or_else(beyond)).transpose()?;
                (at, left.min(chunk - within))
            }
        };
        Ok(Some(Extent { at, len }))
    }

    /// Offset of the last block in the content.
    fn last_block(&self, volume: &ErofsVolume) -> u64 {
        self.size.saturating_sub(1) >> volume.block_bits << volume.block_bits
    }
}

/// The layout of a chunked file whose inode ends at offset `end`; `None` if `format` has unknown bits.
fn chunks(volume: &ErofsVolume, format: u32, end: u64) -> Option<DataLayout> {
    let format = u16::try_from(format).ok().filter(|format| format & !(CHUNK_BITS | CHUNK_INDEXES) == 0)?;
    let bits = u32::from(volume.block_bits) + u32::from(format & CHUNK_BITS);
    let has_devices = format & CHUNK_INDEXES != 0;
    let table = end.checked_next_multiple_of(if has_devices { 8 } else { 4 })?;
    Some(DataLayout::Chunks { table, bits, has_devices })
}

/// Offset of a chunk, in bytes; `None` for a hole.
fn chunk_offset(volume: &ErofsVolume, table: u64, number: u64, has_devices: bool) -> Result<Option<u64>, ErofsError> {
    let mut entry = [0; 8];
    // An entry of 4 bytes has the block number alone. It is read into the second half.
    let (_, bytes) = entry.split_at_mut(if has_devices { 0 } else { 4 });
    let at = number.checked_mul(bytes.len() as u64).and_then(|at| table.checked_add(at));
    volume.read(at.ok_or(ErofsError::Beyond { at: table, len: number, end: volume.len })?, bytes)?;
    let [_, _, device @ .., b0, b1, b2, b3] = entry;
    match u32::from_le_bytes([b0, b1, b2, b3]) {
        HOLE => Ok(None),
        _ if u16::from_le_bytes(device) != 0 && volume.features & DEVICES != 0 => Err(ErofsError::Device),
        block => Ok(Some(volume.block(block))),
    }
}
