//! The folder of all runs of this user. A run in a chosen folder has a link in it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Why the folder of a run cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// It cannot be created.
    #[error("cannot make the run's folder {}", .path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Other users can write to the folder of all runs.
    #[error("{} is not a folder that only this user can write to (set XDG_RUNTIME_DIR to one)", .path.display())]
    Shared {
        /// The folder of all runs.
        path: PathBuf,
    },
    /// Another run uses it.
    #[error("{} belongs to a run that is alive: choose another name, or end that run with `localregistry stop`", .path.display())]
    Alive {
        /// The folder.
        path: PathBuf,
    },
    /// It has other content.
    #[error("{} is not empty: the run's folder has to be new or empty, and is removed at the end of the run", .path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A file in it cannot be written.
    #[error("cannot write to {} in the run's folder", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// The folder of all runs of this user. It is created if it does not exist.
pub fn runs_folder() -> Result<PathBuf, RunsError> {
    let user = nix::unistd::geteuid().as_raw();
    let path = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(runtime) => runtime.join("localregistry"),
        // In a folder that all users can write to, so the owner and the mode are checked below.
        None => std::env::temp_dir().join(format!("localregistry-{user}")),
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => return Err(RunsError::Create { path, source }),
        _ => {}
    }
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0 => Ok(path),
        Ok(_) => Err(RunsError::Shared { path }),
        Err(source) => Err(RunsError::Create { path, source }),
    }
}

/// The folder that an entry of the folder of all runs stands for: itself, or the chosen one that it links to.
pub fn followed(entry: PathBuf) -> PathBuf {
    fs::read_link(&entry).unwrap_or(entry)
}

/// Removes the link to the run in the chosen folder `path`.
pub fn unlink(path: &Path, name: &str) {
    let link = runs_folder().map(|folder| folder.join(name));
    link.iter().filter(|link| followed(link.to_path_buf()) == path).for_each(|link| remove_link(link));
}

/// Removes `entry` if it is a link.
pub fn remove_link(entry: &Path) {
    if fs::read_link(entry).is_ok() {
        let _already_gone = fs::remove_file(entry);
    }
}
