//! The files that a layout is read from: a folder here, an archive where images are packed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// An open file of a [`Tree`].
pub struct Content<'a> {
    /// Its bytes.
    pub reader: Box<dyn Read + Send + 'a>,
    /// How many, in bytes.
    pub size: u64,
}

/// Where content lies: two paths with the same identity have the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Number of the device.
    pub device: u64,
    /// Number of the file on it.
    pub inode: u64,
    /// Where the content starts in the file, in bytes.
    pub at: u64,
}

/// Files by their paths, such as `blobs/sha256/e3b0…`.
pub trait Tree {
    /// Opens the regular file at `path`, which is relative and has no `..`.
    ///
    /// # Errors
    /// As of opening a file; also where the path leaves the tree.
    fn open(&self, path: &str) -> io::Result<Content<'_>>;

    /// What messages call the file at `path`: its path, but for a tree that gathers its files from elsewhere.
    fn place(&self, path: &str) -> String {
        path.to_owned()
    }

    /// Where the content at `path` lies, where that is known.
    fn identity(&self, _path: &str) -> Option<Identity> {
        None
    }
}

/// A folder. Nothing outside of it can be opened through it, whatever links it holds.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
}

impl Directory {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// As of opening a folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: openat(CWD, path, flags, Mode::empty())? })
    }

    /// Opens the regular file at `path` below the folder, and gives its size in bytes.
    ///
    /// # Errors
    /// As of opening a file. A link that leads out of the folder, and a thing that is no regular file, are refused in words.
    pub fn file(&self, path: &str) -> io::Result<(File, u64)> {
        self.resolve(path, ResolveFlags::empty())
    }

    /// As [`Directory::file`], where the kernel knows the path already and need not ask the disk.
    ///
    /// # Errors
    /// `WouldBlock`, where the disk must be asked.
    pub fn file_cached(&self, path: &str) -> io::Result<(File, u64)> {
        self.resolve(path, ResolveFlags::CACHED)
    }

    fn resolve(&self, path: &str, how: ResolveFlags) -> io::Result<(File, u64)> {
        // Non-blocking, so that a FIFO in the place of a blob cannot hold the caller up before it is refused.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let how = how | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let opened = openat2(&self.root, path, flags, Mode::empty(), how).map_err(|error| match error {
            rustix::io::Errno::XDEV => io::Error::other("a symbolic link leads out of the folder; a file inside it is expected"),
            other => other.into(),
        })?;
        let file = File::from(opened);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok((file, metadata.len()))
    }
}

impl Tree for Directory {
    fn open(&self, path: &str) -> io::Result<Content<'_>> {
        let (file, size) = self.file(path)?;
        Ok(Content { reader: Box::new(file), size })
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let metadata = self.file(path).ok()?.0.metadata().ok()?;
        Some(Identity { device: metadata.dev(), inode: metadata.ino(), at: 0 })
    }
}
