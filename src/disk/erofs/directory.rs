//! Directories: names and inode numbers, in blocks.

use super::format::DIRENT;
use crate::disk::little_endian::{u16_at, u64_at};

/// A directory's entries, sorted by name.
#[derive(Debug)]
pub struct DirectoryEntries {
    entries: Vec<(Box<[u8]>, u64)>,
}

impl DirectoryEntries {
    /// Parses a directory's content. Each block of `block` bytes has entries of its own.
    ///
    /// # Errors
    /// Returns the damage, as the end of a sentence.
    pub fn parse(content: &[u8], block: usize) -> Result<Self, &'static str> {
        let mut entries = Vec::new();
        for block in content.chunks(block.max(DIRENT)) {
            add_block(&mut entries, block)?;
        }
        entries.sort_unstable();
        Ok(Self { entries })
    }

    /// The number of the inode with this name.
    pub fn find(&self, name: &str) -> Option<u64> {
        let found = self.entries.binary_search_by(|(known, _)| known.as_ref().cmp(name.as_bytes())).ok()?;
        self.entries.get(found).map(|(_, number)| *number)
    }
}

/// Adds the entries of one block. The first entry's name begins where the entries end, so its offset gives their number.
fn add_block(entries: &mut Vec<(Box<[u8]>, u64)>, block: &[u8]) -> Result<(), &'static str> {
    let name_offset = |number: usize| u16_at(block, number * DIRENT + 8).map_or(0, usize::from);
    let names = name_offset(0);
    if names < DIRENT || names % DIRENT != 0 || names > block.len() {
        return Err("is a directory with invalid entries");
    }
    let count = names / DIRENT;
    for (number, entry) in block.chunks_exact(DIRENT).take(count).enumerate() {
        let start = name_offset(number);
        let end = if number + 1 < count { name_offset(number + 1) } else { block.len() };
        let name = block.get(start..end).filter(|_| start >= names).ok_or("is a directory with invalid names")?;
        // Zeros fill the block after its last name.
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.is_empty() {
            return Err("is a directory with an empty name");
        }
        entries.push((name.into(), u64_at(entry, 0).unwrap_or_default()));
    }
    Ok(())
}
