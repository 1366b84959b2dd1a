//! Writes a bundle atomically. It replaces only an earlier bundle.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{FileTree, top_names};
use crate::host::support::files::TemporaryDir;

/// Why a bundle cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file system operation failed.
    #[error("cannot write the trust files to {}", .dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The folder contains other files.
    #[error(
        "{} contains {name:?}, which is not part of a trust bundle; expected an empty or missing folder, or an earlier bundle",
        .dir.display()
    )]
    NotOurs {
        /// The folder.
        dir: PathBuf,
        /// The first such file.
        name: String,
    },
    /// The path is not a folder.
    #[error("{} exists and is not a folder", .dir.display())]
    NotAFolder {
        /// The path.
        dir: PathBuf,
    },
}

/// Checks that a bundle may be written to `dir`. Call it before long work.
///
/// # Errors
/// Fails if `dir` exists and is not an earlier bundle or an empty folder.
pub fn check(dir: &Path) -> Result<(), WriteError> {
    let failed = |source| WriteError::Io { dir: dir.to_owned(), source };
    match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.is_dir() => return Err(WriteError::NotAFolder { dir: dir.to_owned() }),
        Ok(_) => {}
    }
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !top_names().any(|known| name == known) {
            return Err(WriteError::NotOurs { dir: dir.to_owned(), name: name.to_string_lossy().into_owned() });
        }
    }
    Ok(())
}

/// Writes `tree` to the folder `dir`, whose parent must exist. Readers see the old bundle or the new one.
///
/// # Errors
/// Fails without changing `dir`.
pub fn write(tree: &FileTree, dir: &Path) -> Result<(), WriteError> {
    check(dir)?;
    replace(tree, dir).map_err(|source| WriteError::Io { dir: dir.to_owned(), source })
}

fn replace(tree: &FileTree, dir: &Path) -> io::Result<()> {
    // Through a symbolic link, not over it.
    let dir = if dir.exists() { dir.canonicalize()? } else { dir.to_owned() };
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(parent)?;
    let new = TemporaryDir::new_in(parent, ".localregistry-")?;
    // tempfile creates it for its owner only, but the nodes must read it.
    fs::set_permissions(new.path(), Permissions::from_mode(0o755))?;
    for (path, content) in tree {
        let path = new.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(new.path()))?;
        fs::write(path, content)?;
    }
    if dir.exists() {
        // The exchange moves the old bundle to the temporary folder, which is removed.
        renameat_with(CWD, new.path(), CWD, &dir, RenameFlags::EXCHANGE)?;
        return Ok(());
    }
    fs::rename(new.path(), &dir)?;
    new.keep();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(content: &str) -> FileTree {
        FileTree::from([
            ("ca.crt".to_owned(), content.to_owned()),
            ("kind/certs.d/a:1/hosts.toml".to_owned(), content.to_owned()),
        ])
    }

    #[test]
    fn earlier_bundle_is_replaced_and_leaves_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("trust");
        write(&tree("one"), &dir).unwrap();
        let mut second = tree("two");
        second.remove("kind/certs.d/a:1/hosts.toml");
        write(&second, &dir).unwrap();
        assert_eq!(fs::read_to_string(dir.join("ca.crt")).unwrap(), "two");
        assert!(!dir.join("kind").exists(), "files that the new bundle lacks are removed");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis"), "mine").unwrap();
        fs::write(folder.path().join("ca.crt"), "mine").unwrap();
        let shown = folder.path().display();
        let say = |dir: &Path| crate::text::chain(&write(&tree("new"), dir).unwrap_err());
        let expected = "contains \"thesis\", which is not part of a trust bundle; expected an empty or missing folder, or an earlier \
                        bundle";
        assert_eq!(say(folder.path()), format!("{shown} {expected}"));
        assert_eq!(say(&folder.path().join("thesis")), format!("{shown}/thesis exists and is not a folder"));
        assert_eq!(
            say(&folder.path().join("no/dir")),
            format!("cannot write the trust files to {shown}/no/dir: No such file or directory (os error 2)")
        );
        assert_eq!(fs::read_to_string(folder.path().join("ca.crt")).unwrap(), "mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
