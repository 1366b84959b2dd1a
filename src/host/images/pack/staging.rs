//! The disk's content as a folder, for programs that make a file system of one. Nothing is hashed here.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::oci::Algorithm;

/// Modes of the disk's files and folders: read-only for everyone, as the disk is.
const FILE_MODE: u32 = 0o444;
const FOLDER_MODE: u32 = 0o555;
/// Mode of the folders while they are filled.
const OPEN_FOLDER_MODE: u32 = 0o755;

/// The folder.
#[derive(Debug)]
pub struct Stage {
    root: PathBuf,
}

impl Stage {
    /// Makes the folder `root`, and those for blobs in it.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn new(root: PathBuf) -> io::Result<Self> {
        let stage = Self { root };
        for folder in stage.folders() {
            DirBuilder::new().recursive(true).mode(OPEN_FOLDER_MODE).create(folder)?;
        }
        Ok(stage)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// As of making a file.
    pub fn create(&self, path: &str) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.root.join(path))?;
        // Not when it is made: the umask would have a say.
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        Ok(file)
    }

    /// Makes `path` a further name of the file `of`, if both can be in one file system.
    ///
    /// # Errors
    /// As of linking, where that is not the reason.
    pub fn link(&self, of: &Path, path: &str) -> io::Result<bool> {
        use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
        match fs::hard_link(of, self.root.join(path)) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the folders the modes that they have on the disk, the innermost first; a folder for blobs that stayed empty goes.
    ///
    /// # Errors
    /// As of changing modes.
    pub fn close(&self) -> io::Result<()> {
        for folder in self.folders() {
            if fs::read_dir(&folder)?.next().is_none() {
                fs::remove_dir(&folder)?;
            } else {
                fs::set_permissions(&folder, Permissions::from_mode(FOLDER_MODE))?;
            }
        }
        Ok(())
    }

    fn folders(&self) -> [PathBuf; 5] {
        let blobs = self.root.join("blobs");
        let [sha256, sha512] = Algorithm::ALL.map(|algorithm| blobs.join(algorithm.name()));
        [sha256, sha512, blobs, self.root.join("localregistry"), self.root.clone()]
    }

    /// Makes a whole file.
    ///
    /// # Errors
    /// As of writing one.
    pub fn write(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.create(path)?.write_all(content)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A folder must be open for its files to be removed, unless by root. What fails here fails again, and visibly, there.
        for folder in self.folders().iter().rev() {
            let _ = fs::set_permissions(folder, Permissions::from_mode(OPEN_FOLDER_MODE));
        }
    }
}
