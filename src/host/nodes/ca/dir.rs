//! A folder with a CA that is used across runs: `ca.crt`, readable by all, and `ca.key`, readable by its owner. The first use
//! creates both. Concurrent first uses agree on one CA.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::retry_on_intr;

use crate::host::support::files;
use crate::registry::tls::provided;

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
/// Mode of the folder.
const DIR_MODE: u32 = 0o700;
const KEY_MODE: u32 = 0o600;
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;
/// Write permission bits of group and others.
const OTHERS_WRITE: u32 = 0o022;

/// Why the CA in a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// A file system operation failed.
    #[error("cannot {verb} {}", .path.display())]
    Io {
        /// What failed.
        verb: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others could replace the CA.
    #[error("others may write to the CA's folder {} (mode {mode:04o}); `chmod go-w` it, or use another", .path.display())]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Others could sign with the key.
    #[error(
        "others may read the CA's key {} (mode {mode:04o}): they could impersonate any registry that nodes trust; `chmod 600` it, or \
         remove it and its certificate to create a new CA",
        .path.display()
    )]
    Readable {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Only one of the two files exists.
    #[error("{} exists, but {} does not; expected both, or neither to create a new CA", .there.display(), .missing.display())]
    Half {
        /// The file that exists.
        there: PathBuf,
        /// The missing file.
        missing: PathBuf,
    },
    /// The CA cannot be created.
    #[error("cannot create a CA")]
    Make(#[source] crate::registry::tls::TlsError),
}

/// Returns the certificate and key files of the CA in `dir`. Creates the folder and the CA if they are missing.
///
/// # Errors
/// Fails if the CA cannot be created, or if others than the owner could change or read it.
pub(crate) fn files(dir: &Path) -> Result<(PathBuf, PathBuf), DirError> {
    let at = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| DirError::Io { verb, path, source }
    };
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at("create the CA's folder", dir)(error)),
        _ => {}
    }
    // Anything else is refused, and the opening of a FIFO would wait for its other end.
    let options = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder =
        retry_on_intr(|| open(dir, options, Mode::empty())).map_err(|error| at("open the CA's folder", dir)(error.into()))?;
    let folder = File::from(folder);
    let metadata = folder.metadata().map_err(at("look at", dir))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(DirError::Writable { path: dir.to_owned(), mode });
    }
    // Locked until the folder is closed, so that only one process creates the CA.
    flock(&folder, FlockOperation::LockExclusive).map_err(|error| at("lock", dir)(error.into()))?;
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    match (exists(&certificate).map_err(at("look at", &certificate))?, exists(&key).map_err(at("look at", &key))?) {
        (true, true) => {}
        (true, false) => return Err(DirError::Half { there: certificate, missing: key }),
        // The certificate is written last. A key without one is left from an interrupted first use, and nobody trusts it yet.
        (false, _) => make(&certificate, &key)?,
    }
    let mode = fs::metadata(&key).map_err(at("look at", &key))?.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(DirError::Readable { path: key, mode });
    }
    Ok((certificate, key))
}

fn exists(path: &Path) -> io::Result<bool> {
    path.try_exists()
}

fn make(certificate: &Path, key: &Path) -> Result<(), DirError> {
    let ca = provided::generate("localregistry").map_err(DirError::Make)?;
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| DirError::Io { verb: "write", path, source }
    };
    files::write_private(key, ca.key.as_bytes(), KEY_MODE).map_err(write(key))?;
    files::write_atomically(certificate, ca.certificate.as_bytes()).map_err(write(certificate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::chain;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn first_use_creates_the_ca_and_the_next_reuses_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        let (certificate, key) = files(&dir).unwrap();
        assert_eq!((mode(&dir), mode(&key)), (0o700, 0o600));
        let before = (fs::read(&certificate).unwrap(), fs::read(&key).unwrap());
        assert_eq!(files(&dir).unwrap(), (certificate.clone(), key.clone()));
        assert_eq!((fs::read(&certificate).unwrap(), fs::read(&key).unwrap()), before);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn concurrent_first_uses_get_the_same_ca() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        let found: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let uses: Vec<_> = (0..8).map(|_| scope.spawn(|| fs::read(files(&dir).unwrap().0).unwrap())).collect();
            uses.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(found.iter().all(|one| *one == found[0]));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn key_without_a_certificate_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.path().join(KEY), "half").unwrap();
        let (_, key) = files(folder.path()).unwrap();
        assert_eq!(mode(&key), 0o600);
        assert!(fs::read_to_string(key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    }

    #[test]
    fn unsafe_permissions_and_incomplete_cas_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        let (certificate, key) = files(&dir).unwrap();
        let say = |path: &Path| chain(&files(path).unwrap_err());
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&key, 0o644);
        assert_eq!(
            say(&dir),
            format!(
                "others may read the CA's key {} (mode 0644): they could impersonate any registry that nodes trust; `chmod 600` it, or \
                 remove it and its certificate to create a new CA",
                key.display()
            )
        );
        set(&key, 0o600);
        set(&dir, 0o777);
        let expected = "(mode 0777); `chmod go-w` it, or use another";
        assert_eq!(say(&dir), format!("others may write to the CA's folder {} {expected}", dir.display()));
        set(&dir, 0o755);
        fs::remove_file(&key).unwrap();
        let expected = "expected both, or neither to create a new CA";
        assert_eq!(say(&dir), format!("{} exists, but {} does not; {expected}", certificate.display(), key.display()));
        let missing = folder.path().join("no/ca");
        let expected = "No such file or directory (os error 2)";
        assert_eq!(say(&missing), format!("cannot create the CA's folder {}: {expected}", missing.display()));
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [file, fifo] {
            assert_eq!(say(&path), format!("cannot open the CA's folder {}: Not a directory (os error 20)", path.display()));
        }
    }
}
