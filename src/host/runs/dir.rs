//! The folder of a run, by which `ps` and `stop` find it.
//!
//! The folder has a lock that the run holds while it is alive. However the run ends, the kernel releases the lock, so that other
//! processes notice the end and can clean up.
//!
//! ```text
//! $XDG_RUNTIME_DIR/localregistry/NAME/ ─┬─ lock        held while the run is alive; after its end it contains the exit status
//!                                       ├─ run.json    name, process and disks: [`RunInfo`]
//!                                       ├─ ready.json  once it is ready: the line that `run --json` prints
//!                                       ├─ ca.crt      with TLS, the CA certificate
//!                                       └─ log         of a detached run: its standard error
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};

use super::state::{INFO, LOCK, READY, Run, RunInfo};
use crate::host::support::files;

/// Longest name of a run, in bytes.
const NAME_MAX: usize = 64;

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
    /// Its path cannot be in JSON.
    #[error("the path of the run's folder, {path:?}, is not UTF-8, but has to be in JSON")]
    NotUtf8 {
        /// The folder.
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

/// The name and place of a run's folder.
#[derive(Debug, Clone, Default)]
pub struct RunDirOptions<'a> {
    /// The run's name. `None`: a random one.
    pub name: Option<&'a str>,
    /// The folder. `None`: the one below the user's runtime folder with the run's name.
    pub folder: Option<&'a Path>,
}

/// The folder of a run. Dropping it removes it, unless it is to be kept.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    name: String,
    /// Whether it is in the folder of all runs, where its name finds it.
    in_runs_folder: bool,
    lock: Option<File>,
    keep: bool,
}

impl RunDir {
    /// Creates and locks the folder of a run of this process. Removes the folders of killed runs.
    ///
    /// # Errors
    /// Fails if the folder cannot be created, or is in use.
    pub fn create(options: &RunDirOptions<'_>, disks: &[PathBuf], keep: bool) -> Result<Self, RunsError> {
        let mut dir = Self::create_unlocked(options)?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RunsError::Write { path, source }
        };
        let lock_path = dir.path(LOCK);
        // It is locked before it gets its name, so that nobody finds it unlocked while this process is alive.
        let mut lock = tempfile::NamedTempFile::new_in(&dir.path).map_err(failed(&lock_path))?;
        lock.as_file_mut().lock().map_err(failed(&lock_path))?;
        dir.lock = Some(lock.persist_noclobber(&lock_path).map_err(|error| failed(&lock_path)(error.error))?);
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let mut disks = disks.iter().map(|disk| std::path::absolute(disk).unwrap_or_else(|_| disk.clone()));
        let disk = disks.next().unwrap_or_default();
        let info = RunInfo { name: dir.name.clone(), pid, disk, further_disks: disks.collect(), keep };
        let info = serde_json::to_vec(&info).map_err(|error| failed(&dir.path(INFO))(error.into()))?;
        dir.write(INFO, &info)?;
        dir.keep = keep;
        Ok(dir)
    }

    /// Creates the folder for a run of another process.
    ///
    /// # Errors
    /// Fails if the folder cannot be created, or is in use.
    pub fn create_unlocked(options: &RunDirOptions<'_>) -> Result<Self, RunsError> {
        let (path, name) = create_folder(options)?;
        Ok(Self { path, name, in_runs_folder: options.folder.is_none(), lock: None, keep: false })
    }

    /// Leaves the folder in place.
    pub fn persist(mut self) {
        self.keep = true;
    }

    /// The run's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The argument by which `stop` finds the run: its name, or its folder if that was chosen.
    #[must_use]
    pub fn stop_argument(&self) -> &Path {
        if self.in_runs_folder { Path::new(&self.name) } else { &self.path }
    }

    /// The folder, an absolute path.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Writes a file in it atomically.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, file: &str, content: &[u8]) -> Result<PathBuf, RunsError> {
        let path = self.path(file);
        match files::write_atomically(&path, content) {
            Ok(()) => Ok(path),
            Err(source) => Err(RunsError::Write { path, source }),
        }
    }

    /// Marks the run as ready. `line` is what `run --json` prints.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write_ready(&self, line: &str) -> Result<(), RunsError> {
        self.write(READY, line.as_bytes()).map(drop)
    }

    /// Writes the exit status for processes that wait for the lock.
    pub fn write_exit_status(&mut self, status: u8) {
        if let Some(lock) = &mut self.lock {
            // If it cannot be written, the run counts as killed.
            let _unwritten = write!(lock, "{status}");
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.keep {
            // Another process may have removed it.
            let _already_gone = fs::remove_dir_all(&self.path);
        }
    }
}

/// Lists the runs of this user in the order of their names.
///
/// # Errors
/// Fails if the folder of all runs cannot be used.
pub fn list_runs() -> Result<Vec<Run>, RunsError> {
    let entries = fs::read_dir(runs_folder()?).into_iter().flatten().flatten();
    let mut runs: Vec<Run> = entries.filter_map(|entry| Run::open(&entry.path())).collect();
    runs.sort_by(|one, other| one.info.name.cmp(&other.info.name));
    Ok(runs)
}

/// The folder of the run that `argument` names: a path if it has a slash, otherwise a name.
///
/// # Errors
/// Fails if the folder of all runs cannot be used.
pub fn folder_of(argument: &str) -> Result<PathBuf, RunsError> {
    if argument.contains('/') || matches!(argument, "." | "..") { Ok(argument.into()) } else { Ok(runs_folder()?.join(argument)) }
}

/// Whether `text` is a valid name of a run.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(valid) && !text.starts_with(['.', '-'])
}

/// Creates an empty folder, and returns its path and the run's name.
fn create_folder(options: &RunDirOptions<'_>) -> Result<(PathBuf, String), RunsError> {
    let name = options.name.map_or_else(random_name, |name| Ok(name.to_owned()));
    let name = name.map_err(|source| RunsError::Create { path: PathBuf::new(), source })?;
    let path = match options.folder {
        Some(folder) => std::path::absolute(folder).map_err(|source| RunsError::Create { path: folder.to_owned(), source })?,
        None => {
            list_runs()?.iter().for_each(Run::remove_if_dead);
            runs_folder()?.join(&name)
        }
    };
    if path.to_str().is_none() {
        return Err(RunsError::NotUtf8 { path });
    }
    if let Some(run) = Run::open(&path) {
        if run.is_alive() {
            return Err(RunsError::Alive { path });
        }
        run.remove_if_dead();
    }
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok((path, name)),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            match fs::read_dir(&path).map(|mut entries| entries.next()) {
                Ok(None) => Ok((path, name)),
                Ok(Some(_)) => Err(RunsError::NotEmpty { path }),
                Err(source) => Err(RunsError::Create { path, source }),
            }
        }
        Err(source) => Err(RunsError::Create { path, source }),
    }
}

/// A random name. Its 40 random bits keep runs apart.
fn random_name() -> io::Result<String> {
    let mut bytes = [0; 5];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("no random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The folder of all runs of this user. It is created if it does not exist.
fn runs_folder() -> Result<PathBuf, RunsError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::runs::state::RunState;

    fn create(folder: &Path, keep: bool) -> Result<RunDir, RunsError> {
        RunDir::create(&RunDirOptions { name: Some("one"), folder: Some(folder) }, &["/disk".into()], keep)
    }

    #[test]
    fn state_follows_the_run_and_its_folder_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let mut dir = create(&folder, false).unwrap();
        let mut run = Run::open(&folder).unwrap();
        assert_eq!((run.state, run.info.name.as_str(), run.info.disk.as_path()), (RunState::Booting, "one", Path::new("/disk")));
        let again = create(&folder, false).unwrap_err().to_string();
        assert!(again.contains("belongs to a run that is alive"), "{again}");
        dir.write_ready("{\"endpoint\":\"x\"}").unwrap();
        assert_eq!(Run::open(&folder).unwrap().state, RunState::Ready);
        dir.write_exit_status(3);
        drop(dir);
        assert!(!folder.exists());
        assert_eq!(run.refresh(), RunState::Ended(3), "for processes that waited");
    }

    #[test]
    fn folder_of_a_killed_run_is_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let mut dir = create(&folder, false).unwrap();
        // A killed run leaves its folder, but holds no lock.
        dir.lock = None;
        assert_eq!(Run::open(&folder).unwrap().state, RunState::Dead);
        std::mem::forget(dir);
        let again = create(&folder, false).unwrap();
        assert_eq!(Run::open(&folder).unwrap().state, RunState::Booting);
        drop(again);
        assert!(!folder.exists());
    }

    #[test]
    fn kept_folder_stays_and_is_not_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let mut dir = create(&folder, true).unwrap();
        dir.write_exit_status(0);
        drop(dir);
        assert_eq!(Run::open(&folder).unwrap().state, RunState::Ended(0));
        assert!(matches!(create(&folder, false), Err(RunsError::NotEmpty { .. })));
        assert!(folder.join("lock").exists());
    }

    #[test]
    fn stop_argument_is_the_name_or_the_chosen_folder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let mut dir = create(&folder, false).unwrap();
        assert_eq!(dir.stop_argument(), folder);
        dir.in_runs_folder = true;
        assert_eq!(dir.stop_argument(), Path::new("one"));
    }

    #[test]
    fn folder_that_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(std::ffi::OsStr::from_bytes(b"r\xffn"));
        let error = create(&folder, false).unwrap_err();
        assert!(error.to_string().contains("/r\\xFFn\", is not UTF-8, but has to be in JSON"), "{error}");
        assert!(!folder.exists());
    }

    #[test]
    fn names_of_runs_are_checked() {
        for (name, valid) in
            [("a", true), ("node-1.x_y", true), ("", false), (".a", false), ("-a", false), ("a/b", false), ("ä", false)]
        {
            assert_eq!(is_name(name), valid, "{name}");
        }
    }
}
