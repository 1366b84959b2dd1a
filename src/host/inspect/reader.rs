//! What a person calls a disk, opened to be looked into: a file system image of whoever made it, or an image layout as a folder or an
//! archive. What enters is a path; what leaves is a [`Tree`] of its files. Nothing is mounted, nothing is written, no root is needed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::disk::erofs::reader::{Erofs, ErofsFault};
use crate::disk::layout::{Directory, Tree};
use crate::disk::superblock::{FileSystem, START, Superblock};
use crate::host::images::pack::source::{self, SourceError};
use crate::host::support::interrupt::Interrupt;

/// Where tar archives say that they are some, and how (POSIX pax, "ustar Interchange Format").
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");
/// First bytes of the compressions that archives may have, understood or not.
const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"];

/// Why a disk cannot be looked into. The path is the caller's to say.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is not there or not readable.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// A FIFO, a socket, a terminal.
    #[error("it is neither a file nor a folder; a disk, an OCI image layout or an archive of one is expected")]
    Special,
    /// Nothing in it.
    #[error("it is empty; a disk, an OCI image layout or an archive of one is expected")]
    Empty,
    /// Something in it, but what?
    #[error(
        "it has no file system that is known (EROFS, squashfs, ext4), and is no archive; a disk as `localregistry pack` makes, an OCI \
         image layout or an archive of one is expected"
    )]
    Unknown,
    /// The end is missing.
    #[error("it is cut short: it has {bytes} bytes, and its {fs} file system has {expected}; copy or pack the disk anew")]
    Truncated {
        /// Its size in bytes.
        bytes: u64,
        /// Type of the file system.
        fs: &'static str,
        /// The file system's size in bytes.
        expected: u64,
    },
    /// An EROFS image that is damaged or of a kind that is not known.
    #[error("its erofs file system cannot be read; if it was whole once, copy or pack the disk anew")]
    Erofs(#[from] ErofsFault),
    /// The same of the others.
    #[error("its {fs} file system cannot be read; if it was whole once, copy or pack the disk anew")]
    Other {
        /// Type of the file system.
        fs: &'static str,
        /// What is wrong.
        source: io::Error,
    },
    /// An archive that is damaged, or none.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// In what form the content is there.
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
    /// The name that programs get.
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
    /// Its own size in bytes; a folder has none.
    pub bytes: Option<u64>,
    /// Its files.
    pub tree: Box<dyn Tree + Send + Sync>,
}

impl Disk {
    /// Opens the disk at `path`. A compressed archive is decompressed into a nameless file of the folder for temporary files.
    ///
    /// # Errors
    /// [`DiskError`]; a signal shows as one too.
    pub fn open(path: &Path, interrupt: &Interrupt) -> Result<Self, DiskError> {
        let metadata = fs::metadata(path).map_err(DiskError::Read)?;
        if metadata.is_dir() {
            let tree = Box::new(Directory::open(path).map_err(DiskError::Read)?);
            return Ok(Self { form: Form::Folder, bytes: None, tree });
        }
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(DiskError::Special);
        }
        let mut file = File::open(path).map_err(DiskError::Read)?;
        // Of a device, metadata does not give the size.
        let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Read)?;
        let start = start(&mut file).map_err(DiskError::Read)?;
        if start.is_empty() {
            return Err(DiskError::Empty);
        }
        if is_archive(&start) {
            let tree = source::archived(path, false, &std::env::temp_dir(), interrupt)?;
            return Ok(Self { form: Form::Archive, bytes: Some(bytes), tree });
        }
        let Superblock { fs, bytes: expected } = Superblock::find(&start).ok_or(DiskError::Unknown)?;
        if let Some(expected) = expected.filter(|expected| *expected > bytes) {
            return Err(DiskError::Truncated { bytes, fs: fs.name(), expected });
        }
        Ok(Self { form: Form::FileSystem(fs), bytes: Some(bytes), tree: file_system(fs, file, bytes)? })
    }
}

fn file_system(fs: FileSystem, file: File, bytes: u64) -> Result<Box<dyn Tree + Send + Sync>, DiskError> {
    let other = |source| DiskError::Other { fs: fs.name(), source };
    Ok(match fs {
        FileSystem::Erofs => Box::new(Erofs::open(file, bytes)?),
        FileSystem::Squashfs => {
            Box::new(crate::disk::squashfs::Squashfs::open(file).map_err(|error| other(io::Error::other(error)))?)
        }
        FileSystem::Ext4 => Box::new(crate::disk::ext4::Image::open(file).map_err(other)?),
    })
}

/// The first bytes of a file, as many as a superblock needs, or all there are.
fn start(file: &mut File) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(START);
    file.rewind()?;
    file.take(START as u64).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(start)
}

fn is_archive(start: &[u8]) -> bool {
    let (at, magic) = TAR_MAGIC;
    COMPRESSED.iter().any(|magic| start.starts_with(magic)) || start.get(at..).is_some_and(|rest| rest.starts_with(magic))
}
