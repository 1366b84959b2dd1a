//! Asks a QEMU for its version. A program enters, its version leaves; it starts no machine and leaves no process.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::LaunchError;
use super::outcome::Exit;
use super::printable::printable;
use super::process::Process;
use crate::host::vm::qemu::{Board, Version};

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of what it says that are read at most.
const LARGEST: u64 = 4096;

/// The version of `program`, which is to make `board`.
///
/// # Errors
/// It is missing, cannot be started, or is no QEMU.
pub(crate) async fn ask(program: &Path, board: Board) -> Result<Version, LaunchError> {
    let failed = |source| LaunchError::Resource { what: "make a socket", source };
    let (ours, theirs) = StdStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut ours = UnixStream::from_std(ours).map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(OwnedFd::from(theirs)).stderr(Stdio::null());
    let process = Process::start(command).map_err(|source| spawn_error(program, board, source))?;
    let mut said = Vec::new();
    let answer = async {
        let _broken_off = (&mut ours).take(LARGEST).read_to_end(&mut said).await;
        process.ended().await
    };
    let exit = timeout(PATIENCE, answer).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    let version = Version::parse(&said).filter(|_| exit == Ok(Exit::Code(0)));
    version.ok_or_else(|| {
        let said = printable(said.lines().next().unwrap_or_default().as_bytes());
        LaunchError::NotQemu { program: program.to_owned(), said }
    })
}

/// Why `program`, which was to make `board`, was not started.
pub(crate) fn spawn_error(program: &Path, board: Board, source: io::Error) -> LaunchError {
    let program = program.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => LaunchError::NoQemu { program, package: board.package() },
        _ => LaunchError::Spawn { program, source },
    }
}
