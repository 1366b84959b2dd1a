//! Runs as others see them: a folder enters, who runs there and how it fares leaves. It changes nothing but what the dead have left.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::dir::{LARGEST, LOCK, READY, WHO, Who};
use crate::host::support::files;

/// How a run fares, as far as its folder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It lives and is not ready.
    Booting,
    /// It is ready.
    Ready,
    /// It ended with this exit status.
    Ended(u8),
    /// It was killed.
    Dead,
}

/// A run, as its folder says.
#[derive(Debug)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// Who.
    pub who: Who,
    /// How it fares.
    pub state: State,
    /// The line that `run --json` printed, once it is ready.
    pub ready: Option<serde_json::Value>,
    lock: File,
}

impl Run {
    /// The run whose folder is `folder`, if it is one.
    #[must_use]
    pub fn of(folder: &Path) -> Option<Self> {
        let mut lock = File::open(folder.join(LOCK)).ok()?;
        let who = files::read(&folder.join(WHO), LARGEST).ok()?;
        let who = serde_json::from_slice(&who).ok()?;
        let ready = files::read(&folder.join(READY), LARGEST).ok().and_then(|line| serde_json::from_slice(&line).ok());
        let state = match lock.try_lock_shared() {
            Err(TryLockError::WouldBlock) if ready.is_some() => State::Ready,
            Err(_) => State::Booting,
            Ok(()) => ended(&mut lock),
        };
        let _never_held = lock.unlock();
        Some(Self { folder: folder.to_owned(), who, state, ready, lock })
    }

    /// Whether its process lives.
    #[must_use]
    pub fn lives(&self) -> bool {
        matches!(self.state, State::Booting | State::Ready)
    }

    /// Looks again whether it has ended, also where its folder is gone.
    pub fn look(&mut self) -> State {
        if self.lives() && self.lock.try_lock_shared().is_ok() {
            self.state = ended(&mut self.lock);
            let _never_held = self.lock.unlock();
        }
        self.state
    }

    /// Removes what a run that was killed has left; one that is to be kept stays.
    pub fn clean(&self) {
        if self.state == State::Dead && !self.who.keep {
            let _gone = fs::remove_dir_all(&self.folder);
        }
    }
}

/// How a run ended whose lock is free.
fn ended(lock: &mut File) -> State {
    let mut status = String::new();
    let _unreadable = lock.take(4).read_to_string(&mut status);
    status.parse().map_or(State::Dead, State::Ended)
}
