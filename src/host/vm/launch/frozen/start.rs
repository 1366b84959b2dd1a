//! The start of a saved machine: what QEMU and the guest get, and how.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::{POLL, Saved, ignore_shared_memory};
use crate::host::support::files;
use crate::host::vm::launch::process::socket_pair;
use crate::host::vm::launch::qmp::{Qmp, QmpError};
use crate::host::vm::launch::{LaunchError, QMP_TIMEOUT};

/// Longest file for the guest in bytes.
const FILE_MAX: u64 = 4 << 20;

/// What QEMU and the guest get when a frozen machine starts, and the sockets for that. QEMU's ends are open until the run ends.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The state of the devices.
    state: Vec<u8>,
    state_socket: UnixStream,
    /// QEMU's number of the other end.
    state_fd: RawFd,
    /// The files of fw_cfg, as the guest reads them.
    files: Vec<u8>,
    files_socket: UnixStream,
}

impl Incoming {
    /// Prepares the start of `saved` with these files. Returns QEMU's ends of the sockets, that for the files second.
    pub(crate) fn new(saved: &Saved, files: &[(&str, PathBuf)]) -> Result<(Self, [OwnedFd; 2]), LaunchError> {
        let (state_socket, qemu_state) = socket_pair()?;
        let (files_socket, qemu_files) = socket_pair()?;
        let mut content = Vec::new();
        for (name, path) in files {
            let file = files::read(path, FILE_MAX);
            let file = file.map_err(|source| LaunchError::Read { what: "file for the guest", path: path.clone(), source })?;
            content.extend(format!("{} {name}\n", file.len()).bytes());
            content.extend(file);
        }
        content.push(b'\n');
        let (state, state_fd) = (saved.state.clone(), qemu_state.as_raw_fd());
        Ok((Self { state, state_socket, state_fd, files: content, files_socket }, [qemu_state, qemu_files]))
    }

    /// Loads the state, lets the guest go on, and sends it its files.
    pub(crate) async fn resume(&mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        ignore_shared_memory(qmp).await?;
        qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{}", self.state_fd) }), QMP_TIMEOUT).await?;
        send(&mut self.state_socket, &self.state, "migrate-incoming").await?;
        // QEMU would wait for the rest of a state that is cut short.
        let _closed = self.state_socket.shutdown().await;
        loop {
            let answer = qmp.execute("query-status", Value::Null, QMP_TIMEOUT).await?;
            if answer.get("status").and_then(Value::as_str) != Some("inmigrate") {
                break;
            }
            sleep(POLL).await;
        }
        qmp.execute("cont", Value::Null, QMP_TIMEOUT).await?;
        send(&mut self.files_socket, &self.files, "cont").await
    }
}

/// Sends what QEMU needs to follow `command`.
async fn send(socket: &mut UnixStream, bytes: &[u8], command: &'static str) -> Result<(), QmpError> {
    let sent = timeout(QMP_TIMEOUT, socket.write_all(bytes)).await;
    sent.map_err(|_| QmpError::TimedOut { command, time_limit: QMP_TIMEOUT })?.map_err(|_| QmpError::Closed { command })
}
