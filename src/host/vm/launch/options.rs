//! The options of a launch.

use std::ffi::OsString;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::guest_config::GuestConfig;
use crate::host::boot::kernel::Flavor;
use crate::host::support::report::Report;
use crate::host::vm::accel::AccelChoice;
use crate::host::vm::cpus::Cpus;
use crate::host::vm::net::Net;
use crate::host::vm::qemu::Board;

/// Smallest memory of a machine in MiB, with any kernel.
pub const MIN_MEMORY: u32 = Flavor::Own.min_memory_mib();

/// What [`super::Appliance::boot`] boots, and how. [`super::Builder`] fills it with defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// The board.
    pub board: Board,
    /// The packed disks; at least one.
    pub disks: Vec<PathBuf>,
    /// The kernel: a bootable ELF or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs, with `localregistry-init` as `/init`.
    pub initramfs: PathBuf,
    /// The QEMU program: a path, or a name that is looked up in `PATH`.
    pub qemu: PathBuf,
    /// Memory in MiB, at least [`MIN_MEMORY`]. A [`Builder`](super::Builder) refuses less than [`Flavor::min_memory_mib`].
    pub memory_mib: u32,
    /// Number of virtual processors.
    pub cpus: Cpus,
    /// The accelerator.
    pub accel: AccelChoice,
    /// The networks, one interface each. If empty: QEMU's user network, with the interfaces of the config.
    pub nets: Vec<Net>,
    /// Host address that QEMU's user network forwards to the registry. Port 0 takes a free one.
    pub publish: SocketAddrV4,
    /// Host address that QEMU's user network forwards to health, metrics and the CA, on a port of their own. Port 0 takes a free one.
    pub metrics: Option<SocketAddrV4>,
    /// The guest's config. The launcher adds the addresses of `publish` to its names, the host's time to its clock, and `nets` to its
    /// interfaces.
    pub config: GuestConfig,
    /// PEM files of the certificate chain and its key, if the config's TLS mode is PROVIDED.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Further files for the guest, by their names in fw_cfg: the password file, the client CA and the signing CA.
    pub secrets: Vec<(&'static str, PathBuf)>,
    /// Further arguments for QEMU, after those of this library.
    pub qemu_arguments: Vec<OsString>,
    /// Output file for the events, one JSON line each.
    pub events: Option<PathBuf>,
    /// Output file for the raw console.
    pub console: Option<PathBuf>,
    /// Time limit from QEMU's start to `ready`.
    pub timeout: Duration,
    /// Whether to boot even if a frozen machine could be used, and save none.
    pub cold: bool,
    /// Where progress is reported.
    pub report: Report,
}
