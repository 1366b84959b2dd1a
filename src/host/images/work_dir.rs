//! A hidden working folder, removed with its content when it is dropped. A folder left by a killed process is removed by the next
//! process that works in the same place.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::host::support::files::{TemporaryDir, left_over};

/// Prefix of the names of working folders for `disk`.
#[must_use]
pub fn prefix(disk: &Path) -> String {
    format!(".{}.pack-", disk.file_name().unwrap_or_default().to_string_lossy())
}

/// A locked working folder.
#[derive(Debug)]
pub struct WorkDir {
    /// A folder without a lock was left by a killed process. It is dropped first: the removal needs its file descriptor if there are no
    /// others.
    _lock: File,
    folder: TemporaryDir,
}

impl WorkDir {
    /// Creates a folder in `parent` whose name starts with `prefix`, and removes those of killed processes.
    ///
    /// # Errors
    /// Fails if `parent` cannot be written to.
    pub fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        remove_abandoned(parent, prefix);
        let folder = TemporaryDir::new_in(parent, prefix)?;
        let lock = File::open(folder.path())?;
        lock.try_lock()?;
        Ok(Self { _lock: lock, folder })
    }

    /// Path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes abandoned folders. One that cannot be removed stays and does no harm.
fn remove_abandoned(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(prefix);
        if ours && File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok()) {
            let removed = fs::remove_dir_all(entry.path());
            removed.unwrap_or_else(|error| left_over(&entry.path(), &error));
        }
    }
}
