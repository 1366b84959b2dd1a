//! Why there is no running appliance.

use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use super::options::LEAST_MEMORY;
use super::outcome::{Exit, Outcome};
use super::qmp::QmpError;
use super::record::Ended;
use crate::host::vm::accel::NoKvm;
use crate::host::vm::net::NetError;
use crate::host::vm::net::check::{NoNetwork, privileged};
use crate::host::vm::qemu::version::{Lacks, newer};
use crate::registry::tls::TlsError;

// Exit statuses of `localregistry run` for what is wrong before a boot; those of the boot are `Outcome`'s.

/// What was asked for does not go together.
const USAGE: u8 = 2;
/// QEMU is missing, too old, or none.
pub const NO_QEMU: u8 = 8;
/// The disk is missing or none of ours.
pub const NO_DISK: u8 = 9;
/// A port is taken.
pub const NO_PORT: u8 = 10;
/// A bridge, a tap or a socket is missing, in use or something else.
pub const NO_NETWORK: u8 = 11;
/// Something that is to be written cannot be: the run's folder, or a file.
pub const NO_PLACE: u8 = 12;
/// A certificate, a key, or a file that says who may pull cannot be used.
pub const NO_ACCESS: u8 = 13;
/// The kernel or the initramfs is missing, or the kernel lacks what the guest needs.
pub const NO_KERNEL: u8 = 14;
/// The user may not make or open a tap, or listen on a privileged port.
pub const NO_PERMISSION: u8 = 15;

/// Why [`super::Appliance::boot`] gives no machine. Whatever the reason, nothing of the machine is left.
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
    /// The disk is not packed.
    #[error("{} is a folder with an OCI image layout, expected a packed disk", .path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
    },
    /// A file that the machine boots from is empty.
    #[error("the {what} {} is empty", .path.display())]
    Empty {
        /// Disk, kernel, ….
        what: &'static str,
        /// Which.
        path: PathBuf,
    },
    /// The disk has no file system that the guest reads.
    #[error(
        "{} ({bytes} bytes) is no disk of ours: it has none of the file systems EROFS, ext4 and squashfs; make one with \
         `localregistry pack`", .path.display()
    )]
    NoFileSystem {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Some of the disk is missing.
    #[error(
        "the disk {} has {bytes} bytes, and its {fs} file system {expected}: it was copied in part; copy or pack it anew", .path.display()
    )]
    Truncated {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Type of the file system.
        fs: &'static str,
        /// The file system's size.
        expected: u64,
    },
    /// A certificate, or its key, that cannot be served with.
    #[error("{} and {} cannot be served with", .certificate.display(), .key.display())]
    Pem {
        /// The chain's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: TlsError,
    },
    /// A given certificate is not for a name that clients are to use.
    #[error(
        "the certificate {} is not for {name}, by which clients are to reach the registry; give one with that name, or leave the name \
         out", .certificate.display()
    )]
    NotFor {
        /// The chain's file.
        certificate: PathBuf,
        /// The name.
        name: String,
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
    /// Too little memory to boot in.
    #[error("{given} MiB of memory are too little to boot in; expected at least {LEAST_MEMORY}")]
    Memory {
        /// What was given, in MiB.
        given: u32,
    },
    /// KVM is asked for and cannot work.
    #[error("KVM cannot be used (TCG works everywhere)")]
    NoKvm(#[from] NoKvm),
    /// A port is taken, or the address is not one of this machine.
    #[error("cannot listen on {address} for {purpose}")]
    Port {
        /// What the port is for.
        purpose: Purpose,
        /// Where.
        address: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// The user may not listen on the port.
    #[error("no permission to listen on {address} for {purpose}{}", privileged(.address.port()))]
    Privileged {
        /// What the port is for.
        purpose: Purpose,
        /// Where.
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
    /// The program is something else.
    #[error("{} is no QEMU: its --version says {said:?}, expected \"QEMU emulator version …\"", .program.display())]
    NotQemu {
        /// The program.
        program: PathBuf,
        /// The first line that it printed.
        said: String,
    },
    /// QEMU is too old.
    #[error("{} is too old ({})", .program.display(), newer(.package))]
    TooOld {
        /// The program.
        program: PathBuf,
        /// The package that has it.
        package: &'static str,
        /// What it lacks.
        #[source]
        lacks: Lacks,
    },
    /// A network cannot be had.
    #[error(transparent)]
    Network(#[from] NoNetwork),
    /// Networks that do not go together.
    #[error(transparent)]
    Nets(#[from] NetError),
    /// Two say which interfaces there are.
    #[error("the config has interfaces, and networks are given as well: say them in one place")]
    Interfaces,
    /// A network that lives with this program.
    #[error(
        "{network} needs a tap that this program makes and keeps: make one (ip tuntap add dev TAP mode tap user USER) and give tap=TAP"
    )]
    NeedsUs {
        /// The network.
        network: String,
    },
    /// There is nothing to forward with.
    #[error("a port can be forwarded only with the network user (the guest's own port for metrics is metricsPort of its config)")]
    NothingForwarded,
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
    #[error("QEMU's monitor does not name the forwarded port; its answer: {answer:?}")]
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

/// What a port of this machine is listened on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The registry.
    Registry,
    /// Health, metrics and the CA.
    Metrics,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registry => "the registry",
            Self::Metrics => "health and metrics",
        })
    }
}

impl LaunchError {
    /// What it means that `address` cannot be listened on.
    pub(crate) fn port(purpose: Purpose, address: SocketAddrV4, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privileged { purpose, address, source },
            _ => Self::Port { purpose, address, source },
        }
    }

    /// The exit status of `localregistry run` (see its `--help`).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Ended(ended) => ended.outcome.exit_status(),
            Self::Nets(_) | Self::Interfaces | Self::NothingForwarded | Self::NeedsUs { .. } | Self::Memory { .. } => USAGE,
            Self::NoQemu { .. } | Self::NotQemu { .. } | Self::TooOld { .. } | Self::Spawn { .. } => NO_QEMU,
            Self::NoFileSystem { .. } | Self::Truncated { .. } | Self::Layout { .. } => NO_DISK,
            Self::Read { what, .. } | Self::NotAFile { what, .. } | Self::Empty { what, .. } => match *what {
                "disk" => NO_DISK,
                "kernel" | "initramfs" => NO_KERNEL,
                "certificate" | "key" | "secret" => NO_ACCESS,
                _ => 1,
            },
            Self::Port { .. } => NO_PORT,
            Self::Privileged { .. } => NO_PERMISSION,
            Self::Network(cause) if cause.is_permission() => NO_PERMISSION,
            Self::Network(_) => NO_NETWORK,
            Self::Create { .. } => NO_PLACE,
            Self::Pem { .. } | Self::NotFor { .. } => NO_ACCESS,
            _ => 1,
        }
    }

    /// Whether this may be the accelerator's doing: QEMU did not get as far as a guest that shows a sign of life. Some hosts let KVM
    /// open and then refuse it a register, at which QEMU aborts.
    pub(crate) fn blames_accelerator(&self) -> bool {
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
    use crate::host::vm::launch::Killed;

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
        assert!(!LaunchError::NoQemu { program: "qemu".into(), package: "qemu-system-x86" }.blames_accelerator());
    }
}
