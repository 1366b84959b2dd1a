//! `localregistry stop`: shuts a run down gracefully, or kills it when the time limit has passed, and returns its exit status.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use schemars::JsonSchema;
use serde::Serialize;

use super::dir::folder_of;
use super::folder::RunsError;
use super::state::{Run, RunState};
use crate::host::exit::Status;
use crate::host::support::report::Report;

/// Interval at which the run's state is checked.
const POLL: Duration = Duration::from_millis(20);
/// Time that a killed run has to disappear.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The command line of `localregistry stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry stop e2e
      Ends the run that was started with `run --detach --name e2e`, and waits until it has ended
  localregistry stop e2e --timeout 5
      The same, but kills it if it has not ended after 5 seconds

Exit status: that of the run (see `localregistry run --help`): 0 if it shut down cleanly, 6 if it was killed, now or before.
1 if there is no such run.")]
pub struct StopArgs {
    /// The run: its name, or its folder (with a slash)
    #[arg(value_name = "NAME|DIR")]
    run: OsString,

    /// Time that it has to shut down cleanly before it is killed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    timeout: u64,
}

/// Why the run cannot be stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The folder of all runs cannot be used.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// There is no such run.
    #[error("there is no run {name}: {} is not the folder of a run (`localregistry ps` lists the runs)", .folder.display())]
    NoRun {
        /// The argument.
        name: String,
        /// The folder that it means.
        folder: PathBuf,
    },
    /// Its process cannot be signalled.
    #[error("cannot signal the process {pid} of the run {name}")]
    Signal {
        /// The run.
        name: String,
        /// Its process.
        pid: i32,
        /// The error.
        source: io::Error,
    },
    /// It is still there after SIGKILL.
    #[error("the process {pid} of the run {name} is still there, {} s after it was killed", KILL_TIMEOUT.as_secs())]
    StillThere {
        /// The run.
        name: String,
        /// Its process.
        pid: i32,
    },
    /// Standard output cannot be written.
    #[error("cannot print how the run ended")]
    Print(#[source] io::Error),
}

/// A run that has ended.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StopResult {
    /// Its name.
    name: String,
    /// Its exit status.
    status: u8,
}

/// Stops the run and returns its exit status.
///
/// # Errors
/// See [`StopError`].
pub fn run(args: &StopArgs, report: &Report) -> Result<u8, StopError> {
    let folder = folder_of(&args.run)?;
    let mut run = Run::open(&folder).ok_or_else(|| StopError::NoRun { name: args.run.display().to_string(), folder })?;
    let name = run.info.name.clone();
    if run.is_alive() {
        signal(&run, Signal::TERM)?;
        if !wait_for_end(&mut run, Duration::from_secs(args.timeout)) {
            report.step(format!("{name} has not ended within {} s: killing it", args.timeout));
            signal(&run, Signal::KILL)?;
            if !wait_for_end(&mut run, KILL_TIMEOUT) {
                return Err(StopError::StillThere { name, pid: run.info.pid });
            }
        }
    }
    let (status, how) = match run.state {
        RunState::Ended(0) => (0, "shut down cleanly".to_owned()),
        RunState::Ended(status) => (status, format!("ended with the exit status {status}")),
        _ => (Status::QemuDied.code(), "was killed".to_owned()),
    };
    run.remove_if_dead();
    let text = format!("{name} {how}");
    report.result(&StopResult { name, status }, &text).map_err(StopError::Print)?;
    Ok(status)
}

/// Waits until the run has ended, for `timeout` at most.
fn wait_for_end(run: &mut Run, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        run.refresh();
        if !run.is_alive() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL);
    }
}

/// Sends `signal` to the run's process, but never to another process that has got its number.
fn signal(run: &Run, signal: Signal) -> Result<(), StopError> {
    let failed = |source| StopError::Signal { name: run.info.name.clone(), pid: run.info.pid, source };
    let pid = Pid::from_raw(run.info.pid).filter(|_| run.info.pid > 0);
    let pid = pid.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    };
    // The process that wrote its number holds the lock: while the lock is held, the number is that process's.
    let same = Run::open(&run.folder).is_some_and(|now| now.is_alive() && now.info.pid == run.info.pid);
    if !same {
        return Ok(());
    }
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}
