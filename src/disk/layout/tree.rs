//! The files of a layout: the trait [`Tree`], and its implementation for a folder.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};
use rustix::io::retry_on_intr;

use super::check_holes;

/// An open file of a [`Tree`].
pub struct OpenFile<'a> {
    /// Its content.
    pub reader: Box<dyn Read + Send + 'a>,
    /// Its size in bytes.
    pub size: u64,
}

impl OpenFile<'_> {
    /// The whole content.
    ///
    /// # Errors
    /// Fails if the file is larger than `limit` bytes, or cannot be read.
    pub fn read_all(self, limit: u64) -> io::Result<Vec<u8>> {
        if self.size > limit {
            return Err(io::Error::other(format!("it has {} bytes, and at most {limit} are expected", self.size)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).unwrap_or_default());
        self.reader.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// A symbolic link that leads nowhere, and its target.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DanglingLink(String);

/// Where content is stored. Two paths with the same identity have the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Offset of the content in the file, in bytes.
    pub at: u64,
}

/// Files by their paths, such as `blobs/sha256/e3b0…`.
pub trait Tree {
    /// Opens the regular file at `path`, which is relative and has no `..`.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or the path leaves the tree.
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>>;

    /// The name of the file at `path` in messages. A tree that gathers files from elsewhere gives their original paths.
    fn display_path(&self, path: &str) -> String {
        path.to_owned()
    }

    /// The identity of the content at `path`, if known.
    fn identity(&self, _path: &str) -> Option<Identity> {
        None
    }
}

/// A folder. Symbolic links cannot lead out of it.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
}

impl Directory {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// Fails if the folder cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: retry_on_intr(|| openat(CWD, path, flags, Mode::empty()))? })
    }

    /// Opens the regular file at `path` in the folder. Returns its size in bytes too.
    ///
    /// # Errors
    /// Fails if it cannot be opened, is not a regular file, or is a symbolic link that leads out of the folder.
    pub fn file(&self, path: &str) -> io::Result<(File, u64)> {
        self.resolve(path, ResolveFlags::empty()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.dangling_link(path).unwrap_or(error),
            _ => error,
        })
    }

    /// The error that names the symbolic link by which `path` leads nowhere. `None` if there is no such link.
    #[must_use]
    pub fn dangling_link(&self, path: &str) -> Option<io::Error> {
        let open = |path: &str, flags| {
            openat2(&self.root, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        };
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let link = ends.filter_map(|end| path.get(..end)).find(|path| open(path, OFlags::empty()).is_err())?;
        let target = readlinkat(open(link, OFlags::NOFOLLOW).ok()?, "", Vec::new()).ok()?;
        let link = DanglingLink(format!("symbolic link {link:?} leads to {target:?}, which does not exist"));
        Some(io::Error::new(io::ErrorKind::NotFound, link))
    }

    /// As [`Directory::file`], but only if the kernel has the path in its cache, so that the call does not wait for the disk.
    ///
    /// # Errors
    /// As [`Directory::file`], and `WouldBlock` if the path is not in the cache.
    pub fn file_cached(&self, path: &str) -> io::Result<(File, u64)> {
        self.resolve(path, ResolveFlags::CACHED)
    }

    fn resolve(&self, path: &str, how: ResolveFlags) -> io::Result<(File, u64)> {
        // Non-blocking, because opening a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let how = how | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let opened = retry_on_intr(|| openat2(&self.root, path, flags, Mode::empty(), how)).map_err(|error| match error {
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
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        let (file, size) = self.file(path)?;
        check_holes(&file, size)?;
        Ok(OpenFile { reader: Box::new(file), size })
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let metadata = self.file(path).ok()?.0.metadata().ok()?;
        Some(Identity { device: metadata.dev(), inode: metadata.ino(), at: 0 })
    }
}
