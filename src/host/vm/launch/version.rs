//! Asks a QEMU program for its version.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::LaunchError;
use super::outcome::Exit;
use super::process::{Process, socket_pair, spawn_error};
use crate::host::vm::qemu::{Board, Version};
use crate::text::printable;

/// Time limit for `--version`.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of its output that are read at most.
const MAX_OUTPUT: u64 = 4096;

/// Returns the version of `program`, which is to run `board`.
///
/// # Errors
/// Fails if the program is missing, cannot be started, or is not QEMU.
pub(crate) async fn query(program: &Path, board: Board) -> Result<Version, LaunchError> {
    let (mut ours, theirs) = socket_pair()?;
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(theirs).stderr(Stdio::null());
    let process = Process::start(command).map_err(|source| spawn_error(program, board, source))?;
    let mut output = Vec::new();
    let run = async {
        let _reset = (&mut ours).take(MAX_OUTPUT).read_to_end(&mut output).await;
        process.exit().await
    };
    let exit = timeout(TIMEOUT, run).await;
    let output = String::from_utf8_lossy(&output).into_owned();
    let version = Version::parse(&output).filter(|_| exit == Ok(Exit::Code(0)));
    version.ok_or_else(|| {
        let said = printable(output.lines().next().unwrap_or_default().as_bytes());
        LaunchError::NotQemu { program: program.to_owned(), said }
    })
}
