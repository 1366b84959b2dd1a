//! A squashfs image as a [`Tree`], read with the `backhand` library. Symbolic links are not followed.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use backhand::{BackhandError, FilesystemReader, InnerNode};

use super::layout::{OpenFile, Tree};

/// An open image.
pub struct SquashfsTree {
    image: FilesystemReader<'static>,
}

impl SquashfsTree {
    /// Opens the image in `file`, whose length fits its superblock.
    ///
    /// # Errors
    /// Fails if the inodes are damaged, or their compression is unknown.
    pub fn open(file: File) -> io::Result<Self> {
        Ok(Self { image: FilesystemReader::from_reader(BufReader::new(file)).map_err(fault)? })
    }
}

/// An error of the library, whose words for damage are for its own authors.
fn fault(error: BackhandError) -> io::Error {
    match error {
        BackhandError::UnsupportedCompression(_) => io::Error::new(io::ErrorKind::Unsupported, error),
        // A damaged offset is invalid to the system too.
        BackhandError::StdIo(error) if error.raw_os_error().is_some() && error.kind() != io::ErrorKind::InvalidInput => error,
        _ => io::Error::new(io::ErrorKind::InvalidData, "the superblock or a table of the file system is damaged"),
    }
}

impl Tree for SquashfsTree {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        let full = format!("/{path}");
        // The library sorts the nodes by path.
        let nodes = &self.image.root.nodes;
        let found = nodes.binary_search_by(|node| node.fullpath.as_path().cmp(Path::new(&full)));
        let node = found.ok().and_then(|at| nodes.get(at));
        let node = node.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the disk has no such file"))?;
        let InnerNode::File(file) = &node.inner else { return Err(io::Error::other("it is not a regular file")) };
        let reader = self.image.file(file).reader_checked().map_err(fault)?;
        Ok(OpenFile { reader: Box::new(reader), size: file.file_len() as u64 })
    }
}
