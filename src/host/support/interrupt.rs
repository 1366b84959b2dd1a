//! SIGINT, SIGTERM and SIGHUP while packing: they are noted, a program that is running for the pack is ended, and the work stops at its next
//! check, so that everything half made is removed on the way out. Nothing is removed here.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// The signals that ask a program to end.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A signal asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {}", .0.as_str())]
pub struct Interrupted(pub Signal);

/// Whether the work is to stop. By default it never is.
#[derive(Debug, Default, Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The signal that came, 0 before.
    signal: AtomicI32,
    /// The program that runs for us.
    child: Mutex<Option<Pid>>,
}

impl Interrupt {
    /// From here on the signals are noted. To be called before other threads are started: they inherit that the signals are not
    /// theirs.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn catch() -> io::Result<Self> {
        let signals: SigSet = SIGNALS.into_iter().collect();
        signals.thread_block()?;
        let interrupt = Self::default();
        let shared = Arc::clone(&interrupt.shared);
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while let Ok(signal) = signals.wait() {
                // The first one counts. Those after it change nothing: the way out is a matter of milliseconds, and must be walked.
                let _ = shared.signal.compare_exchange(0, signal as i32, Ordering::SeqCst, Ordering::SeqCst);
                if let Some(child) = *shared.child() {
                    // It has not been waited for, so the number is still its own.
                    let _ = killpg(child, Signal::SIGKILL);
                }
            }
        })?;
        Ok(interrupt)
    }

    /// To be called between steps, and every few milliseconds in a long one.
    ///
    /// # Errors
    /// [`Interrupted`], after a signal.
    pub fn check(&self) -> Result<(), Interrupted> {
        match Signal::try_from(self.shared.signal.load(Ordering::SeqCst)) {
            Ok(signal) => Err(Interrupted(signal)),
            Err(_) => Ok(()),
        }
    }

    /// As [`Interrupt::check`], where an `io::Error` is expected. [`Interrupt::check`] then tells it from others.
    ///
    /// # Errors
    /// After a signal.
    pub fn check_io(&self) -> io::Result<()> {
        self.check().map_err(io::Error::other)
    }

    /// Runs a program to its end, or until a signal comes; then it is killed.
    ///
    /// # Errors
    /// When it cannot be started, or a signal came before.
    pub fn run(&self, command: &mut Command) -> io::Result<ExitStatus> {
        // A process group of its own, so that Ctrl-C on the terminal reaches us alone.
        command.process_group(0);
        let mut child = {
            let mut running = self.shared.child();
            // Under the lock: a signal that comes now finds either no program or this one.
            self.check_io()?;
            let child = command.spawn()?;
            *running = i32::try_from(child.id()).ok().map(Pid::from_raw);
            child
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        // Waits without reaping, so that the number stays taken while a signal's thread may still use it.
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
        *self.shared.child() = None;
        child.wait()
    }
}

impl Shared {
    fn child(&self) -> MutexGuard<'_, Option<Pid>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_to_its_end() {
        let interrupt = Interrupt::default();
        let status = interrupt.run(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(interrupt.check(), Ok(()));
    }

    #[test]
    fn after_a_signal_nothing_is_started() {
        let interrupt = Interrupt::default();
        interrupt.shared.signal.store(Signal::SIGTERM as i32, Ordering::SeqCst);
        assert_eq!(interrupt.check(), Err(Interrupted(Signal::SIGTERM)));
        let error = interrupt.run(&mut Command::new("true")).unwrap_err();
        assert_eq!(error.to_string(), "interrupted by SIGTERM");
    }
}
