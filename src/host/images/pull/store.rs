//! The working folder that pulled blobs are stored in until they are packed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disk::layout::Directory;
use crate::host::images::work_dir::WorkDir;
use crate::oci::{Algorithm, Digest};

/// Pulled blobs in a working folder.
#[derive(Debug)]
pub struct Store {
    dir: WorkDir,
    blobs: Directory,
    /// The blobs that are complete.
    complete: Mutex<HashSet<Digest>>,
}

impl Store {
    /// Creates a store in `folder`, with a name that starts with `prefix`.
    ///
    /// # Errors
    /// Fails if `folder` cannot be written to.
    pub fn new(folder: &Path, prefix: &str) -> io::Result<Self> {
        let dir = WorkDir::new(folder, prefix)?;
        for algorithm in Algorithm::ALL {
            fs::create_dir_all(dir.path().join("blobs").join(algorithm.name()))?;
        }
        let blobs = Directory::open(dir.path())?;
        Ok(Self { dir, blobs, complete: Mutex::default() })
    }

    /// The folder with the blobs, by their paths in a layout.
    #[must_use]
    pub const fn blobs(&self) -> &Directory {
        &self.blobs
    }

    /// Path of a blob, which need not exist yet.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join(digest.blob_path())
    }

    /// Whether a blob is complete.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.complete().contains(digest)
    }

    /// Marks a blob as complete.
    pub fn add(&self, digest: Digest) {
        self.complete().insert(digest);
    }

    /// The content of a blob.
    ///
    /// # Errors
    /// Fails if the blob is not stored.
    pub fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        fs::read(self.path(digest))
    }

    /// Size of a blob in bytes.
    ///
    /// # Errors
    /// Fails if the blob is not stored.
    pub fn size(&self, digest: &Digest) -> io::Result<u64> {
        fs::metadata(self.path(digest)).map(|metadata| metadata.len())
    }

    /// Stores verified content.
    ///
    /// # Errors
    /// Fails if the content cannot be written.
    pub fn put(&self, digest: Digest, content: &[u8]) -> io::Result<()> {
        if !self.has(&digest) {
            fs::write(self.path(&digest), content)?;
            self.add(digest);
        }
        Ok(())
    }

    fn complete(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.complete.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
