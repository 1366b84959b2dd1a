//! Where pulled content is kept until it is packed: a hidden folder beside the disk, removed with everything in it when it is dropped.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::disk::layout::Directory;
use crate::oci::{Algorithm, Digest};

/// The folder.
#[derive(Debug)]
pub struct Store {
    dir: TempDir,
    blobs: Directory,
    /// What is there whole.
    have: Mutex<HashSet<Digest>>,
    /// Held while this process works in the folder: what is not held was left by one that was killed.
    _held: File,
}

impl Store {
    /// Makes it in `folder`, with a name that starts with `prefix`.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn new(folder: &Path, prefix: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(folder)?;
        let held = File::open(dir.path())?;
        held.try_lock()?;
        for algorithm in Algorithm::ALL {
            fs::create_dir_all(dir.path().join("blobs").join(algorithm.name()))?;
        }
        let blobs = Directory::open(dir.path())?;
        Ok(Self { dir, blobs, have: Mutex::default(), _held: held })
    }

    /// The blobs, by their paths in a layout.
    #[must_use]
    pub const fn blobs(&self) -> &Directory {
        &self.blobs
    }

    /// Where a blob is or will be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join(digest.blob_path())
    }

    /// Whether a blob is there whole: it is not fetched again then.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.have().contains(digest)
    }

    /// Notes that a blob is there whole.
    pub fn add(&self, digest: Digest) {
        self.have().insert(digest);
    }

    /// Keeps content that is verified.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, digest: Digest, content: &[u8]) -> io::Result<()> {
        if !self.has(&digest) {
            fs::write(self.path(&digest), content)?;
            self.add(digest);
        }
        Ok(())
    }

    fn have(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.have.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
