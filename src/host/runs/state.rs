//! Reads the state of a run from its folder. It changes nothing, except that it removes the folder of a killed run on request.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::folder::unlink;
use crate::host::support::files;

// Names of the files in a run's folder.
pub(crate) const LOCK: &str = "lock";
pub(crate) const INFO: &str = "run.json";
pub(crate) const READY: &str = "ready.json";
/// Longest of these files that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The content of `run.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// The run's name.
    pub name: String,
    /// The process of the run. QEMU dies with it.
    pub pid: i32,
    /// The first disk, an absolute path.
    pub disk: String,
    /// The disks after it, absolute paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_disks: Vec<String>,
    /// Whether the folder stays after the end of the run.
    pub keep: bool,
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Alive, but not ready yet.
    Booting,
    /// Alive and ready.
    Ready,
    /// Ended with this exit status.
    Ended(u8),
    /// Killed.
    Dead,
}

/// A run, as its folder describes it.
#[derive(Debug)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// Name, process and disks.
    pub info: RunInfo,
    /// The state at the time of [`Run::open`] or [`Run::refresh`].
    pub state: RunState,
    /// The line that `run --json` printed, once it is ready.
    pub ready: Option<serde_json::Value>,
    lock: File,
}

impl Run {
    /// Reads the run in `folder`. `None` if it is not the folder of a run.
    #[must_use]
    pub fn open(folder: &Path) -> Option<Self> {
        let mut lock = File::open(folder.join(LOCK)).ok()?;
        let info = files::read(&folder.join(INFO), FILE_MAX).ok()?;
        let info = serde_json::from_slice(&info).ok()?;
        let ready = files::read(&folder.join(READY), FILE_MAX).ok().and_then(|line| serde_json::from_slice(&line).ok());
        let state = match lock.try_lock_shared() {
            Err(TryLockError::WouldBlock) if ready.is_some() => RunState::Ready,
            Err(_) => RunState::Booting,
            Ok(()) => final_state(&mut lock),
        };
        let _not_locked = lock.unlock();
        Some(Self { folder: folder.to_owned(), info, state, ready, lock })
    }

    /// Whether its process is alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state, RunState::Booting | RunState::Ready)
    }

    /// Checks again whether it has ended. This works after its folder has been removed, too.
    pub fn refresh(&mut self) -> RunState {
        if self.is_alive() && self.lock.try_lock_shared().is_ok() {
            self.state = final_state(&mut self.lock);
            let _not_locked = self.lock.unlock();
        }
        self.state
    }

    /// Removes the folder of a run that was killed, unless it is to be kept.
    pub fn remove_if_dead(&self) {
        if self.state == RunState::Dead && !self.info.keep {
            let _already_gone = fs::remove_dir_all(&self.folder);
            unlink(&self.folder, &self.info.name);
        }
    }
}

/// The state of a run whose lock is free. The lock file contains the exit status; a killed run has not written it.
fn final_state(lock: &mut File) -> RunState {
    let mut status = String::new();
    let _unreadable = lock.take(4).read_to_string(&mut status);
    status.parse().map_or(RunState::Dead, RunState::Ended)
}
