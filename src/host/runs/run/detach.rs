//! A run that is left in the background. This program starts itself anew, passes on what that prints until it is ready, and returns.
//! The new one leads a session of its own, and dies with this one as long as it is not ready.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::host::support::sys;

/// Exit status where the process that was started was killed, as for a killed QEMU.
const KILLED: u8 = 6;

/// Starts the run, waits until it is ready or has ended, and gives the exit status. With `stdin` the run gets standard input as it is.
pub(crate) fn detach(stdin: bool) -> ExitCode {
    match start(stdin) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("localregistry: cannot start the run in the background: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(stdin: bool) -> io::Result<u8> {
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments()).stdin(if stdin { Stdio::inherit() } else { Stdio::null() }).stdout(Stdio::piped());
    // SIGTERM, so that it removes what it has made.
    sys::signal_with_parent(&mut command, Signal::SIGTERM);
    let mut run = command.spawn()?;
    let mut said = 0;
    if let Some(mut words) = run.stdout.take() {
        let mut buffer = vec![0; 64 * 1024];
        // The end comes when it has ended, or has let go of its standard output: then it is ready.
        loop {
            let count = words.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            said += count;
            let mut out = io::stdout().lock();
            out.write_all(buffer.get(..count).unwrap_or_default())?;
            out.flush()?;
        }
    }
    if said > 0 {
        return Ok(0);
    }
    Ok(run.wait()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED))
}

/// The arguments of this process, with the flag that says who it is behind the subcommand.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let place = arguments.iter().position(|argument| argument == "run").map_or(0, |place| place + 1);
    arguments.insert(place, "--supervised".into());
    arguments
}

/// Leaves the session of whoever started it: Ctrl-C there is not meant for it.
pub(crate) fn leave_session() -> io::Result<()> {
    // It leads no group: it has just been started.
    setsid().map(drop).map_err(io::Error::from)
}

/// From here on it lives by itself.
pub(crate) fn outlive_parent() -> io::Result<()> {
    prctl::set_pdeathsig(None).map_err(io::Error::from)
}

/// Lets go of standard input and output, and says on `log` what it has to say: whoever started it goes.
pub(crate) fn let_go(log: &Path) -> io::Result<()> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stderr(&log)?;
    dup2_stdin(&nowhere)?;
    dup2_stdout(&nowhere)?;
    Ok(())
}
