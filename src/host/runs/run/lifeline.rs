//! A pipe or socket whose other end the launcher holds: when the launcher closes it or ends, in whatever way, the run ends too.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::{Errno, read};
use tokio::sync::oneshot;

use crate::host::support::sys;

/// Which descriptor is the lifeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// Standard input.
    Stdin,
    /// One that this program inherits by this number.
    Number(i32),
}

/// Why a descriptor cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifelineError {
    #[error("{0} cannot be used: the launcher has to leave it open for this program (without close-on-exec)")]
    NotOpen(Descriptor, #[source] io::Error),
    #[error("{0} is neither a pipe nor a socket, whose end could be waited for: give it one, and keep the other end open")]
    Kind(Descriptor),
    #[error("{0} is the writing end of a pipe: give it the reading end, and keep the writing end open")]
    WritingEnd(Descriptor),
    #[error("the thread that watches {0} cannot be started")]
    Thread(Descriptor, #[source] io::Error),
}

/// A watched descriptor.
#[derive(Debug)]
pub(crate) struct Lifeline {
    descriptor: Descriptor,
    closed: oneshot::Receiver<()>,
}

impl Lifeline {
    /// Watches `descriptor`. What is written to it is read and means nothing.
    ///
    /// # Errors
    /// Nothing is open there, or it has no end to wait for: it is no pipe and no socket, or the writing end of a pipe.
    pub(crate) fn watch(descriptor: Descriptor) -> Result<Self, LifelineError> {
        // A copy: the number may be given to another file later.
        let copy = sys::inherited(descriptor.number()).map_err(|source| LifelineError::NotOpen(descriptor, source))?;
        check(&copy, descriptor)?;
        let (close, closed) = oneshot::channel();
        let watch = move || {
            wait_for_end(&copy);
            // Nobody listens once the run has ended.
            let _ended = close.send(());
        };
        let thread = thread::Builder::new().name("lifeline".into()).spawn(watch);
        thread.map_err(|source| LifelineError::Thread(descriptor, source))?;
        Ok(Self { descriptor, closed })
    }
}

/// Waits until the launcher has closed `lifeline`, and takes it: later calls wait forever. So do all without a lifeline. Cancel-safe.
pub(crate) async fn closed(lifeline: &mut Option<Lifeline>) -> Descriptor {
    if let Some(Lifeline { descriptor, closed }) = lifeline.as_mut()
        && closed.await.is_ok()
    {
        let descriptor = *descriptor;
        *lifeline = None;
        return descriptor;
    }
    std::future::pending().await
}

fn check(file: &OwnedFd, descriptor: Descriptor) -> Result<(), LifelineError> {
    let failed = |error: Errno| LifelineError::NotOpen(descriptor, error.into());
    let kind = FileType::from_raw_mode(fstat(file).map_err(failed)?.st_mode);
    if !matches!(kind, FileType::Fifo | FileType::Socket) {
        return Err(LifelineError::Kind(descriptor));
    }
    let mode = fcntl_getfl(file).map_err(failed)? & OFlags::RWMODE;
    if mode == OFlags::WRONLY { Err(LifelineError::WritingEnd(descriptor)) } else { Ok(()) }
}

/// Reads to the end of `file`, which may be non-blocking.
fn wait_for_end(file: &OwnedFd) {
    let mut buffer = [0; 4096];
    loop {
        let mut polled = [PollFd::new(file, PollFlags::IN)];
        let _interrupted = poll(&mut polled, None);
        match read(file.as_fd(), &mut buffer) {
            Ok(0) => return,
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            // A reset connection, for one.
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
