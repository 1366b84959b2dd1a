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
//!
//! If the folder was chosen (`--run-dir`), NAME is a link to it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};

use super::folder::{RunsError, followed, remove_link, runs_folder, unlink};
use super::state::{INFO, LOCK, READY, Run, RunInfo};
use crate::host::support::files;

/// Longest name of a run, in bytes.
const NAME_MAX: usize = 64;

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
    /// Whether its place was chosen. Otherwise it is in the folder of all runs, where its name finds it.
    is_chosen: bool,
    /// Whether the folder of all runs has a link to it.
    is_linked: bool,
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
        let absolute = |disk: &PathBuf| std::path::absolute(disk).unwrap_or_else(|_| disk.clone());
        let mut disks = disks.iter().map(|disk| absolute(disk).display().to_string());
        let disk = disks.next().unwrap_or_default();
        let info = RunInfo { name: dir.name.clone(), pid, disk, further_disks: disks.collect(), keep };
        let info = serde_json::to_vec(&info).map_err(|error| failed(&dir.path(INFO))(error.into()))?;
        dir.write(INFO, &info)?;
        if dir.is_chosen {
            dir.is_linked = link(&dir.path, &dir.name)?;
        }
        dir.keep = keep;
        Ok(dir)
    }

    /// Creates the folder for a run of another process.
    ///
    /// # Errors
    /// Fails if the folder cannot be created, or is in use.
    pub fn create_unlocked(options: &RunDirOptions<'_>) -> Result<Self, RunsError> {
        let (path, name) = create_folder(options)?;
        Ok(Self { path, name, is_chosen: options.folder.is_some(), is_linked: false, lock: None, keep: false })
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

    /// The argument by which `stop` finds the run: its name, or its folder if the folder of all runs cannot be used.
    #[must_use]
    pub fn stop_argument(&self) -> String {
        if self.is_linked || !self.is_chosen { self.name.clone() } else { self.path.display().to_string() }
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
        if self.keep {
            return;
        }
        // Another process may have removed it.
        fs::remove_dir_all(&self.path).unwrap_or_else(|error| files::left_over(&self.path, &error));
        if self.is_linked {
            unlink(&self.path, &self.name);
        }
    }
}

/// Lists the runs of this user in the order of their names.
///
/// # Errors
/// Fails if the folder of all runs cannot be used.
pub fn list_runs() -> Result<Vec<Run>, RunsError> {
    let entries = fs::read_dir(runs_folder()?).into_iter().flatten().flatten();
    let run = |entry: PathBuf| {
        let folder = followed(entry.clone());
        if !folder.exists() {
            remove_link(&entry);
        }
        Run::open(&folder)
    };
    let mut runs: Vec<Run> = entries.filter_map(|entry| run(entry.path())).collect();
    runs.sort_by(|one, other| one.info.name.cmp(&other.info.name));
    Ok(runs)
}

/// The folder of the run that `argument` names: a path if it has a slash, otherwise a name.
///
/// # Errors
/// Fails if the folder of all runs cannot be used.
pub fn folder_of(argument: &OsStr) -> Result<PathBuf, RunsError> {
    let is_path = argument.as_encoded_bytes().contains(&b'/') || argument == "." || argument == "..";
    if is_path { Ok(argument.into()) } else { Ok(followed(runs_folder()?.join(argument))) }
}

/// Makes the run in the chosen folder `path` known by `name`, with a link in the folder of all runs. Returns false if that folder
/// cannot be used.
fn link(path: &Path, name: &str) -> Result<bool, RunsError> {
    let Ok(folder) = runs_folder() else { return Ok(false) };
    let link = folder.join(name);
    make_free(&followed(link.clone()))?;
    remove_link(&link);
    match symlink(path, &link) {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Err(RunsError::NotEmpty { path: link }),
        linked => Ok(linked.is_ok()),
    }
}

/// Removes the folder of a killed run.
///
/// # Errors
/// Fails if the run is alive.
fn make_free(path: &Path) -> Result<(), RunsError> {
    let Some(run) = Run::open(path) else { return Ok(()) };
    if run.is_alive() {
        return Err(RunsError::Alive { path: run.folder });
    }
    run.remove_if_dead();
    Ok(())
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
            let path = runs_folder()?.join(&name);
            make_free(&followed(path.clone()))?;
            remove_link(&path);
            path
        }
    };
    make_free(&path)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::runs::state::RunState;

    fn create(folder: &Path, keep: bool) -> Result<RunDir, RunsError> {
        RunDir::create(&RunDirOptions { name: Some(&name_of(folder)), folder: Some(folder) }, &["/disk".into()], keep)
    }

    /// A name of its own for the run of each test, as all have one folder of runs.
    fn name_of(folder: &Path) -> String {
        folder.parent().unwrap().file_name().unwrap().display().to_string()
    }

    #[test]
    fn state_follows_the_run_and_its_folder_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let mut dir = create(&folder, false).unwrap();
        let mut run = Run::open(&folder).unwrap();
        assert_eq!((run.state, run.info.name.clone(), run.info.disk.as_str()), (RunState::Booting, name_of(&folder), "/disk"));
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
    fn name_finds_a_run_in_a_chosen_folder() {
        use std::os::unix::ffi::OsStrExt;
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(OsStr::from_bytes(b"r\xffn"));
        let name = name_of(&folder);
        let link = runs_folder().unwrap().join(&name);
        let mut dir = create(&folder, false).unwrap();
        assert_eq!((dir.stop_argument(), folder_of(name.as_ref()).unwrap()), (name.clone(), folder.clone()));
        assert_eq!(list_runs().unwrap().iter().filter(|run| run.folder == folder).count(), 1);
        let other = parent.path().join("other");
        assert!(matches!(create(&other, false), Err(RunsError::Alive { path }) if path == folder));
        assert!(!other.exists());
        // Killed: another run takes its name, and its folder is removed.
        dir.lock = None;
        std::mem::forget(dir);
        let mut kept = create(&other, true).unwrap();
        assert_eq!((folder.exists(), folder_of(name.as_ref()).unwrap()), (false, other.clone()));
        kept.write_exit_status(0);
        drop(kept);
        assert_eq!(Run::open(&folder_of(name.as_ref()).unwrap()).unwrap().state, RunState::Ended(0));
        fs::remove_dir_all(&other).unwrap();
        assert!(list_runs().unwrap().iter().all(|run| run.info.name != name) && fs::read_link(link).is_err());
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
