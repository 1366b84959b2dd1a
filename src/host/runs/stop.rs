//! `localregistry stop`: a run's name or folder enters; the run ends in order, and its exit status leaves. One that does not end is
//! killed.

use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use schemars::JsonSchema;
use serde::Serialize;

use super::dir::{Run, RunsError, State};
use crate::host::support::report::Report;

/// Time between two looks at a run.
const POLL: Duration = Duration::from_millis(20);
/// How long a killed run may take to be gone.
const GRACE: Duration = Duration::from_secs(10);
/// Exit status where the run was killed, as `run` has it for a killed QEMU.
const KILLED: u8 = 6;

/// The command line of `localregistry stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: that of the run (see `localregistry run --help`): 0 where it ended in order, 6 where it had to be killed or had been.
1 where there is no such run.")]
pub struct Args {
    /// The run: its name, or its folder (with a slash)
    #[arg(value_name = "NAME|DIR")]
    run: String,

    /// How long it may take to end in order before it is killed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    timeout: u64,
}

/// Why a run is not ended.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The folder of all runs.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// There is no such run.
    #[error("there is no run {name}: {} is no folder of one (`localregistry ps` lists them)", .folder.display())]
    NoRun {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// Its process cannot be signalled.
    #[error("cannot signal the process {pid} of the run {name}")]
    Signal {
        /// The run.
        name: String,
        /// Its process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// It does not even die.
    #[error("the process {pid} of the run {name} was killed and is not gone")]
    Undead {
        /// The run.
        name: String,
        /// Its process.
        pid: i32,
    },
    /// Standard output.
    #[error("cannot print how the run ended")]
    Print(#[source] io::Error),
}

/// A run that has ended.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "StopResult")]
pub struct Ended {
    /// Its name.
    name: String,
    /// Its exit status.
    status: u8,
}

/// Ends the run and gives its exit status.
///
/// # Errors
/// There is no such run, or it cannot be ended.
pub fn run(args: &Args, report: &Report) -> Result<u8, StopError> {
    let folder = super::dir::folder_of(&args.run)?;
    let mut run = Run::of(&folder).ok_or_else(|| StopError::NoRun { name: args.run.clone(), folder })?;
    let name = run.who.name.clone();
    if run.lives() {
        signal(&run, Signal::TERM)?;
        if !ends(&mut run, Duration::from_secs(args.timeout)) {
            report.step(format!("{name} has not ended within {} s: killing it", args.timeout));
            signal(&run, Signal::KILL)?;
            if !ends(&mut run, GRACE) {
                return Err(StopError::Undead { name, pid: run.who.pid });
            }
        }
    }
    let (status, how) = match run.state {
        State::Ended(0) => (0, "ended in order".to_owned()),
        State::Ended(status) => (status, format!("ended with the exit status {status}")),
        _ => (KILLED, "was killed".to_owned()),
    };
    run.clean();
    let text = format!("{name} {how}");
    report.result(&Ended { name, status }, &text).map_err(StopError::Print)?;
    Ok(status)
}

/// Waits until the run has ended, for `patience` at most.
fn ends(run: &mut Run, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        run.look();
        if !run.lives() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL);
    }
}

/// Sends `signal` to the run's process, and to no other that has been given its number.
fn signal(run: &Run, signal: Signal) -> Result<(), StopError> {
    let failed = |source| StopError::Signal { name: run.who.name.clone(), pid: run.who.pid, source };
    let pid = Pid::from_raw(run.who.pid).filter(|_| run.who.pid > 0).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    };
    // The lock is held by the process that wrote its number: while it is, the number is that process's.
    let lives = Run::of(&run.folder).is_some_and(|now| now.lives() && now.who.pid == run.who.pid);
    if !lives {
        return Ok(());
    }
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}
