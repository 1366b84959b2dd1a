//! Why a builder could not boot an appliance.

use super::super::LaunchError;
use super::super::frozen::FreezeError;
use crate::config::guest_config::GuestConfigError;
use crate::host::boot::kernel::Flavor;
use crate::host::boot::{initramfs, kernel};
use crate::host::exit::Status;
use crate::host::nodes::access::AccessError;
use crate::host::nodes::ca;
use crate::host::vm::qemu::Board;

/// Why a builder could not boot an appliance.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The name cannot be in a certificate.
    #[error("{0:?} is not a DNS name or an IP address: the certificate cannot contain it")]
    Name(String),
    /// A setting contradicts an earlier one.
    #[error("the setting does not fit what was set before")]
    Set(#[source] GuestConfigError),
    /// There is no kernel.
    #[error("there is no kernel to boot")]
    Kernel(#[source] kernel::KernelError),
    /// The distribution's flavors do not run on the board.
    #[error("the distribution's kernels do not run on the board {}; take our own, or set a kernel and its initramfs or modules", .0.name())]
    NoFlavor(Board),
    /// The kernel needs more memory.
    #[error("{given} MiB of memory are too little for the kernel \"{}\"; give it at least {}", flavor.name(), flavor.min_memory_mib())]
    Memory {
        /// The kernel.
        flavor: Flavor,
        /// The given size in MiB.
        given: u32,
    },
    /// The kernel cannot run the guest on the board.
    #[error(transparent)]
    Unfit(#[from] kernel::UnfitKernel),
    /// There is no initramfs.
    #[error("there is no initramfs to boot with")]
    Initramfs(#[source] initramfs::InitramfsError),
    /// The signing CA cannot be used.
    #[error("cannot use the CA")]
    Ca(#[source] ca::CaFilesError),
    /// The access control files cannot be used.
    #[error("cannot set up access control")]
    Access(#[source] AccessError),
    /// The thread that prepared the boot panicked or was cancelled.
    #[error("the preparation of the boot was aborted")]
    Aborted(#[source] tokio::task::JoinError),
    /// The boot failed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// No machine was frozen.
    #[error("no machine was frozen")]
    Freeze(#[from] FreezeError),
}

impl BuildError {
    /// The exit status of `localregistry run` (see its `--help`).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        self.status().code()
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Launch(error) => error.status(),
            Self::Access(_) | Self::Ca(_) => Status::NoAccess,
            Self::Kernel(_) | Self::Unfit(_) | Self::Initramfs(_) => Status::NoKernel,
            Self::Name(_) | Self::NoFlavor(_) | Self::Memory { .. } | Self::Set(_) => Status::Usage,
            Self::Freeze(FreezeError::Launch(error)) => error.status(),
            Self::Aborted(_) | Self::Freeze(_) => Status::Error,
        }
    }
}
