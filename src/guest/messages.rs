//! The messages between PID 1 and the process that serves: JSON, one in each datagram of a pair of Unix sockets. The server's end is its
//! standard input.

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::disk::MountedDisk;
use super::early::console;
use super::error::Fault;
use super::power::{Requester, ShutdownRequest};
use crate::proto::{FaultCommand, FaultReply, Step};
use crate::registry::telemetry::metrics::Totals;

/// Longest message, in bytes. A longer one is cut and then invalid.
const MAX: usize = 64 << 10;

/// From PID 1.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// The first one: what the boot has done. With it comes the port of events, if there is one.
    Start {
        /// The mounted disks.
        disks: Vec<DiskRoot>,
        /// Whether the clock is plausible.
        clock_trusted: bool,
        /// The steps of the boot so far.
        steps: Vec<Step>,
    },
    /// The addresses of the machine, at first with the step of the boot that found them.
    Addresses {
        /// The addresses.
        addresses: Vec<IpAddr>,
        /// The step.
        step: Option<Step>,
    },
    /// Serve a disk as well. The server answers with [`Report::DisksChanged`].
    Add(DiskRoot),
    /// A command for the plan of faults. The server answers with [`Report::Faults`].
    Faults(FaultCommand),
    /// Stop to serve the disk of this name. The server answers with [`Report::DisksChanged`].
    Remove(String),
    /// Shut down, or end the transfers in progress.
    ShutDown(ShutdownRequest),
}

/// The name and the mount point of a disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct DiskRoot {
    /// Its name in messages.
    pub name: String,
    /// Its mount point.
    pub root: PathBuf,
}

impl From<&MountedDisk> for DiskRoot {
    fn from(MountedDisk { device, root }: &MountedDisk) -> Self {
        Self { name: device.to_string(), root: root.clone() }
    }
}

/// From the server.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// It serves, and has sent the event.
    Ready,
    /// A disk was added or removed, or this is why it was not.
    DisksChanged(Result<(), ServerFault>),
    /// A reply to a command for the plan of faults.
    Faults(FaultReply),
    /// The last one: it has shut down.
    Ended(Shutdown),
    /// The last one: it cannot serve.
    Failed(ServerFault),
}

/// A fault of the server.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ServerFault {
    /// Its stable code.
    pub code: String,
    /// The fault and its causes.
    pub message: String,
}

impl ServerFault {
    /// Its code, as far as it looks like one: a server that is attacked may send anything.
    #[must_use]
    pub fn code(&self) -> &str {
        let is_code = self.code.len() <= 32 && self.code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        if is_code { &self.code } else { "SERVER_ENDED" }
    }
}

impl From<Fault> for ServerFault {
    fn from(fault: Fault) -> Self {
        Self { code: fault.code().to_owned(), message: fault.chain() }
    }
}

/// The result of a requested shutdown.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shutdown {
    /// The source of the request.
    pub by: Requester,
    /// The source of a second request, which ended the transfers in progress.
    pub repeated_by: Option<Requester>,
    /// The number of completed requests.
    pub requests: u64,
    /// The bytes in their responses.
    pub bytes: u64,
    /// The number of events that could not be sent.
    pub dropped_events: u64,
}

impl Shutdown {
    /// A shutdown that `by` requested.
    #[must_use]
    pub const fn new(by: Requester, totals: Totals) -> Self {
        Self { by, repeated_by: None, requests: totals.requests, bytes: totals.bytes, dropped_events: 0 }
    }

    /// A description for the console and the `done` event.
    #[must_use]
    pub fn reason(&self) -> String {
        let again = self.repeated_by.map_or_else(String::new, |by| format!(", and at once by {}", by.describe()));
        format!("shut down by {}{again}", self.by.describe())
    }
}

/// Waits for a message, and the file that comes with it, outside the runtime.
///
/// # Errors
/// Fails if the other end sends something else.
pub fn receive<T: DeserializeOwned>(socket: &UnixDatagram) -> io::Result<(T, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut files = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MAX];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut files, RecvFlags::CMSG_CLOEXEC)?;
    let file = files.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok((serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?, file))
}

/// Sends a message, and a file with it, outside the runtime.
///
/// # Errors
/// Fails if the other end is gone.
pub fn send(socket: &UnixDatagram, message: &impl Serialize, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut files = SendAncillaryBuffer::new(&mut space);
    if let Some(file) = &file {
        files.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(file)));
    }
    let bytes = serde_json::to_vec(message)?;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut files, SendFlags::empty())?;
    Ok(())
}

/// One end, within the runtime.
#[derive(Debug, Clone)]
pub struct Channel(Arc<tokio::net::UnixDatagram>);

impl Channel {
    /// The end `socket`. Must be called within the runtime.
    ///
    /// # Errors
    /// Fails if the runtime cannot watch it.
    pub fn new(socket: UnixDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(Arc::new(tokio::net::UnixDatagram::from_std(socket)?)))
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// Fails if the other end sends something else.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<T> {
        let mut bytes = vec![0; MAX];
        let length = self.0.recv(&mut bytes).await?;
        Ok(serde_json::from_slice(bytes.get(..length).unwrap_or_default())?)
    }

    /// Sends a message. A failure is printed: the process at the other end has ended, which PID 1 sees by itself.
    pub async fn send(&self, message: &(impl Serialize + Debug)) {
        let sent = match serde_json::to_vec(message) {
            Ok(bytes) => self.0.send(&bytes).await.map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = sent {
            console::log(&format!("cannot send {message:?}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_and_one_may_bring_a_file() {
        let (one, other) = UnixDatagram::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        std::fs::write(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)), "content").unwrap();
        let start = |steps| Order::Start { disks: Vec::new(), clock_trusted: true, steps };
        send(&one, &start(Vec::new()), Some(file.as_fd())).unwrap();
        send(&one, &Order::Remove("/dev/vdb".to_owned()), None).unwrap();
        let (order, received) = receive(&other).unwrap();
        assert!(matches!(order, Order::Start { clock_trusted: true, .. }), "{order:?}");
        let mut content = String::new();
        File::from(received.unwrap()).read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");

        let (one, other) = (Channel::new(one).unwrap(), Channel::new(other).unwrap());
        assert!(matches!(other.receive().await.unwrap(), Order::Remove(name) if name == "/dev/vdb"));
        one.send(&"not an order").await;
        assert!(other.receive::<Order>().await.is_err());
        let step = Step { name: "x".repeat(MAX), start: 0.0, duration: 0.0 };
        one.send(&start(vec![step])).await;
        assert!(other.receive::<Order>().await.is_err(), "a longer one is cut");
    }

    #[test]
    fn code_that_is_none_is_not_repeated() {
        for (code, expected) in [("BAD_DISK", "BAD_DISK"), ("a b", "SERVER_ENDED"), (&"A".repeat(33), "SERVER_ENDED")] {
            let fault = ServerFault { code: code.to_owned(), message: String::new() };
            assert_eq!(fault.code(), expected);
        }
    }

    #[test]
    fn shutdown_reason_names_the_sources_of_both_requests() {
        let reason = |by, repeated_by| Shutdown { repeated_by, ..Shutdown::new(by, Totals::default()) }.reason();
        for (by, again, words) in [
            (Requester::Command, None, "shut down by a command on the control port"),
            (Requester::Terminate, Some(Requester::Interrupt), "shut down by SIGTERM, and at once by SIGINT (Ctrl-Alt-Del)"),
            (Requester::Button, Some(Requester::Button), "shut down by the power button, and at once by the power button"),
        ] {
            assert_eq!(reason(by, again), words);
        }
    }
}
