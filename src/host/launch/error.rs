//! Why there is no running appliance.

use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use super::outcome::Exit;
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
    #[error("cannot listen on {address} (--publish takes another, without it a free port is taken)")]
    Port {
        /// Which.
        address: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// There is no QEMU.
    #[error("{} is not installed (on Debian and Ubuntu: apt-get install qemu-system-x86)", .program.display())]
    NoQemu {
        /// The program that was looked for.
        program: PathBuf,
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
}

/// QEMU's own words, in a row.
fn said(stderr: &[String]) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {}", stderr.join("; ")) }
}
