//! The folders of runs, by which `ps` and `stop` find them. A name or a path enters, a folder leaves that is locked as long as its run
//! lives: however a run ends, the lock is gone with it, and whoever comes next can tell, and clean up.
//!
//! ```text
//! $XDG_RUNTIME_DIR/localregistry/NAME/ ─┬─ lock        held while the run lives; at its end it holds the exit status
//!                                       ├─ run.json    who: [`Who`]
//!                                       ├─ ready.json  once it is ready: the line that `run --json` prints
//!                                       ├─ ca.crt      with TLS, the CA certificate
//!                                       └─ log         of a detached run: what it says on standard error
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::host::support::files;

pub use super::state::{Run, State};

/// Longest name of a run, in bytes.
const NAME_MAX: usize = 64;
/// Longest file that is read here, in bytes.
pub(crate) const LARGEST: u64 = 1 << 20;
/// Names in a run's folder.
pub(crate) const LOCK: &str = "lock";
pub(crate) const WHO: &str = "run.json";
pub(crate) const READY: &str = "ready.json";

/// Why there is no folder for a run.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// It cannot be made.
    #[error("cannot make the run's folder {} (--run-dir takes another)", .path.display())]
    Make {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder of all runs belongs to somebody else.
    #[error("{} is open to others: expected a folder of this user's alone (set XDG_RUNTIME_DIR, or give --run-dir)", .path.display())]
    Shared {
        /// Where.
        path: PathBuf,
    },
    /// Its path cannot be told to others: what tells it is JSON.
    #[error("the run's folder {path:?} is not UTF-8, which the JSON that names it has to be: give --run-dir a path that is")]
    NotUtf8 {
        /// Where.
        path: PathBuf,
    },
    /// Another run has it.
    #[error("{} is the folder of a run that lives: choose another name, or end that one with `localregistry stop`", .path.display())]
    Alive {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there already and not empty: expected a folder for this run alone, which is removed at its end", .path.display())]
    NotEmpty {
        /// Where.
        path: PathBuf,
    },
    /// It cannot be written to.
    #[error("cannot write to {} in the run's folder", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Who runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Who {
    /// The run's name.
    pub name: String,
    /// The process that runs it, and that QEMU dies with.
    pub pid: i32,
    /// The first disk, an absolute path.
    pub disk: PathBuf,
    /// The disks after it, absolute paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_disks: Vec<PathBuf>,
    /// Whether the folder stays when it has ended.
    pub keep: bool,
}

/// Which folder a run is to have.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// Its name; none: a random one.
    pub name: Option<&'a str>,
    /// Where; none: under the user's runtime folder, by its name.
    pub folder: Option<&'a Path>,
}

/// The folder of a run of this process. Dropping it removes it, where it is not to be kept.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    name: String,
    /// Whether the name leads to it: it lies where all runs do.
    named: bool,
    lock: Option<File>,
    keep: bool,
}

impl RunDir {
    /// Makes the folder that is `wanted`, and locks it. What dead runs have left beside it is removed.
    ///
    /// # Errors
    /// It cannot be made, or is somebody else's.
    pub fn make(wanted: &Wanted<'_>, disks: &[PathBuf], keep: bool) -> Result<Self, RunsError> {
        let (path, name) = place(wanted)?;
        let mut made = Self { path, name, named: wanted.folder.is_none(), lock: None, keep: false };
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RunsError::Write { path, source }
        };
        let lock_path = made.path(LOCK);
        // Locked before it has its name: nobody finds it unlocked while this process lives.
        let mut lock = tempfile::NamedTempFile::new_in(&made.path).map_err(failed(&lock_path))?;
        lock.as_file_mut().lock().map_err(failed(&lock_path))?;
        made.lock = Some(lock.persist_noclobber(&lock_path).map_err(|error| failed(&lock_path)(error.error))?);
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let mut disks = disks.iter().map(|disk| std::path::absolute(disk).unwrap_or_else(|_| disk.clone()));
        let disk = disks.next().unwrap_or_default();
        let who = Who { name: made.name.clone(), pid, disk, further_disks: disks.collect(), keep };
        let who = serde_json::to_vec(&who).map_err(|error| failed(&made.path(WHO))(error.into()))?;
        made.write(WHO, &who)?;
        made.keep = keep;
        Ok(made)
    }

    /// Makes the folder that is `wanted` for somebody else, who removes it.
    ///
    /// # Errors
    /// As [`RunDir::make`].
    pub fn make_for_others(wanted: &Wanted<'_>) -> Result<Self, RunsError> {
        let (path, name) = place(wanted)?;
        Ok(Self { path, name, named: wanted.folder.is_none(), lock: None, keep: false })
    }

    /// Leaves it to whoever it was made for.
    pub fn leave(mut self) {
        self.keep = true;
    }

    /// The run's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `stop` finds the run by: its name, or its folder where that was chosen.
    #[must_use]
    pub fn stopped_by(&self) -> &Path {
        if self.named { Path::new(&self.name) } else { &self.path }
    }

    /// The folder, an absolute path.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Writes a file in it, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, file: &str, content: &[u8]) -> Result<PathBuf, RunsError> {
        let path = self.path(file);
        match files::write_atomically(&path, content) {
            Ok(()) => Ok(path),
            Err(source) => Err(RunsError::Write { path, source }),
        }
    }

    /// Tells others that the run is ready: `line` is what `run --json` prints.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn ready(&self, line: &str) -> Result<(), RunsError> {
        self.write(READY, line.as_bytes()).map(drop)
    }

    /// Tells others that the run has ended with `status`: those who wait for the lock.
    pub fn ended(&mut self, status: u8) {
        if let Some(lock) = &mut self.lock {
            // Who waits takes nothing for killed.
            let _unwritten = write!(lock, "{status}");
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.keep {
            // Somebody may have been quicker.
            let _gone = fs::remove_dir_all(&self.path);
        }
    }
}

/// The runs of this user, by name.
///
/// # Errors
/// The folder of all runs is somebody else's.
pub fn all() -> Result<Vec<Run>, RunsError> {
    let base = base()?;
    let entries = fs::read_dir(&base).into_iter().flatten().flatten();
    let mut runs: Vec<Run> = entries.filter_map(|entry| Run::of(&entry.path())).collect();
    runs.sort_by(|one, other| one.who.name.cmp(&other.who.name));
    Ok(runs)
}

/// The folder of the run `named`: a path where it has a slash, else a name.
///
/// # Errors
/// The folder of all runs is somebody else's.
pub fn folder_of(named: &str) -> Result<PathBuf, RunsError> {
    if named.contains('/') || matches!(named, "." | "..") { Ok(named.into()) } else { Ok(base()?.join(named)) }
}

/// Whether `text` can be a run's name.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(good) && !text.starts_with(['.', '-'])
}

/// Makes the folder that is `wanted`, empty, and gives its path and the run's name.
fn place(wanted: &Wanted<'_>) -> Result<(PathBuf, String), RunsError> {
    let name = wanted.name.map_or_else(random_name, |name| Ok(name.to_owned()));
    let name = name.map_err(|source| RunsError::Make { path: PathBuf::new(), source })?;
    let path = match wanted.folder {
        Some(folder) => std::path::absolute(folder).map_err(|source| RunsError::Make { path: folder.to_owned(), source })?,
        None => {
            let runs = all()?;
            runs.iter().for_each(Run::clean);
            base()?.join(&name)
        }
    };
    if path.to_str().is_none() {
        return Err(RunsError::NotUtf8 { path });
    }
    if let Some(run) = Run::of(&path) {
        if run.lives() {
            return Err(RunsError::Alive { path });
        }
        run.clean();
    }
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok((path, name)),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            match fs::read_dir(&path).map(|mut entries| entries.next()) {
                Ok(None) => Ok((path, name)),
                Ok(Some(_)) => Err(RunsError::NotEmpty { path }),
                Err(source) => Err(RunsError::Make { path, source }),
            }
        }
        Err(source) => Err(RunsError::Make { path, source }),
    }
}

/// A name that no other run has.
fn random_name() -> io::Result<String> {
    let mut bytes = [0; 5];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("no random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The folder of all runs of this user, which is made where it is missing.
fn base() -> Result<PathBuf, RunsError> {
    let user = nix::unistd::geteuid().as_raw();
    let path = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(runtime) => runtime.join("localregistry"),
        // Where everybody writes: it has to be this user's alone.
        None => std::env::temp_dir().join(format!("localregistry-{user}")),
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => return Err(RunsError::Make { path, source }),
        _ => {}
    }
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0 => Ok(path),
        Ok(_) => Err(RunsError::Shared { path }),
        Err(source) => Err(RunsError::Make { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(folder: &Path, keep: bool) -> Result<RunDir, RunsError> {
        RunDir::make(&Wanted { name: Some("one"), folder: Some(folder) }, &["/disk".into()], keep)
    }

    #[test]
    fn a_run_tells_how_it_fares_and_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let mut made = make(&folder, false).unwrap();
        let mut run = Run::of(&folder).unwrap();
        assert_eq!((run.state, run.who.name.as_str(), run.who.disk.as_path()), (State::Booting, "one", Path::new("/disk")));
        let again = make(&folder, false).unwrap_err().to_string();
        assert!(again.contains("is the folder of a run that lives"), "{again}");
        made.ready("{\"endpoint\":\"x\"}").unwrap();
        assert_eq!(Run::of(&folder).unwrap().state, State::Ready);
        made.ended(3);
        drop(made);
        assert!(!folder.exists());
        assert_eq!(run.look(), State::Ended(3), "for those who waited");
    }

    #[test]
    fn what_a_killed_run_leaves_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let mut made = make(&folder, false).unwrap();
        // As a kill leaves it: the folder is there, the lock is not held.
        made.lock = None;
        assert_eq!(Run::of(&folder).unwrap().state, State::Dead);
        std::mem::forget(made);
        let again = make(&folder, false).unwrap();
        assert_eq!(Run::of(&folder).unwrap().state, State::Booting);
        drop(again);
        assert!(!folder.exists());
    }

    #[test]
    fn a_kept_run_stays_and_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let mut made = make(&folder, true).unwrap();
        made.ended(0);
        drop(made);
        assert_eq!(Run::of(&folder).unwrap().state, State::Ended(0));
        assert!(matches!(make(&folder, false), Err(RunsError::NotEmpty { .. })));
        assert!(folder.join("lock").exists());
    }

    #[test]
    fn stop_finds_a_run_by_its_name_or_its_chosen_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let mut made = make(&folder, false).unwrap();
        assert_eq!(made.stopped_by(), folder);
        made.named = true;
        assert_eq!(made.stopped_by(), Path::new("one"));
    }

    #[test]
    fn folder_that_json_cannot_name_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(std::ffi::OsStr::from_bytes(b"r\xffn"));
        let error = make(&folder, false).unwrap_err();
        assert!(error.to_string().contains("/r\\xFFn\" is not UTF-8, which the JSON that names it has to be"), "{error}");
        assert!(!folder.exists());
    }

    #[test]
    fn names() {
        for (name, good) in
            [("a", true), ("node-1.x_y", true), ("", false), (".a", false), ("-a", false), ("a/b", false), ("ä", false)]
        {
            assert_eq!(is_name(name), good, "{name}");
        }
    }
}
