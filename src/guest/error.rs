//! The faults that end a boot, each with a stable code. [`boot`](super::boot) decides what happens then.

use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::disk::layout::LayoutError;
use crate::registry::content::store::{Conflict, StoreError};
use crate::text;

use super::access::AccessError;
use super::confine::ConfineError;
use super::disk::DiskError;
use super::early::entropy::EntropyError;
use super::early::frozen::FrozenError;
use super::early::modules::ModuleError;
use super::early::mount::MountError;
use super::messages::ServerFault;
use super::net::NetError;
use super::tls::TlsError;
use crate::config::ConfigError;

/// A fatal error, by the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Mounting the kernel's file systems.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Loading kernel modules.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// Waiting in a frozen machine, or going on after that.
    #[error(transparent)]
    Frozen(#[from] FrozenError),
    /// Starting threads, signal handlers or the runtime.
    #[error("cannot start the runtime, its threads or its signal handlers")]
    Runtime(#[source] io::Error),
    /// The config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The content of a disk.
    #[error("{disk}")]
    Contents {
        /// The disk.
        disk: String,
        /// What is wrong with it.
        source: StoreError,
    },
    /// Content on which two disks disagree.
    #[error("the disks cannot be served together")]
    Conflict(#[source] Conflict),
    /// Random numbers.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Access control.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Giving up the privileges of the process that serves.
    #[error("the process that serves cannot give up its privileges")]
    Confine(#[from] ConfineError),
    /// The process that serves has failed.
    #[error(transparent)]
    Server(#[from] ServerFault),
    /// The process that serves has ended.
    #[error("the process that serves {}", describe(*.0))]
    ServerEnded(WaitStatus),
    /// The process that serves does not shut down.
    #[error("the process that serves did not end within the time for transfers in progress; does a disk hang?")]
    ServerHangs,
    /// The other process does not keep to the protocol.
    #[error("the two processes of this program do not understand each other")]
    ServerMessage(#[source] io::Error),
    /// The registry's port.
    #[error("cannot listen on TCP port {port}")]
    Listen {
        /// The port.
        port: NonZeroU16,
        /// Why.
        source: io::Error,
    },
    /// A port of one address.
    #[error("cannot listen on TCP port {port} of {address}")]
    ListenAt {
        /// The address.
        address: IpAddr,
        /// The port.
        port: NonZeroU16,
        /// Why.
        source: io::Error,
    },
    /// A bug in this program.
    #[error("a bug in localregistry-init: {0}")]
    Panic(String),
}

impl Fault {
    /// Stable code of the fault, for the console and the `done` event.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Mount(_) => "BAD_MOUNT",
            Self::Module(_) => "BAD_MODULE",
            Self::Runtime(_) => "NO_RUNTIME",
            Self::Config(_) => "BAD_CONFIG",
            Self::Disk(error) => error.code(),
            Self::Net(error) => error.code(),
            Self::Contents { source, .. } => store_code(source),
            Self::Conflict(_) => "DISK_CONFLICT",
            Self::Entropy(_) => "NO_ENTROPY",
            Self::Frozen(_) => "FROZEN",
            Self::Tls(_) => "BAD_TLS",
            Self::Access(_) => "BAD_AUTH",
            Self::Confine(_) => "NOT_CONFINED",
            Self::Server(fault) => fault.code(),
            Self::ServerEnded(_) | Self::ServerHangs | Self::ServerMessage(_) => "SERVER_ENDED",
            Self::Listen { .. } | Self::ListenAt { .. } => "NO_PORT",
            Self::Panic(_) => "PANIC",
        }
    }

    /// The fault and its causes, joined by ": ".
    #[must_use]
    pub fn chain(&self) -> String {
        text::chain(self)
    }
}

/// How the server has ended.
fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Signaled(_, Signal::SIGSYS, _) => {
            "was killed by the kernel: it made a system call that serving never makes; was it attacked?".to_owned()
        }
        WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
        WaitStatus::Exited(_, code) => format!("exited with status {code}, without a reason"),
        other => format!("ended: {other:?}"),
    }
}

const fn store_code(error: &StoreError) -> &'static str {
    match error {
        StoreError::Layout(LayoutError::Size { .. }) => "TRUNCATED",
        StoreError::Open { .. } | StoreError::Read(_) | StoreError::Catalog(_) | StoreError::Layout(_) => "BAD_DISK",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_is_one_line_with_its_causes() {
        let fault = Fault::Listen { port: NonZeroU16::MIN, source: io::Error::from_raw_os_error(98) };
        assert_eq!(fault.chain(), "cannot listen on TCP port 1: Address already in use (os error 98)");
        assert_eq!(fault.code(), "NO_PORT");
    }
}
