//! Why `localregistry serve` fails.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::host::exit::Status;
use crate::host::faults::PlanFileError;
use crate::host::inspect::look::DamageError;
use crate::host::nodes::access::AccessError;
use crate::host::nodes::ca;
use crate::host::runs::folder::RunsError;
use crate::host::support::interrupt::Interrupted;
use crate::host::support::parent_watch::ParentWatchError;
use crate::host::vm::net::check::privileged;
use crate::registry::tls::TlsError;

/// Why `serve` failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The layout cannot be used.
    #[error("cannot serve {}", .path.display())]
    Layout {
        /// The layout.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: Box<DamageError>,
    },
    /// There is no such folder.
    #[error("cannot open {}, expected the folder of an OCI image layout", .path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The path is a file.
    #[error("{} is {found}, expected the folder of an OCI image layout; {instead}", .path.display())]
    NotALayout {
        /// The file.
        path: PathBuf,
        /// What the file is.
        found: &'static str,
        /// The commands for such a file.
        instead: &'static str,
    },
    /// TLS.
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    /// The provided certificate lacks a name of `--san`.
    #[error("the certificate {} is not for {name} (--san); give one with that name, or leave the name out", .certificate.display())]
    NotFor {
        /// The certificate chain's file.
        certificate: PathBuf,
        /// The name.
        name: String,
    },
    /// The certificate of `--cert` or its key cannot be used.
    #[error("cannot serve with the certificate {} (--cert) and the key {} (--key)", .certificate.display(), .key.display())]
    Provided {
        /// The certificate chain's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause.
        #[source]
        cause: TlsError,
    },
    /// A CA of `--ca` or `--ca-dir`.
    #[error("cannot use the CA")]
    OwnCa(#[from] ca::CaFilesError),
    /// Access control.
    #[error("cannot set up access control")]
    Access(#[from] AccessError),
    /// A file of a flag.
    #[error("cannot {verb} {path}")]
    File {
        /// What failed.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The plan of faults.
    #[error(transparent)]
    PlanFile(#[from] PlanFileError),
    /// A rule of it.
    #[error("the plan of faults cannot be used: {0}")]
    Faults(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}; expected a free port on an address of this machine (port 0 picks a free port)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The user may not listen on a port.
    #[error("no permission to listen on {address}{}", privileged(.address.port()))]
    Privileged {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// A signal before the registry was ready.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The folder of `--run-dir`.
    #[error(transparent)]
    RunDir(#[from] RunsError),
    /// Standard input, with `--end-with-stdin`.
    #[error(transparent)]
    ParentWatch(#[from] ParentWatchError),
    /// The runtime, signals or standard output.
    #[error("cannot start")]
    Start(#[from] io::Error),
}

impl ServeError {
    /// The exit status: after a signal 128 plus the signal's number, as in a shell; 2 for a standard input that cannot be watched; else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(cause) => cause.exit_code(),
            Self::ParentWatch(_) => Status::Usage.code(),
            _ => Status::Error.code(),
        }
    }
}
