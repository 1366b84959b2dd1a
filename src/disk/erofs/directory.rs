//! Directories: names and inode numbers, in blocks.

use super::format::DIRENT;
use crate::disk::little_endian::{u16_at, u64_at};

/// A directory's entries. Linux requires them sorted by name, which also means that no block can be listed twice: the memory they take is
/// that of the image's own bytes.
#[derive(Debug)]
pub struct DirectoryEntries {
    /// The blocks as the image has them.
    content: Vec<u8>,
    /// Block size in bytes.
    block: usize,
}

impl DirectoryEntries {
    /// A directory without entries, in blocks of `block` bytes.
    pub fn new(block: usize) -> Self {
        Self { content: Vec::new(), block: block.max(DIRENT) }
    }

    /// Adds the next block. Only the last one may be shorter than the block size.
    ///
    /// # Errors
    /// Returns the damage, as the end of a sentence.
    pub fn add_block(&mut self, block: &[u8]) -> Result<(), &'static str> {
        let count = count(block).ok_or("is a directory with invalid entries")?;
        let mut last =
            self.content.chunks(self.block).next_back().and_then(|last| entry(last, self::count(last)?.checked_sub(1)?));
        for number in 0..count {
            let next = entry(block, number).ok_or("is a directory with invalid names")?;
            if next.0.is_empty() {
                return Err("is a directory with an empty name");
            }
            if last.is_some_and(|(last, _)| last >= next.0) {
                return Err("is a directory with names out of order");
            }
            last = Some(next);
        }
        self.content.extend_from_slice(block);
        Ok(())
    }

    /// The number of the inode with this name.
    pub fn find(&self, name: &str) -> Option<u64> {
        let name = name.as_bytes();
        let block = |number: usize| self.content.chunks(self.block).nth(number);
        let first = |number: usize| block(number).and_then(|block| entry(block, 0)).map(|(first, _)| first);
        let after = partition_point(self.content.len().div_ceil(self.block), |number| first(number) <= Some(name));
        let block = block(after.checked_sub(1)?)?;
        let known = |number: usize| entry(block, number).map(|(known, _)| known);
        let found = partition_point(count(block)?, |number| known(number) < Some(name));
        entry(block, found).filter(|(known, _)| *known == name).map(|(_, number)| number)
    }
}

/// The first number below `end` for which `is_before` is false, or `end`. It is true for all before.
fn partition_point(end: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low.midpoint(high);
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

fn name_offset(block: &[u8], number: usize) -> usize {
    u16_at(block, number * DIRENT + 8).map_or(0, usize::from)
}

/// The number of entries of a block. The first entry's name begins where the entries end, so its offset gives their number.
fn count(block: &[u8]) -> Option<usize> {
    let names = name_offset(block, 0);
    (names >= DIRENT && names.is_multiple_of(DIRENT) && names <= block.len()).then_some(names / DIRENT)
}

/// The name and the inode number of an entry of a block; `None` if its name is not in the block.
fn entry(block: &[u8], number: usize) -> Option<(&[u8], u64)> {
    let count = count(block).filter(|count| number < *count)?;
    let start = name_offset(block, number);
    let end = if number + 1 < count { name_offset(block, number + 1) } else { block.len() };
    let name = block.get(start..end).filter(|_| start >= count * DIRENT)?;
    // Zeros fill the block after its last name.
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some((name, u64_at(block, number * DIRENT).unwrap_or_default()))
}
