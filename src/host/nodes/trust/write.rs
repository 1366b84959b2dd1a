//! A tree of files onto the disk, whole or not at all. It replaces an earlier bundle and nothing else.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Tree, top_names};

/// Why a bundle is not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file system that does not let it.
    #[error("cannot write the trust files to {}", .dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else's folder.
    #[error(
        "{} holds {name:?}, which no trust bundle has; expected a folder that is empty, not there yet, or an earlier bundle's",
        .dir.display()
    )]
    NotOurs {
        /// The folder.
        dir: PathBuf,
        /// What is in it.
        name: String,
    },
    /// Not even a folder.
    #[error("{} is there and is not a folder", .dir.display())]
    NotAFolder {
        /// The path.
        dir: PathBuf,
    },
}

/// Whether a bundle may be written to `dir`: asked before the work that would be in vain.
///
/// # Errors
/// [`WriteError`], where something else is there.
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

/// Writes `tree` as the folder `dir`, whose parent has to be there. A reader sees the old bundle or the new one.
///
/// # Errors
/// [`WriteError`]. Then `dir` is as it was.
pub fn write(tree: &Tree, dir: &Path) -> Result<(), WriteError> {
    check(dir)?;
    replace(tree, dir).map_err(|source| WriteError::Io { dir: dir.to_owned(), source })
}

fn replace(tree: &Tree, dir: &Path) -> io::Result<()> {
    // Through a symbolic link, not over it.
    let dir = if dir.exists() { dir.canonicalize()? } else { dir.to_owned() };
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(parent)?;
    let new = tempfile::Builder::new().prefix(".localregistry-").tempdir_in(parent)?;
    // It is made for its owner alone, and is to be read by the nodes.
    fs::set_permissions(new.path(), Permissions::from_mode(0o755))?;
    for (path, content) in tree {
        let path = new.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(new.path()))?;
        fs::write(path, content)?;
    }
    if dir.exists() {
        // What was there is then in the passing folder, and goes with it.
        renameat_with(CWD, new.path(), CWD, &dir, RenameFlags::EXCHANGE)?;
        return new.close();
    }
    fs::rename(new.path(), &dir)?;
    let _gone = new.keep();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(content: &str) -> Tree {
        Tree::from([("ca.crt".to_owned(), content.to_owned()), ("kind/certs.d/a:1/hosts.toml".to_owned(), content.to_owned())])
    }

    #[test]
    fn an_earlier_bundle_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("trust");
        write(&tree("one"), &dir).unwrap();
        let mut second = tree("two");
        second.remove("kind/certs.d/a:1/hosts.toml");
        write(&second, &dir).unwrap();
        assert_eq!(fs::read_to_string(dir.join("ca.crt")).unwrap(), "two");
        assert!(!dir.join("kind").exists(), "what the new bundle does not have is gone");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_bundle_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis"), "mine").unwrap();
        fs::write(folder.path().join("ca.crt"), "mine").unwrap();
        let shown = folder.path().display();
        let say = |dir: &Path| crate::text::chain(&write(&tree("new"), dir).unwrap_err());
        let expected = "holds \"thesis\", which no trust bundle has; expected a folder that is empty, not there yet, or an earlier \
                        bundle's";
        assert_eq!(say(folder.path()), format!("{shown} {expected}"));
        assert_eq!(say(&folder.path().join("thesis")), format!("{shown}/thesis is there and is not a folder"));
        assert_eq!(
            say(&folder.path().join("no/dir")),
            format!("cannot write the trust files to {shown}/no/dir: No such file or directory (os error 2)")
        );
        assert_eq!(fs::read_to_string(folder.path().join("ca.crt")).unwrap(), "mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
