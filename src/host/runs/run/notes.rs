//! Files that tell others of a run: where it is, which process it is. They are removed with it, so that nobody takes an old one for
//! new; and what is to be written later is looked at before the boot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::support::files;

/// A file that is removed with the run. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Note {
    path: PathBuf,
}

impl Note {
    /// Takes `path` for later: an old file goes, so that nobody takes it for new.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        writable(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self { path: path.to_owned() }),
        }
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, content: &str) -> io::Result<()> {
        files::write_atomically(&self.path, content.as_bytes())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // It is not there where nothing has been written.
        let _not_there = fs::remove_file(&self.path);
    }
}

/// Whether a file can be written at `path` as [`files::write_atomically`] does: its folder is there and may be written to, and what is
/// there is a file.
pub(crate) fn writable(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("it is there already and not a regular file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !fs::metadata(folder)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).map_err(io::Error::from)
}
