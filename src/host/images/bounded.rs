//! Bounds the cost of reading a source by what the source stores. Its files may claim any size: a file system or an archive of some
//! kilobytes can have a file of eight tebibytes, which is one hole.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::layout::{Identity, OpenFile, Tree, max_expanded};
use crate::host::support::interrupt::Interrupt;

/// How often a command reads all content at most: to list it, to verify it, to export it, and once more.
const PASSES: u64 = 4;

/// A tree of which each file, and all reading together, is bounded, and each read ends after a signal.
pub struct BoundedTree {
    tree: Box<dyn Tree + Send + Sync>,
    /// Largest blob in bytes.
    blob: u64,
    /// Largest other file in bytes. Such files are held in memory.
    document: u64,
    /// Bytes that may still be read.
    left: AtomicU64,
    interrupt: Interrupt,
}

impl BoundedTree {
    /// Bounds a tree whose source stores `stored` bytes, in which documents are compressed at most to `1 / ratio`.
    #[must_use]
    pub fn new(tree: Box<dyn Tree + Send + Sync>, stored: u64, ratio: u64, interrupt: &Interrupt) -> Self {
        let (blob, document) = (max_expanded(stored), stored.saturating_mul(ratio));
        Self { tree, blob, document, left: blob.saturating_mul(PASSES).into(), interrupt: interrupt.clone() }
    }

    /// A tree of files on this machine, whose sizes are bounded by its file systems. Only signals end its reads.
    #[must_use]
    pub fn of_files(tree: Box<dyn Tree + Send + Sync>, interrupt: &Interrupt) -> Self {
        Self::new(tree, u64::MAX, 1, interrupt)
    }
}

impl Tree for BoundedTree {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        self.interrupt.check_io()?;
        let OpenFile { reader, size } = self.tree.open(path)?;
        let limit = if path.starts_with("blobs/") { self.blob } else { self.document };
        if size > limit {
            let message =
                format!("it is damaged: {path} has {size} bytes, far more than are stored; at most {limit} are expected");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(OpenFile { reader: Box::new(BoundedReader { reader, left: &self.left, interrupt: &self.interrupt }), size })
    }

    fn display_path(&self, path: &str) -> String {
        self.tree.display_path(path)
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        self.tree.identity(path)
    }
}

struct BoundedReader<'a> {
    reader: Box<dyn Read + Send + 'a>,
    left: &'a AtomicU64,
    interrupt: &'a Interrupt,
}

impl Read for BoundedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check_io()?;
        let count = self.reader.read(buffer)?;
        let read = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count as u64));
        read.map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, "it is damaged: its files share far more bytes than it has")
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that are holes of this size.
    struct Holes(u64);

    impl Tree for Holes {
        fn open(&self, _: &str) -> io::Result<OpenFile<'_>> {
            Ok(OpenFile { reader: Box::new(io::repeat(0).take(self.0)), size: self.0 })
        }
    }

    fn read(tree: &BoundedTree, path: &str) -> Result<u64, String> {
        let copied = tree.open(path).and_then(|file| io::copy(&mut { file.reader }, &mut io::sink()));
        copied.map_err(|error| error.to_string())
    }

    #[test]
    fn files_are_bounded_by_what_is_stored() {
        let tree = |size| BoundedTree::new(Box::new(Holes(size)), 1000, 2, &Interrupt::default());
        assert_eq!(max_expanded(1000), (1 << 30) + 100_000);
        assert_eq!(read(&tree(2000), "index.json"), Ok(2000));
        assert_eq!(
            read(&tree(2001), "index.json").unwrap_err(),
            "it is damaged: index.json has 2001 bytes, far more than are stored; at most 2000 are expected"
        );
        assert!(tree(max_expanded(1000)).open("blobs/sha256/0").is_ok());
        for size in [max_expanded(1000) + 1, 8 << 40, u64::MAX] {
            let error = read(&tree(size), "blobs/sha256/0").unwrap_err();
            assert!(error.starts_with(&format!("it is damaged: blobs/sha256/0 has {size} bytes, far more")), "{error}");
        }
        let of_files = BoundedTree::of_files(Box::new(Holes(8 << 40)), &Interrupt::default());
        assert!(of_files.open("blobs/sha256/0").is_ok() && of_files.open("index.json").is_ok());
    }

    #[test]
    fn all_reading_together_is_bounded() {
        let tree = BoundedTree::new(Box::new(Holes(1 << 20)), 0, 0, &Interrupt::default());
        let passes = (0..).take_while(|_| read(&tree, "blobs/sha256/0").is_ok()).count();
        assert_eq!(passes, 4 << 10, "four times a gibibyte, in files of a mebibyte");
        let error = read(&tree, "blobs/sha256/1").unwrap_err();
        assert_eq!(error, "it is damaged: its files share far more bytes than it has");
    }

    #[test]
    fn reading_ends_after_a_signal() {
        let mut tree = BoundedTree::of_files(Box::new(Holes(9)), &Interrupt::default());
        let interrupted = Interrupt::interrupted();
        let mut reader = BoundedReader { reader: tree.tree.open("a").unwrap().reader, left: &tree.left, interrupt: &interrupted };
        assert_eq!(reader.read(&mut [0; 9]).unwrap_err().to_string(), "interrupted by SIGTERM");
        drop(reader);
        tree.interrupt = interrupted;
        assert_eq!(read(&tree, "a").unwrap_err(), "interrupted by SIGTERM");
    }
}
