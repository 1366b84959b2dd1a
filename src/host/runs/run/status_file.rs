//! Files that describe a run to other programs (`--ready-file`, `--pid-file`). They are removed with the run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::support::files;

/// A file that describes the run. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct StatusFile {
    path: PathBuf,
}

impl StatusFile {
    /// Checks that `path` can be written later, and removes an old file, so that nobody takes it for a new one.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        check_writable(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self { path: path.to_owned() }),
        }
    }

    /// Writes the file atomically.
    pub(crate) fn write(&self, content: &str) -> io::Result<()> {
        files::write_atomically(&self.path, content.as_bytes())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StatusFile {
    fn drop(&mut self) {
        // It does not exist if nothing was written.
        fs::remove_file(&self.path).unwrap_or_else(|error| files::left_over(&self.path, &error));
    }
}

/// Checks that [`files::write_atomically`] can write `path`: its folder exists and is writable, and `path` is not another kind of file.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("it is there already and not a regular file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !fs::metadata(folder)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).map_err(io::Error::from)
}
