//! The blob cache of `pack --cache`: verified blobs at `DIR/sha256/HEX`, which are not read from a source or hashed again.
//!
//! An entry is written to a temporary file while it is hashed, then flushed, made read-only, given the modification time
//! [`VERIFIED_MTIME`], and renamed. It is trusted while it has that time and the blob's size: truncating it or writing to it changes
//! one of them, and the blob is then read from its source again. Copies that preserve times (`cp -a`, `tar`) stay valid.
//!
//! Two changes go unnoticed: decay of the medium, which `localregistry inspect --verify` of the disk finds, and a writer that
//! restores the time. Users with write access to the folder are therefore as trusted as the user who runs `localregistry pack`.
//!
//! Concurrent packs may share a folder: an entry is complete or absent, and equal digests mean equal content.

use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

use crate::host::images::work_dir::WorkDir;
use crate::oci::{Algorithm, Digest};

/// Smallest blob that is cached, in bytes. Flushing smaller ones (manifests, configs) costs more than reading and hashing again.
pub const MIN_BLOB: u64 = 64 << 10;
/// Modification time of a verified entry, in seconds since 1970. Every file system can store it.
const VERIFIED_MTIME: i64 = 10 * 365 * 86_400;
/// Mode of entries.
const ENTRY_MODE: u32 = 0o444;
/// Prefix of the working folders' names.
const WORK_PREFIX: &str = ".pack-";

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlobCacheError {
    #[error("cannot use the cache {}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error("cannot keep {digest}, of {size} bytes, in the cache {}", folder.display())]
    Write { digest: Digest, size: u64, folder: PathBuf, source: io::Error },
    #[error("cannot read {digest}, of {size} bytes, from the cache {}", folder.display())]
    Read { digest: Digest, size: u64, folder: PathBuf, source: io::Error },
}

/// A cache folder, open for one pack.
#[derive(Debug)]
pub struct BlobCache {
    folder: PathBuf,
    work: WorkDir,
}

impl BlobCache {
    /// Opens the cache in `folder`, and creates the folder if it is missing.
    ///
    /// # Errors
    /// Fails if the folder cannot be written to.
    pub fn open(folder: &Path) -> Result<Self, BlobCacheError> {
        let created = (|| {
            for algorithm in Algorithm::ALL {
                fs::create_dir_all(folder.join(algorithm.name()))?;
            }
            // Locks the cache until the new working folder is locked: another pack would remove it as abandoned.
            let lock = File::open(folder)?;
            lock.lock()?;
            WorkDir::new(folder, WORK_PREFIX)
        })();
        let work = created.map_err(|source| BlobCacheError::Folder { folder: folder.to_owned(), source })?;
        Ok(Self { folder: folder.to_owned(), work })
    }

    /// Opens the blob's entry, if there is an intact one.
    ///
    /// # Errors
    /// Fails if there is an entry that cannot be opened.
    pub fn find(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobCacheError> {
        if size < MIN_BLOB {
            return Ok(None);
        }
        let found = match File::open(self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.and_then(|file| Ok(is_intact(&file, size)?.then_some(file))),
        };
        found.map_err(|source| self.read_error(digest, size, source))
    }

    /// Checks, after reading `file` from [`BlobCache::find`], that it has not changed in the meantime.
    ///
    /// # Errors
    /// Fails if the entry has changed.
    pub fn check(&self, file: &File, digest: &Digest, size: u64) -> Result<(), BlobCacheError> {
        let changed = || io::Error::other("it changed while it was read; does something write to it?");
        let checked = is_intact(file, size).and_then(|intact| if intact { Ok(()) } else { Err(changed()) });
        checked.map_err(|source| self.read_error(digest, size, source))
    }

    /// Creates an empty file for a new entry, if the blob is large enough to be cached.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn new_entry(&self, digest: &Digest, size: u64) -> Result<Option<NamedTempFile>, BlobCacheError> {
        if size < MIN_BLOB {
            return Ok(None);
        }
        NamedTempFile::new_in(self.work.path()).map(Some).map_err(|source| self.write_error(digest, size, source))
    }

    /// Inserts `file`, whose content has this digest, as the blob's entry.
    ///
    /// # Errors
    /// Fails if the entry cannot be written.
    pub fn insert(&self, file: NamedTempFile, digest: &Digest, size: u64) -> Result<(), BlobCacheError> {
        let inserted = (|| {
            file.as_file().sync_data()?;
            file.as_file().set_permissions(Permissions::from_mode(ENTRY_MODE))?;
            file.as_file().set_times(
                FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(VERIFIED_MTIME.unsigned_abs())),
            )?;
            file.persist(self.path(digest)).map_err(|error| error.error)
        })();
        inserted.map(drop).map_err(|source| self.write_error(digest, size, source))
    }

    /// Path of the blob's entry.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.algorithm().name()).join(digest.hex())
    }

    pub fn write_error(&self, digest: &Digest, size: u64, source: io::Error) -> BlobCacheError {
        BlobCacheError::Write { digest: *digest, size, folder: self.folder.clone(), source }
    }

    pub fn read_error(&self, digest: &Digest, size: u64, source: io::Error) -> BlobCacheError {
        BlobCacheError::Read { digest: *digest, size, folder: self.folder.clone(), source }
    }
}

fn is_intact(file: &File, size: u64) -> io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.is_file() && metadata.len() == size && (metadata.mtime(), metadata.mtime_nsec()) == (VERIFIED_MTIME, 0))
}
