//! A child process, QEMU or passt, that is always reaped. It never outlives its [`Process`] nor this program.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::LaunchError;
use super::outcome::Exit;
use crate::host::support::sys;
use crate::host::vm::qemu::Board;

/// A running child. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    killer: Killer,
    exit: watch::Receiver<Option<Exit>>,
    thread: Option<JoinHandle<()>>,
}

/// Kills a process by its pidfd, which names that process even when its pid has been reused.
#[derive(Debug, Clone)]
pub(crate) struct Killer(Arc<OwnedFd>);

impl Killer {
    /// Sends SIGKILL. Sending it to one's own child can only fail if the child has ended already.
    pub(crate) fn kill(&self) {
        let _ended_already = pidfd_send_signal(&*self.0, Signal::KILL);
    }
}

impl Process {
    /// Starts `command`.
    ///
    /// A thread of its own starts, waits for and reaps the child. The kernel kills the child when that thread ends
    /// ([`sys::signal_with_parent`]), so the caller's thread and runtime may end earlier.
    ///
    /// # Errors
    /// Fails if the program or the thread cannot be started.
    pub(crate) fn start(command: Command) -> io::Result<Self> {
        Self::start_after(command, || Ok(()))
    }

    /// The same. `prepare` runs on the child's thread before it starts the child, which inherits what a thread has for itself.
    pub(crate) fn start_after(
        mut command: Command,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        sys::signal_with_parent(&mut command, nix::sys::signal::Signal::SIGKILL);
        let (started, start) = mpsc::sync_channel(1);
        let (exit_sender, exit) = watch::channel(None);
        let thread = thread::Builder::new().name("qemu".into()).spawn(move || {
            match prepare().and_then(|()| spawn(command)) {
                Ok((mut child, pidfd)) => {
                    let _starter_waits = started.send(Ok((child.id(), pidfd)));
                    // Waiting can only fail if something else has reaped the child; its status is lost then.
                    let exit = child.wait().map_or(Exit::Signal(0), Exit::from);
                    exit_sender.send_replace(Some(exit));
                }
                Err(error) => {
                    let _starter_waits = started.send(Err(error));
                }
            };
        })?;
        let (pid, pidfd) = start.recv().map_err(io::Error::other)??;
        Ok(Self { pid, killer: Killer(Arc::new(pidfd)), exit, thread: Some(thread) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn killer(&self) -> Killer {
        self.killer.clone()
    }

    /// Waits for the end of the process. Cancel-safe, and may be called again.
    pub(crate) fn exit(&self) -> impl Future<Output = Exit> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            let exit = exit.wait_for(Option::is_some).await.map(|exit| *exit);
            // The sender is dropped only after it has sent.
            exit.ok().flatten().unwrap_or(Exit::Signal(0))
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.killer.kill();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Starts `command`. Dropping the command closes this process's copies of the file descriptors that the child inherits.
fn spawn(mut command: Command) -> io::Result<(Child, OwnedFd)> {
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let opened = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    match opened {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error.into())
        }
    }
}

/// The error for a QEMU `program` for `board` that could not be started.
pub(crate) fn spawn_error(program: &Path, board: Board, source: io::Error) -> LaunchError {
    let program = program.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => LaunchError::NoQemu { program, package: board.package() },
        _ => LaunchError::Spawn { program, source },
    }
}

/// Makes a connected pair of stream sockets: this process's end, and the end that a child inherits.
pub(crate) fn socket_pair() -> Result<(UnixStream, OwnedFd), LaunchError> {
    let failed = |source| LaunchError::Resource { what: "make a socket", source };
    let (ours, theirs) = StdStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    Ok((UnixStream::from_std(ours).map_err(failed)?, theirs.into()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn command(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[tokio::test]
    async fn exit_can_be_awaited_twice() {
        let process = Process::start(command("exit 7")).unwrap();
        assert_eq!(process.exit().await, Exit::Code(7));
        assert_eq!(process.exit().await, Exit::Code(7));
        process.killer().kill();
    }

    #[tokio::test]
    async fn killed_process_exits_by_signal() {
        let process = Process::start(command("exec sleep 1000")).unwrap();
        process.killer().kill();
        assert_eq!(process.exit().await, Exit::Signal(9));
    }

    #[test]
    fn dropping_kills_and_reaps() {
        let process = Process::start(command("exec sleep 1000")).unwrap();
        let entry = format!("/proc/{}", process.pid());
        assert!(Path::new(&entry).exists());
        drop(process);
        assert!(!Path::new(&entry).exists(), "neither running nor a zombie");
    }

    #[test]
    fn missing_program_is_an_error() {
        let error = Process::start(Command::new("/nonexistent/qemu")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
