//! Folders of EROFS: names and inode numbers, block by block. Pure.

use super::reader::{u16_at, u64_at};

/// Bytes of an entry: inode number, place of its name, kind, and one that is kept free.
const ENTRY: usize = 12;

/// A folder's names in order.
#[derive(Debug)]
pub struct Directory {
    entries: Vec<(Box<[u8]>, u64)>,
}

impl Directory {
    /// Reads a folder's content, which is in blocks of `block` bytes, each with entries of its own.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(content: &[u8], block: usize) -> Result<Self, &'static str> {
        let mut entries = Vec::new();
        for block in content.chunks(block.max(ENTRY)) {
            add(&mut entries, block)?;
        }
        entries.sort_unstable();
        Ok(Self { entries })
    }

    /// The inode with this name.
    pub fn find(&self, name: &str) -> Option<u64> {
        let found = self.entries.binary_search_by(|(known, _)| known.as_ref().cmp(name.as_bytes())).ok()?;
        self.entries.get(found).map(|(_, number)| *number)
    }
}

/// Adds the entries of one block. The first entry's name begins where the entries end, so it tells how many there are.
fn add(entries: &mut Vec<(Box<[u8]>, u64)>, block: &[u8]) -> Result<(), &'static str> {
    let names = usize::from(u16_at(block, 8));
    if names < ENTRY || names % ENTRY != 0 || names > block.len() {
        return Err("is a folder whose entries make no sense");
    }
    let count = names / ENTRY;
    for (number, entry) in block.chunks_exact(ENTRY).take(count).enumerate() {
        let start = usize::from(u16_at(entry, 8));
        let end = if number + 1 < count { usize::from(u16_at(block, (number + 1) * ENTRY + 8)) } else { block.len() };
        let name = block.get(start..end).filter(|_| start >= names).ok_or("is a folder whose names make no sense")?;
        // The last name of a block is filled up with zeros.
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.is_empty() {
            return Err("is a folder with a name that is empty");
        }
        entries.push((name.into(), u64_at(entry, 0)));
    }
    Ok(())
}
