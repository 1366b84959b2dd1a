//! `run --detach`: starts this program again as a background process, copies its output until the run is ready, and returns.
//!
//! The background process leads a session of its own. Until it is ready, it dies with the process that started it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::host::exit::Status;
use crate::host::support::report::message;
use crate::host::support::sys;

/// Starts the run in the background, waits until it is ready or has ended, and returns the exit status. `stdin` passes standard input on.
pub(crate) fn detach(stdin: bool) -> ExitCode {
    match start(stdin) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            message(format!("localregistry: cannot start the run in the background: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn start(stdin: bool) -> io::Result<u8> {
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments()).stdin(if stdin { Stdio::inherit() } else { Stdio::null() }).stdout(Stdio::piped());
    // SIGTERM rather than SIGKILL, so that it removes its files.
    sys::signal_with_parent(&mut command, Signal::SIGTERM);
    let mut run = command.spawn()?;
    let mut copied = 0;
    if let Some(mut output) = run.stdout.take() {
        let mut buffer = vec![0; 64 * 1024];
        // The output ends when the run has ended, or is ready and has closed it.
        loop {
            let count = output.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            copied += count;
            let mut out = io::stdout().lock();
            out.write_all(buffer.get(..count).unwrap_or_default())?;
            out.flush()?;
        }
    }
    if copied > 0 {
        return Ok(0);
    }
    Ok(run.wait()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Status::QemuDied.code()))
}

/// The arguments of this process, with the hidden flag of the background process after the subcommand.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let index = arguments.iter().position(|argument| argument == "run").map_or(0, |index| index + 1);
    arguments.insert(index, "--supervised".into());
    arguments
}

/// Leaves the session of the terminal, so that Ctrl-C there does not reach this process.
pub(crate) fn leave_session() -> io::Result<()> {
    // It cannot fail: a process that was just started leads no group.
    setsid().map(drop).map_err(io::Error::from)
}

/// Stops dying with the process that started it.
pub(crate) fn outlive_parent() -> io::Result<()> {
    prctl::set_pdeathsig(None).map_err(io::Error::from)
}

/// Closes standard input and output, and redirects standard error to `log`. The process that started it returns then.
pub(crate) fn close_stdio(log: &Path) -> io::Result<()> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stderr(&log)?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(())
}
