//! A squashfs image as a [`Tree`], by way of the `backhand` library. What enters is an image whose superblock was held against its
//! length; what leaves are its files, decompressed as they are read. It follows no symbolic links.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use backhand::{BackhandError, FilesystemReader, InnerNode};

use super::layout::{Content, Tree};

/// An open image.
pub struct Squashfs {
    image: FilesystemReader<'static>,
}

impl Squashfs {
    /// Reads the inodes of the image in `file`.
    ///
    /// # Errors
    /// Where they are damaged, or compressed in a way that is not known.
    pub fn open(file: File) -> Result<Self, BackhandError> {
        Ok(Self { image: FilesystemReader::from_reader(BufReader::new(file))? })
    }
}

impl Tree for Squashfs {
    fn open(&self, path: &str) -> io::Result<Content<'_>> {
        let full = format!("/{path}");
        // The library sorts them by path.
        let nodes = &self.image.root.nodes;
        let found = nodes.binary_search_by(|node| node.fullpath.as_path().cmp(Path::new(&full)));
        let node = found.ok().and_then(|at| nodes.get(at));
        let node = node.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the disk has no such file"))?;
        let InnerNode::File(file) = &node.inner else { return Err(io::Error::other("it is not a regular file")) };
        let reader = self.image.file(file).reader_checked().map_err(io::Error::other)?;
        Ok(Content { reader: Box::new(reader), size: file.file_len() as u64 })
    }
}
