//! Blobs that were verified before, by their digests: `DIR/sha256/HEX`. What is here is not read from a source again.
//!
//! An entry comes here by renaming a file whose content was hashed as it was written, and which then was flushed, closed to writers
//! (mode 0444) and given the time [`KEPT`]. It is trusted while it has that time and the blob's size: who cuts it or writes to it changes
//! one or the other, and then the blob is read from its source and kept anew. Copies of the folder that keep times (`cp -a`, `tar`) stay
//! good. Not noticed are bytes that decay on the medium (`localregistry inspect --verify` of the disk finds those) and a writer who
//! sets the time back: whoever may write to the folder is trusted as whoever runs `localregistry pack`.
//!
//! Any number of packs may share a folder: an entry is there whole or not at all, and two packs that keep one blob keep the same.

use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

use super::work_dir::Work;
use crate::oci::{Algorithm, Digest};

/// Smallest blob that is kept, in bytes. Smaller ones (manifests, configs) cost more to keep and flush than to read and hash again.
pub const SMALLEST: u64 = 64 << 10;
/// The time that says that an entry is as it was kept, in seconds since 1970: one that every file system can store.
const KEPT: i64 = 10 * 365 * 86_400;
/// Mode of entries.
const ENTRY_MODE: u32 = 0o444;
/// Start of the names of the folders that packs write in.
const WORK: &str = ".pack-";

/// Why blobs are not kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder is none to write to.
    #[error("cannot use the cache {}", folder.display())]
    Folder {
        /// The cache.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An entry is not made.
    #[error("cannot keep {digest}, of {size} bytes, in the cache {}", folder.display())]
    Keep {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The cache.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An entry is there and cannot be read.
    #[error("cannot read {digest}, of {size} bytes, from the cache {}", folder.display())]
    Read {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The cache.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A folder of blobs.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    work: Work,
}

impl Cache {
    /// Opens the cache in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// [`CacheError::Folder`], when it cannot be written to.
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        let made = (|| {
            for algorithm in Algorithm::ALL {
                fs::create_dir_all(folder.join(algorithm.name()))?;
            }
            // Held while a working folder is made and not yet locked: another pack would take it for one that was left.
            let held = File::open(folder)?;
            held.lock()?;
            Work::new(folder, WORK)
        })();
        let work = made.map_err(|source| CacheError::Folder { folder: folder.to_owned(), source })?;
        Ok(Self { folder: folder.to_owned(), work })
    }

    /// The blob's content, where it is kept and as it was kept.
    ///
    /// # Errors
    /// [`CacheError::Read`], where there is an entry that cannot be opened.
    pub fn find(&self, digest: &Digest, size: u64) -> Result<Option<File>, CacheError> {
        if size < SMALLEST {
            return Ok(None);
        }
        let found = match File::open(self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.and_then(|file| Ok(is_kept(&file, size)?.then_some(file))),
        };
        found.map_err(|source| self.read_error(digest, size, source))
    }

    /// That `file`, which [`Cache::find`] gave and which was read since, was not written to meanwhile.
    ///
    /// # Errors
    /// [`CacheError::Read`], where it was.
    pub fn check(&self, file: &File, digest: &Digest, size: u64) -> Result<(), CacheError> {
        let changed = || io::Error::other("it changed while it was read; does something write to it?");
        let checked = is_kept(file, size).and_then(|kept| if kept { Ok(()) } else { Err(changed()) });
        checked.map_err(|source| self.read_error(digest, size, source))
    }

    /// An empty file to write a blob to that is to be kept, where it is large enough.
    ///
    /// # Errors
    /// [`CacheError::Keep`].
    pub fn begin(&self, digest: &Digest, size: u64) -> Result<Option<NamedTempFile>, CacheError> {
        if size < SMALLEST {
            return Ok(None);
        }
        NamedTempFile::new_in(self.work.path()).map(Some).map_err(|source| self.keep_error(digest, size, source))
    }

    /// Keeps `file`, whose content has this digest.
    ///
    /// # Errors
    /// [`CacheError::Keep`].
    pub fn keep(&self, file: NamedTempFile, digest: &Digest, size: u64) -> Result<(), CacheError> {
        let kept = (|| {
            file.as_file().sync_data()?;
            file.as_file().set_permissions(Permissions::from_mode(ENTRY_MODE))?;
            file.as_file()
                .set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(KEPT.unsigned_abs())))?;
            file.persist(self.path(digest)).map_err(|error| error.error)
        })();
        kept.map(drop).map_err(|source| self.keep_error(digest, size, source))
    }

    /// The entry's path.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.algorithm().name()).join(digest.hex())
    }

    /// What a failed write to an entry is.
    pub fn keep_error(&self, digest: &Digest, size: u64, source: io::Error) -> CacheError {
        CacheError::Keep { digest: *digest, size, folder: self.folder.clone(), source }
    }

    /// What a failed read of an entry is.
    pub fn read_error(&self, digest: &Digest, size: u64, source: io::Error) -> CacheError {
        CacheError::Read { digest: *digest, size, folder: self.folder.clone(), source }
    }
}

fn is_kept(file: &File, size: u64) -> io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.is_file() && metadata.len() == size && (metadata.mtime(), metadata.mtime_nsec()) == (KEPT, 0))
}
