//! Handles SIGINT, SIGTERM and SIGHUP. A signal is recorded, the external program of the work is killed, and the work stops at its next
//! check, so that destructors remove unfinished files. Work that cannot check, such as a library that parses a large file, runs under
//! [`Interrupt::end_at_once`]. Commands that run until a signal ends them wait for [`Signals`].

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::report::message;
use super::workers::no_thread;
use super::{files, sys};

/// The signals that end the work.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The work was ended by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {}", .0.as_str())]
pub struct Interrupted(pub Signal);

impl Interrupted {
    /// The exit status after the signal, as in a shell: 128 plus its number.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        u8::try_from(128 + self.0 as i32).unwrap_or(1)
    }
}

/// Tells long work to stop after a signal. The default never does.
#[derive(Debug, Default, Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The first signal received, 0 before it.
    signal: AtomicI32,
    /// The last signal received.
    last: watch::Sender<Option<Signal>>,
    /// The external program that is running.
    child: Mutex<Option<Pid>>,
    /// While a signal ends the process at once: the start of its message.
    at_once: Mutex<Option<String>>,
}

/// The one of [`Interrupt::catch`]: signals come to the process.
static CAUGHT: OnceLock<Interrupt> = OnceLock::new();

/// While this lives, a signal ends the process at once. See [`Interrupt::end_at_once`].
#[derive(Debug)]
pub struct EndAtOnce<'a> {
    shared: &'a Shared,
    /// The prefix of one around this.
    outer: Option<String>,
}

impl Drop for EndAtOnce<'_> {
    fn drop(&mut self) {
        *self.shared.at_once() = self.outer.take();
    }
}

/// The signals of an [`Interrupt`] as an asynchronous stream.
#[derive(Debug)]
pub struct Signals(watch::Receiver<Option<Signal>>);

impl Signals {
    /// Waits for the next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        while self.0.changed().await.is_ok() {
            if let Some(signal) = *self.0.borrow_and_update() {
                return signal;
            }
        }
        std::future::pending().await
    }
}

impl Interrupt {
    /// Handles the signals from now on, except for a SIGHUP that was ignored before, as under nohup. Call it before other threads
    /// start: they inherit the blocked signals.
    ///
    /// # Errors
    /// Fails if the thread that waits for signals cannot be started.
    pub fn catch() -> io::Result<Self> {
        let is_handled = |signal: &Signal| *signal != Signal::SIGHUP || !sys::is_ignored(*signal);
        let signals: SigSet = SIGNALS.into_iter().filter(is_handled).collect();
        signals.thread_block()?;
        let interrupt = Self::default();
        let shared = Arc::clone(&interrupt.shared);
        let started = thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while let Ok(signal) = signals.wait() {
                // Only the first signal counts. Later ones do not cut the cleanup short, which takes milliseconds.
                let _ = shared.signal.compare_exchange(0, signal as i32, Ordering::SeqCst, Ordering::SeqCst);
                shared.last.send_replace(Some(signal));
                if let Some(child) = *shared.child() {
                    // The child has not been reaped yet, so its PID is not reused.
                    let _ = killpg(child, Signal::SIGKILL);
                }
                shared.end();
            }
        });
        started.map_err(|refused| no_thread(&refused))?;
        let _first = CAUGHT.set(interrupt.clone());
        Ok(interrupt)
    }

    /// The one that handles the signals of this process. If it handles none, one that never stops.
    #[must_use]
    pub fn of_process() -> Self {
        CAUGHT.get().cloned().unwrap_or_default()
    }

    /// The signals, one that has already come included.
    #[must_use]
    pub fn signals(&self) -> Signals {
        let mut signals = self.shared.last.subscribe();
        signals.mark_changed();
        Signals(signals)
    }

    /// One that has received SIGTERM.
    #[cfg(test)]
    pub fn interrupted() -> Self {
        let interrupt = Self::default();
        interrupt.shared.signal.store(Signal::SIGTERM as i32, Ordering::SeqCst);
        interrupt
    }

    /// Checks for a signal. Call it between steps, and every few milliseconds in a long step.
    ///
    /// # Errors
    /// Fails with [`Interrupted`] after a signal.
    pub fn check(&self) -> Result<(), Interrupted> {
        match Signal::try_from(self.shared.signal.load(Ordering::SeqCst)) {
            Ok(signal) => Err(Interrupted(signal)),
            Err(_) => Ok(()),
        }
    }

    /// As [`Interrupt::check`], for functions that return `io::Error`. Callers tell it from other errors by [`Interrupt::check`].
    ///
    /// # Errors
    /// Fails after a signal.
    pub fn check_io(&self) -> io::Result<()> {
        self.check().map_err(io::Error::other)
    }

    /// Reads some bytes. A read that a signal interrupts which does not end the program is repeated.
    ///
    /// # Errors
    /// Fails if reading fails, or after a signal.
    pub fn read(&self, reader: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.check_io()?;
            match reader.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// From now on, until the result is dropped, a signal ends the process at once, with `prefix` before the message. Temporary folders
    /// and incomplete files are removed. For work that changes nothing else, in which calls of libraries may take seconds and do not check for a signal.
    #[must_use]
    pub fn end_at_once(&self, prefix: impl Into<String>) -> EndAtOnce<'_> {
        let outer = self.shared.at_once().replace(prefix.into());
        // A signal that came before.
        self.shared.end();
        EndAtOnce { shared: &self.shared, outer }
    }

    /// Runs an external program, and kills it if a signal comes.
    ///
    /// # Errors
    /// Fails if the program cannot be started, or after a signal.
    pub fn run(&self, command: &mut Command) -> io::Result<ExitStatus> {
        // Its own process group, so that Ctrl-C on the terminal reaches only this process.
        command.process_group(0);
        let mut child = {
            let mut running = self.shared.child();
            // Checked under the lock: a signal that comes now finds no program or this one.
            self.check_io()?;
            let child = command.spawn()?;
            *running = i32::try_from(child.id()).ok().map(Pid::from_raw);
            child
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        // Waits without reaping, so that the PID is not reused while the signal thread may kill it.
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
        *self.shared.child() = None;
        child.wait()
    }
}

impl Shared {
    fn at_once(&self) -> MutexGuard<'_, Option<String>> {
        self.at_once.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process if a signal came and nothing else would hear it. The lock keeps the work from leaving that state meanwhile.
    fn end(&self) {
        let at_once = self.at_once();
        if let Some(prefix) = at_once.as_deref()
            && let Ok(signal) = Signal::try_from(self.signal.load(Ordering::SeqCst))
        {
            let _none_is_created = files::remove_temporary_paths();
            let cause = Interrupted(signal);
            message(format!("localregistry: {prefix}{cause}"));
            process::exit(cause.exit_code().into());
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Pid>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_of_an_uninterrupted_program_is_returned() {
        let interrupt = Interrupt::default();
        let status = interrupt.run(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(interrupt.check(), Ok(()));
    }

    #[test]
    fn after_a_signal_no_program_is_started() {
        let interrupt = Interrupt::interrupted();
        assert_eq!(interrupt.check(), Err(Interrupted(Signal::SIGTERM)));
        let error = interrupt.run(&mut Command::new("true")).unwrap_err();
        assert_eq!(error.to_string(), "interrupted by SIGTERM");
    }
}
