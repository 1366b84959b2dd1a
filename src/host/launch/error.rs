//! Why there is no running appliance.

use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use super::outcome::{Exit, Outcome};
use super::qmp::QmpError;
use super::record::Ended;
use crate::host::accel::NoKvm;

/// Why [`super::Vm::boot`] gives no machine. Whatever the reason, nothing of the machine is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file that the machine boots from cannot be read.
    #[error("cannot read the {what} {}", .path.display())]
    Read {
        /// Disk, kernel, ….
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What should be a file is something else.
    #[error("the {what} {} is {found}, expected a file", .path.display())]
    NotAFile {
        /// Disk, kernel, ….
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// A file that the machine boots from is empty.
    #[error("the {what} {} is empty", .path.display())]
    Empty {
        /// Disk, kernel, ….
        what: &'static str,
        /// Which.
        path: PathBuf,
    },
    /// A file that is to keep the console or the events cannot be created.
    #[error("cannot create {} for the {what}", .path.display())]
    Create {
        /// Console or events.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// KVM is asked for and cannot work.
    #[error("KVM cannot be used (--accel tcg works everywhere)")]
    NoKvm(#[from] NoKvm),
    /// The address to publish on cannot be had.
    #[error("cannot listen on {address} ({flag} takes another; with port 0 a free one is taken)")]
    Port {
        /// The flag that chooses it.
        flag: &'static str,
        /// Which.
        address: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// There is no QEMU.
    #[error("{} is not installed (on Debian and Ubuntu: apt-get install {package})", .program.display())]
    NoQemu {
        /// The program that was looked for.
        program: PathBuf,
        /// The package that has it.
        package: &'static str,
    },
    /// QEMU cannot be started.
    #[error("cannot start {}", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU ended before it started the machine.
    #[error("QEMU {exit} before it started the machine{}", said(.stderr))]
    Start {
        /// How it ended.
        exit: Exit,
        /// The last lines that it printed.
        stderr: Vec<String>,
    },
    /// This program ran out of descriptors, threads or memory.
    #[error("cannot {what} for QEMU")]
    Resource {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// QEMU's control socket does not answer as it should.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU does not say which port it forwards from.
    #[error("QEMU's monitor does not name the forwarded port (--publish fixes one); its answer: {answer:?}")]
    NoPort {
        /// What `info usernet` printed.
        answer: String,
    },
    /// The guest printed nothing and said nothing: an accelerator that opens and does not work.
    #[error("the guest has shown no sign of life in {} s", .after.as_secs())]
    Silent {
        /// The time it had.
        after: Duration,
    },
    /// The machine ended before the registry was ready.
    #[error("{}", .0.outcome)]
    Ended(Box<Ended>),
}

impl LaunchError {
    /// The exit status of `localregistry run` (see its `--help`).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Ended(ended) => ended.outcome.exit_status(),
            _ => 1,
        }
    }

    /// Whether this may be the accelerator's doing: QEMU did not get as far as a guest that shows a sign of life. Some hosts let KVM
    /// open and then refuse it a register, at which QEMU aborts.
    pub(super) fn blames_accelerator(&self) -> bool {
        match self {
            Self::Start { .. } | Self::Qmp(_) | Self::Silent { .. } => true,
            Self::Ended(ended) => match ended.outcome {
                Outcome::Died { exit, killed: None, done: false } => exit.is_crash() && ended.console.is_empty(),
                _ => false,
            },
            _ => false,
        }
    }
}

/// QEMU's own words, in a row.
fn said(stderr: &[String]) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {}", stderr.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::launch::Killed;

    fn died(exit: Exit, killed: Option<Killed>, console: &[&str]) -> LaunchError {
        let outcome = Outcome::Died { exit, killed, done: false };
        let console = console.iter().map(|line| (*line).to_owned()).collect();
        LaunchError::Ended(Box::new(Ended { outcome, console, stderr: vec![], unwritten: vec![] }))
    }

    #[test]
    fn only_what_happens_before_a_sign_of_life_blames_the_accelerator() {
        assert!(LaunchError::Silent { after: Duration::from_secs(10) }.blames_accelerator());
        assert!(LaunchError::Start { exit: Exit::Code(1), stderr: vec![] }.blames_accelerator());
        assert!(died(Exit::Signal(6), None, &[]).blames_accelerator(), "an abort");
        assert!(died(Exit::Code(1), None, &[]).blames_accelerator());
        assert!(!died(Exit::Signal(6), None, &["booting"]).blames_accelerator(), "the guest lived");
        assert!(!died(Exit::Signal(9), None, &[]).blames_accelerator(), "somebody killed it");
        assert!(!died(Exit::Told, None, &[]).blames_accelerator());
        assert!(!died(Exit::Signal(6), Some(Killed::Wanted), &[]).blames_accelerator());
        assert!(!LaunchError::NoQemu { program: "qemu".into() }.blames_accelerator());
    }
}
