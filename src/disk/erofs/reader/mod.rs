//! An uncompressed EROFS image on one device as a [`Tree`]. The image is untrusted. Symbolic links are not followed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use super::directory::DirectoryEntries;
use super::inode::{FileType, Inode};
use super::volume::{ErofsError, ErofsVolume};
use crate::disk::layout::{OpenFile, Tree};

/// Size in bytes of the largest directory that is read: some three million blobs.
const MAX_DIRECTORY_SIZE: u64 = 256 << 20;

/// The files of an open EROFS image.
#[derive(Debug)]
pub struct ErofsTree {
    volume: ErofsVolume,
    /// Directories read so far, by inode number. A layout has five, one of them large.
    directories: Mutex<HashMap<u64, Arc<DirectoryEntries>>>,
}

impl ErofsTree {
    /// Opens the image in `file`, of `len` bytes.
    ///
    /// # Errors
    /// Fails if the superblock is damaged, or has unknown features.
    pub fn open(file: File, len: u64) -> Result<Self, ErofsError> {
        Ok(Self { volume: ErofsVolume::open(file, len)?, directories: Mutex::default() })
    }

    /// The inode at `path`; `None` if it does not exist.
    fn find(&self, path: &str) -> Result<Option<Inode>, ErofsError> {
        let mut number = self.volume.root;
        for name in path.split('/') {
            let Some(next) = self.directory(number)?.find(name) else { return Ok(None) };
            number = next;
        }
        Inode::read(&self.volume, number).map(Some)
    }

    fn directory(&self, number: u64) -> Result<Arc<DirectoryEntries>, ErofsError> {
        let mut known = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = known.get(&number) {
            return Ok(Arc::clone(directory));
        }
        let inode = Inode::read(&self.volume, number)?;
        if inode.file_type != FileType::Directory {
            return Err(inode.error("is not a directory"));
        }
        if inode.size > self.volume.len.min(MAX_DIRECTORY_SIZE) {
            return Err(inode.error("is a directory that is too large"));
        }
        let block_size = usize::try_from(self.volume.block_size()).unwrap_or(usize::MAX);
        let mut entries = DirectoryEntries::new(block_size);
        let mut block = vec![0; block_size];
        let mut done = 0;
        while done < inode.size {
            let len = usize::try_from(inode.size - done).unwrap_or(usize::MAX).min(block_size);
            let block = block.get_mut(..len).unwrap_or_default();
            done += self.fill(&inode, done, block)?;
            entries.add_block(block).map_err(|fault| inode.error(fault))?;
        }
        let directory = Arc::new(entries);
        known.insert(number, Arc::clone(&directory));
        Ok(directory)
    }

    /// Fills `into` with a file's content from byte `from` on, and returns its length.
    fn fill(&self, inode: &Inode, from: u64, into: &mut [u8]) -> Result<u64, ErofsError> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match inode.read_at(&self.volume, from + done as u64, rest)? {
                0 => return Err(inode.error("has less content than its size")),
                count => done += count,
            }
        }
        Ok(done as u64)
    }
}

impl Tree for ErofsTree {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        let inode = self.find(path)?;
        let inode = inode.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the disk has no such file"))?;
        if inode.file_type != FileType::Regular {
            return Err(io::Error::other("it is not a regular file"));
        }
        inode.check(&self.volume)?;
        let size = inode.size;
        Ok(OpenFile { reader: Box::new(FileReader { volume: &self.volume, inode, at: 0 }), size })
    }
}

/// Reads a file's content.
struct FileReader<'a> {
    volume: &'a ErofsVolume,
    inode: Inode,
    at: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inode.read_at(self.volume, self.at, buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
