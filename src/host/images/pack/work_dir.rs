//! A hidden working folder, removed with everything in it when it is dropped; and if its process is killed, by the next one that works
//! at the same place.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use tempfile::TempDir;

/// How the names of working folders for `disk` start.
#[must_use]
pub fn prefix(disk: &Path) -> String {
    format!(".{}.pack-", disk.file_name().unwrap_or_default().to_string_lossy())
}

/// The folder.
#[derive(Debug)]
pub struct Work {
    folder: TempDir,
    /// Held while this process works in the folder: what is not held was left by one that was killed.
    _held: File,
}

impl Work {
    /// Makes a folder in `parent` whose name starts with `prefix`, and removes those of killed processes.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        remove_left(parent, prefix);
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent).map_err(|error| without_path(&error))?;
        let held = File::open(folder.path())?;
        held.try_lock()?;
        Ok(Self { folder, _held: held })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// An error of the library, which ends with a path that it made up and nobody knows.
fn without_path(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let (said, _) = text.split_once(" at path ").unwrap_or((&text, ""));
    io::Error::new(error.kind(), said.to_owned())
}

/// What cannot be removed stays: it hinders nothing.
fn remove_left(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(prefix);
        if ours && File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
