//! PID 1's side of the process that serves: starts it, and sends and receives its messages.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use tokio::sync::mpsc::UnboundedReceiver;

use super::early::console;
use super::error::Fault;
use super::messages::{self, Channel, Order, Report};

/// The program's argument that starts the server. See [`server`](super::server).
pub const ARGUMENT: &str = "serve";

/// The process, before it serves.
#[derive(Debug)]
pub struct Process {
    socket: UnixDatagram,
    pid: Pid,
}

impl Process {
    /// Starts it. It waits.
    ///
    /// # Errors
    /// Fails if the kernel starts no process.
    pub fn start() -> io::Result<Self> {
        let (socket, its) = UnixDatagram::pair()?;
        // If memory runs out, the kernel must not end the server alone: it panics if it can end no process, and the launcher sees that.
        if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
            console::log(&format!("if memory runs out, the server alone may be ended: cannot write oom_score_adj: {error}"));
        }
        let child = Command::new("/proc/self/exe").arg(ARGUMENT).stdin(OwnedFd::from(its)).spawn()?;
        Ok(Self { socket, pid: Pid::from_raw(child.id().cast_signed()) })
    }

    /// Sends the first message, with the port of events. Must be called within the runtime.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub fn begin(self, order: &Order, port: Option<OwnedFd>) -> io::Result<Server> {
        messages::send(&self.socket, order, port.as_ref().map(AsFd::as_fd))?;
        Ok(Server { channel: Channel::new(self.socket)?, pid: self.pid })
    }
}

/// The server, as PID 1 sees it.
#[derive(Debug, Clone)]
pub struct Server {
    channel: Channel,
    pid: Pid,
}

impl Server {
    /// Sends a message.
    pub async fn send(&self, order: &Order) {
        self.channel.send(order).await;
    }

    /// Waits for a message, or for the end of the server among the processes that have `ended`.
    ///
    /// # Errors
    /// Fails if the server has ended without a last message, or if it sends something else.
    pub async fn receive(&self, ended: &mut UnboundedReceiver<WaitStatus>) -> Result<Report, Fault> {
        tokio::select! {
            biased;
            message = self.channel.receive() => message.map_err(Fault::ServerMessage),
            // One with a last message waits until it is ended.
            status = self.status(ended) => Err(Fault::ServerEnded(status)),
        }
    }

    async fn status(&self, ended: &mut UnboundedReceiver<WaitStatus>) -> WaitStatus {
        loop {
            match ended.recv().await {
                Some(status) if status.pid() == Some(self.pid) => return status,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}
