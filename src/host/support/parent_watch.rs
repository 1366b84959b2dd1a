//! Watches a pipe or socket whose other end the launcher holds. `run` and `serve` end when the launcher closes it or ends, in whatever way.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::{Errno, read};
use tokio::sync::oneshot;

use super::sys;

/// The descriptor to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptor {
    /// Standard input.
    Stdin,
    /// An inherited descriptor.
    Number(i32),
}

/// Why a descriptor cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum ParentWatchError {
    /// It is not open.
    #[error("{0} cannot be used: the launcher has to leave it open for this program (without close-on-exec)")]
    NotOpen(Descriptor, #[source] io::Error),
    /// It is a file or a device, whose end does not tell that the launcher has ended.
    #[error("{0} is neither a pipe nor a socket: give it one of these, and keep the other end open")]
    Kind(Descriptor),
    /// It is the wrong end of a pipe.
    #[error("{0} is the writing end of a pipe: give it the reading end, and keep the writing end open")]
    WritingEnd(Descriptor),
    /// No thread can be started.
    #[error("the thread that watches {0} cannot be started")]
    Thread(Descriptor, #[source] io::Error),
}

/// A watched descriptor of the parent, the process that started this one or another that holds the other end.
#[derive(Debug)]
pub(crate) struct ParentWatch {
    descriptor: Descriptor,
    closed: oneshot::Receiver<()>,
}

impl ParentWatch {
    /// Starts watching `descriptor`. Data that arrives is discarded.
    ///
    /// # Errors
    /// Fails if the descriptor is not open, is neither a pipe nor a socket, or is the writing end of a pipe.
    pub(crate) fn watch(descriptor: Descriptor) -> Result<Self, ParentWatchError> {
        // A copy, as the number may be reused for another file later.
        let copy = sys::inherited(descriptor.number()).map_err(|source| ParentWatchError::NotOpen(descriptor, source))?;
        check(&copy, descriptor)?;
        let (close, closed) = oneshot::channel();
        let watch = move || {
            wait_for_end(&copy);
            let _run_has_ended = close.send(());
        };
        let thread = thread::Builder::new().name("parent-watch".into()).spawn(watch);
        thread.map_err(|source| ParentWatchError::Thread(descriptor, source))?;
        Ok(Self { descriptor, closed })
    }
}

/// Waits until the watched `parent` has closed its end, and stops watching it. Without one it waits forever. Cancel-safe.
pub(crate) async fn closed(parent: &mut Option<ParentWatch>) -> Descriptor {
    if let Some(ParentWatch { descriptor, closed }) = parent.as_mut()
        && closed.await.is_ok()
    {
        let descriptor = *descriptor;
        *parent = None;
        return descriptor;
    }
    std::future::pending().await
}

fn check(file: &OwnedFd, descriptor: Descriptor) -> Result<(), ParentWatchError> {
    let failed = |error: Errno| ParentWatchError::NotOpen(descriptor, error.into());
    let kind = FileType::from_raw_mode(fstat(file).map_err(failed)?.st_mode);
    if !matches!(kind, FileType::Fifo | FileType::Socket) {
        return Err(ParentWatchError::Kind(descriptor));
    }
    let mode = fcntl_getfl(file).map_err(failed)? & OFlags::RWMODE;
    if mode == OFlags::WRONLY { Err(ParentWatchError::WritingEnd(descriptor)) } else { Ok(()) }
}

/// Reads `file`, which may be non-blocking, until it ends.
fn wait_for_end(file: &OwnedFd) {
    let mut buffer = [0; 4096];
    loop {
        let mut polled = [PollFd::new(file, PollFlags::IN)];
        let _interrupted = poll(&mut polled, None);
        match read(file.as_fd(), &mut buffer) {
            Ok(0) => return,
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            // For example a connection reset.
            Err(_) => return,
        }
    }
}

impl Descriptor {
    fn number(self) -> i32 {
        match self {
            Self::Stdin => 0,
            Self::Number(number) => number,
        }
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input (--end-with-stdin)"),
            Self::Number(number) => write!(f, "the descriptor {number} (--end-with-fd)"),
        }
    }
}
