//! The errors of a launch, and the exit status that each means for `localregistry run`.

use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use super::monitor::ExitReport;
use super::options::MIN_MEMORY;
use super::outcome::{Exit, Outcome};
use super::passt::PasstError;
use super::qmp::QmpError;
use crate::host::exit::Status;
use crate::host::vm::accel::KvmError;
use crate::host::vm::net::NetSpecError;
use crate::host::vm::net::check::{NetworkError, privileged};
use crate::host::vm::qemu::version::{VersionError, newer};
use crate::registry::tls::TlsError;

/// Why [`super::Appliance::boot`] failed. No process and no file of the machine is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file that the machine boots from cannot be read.
    #[error("cannot read the {what} {}", .path.display())]
    Read {
        /// Disk, kernel, ….
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The path is not a file.
    #[error("the {what} {} is {found}, expected a file", .path.display())]
    NotAFile {
        /// Disk, kernel, ….
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What is there instead.
        found: &'static str,
    },
    /// The disk is a folder with an image layout, which has to be packed first.
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
        /// The file.
        path: PathBuf,
    },
    /// The disk has no file system that the guest can read.
    #[error(
        "{} ({bytes} bytes) is not a packed disk: it has no EROFS, ext4 or squashfs file system; make one with \
         `localregistry pack`", .path.display()
    )]
    NoFileSystem {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The disk is shorter than its file system.
    #[error(
        "cannot boot {}: it is cut short: it has {bytes} bytes, and its {fs} file system has {expected}; copy or pack the disk again",
        .path.display()
    )]
    Truncated {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Type of the file system.
        fs: &'static str,
        /// Size of the file system.
        expected: u64,
    },
    /// The certificate and its key cannot be used.
    #[error("cannot serve with the certificate {} and the key {}", .certificate.display(), .key.display())]
    Pem {
        /// File of the certificate chain.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// The error.
        source: TlsError,
    },
    /// The certificate is not valid for one of the registry's names.
    #[error("the certificate {} is not valid for {name}; use one that is, or leave the name out", .certificate.display())]
    NotFor {
        /// File of the certificate chain.
        certificate: PathBuf,
        /// The name.
        name: String,
    },
    /// The file for the console or the events cannot be created.
    #[error("cannot create {} for the {what}", .path.display())]
    Create {
        /// Console or events.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Too little memory.
    #[error("{given} MiB of memory are too little to boot; expected at least {MIN_MEMORY}")]
    Memory {
        /// The given size in MiB.
        given: u32,
    },
    /// KVM is required and cannot work.
    #[error("KVM cannot be used (TCG works everywhere)")]
    NoKvm(#[from] KvmError),
    /// The port is taken, or the address does not belong to this machine.
    #[error("cannot listen on {address} for {purpose}")]
    Port {
        /// What the port is for.
        purpose: Purpose,
        /// The address.
        address: SocketAddrV4,
        /// The error.
        source: io::Error,
    },
    /// The user may not listen on the port.
    #[error("no permission to listen on {address} for {purpose}{}", privileged(.address.port()))]
    Privileged {
        /// What the port is for.
        purpose: Purpose,
        /// The address.
        address: SocketAddrV4,
        /// The error.
        source: io::Error,
    },
    /// QEMU is not installed.
    #[error("{} is not installed (on Debian and Ubuntu: apt-get install {package})", .program.display())]
    NoQemu {
        /// The program that was looked for.
        program: PathBuf,
        /// The Debian package with it.
        package: &'static str,
    },
    /// The program is not QEMU.
    #[error("{} is not QEMU: its --version prints {said:?}, expected \"QEMU emulator version …\"", .program.display())]
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
        /// The Debian package with it.
        package: &'static str,
        /// What it lacks.
        #[source]
        lacks: VersionError,
    },
    /// A network is not available.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The networks contradict each other.
    #[error(transparent)]
    Nets(#[from] NetSpecError),
    /// The config has interfaces, and networks are given, too.
    #[error("the interfaces are set twice: by the config, and by the networks; set them in one place")]
    Interfaces,
    /// The network's tap exists only while this program runs QEMU.
    #[error(
        "{network} needs a tap that exists only while this program runs QEMU; make a tap (ip tuntap add dev TAP mode tap user USER) and \
         use tap=TAP"
    )]
    OwnTap {
        /// The network.
        network: String,
    },
    /// passt runs only while this program runs QEMU.
    #[error(
        "backend=passt needs a passt that runs only while this program runs QEMU; use backend=slirp, or start passt yourself and use \
         stream=PATH"
    )]
    OwnPasst,
    /// passt cannot carry the user network.
    #[error("passt cannot carry the user network")]
    Passt(#[from] PasstError),
    /// Ports are to be forwarded, but QEMU's user network is not among the networks.
    #[error("only QEMU's user network forwards ports (on other networks, metricsPort of the config sets the port for metrics)")]
    NothingForwarded,
    /// QEMU cannot be started.
    #[error("cannot start {}", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// QEMU ended before it started the machine.
    #[error("QEMU {exit} before it started the machine{}", joined(.stderr))]
    Start {
        /// How it ended.
        exit: Exit,
        /// The last lines that it printed.
        stderr: Vec<String>,
    },
    /// This process ran out of file descriptors, threads or memory.
    #[error("cannot {what} for QEMU")]
    Resource {
        /// What failed.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// QEMU's control socket does not answer as expected.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU's answer does not contain the forwarded port.
    #[error("QEMU's monitor does not name the forwarded port; its answer: {answer:?}")]
    NoPort {
        /// The answer to `info usernet`.
        answer: String,
    },
    /// The guest printed nothing: KVM opens but does not run it.
    #[error("the guest has shown no sign of life in {} s", .after.as_secs())]
    NoSignOfLife {
        /// The time limit.
        after: Duration,
    },
    /// The machine ended before the registry was ready.
    #[error("{}", .0.outcome)]
    Ended(Box<ExitReport>),
}

/// What a port of this machine is for.
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
    /// The error for an `address` that cannot be listened on.
    pub(crate) fn port(purpose: Purpose, address: SocketAddrV4, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privileged { purpose, address, source },
            _ => Self::Port { purpose, address, source },
        }
    }

    /// The exit status of `localregistry run` (see its `--help`).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        self.status().code()
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Ended(report) => report.outcome.status(),
            Self::Nets(_)
            | Self::Interfaces
            | Self::NothingForwarded
            | Self::OwnTap { .. }
            | Self::OwnPasst
            | Self::Passt(PasstError::Unfit { .. })
            | Self::Memory { .. } => Status::Usage,
            Self::NoQemu { .. } | Self::NotQemu { .. } | Self::TooOld { .. } | Self::Spawn { .. } => Status::NoQemu,
            Self::NoFileSystem { .. } | Self::Truncated { .. } | Self::Layout { .. } => Status::NoDisk,
            Self::Read { what, .. } | Self::NotAFile { what, .. } | Self::Empty { what, .. } => match *what {
                "disk" => Status::NoDisk,
                "kernel" | "initramfs" => Status::NoKernel,
                "certificate" | "key" | "secret" => Status::NoAccess,
                _ => Status::Error,
            },
            Self::Port { .. } => Status::PortTaken,
            Self::Privileged { .. } => Status::NoPermission,
            Self::Network(cause) if cause.is_permission() => Status::NoPermission,
            Self::Network(_) | Self::Passt(_) => Status::NoNetwork,
            Self::Create { .. } => Status::CannotWrite,
            Self::Pem { .. } | Self::NotFor { .. } => Status::NoAccess,
            _ => Status::Error,
        }
    }

    /// Whether the frozen machine that a run started from may be the cause. If the guest has told a fault of its own, it is not.
    pub(crate) fn blames_frozen_machine(&self) -> bool {
        match self {
            Self::Start { .. } | Self::Qmp(_) | Self::NoSignOfLife { .. } | Self::Resource { .. } => true,
            Self::Ended(report) => match &report.outcome {
                Outcome::Fault(done) => done.code == "FROZEN",
                Outcome::Died { killed: None, .. } | Outcome::Panic(_) | Outcome::Stopped { .. } => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the accelerator may be the cause: the guest has not shown a sign of life. Some hosts let KVM open and then refuse a
    /// register, at which QEMU aborts.
    pub(crate) fn blames_accelerator(&self) -> bool {
        match self {
            Self::Start { .. } | Self::Qmp(_) | Self::NoSignOfLife { .. } => true,
            Self::Ended(report) => match report.outcome {
                Outcome::Died { exit, killed: None, done: false } => exit.is_crash() && report.console.is_empty(),
                _ => false,
            },
            _ => false,
        }
    }
}

/// QEMU's messages on one line.
fn joined(stderr: &[String]) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {}", stderr.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::vm::launch::KillReason;

    fn died(exit: Exit, killed: Option<KillReason>, console: &[&str]) -> LaunchError {
        let outcome = Outcome::Died { exit, killed, done: false };
        let console = console.iter().map(|line| (*line).to_owned()).collect();
        LaunchError::Ended(Box::new(ExitReport { outcome, console, stderr: vec![], incomplete: vec![] }))
    }

    #[test]
    fn accelerator_is_blamed_only_before_a_sign_of_life() {
        assert!(LaunchError::NoSignOfLife { after: Duration::from_secs(10) }.blames_accelerator());
        assert!(LaunchError::Start { exit: Exit::Code(1), stderr: vec![] }.blames_accelerator());
        assert!(died(Exit::Signal(6), None, &[]).blames_accelerator(), "an abort");
        assert!(died(Exit::Code(1), None, &[]).blames_accelerator());
        assert!(!died(Exit::Signal(6), None, &["booting"]).blames_accelerator(), "the guest lived");
        assert!(!died(Exit::Signal(9), None, &[]).blames_accelerator(), "somebody killed it");
        assert!(!died(Exit::QuitOnSignal, None, &[]).blames_accelerator());
        assert!(!died(Exit::Signal(6), Some(KillReason::Requested), &[]).blames_accelerator());
        assert!(!LaunchError::NoQemu { program: "qemu".into(), package: "qemu-system-x86" }.blames_accelerator());
    }
}
