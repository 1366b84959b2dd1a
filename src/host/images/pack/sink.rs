//! The destination of the disk's files: their final offsets in an EROFS image, or a staging folder for mksquashfs and mke2fs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::staging::StagingDir;
use crate::disk::erofs::writer::Plan;

/// Where the files are written.
#[derive(Debug)]
pub enum Sink {
    /// An EROFS image of its final size. Unwritten parts read as zeros.
    Image {
        path: PathBuf,
        /// The offset of each file, by number: the blobs in order, then the other files.
        plan: Plan,
    },
    /// A staging folder.
    Folder(StagingDir),
}

impl Sink {
    /// Creates the image at `path` with everything but the files' content. Allocates all space now if the file system supports
    /// that, so that a full disk is reported before anything is read.
    ///
    /// # Errors
    /// Fails if the image cannot be created or written, or if the space does not suffice.
    pub fn image(path: PathBuf, plan: Plan) -> io::Result<Self> {
        let image = OpenOptions::new().write(true).create_new(true).open(&path)?;
        match fallocate(&image, FallocateFlags::empty(), 0, plan.bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => image.set_len(plan.bytes),
            allocated => allocated.map_err(|errno| describe_no_space(errno.into(), &path, plan.bytes)),
        }?;
        plan.write(&image)?;
        Ok(Self::Image { path, plan })
    }

    /// Opens file `number`, whose path on the disk is `path`, for writing.
    ///
    /// # Errors
    /// Fails if the image or the file cannot be opened.
    pub fn open(&self, number: usize, path: &str) -> io::Result<File> {
        match self {
            Self::Image { path, plan } => {
                let mut image = OpenOptions::new().write(true).open(path)?;
                image.seek(SeekFrom::Start(plan.content_offset(number)))?;
                Ok(image)
            }
            Self::Folder(staging) => staging.create(path),
        }
    }

    /// Writes the complete file `number`.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, number: usize, path: &str, content: &[u8]) -> io::Result<()> {
        match self {
            Self::Image { path, plan } => {
                OpenOptions::new().write(true).open(path)?.write_all_at(content, plan.content_offset(number))
            }
            Self::Folder(staging) => staging.write(path, content),
        }
    }

    /// Whether unwritten content reads as zeros.
    #[must_use]
    pub const fn reads_as_zeros(&self) -> bool {
        matches!(self, Self::Image { .. })
    }
}

/// Adds needed and free space to `error` if the file system of `path` is full.
pub fn describe_no_space(error: io::Error, path: &Path, wanted: u64) -> io::Error {
    if error.kind() != io::ErrorKind::StorageFull {
        return error;
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let free = statvfs(folder).map_or(0, |of| of.f_bavail.saturating_mul(of.f_frsize));
    let (wanted, free) = (HumanBytes(wanted), HumanBytes(free));
    io::Error::new(error.kind(), format!("it takes {wanted}, and its file system has {free} free"))
}

/// Flushes a file to the medium and returns its size in bytes.
///
/// # Errors
/// Fails if the file cannot be flushed.
pub fn sync(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fs::metadata(path)?.len())
}
