//! The QEMU process: started, killed, reaped. A command enters; a process leaves that a thread of its own waits for. It never
//! outlives its [`Process`], nor this program.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use super::outcome::Exit;
use crate::host::support::sys;

/// A running child. Dropping it kills it and returns when it is gone.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    killer: Killer,
    ended: watch::Receiver<Option<Exit>>,
    keeper: Option<JoinHandle<()>>,
}

/// What a process is killed by: it names that process even when its number has been given to another.
#[derive(Debug, Clone)]
pub(crate) struct Killer(Arc<OwnedFd>);

impl Killer {
    /// Sends SIGKILL. That the process has ended already is no fault: nothing else can be wrong with a descriptor of one's own child.
    pub(crate) fn kill(&self) {
        let _ended_already = pidfd_send_signal(&*self.0, Signal::KILL);
    }
}

impl Process {
    /// Starts `command`.
    ///
    /// A thread starts it, waits for it and reaps it. It is the thread whose end the kernel watches ([`sys::signal_with_parent`]), so
    /// that neither the caller's thread nor its runtime matters, and only this program's end ends the child.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        sys::signal_with_parent(&mut command, nix::sys::signal::Signal::SIGKILL);
        let (started, start) = mpsc::sync_channel(1);
        let (end, ended) = watch::channel(None);
        let keeper = thread::Builder::new().name("qemu".into()).spawn(move || {
            match spawn(command) {
                Ok((mut child, pidfd)) => {
                    let _starter_waits = started.send(Ok((child.id(), pidfd)));
                    // An error here would mean that somebody else has reaped the child: then it has ended, and nobody knows how.
                    let exit = child.wait().map_or(Exit::Signal(0), Exit::from);
                    end.send_replace(Some(exit));
                }
                Err(error) => {
                    let _starter_waits = started.send(Err(error));
                }
            };
        })?;
        let (pid, pidfd) = start.recv().map_err(io::Error::other)??;
        Ok(Self { pid, killer: Killer(Arc::new(pidfd)), ended, keeper: Some(keeper) })
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What it is killed by.
    pub(crate) fn killer(&self) -> Killer {
        self.killer.clone()
    }

    /// Waits for its end. Cancel-safe, and every later call gives the same.
    pub(crate) async fn ended(&self) -> Exit {
        let mut ended = self.ended.clone();
        let exit = ended.wait_for(Option::is_some).await.map(|exit| *exit);
        // The sender goes only after it has told.
        exit.ok().flatten().unwrap_or(Exit::Signal(0))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.killer.kill();
        if let Some(keeper) = self.keeper.take() {
            let _ended = keeper.join();
        }
    }
}

/// Starts `command` and closes this program's copies of the descriptors that it inherits.
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
    async fn the_end_is_told_to_everyone_who_asks() {
        let process = Process::start(command("exit 7")).unwrap();
        assert_eq!(process.ended().await, Exit::Code(7));
        assert_eq!(process.ended().await, Exit::Code(7));
        process.killer().kill();
    }

    #[tokio::test]
    async fn a_killed_process_says_so() {
        let process = Process::start(command("exec sleep 1000")).unwrap();
        process.killer().kill();
        assert_eq!(process.ended().await, Exit::Signal(9));
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
    fn a_missing_program_is_an_error() {
        let error = Process::start(Command::new("/nonexistent/qemu")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
