//! Opens a disk for reading: a file system image, or an image layout in a folder or an archive. Nothing is mounted, so root is not needed.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::disk::erofs::{ErofsError, ErofsTree};
use crate::disk::layout::{Directory, Tree, check_holes};
use crate::disk::squashfs::SquashfsTree;
use crate::disk::superblock::{FileSystem, Superblock, read_head};
use crate::host::images::bounded::BoundedTree;
use crate::host::images::pack::source::{self, SourceError};
use crate::host::support::interrupt::Interrupt;

/// The magic number of a tar archive and its offset in bytes (POSIX pax, "ustar Interchange Format").
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

/// Most bytes of an index or a catalog to one compressed byte of a squashfs.
const SQUASHFS_RATIO: u64 = 1000;

/// Why a disk cannot be opened. The messages do not name its path.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// The file is a FIFO, a socket or a terminal.
    #[error("it is neither a file nor a folder; a disk, an OCI image layout or an archive of one is expected")]
    Special,
    /// The file is empty.
    #[error("it is empty; a disk, an OCI image layout or an archive of one is expected")]
    Empty,
    /// The format is unknown.
    #[error(
        "it has no file system that is known (EROFS, squashfs, ext4), and is no archive; a disk as `localregistry pack` makes, an OCI \
         image layout or an archive of one is expected"
    )]
    Unknown,
    /// The file is shorter than its file system.
    #[error("it is cut short: it has {bytes} bytes, and its {fs} file system has {expected}; copy or pack the disk again")]
    Truncated {
        /// The file's size in bytes.
        bytes: u64,
        /// Name of the file system.
        fs: &'static str,
        /// The file system's size in bytes.
        expected: u64,
    },
    /// The file is nearly all holes.
    #[error("it is not a disk")]
    Holes(#[source] io::Error),
    /// The EROFS image is damaged or unsupported.
    #[error("its erofs file system cannot be read; copy or pack the disk again")]
    Erofs(#[from] ErofsError),
    /// The file system is damaged or unsupported.
    #[error("its {fs} file system cannot be read; copy or pack the disk again")]
    FileSystem {
        /// Name of the file system.
        fs: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The archive is damaged, or has no image layout.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The form of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A file system image.
    FileSystem(FileSystem),
    /// An archive.
    Archive,
    /// A folder.
    Folder,
}

impl Form {
    /// The name in JSON output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FileSystem(fs) => fs.name(),
            Self::Archive => "archive",
            Self::Folder => "folder",
        }
    }
}

/// An open disk.
pub struct Disk {
    /// Its form.
    pub form: Form,
    /// Its size in bytes; `None` for a folder.
    pub bytes: Option<u64>,
    /// Its files.
    pub tree: Box<dyn Tree + Send + Sync>,
}

impl Disk {
    /// Opens the disk at `path`. A compressed archive is decompressed to an unnamed file in the folder for temporary files.
    ///
    /// # Errors
    /// Fails if the disk cannot be read, has an unknown format or is damaged, or if a signal interrupts the command.
    pub fn open(path: &Path, interrupt: &Interrupt) -> Result<Self, DiskError> {
        let metadata = fs::metadata(path).map_err(DiskError::Read)?;
        if metadata.is_dir() {
            let tree = Box::new(Directory::open(path).map_err(DiskError::Read)?);
            let tree = Box::new(BoundedTree::of_files(tree, interrupt));
            return Ok(Self { form: Form::Folder, bytes: None, tree });
        }
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(DiskError::Special);
        }
        let mut file = File::open(path).map_err(DiskError::Read)?;
        // The metadata of a device does not have its size.
        let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Read)?;
        check_holes(&file, bytes).map_err(DiskError::Holes)?;
        let head = read_head(&file).map_err(DiskError::Read)?;
        if head.is_empty() {
            return Err(DiskError::Empty);
        }
        if is_archive(&head) {
            let tree = source::open_archive(path, true, &std::env::temp_dir(), interrupt)?;
            let tree = Box::new(BoundedTree::new(tree, bytes, u64::MAX, interrupt));
            return Ok(Self { form: Form::Archive, bytes: Some(bytes), tree });
        }
        let Superblock { fs, bytes: expected } = Superblock::detect(&head).ok_or(DiskError::Unknown)?;
        if let Some(expected) = expected.filter(|expected| *expected > bytes) {
            return Err(DiskError::Truncated { bytes, fs: fs.name(), expected });
        }
        // The other file systems store the index and the catalog as they are.
        let ratio = if fs == FileSystem::Squashfs { SQUASHFS_RATIO } else { 1 };
        let tree = Box::new(BoundedTree::new(file_system(fs, file, bytes)?, bytes, ratio, interrupt));
        Ok(Self { form: Form::FileSystem(fs), bytes: Some(bytes), tree })
    }
}

fn file_system(fs: FileSystem, file: File, bytes: u64) -> Result<Box<dyn Tree + Send + Sync>, DiskError> {
    let other = |source| DiskError::FileSystem { fs: fs.name(), source };
    Ok(match fs {
        FileSystem::Erofs => Box::new(ErofsTree::open(file, bytes)?),
        FileSystem::Squashfs => Box::new(SquashfsTree::open(file).map_err(other)?),
        FileSystem::Ext4 => Box::new(crate::disk::ext4::Ext4Tree::open(file).map_err(other)?),
    })
}

fn is_archive(head: &[u8]) -> bool {
    let (at, magic) = TAR_MAGIC;
    source::is_archive(head) || head.get(at..).is_some_and(|rest| rest.starts_with(magic))
}
