//! The folder that mksquashfs or mke2fs turns into a file system, with the modes that its files have on the disk.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::oci::Algorithm;

/// Modes of files and folders on the disk: read-only for everyone.
const FILE_MODE: u32 = 0o444;
const FOLDER_MODE: u32 = 0o555;
/// Mode of folders while they are filled.
const OPEN_FOLDER_MODE: u32 = 0o755;

/// The staging folder.
#[derive(Debug)]
pub struct StagingDir {
    root: PathBuf,
}

impl StagingDir {
    /// Creates the folder `root` with the folders of an image layout.
    ///
    /// # Errors
    /// Fails if a folder cannot be created.
    pub fn new(root: PathBuf) -> io::Result<Self> {
        let staging = Self { root };
        for folder in staging.folders() {
            DirBuilder::new().recursive(true).mode(OPEN_FOLDER_MODE).create(folder)?;
        }
        Ok(staging)
    }

    /// Path of the folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates an empty file.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn create(&self, path: &str) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.root.join(path))?;
        // Set after creation, because the umask does not apply here.
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        Ok(file)
    }

    /// Hard-links `of` at `path`. Returns false if the file systems do not allow it.
    ///
    /// # Errors
    /// Fails if linking fails for another reason.
    pub fn link(&self, of: &Path, path: &str) -> io::Result<bool> {
        use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
        match fs::hard_link(of, self.root.join(path)) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets the folders' final modes, innermost first, and removes empty folders.
    ///
    /// # Errors
    /// Fails if a folder cannot be read, changed or removed.
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

    /// Creates a file with `content`.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.create(path)?.write_all(content)
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        // Users other than root need write access to a folder to remove its files. An error here shows again in that removal.
        for folder in self.folders().iter().rev() {
            let _ = fs::set_permissions(folder, Permissions::from_mode(OPEN_FOLDER_MODE));
        }
    }
}
