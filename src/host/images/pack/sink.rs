//! Where the disk's content goes while it is verified: straight to its place in an EROFS image, or into a folder that a program makes
//! a file system of. No content is looked at here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::staging::Stage;
use crate::disk::erofs::writer::Plan;

/// Where content goes.
#[derive(Debug)]
pub enum Target {
    /// An image, as long as it will be, that reads as zeros where nothing is written yet.
    Image {
        /// The image.
        path: PathBuf,
        /// Its places. The files are numbered: the blobs in their order, then the others.
        plan: Plan,
    },
    /// A folder.
    Folder(Stage),
}

impl Target {
    /// Makes the image at `path`, with everything but the files' content. All the space that it takes is taken here, where the file
    /// system can: a full one shows before anything is read.
    ///
    /// # Errors
    /// As of making and writing a file; without space, in words.
    pub fn image(path: PathBuf, plan: Plan) -> io::Result<Self> {
        let image = OpenOptions::new().write(true).create_new(true).open(&path)?;
        match fallocate(&image, FallocateFlags::empty(), 0, plan.bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => image.set_len(plan.bytes),
            taken => taken.map_err(|errno| no_space(errno.into(), &path, plan.bytes)),
        }?;
        plan.write(&image)?;
        Ok(Self::Image { path, plan })
    }

    /// Opens the place of file `number`, whose path on the disk is `path`.
    ///
    /// # Errors
    /// As of opening a file.
    pub fn open(&self, number: usize, path: &str) -> io::Result<File> {
        match self {
            Self::Image { path, plan } => {
                let mut image = OpenOptions::new().write(true).open(path)?;
                image.seek(SeekFrom::Start(plan.content_offset(number)))?;
                Ok(image)
            }
            Self::Folder(stage) => stage.create(path),
        }
    }

    /// Writes the whole of file `number`.
    ///
    /// # Errors
    /// As of writing one.
    pub fn write(&self, number: usize, path: &str, content: &[u8]) -> io::Result<()> {
        match self {
            Self::Image { path, plan } => {
                OpenOptions::new().write(true).open(path)?.write_all_at(content, plan.content_offset(number))
            }
            Self::Folder(stage) => stage.write(path, content),
        }
    }

    /// Whether what is not written reads as zeros.
    #[must_use]
    pub const fn is_zeros(&self) -> bool {
        matches!(self, Self::Image { .. })
    }
}

/// An error of writing in the folder of `path`, with what is left there if that is the reason.
pub fn no_space(error: io::Error, path: &Path, wanted: u64) -> io::Error {
    if error.kind() != io::ErrorKind::StorageFull {
        return error;
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let free = statvfs(folder).map_or(0, |of| of.f_bavail.saturating_mul(of.f_frsize));
    let (wanted, free) = (HumanBytes(wanted), HumanBytes(free));
    io::Error::new(error.kind(), format!("it takes {wanted}, and its file system has {free} free"))
}

/// Flushes a file to the medium, and gives its size in bytes.
///
/// # Errors
/// As of flushing.
pub fn flush(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fs::metadata(path)?.len())
}
