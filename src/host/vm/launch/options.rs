//! What to boot, and how.

use std::ffi::OsString;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::guest_config::GuestConfig;
use crate::host::support::report::Report;
use crate::host::vm::accel::Choice;
use crate::host::vm::net::Net;
use crate::host::vm::qemu::Board;

/// Least memory of a machine in MiB. Debian's full kernel boots in 104, and in 96 only where the init is small: it and its modules are
/// in memory twice while they are unpacked. With less it panics ("System is deadlocked on memory") or dies without a word.
pub const LEAST_MEMORY: u32 = 112;

/// What to boot, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The board.
    pub board: Board,
    /// The packed disks: at least one.
    pub disks: Vec<PathBuf>,
    /// The kernel: a bootable ELF or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs, with `localregistry-init` as `/init`.
    pub initramfs: PathBuf,
    /// QEMU's program: a path, or a name that is looked up in `PATH`.
    pub qemu: PathBuf,
    /// Memory in MiB, at least [`LEAST_MEMORY`].
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// What runs the guest's instructions.
    pub accel: Choice,
    /// The networks that it is on, one interface each. None: QEMU's user network, with the interfaces that the config says.
    pub nets: Vec<Net>,
    /// Where the host listens for the registry, on QEMU's user network. Port 0: a free one.
    pub publish: SocketAddrV4,
    /// Where the host listens for health, metrics and the CA, where they are to have a port of their
    /// own, on QEMU's user network. Port 0: a free one.
    pub metrics: Option<SocketAddrV4>,
    /// What the guest is told. The addresses of `publish` are added to its names, the host's time to its clock, `nets` to its
    /// interfaces.
    pub config: GuestConfig,
    /// Certificate chain and key, PEM files, where `config` says that they are provided.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Further files for the guest, by their names in fw_cfg: the password file and the client CA, where `config` asks for them.
    pub secrets: Vec<(&'static str, PathBuf)>,
    /// Further arguments for QEMU, after this program's own.
    pub qemu_arguments: Vec<OsString>,
    /// File that keeps every event, one JSON line each.
    pub events: Option<PathBuf>,
    /// File that keeps the raw console.
    pub console: Option<PathBuf>,
    /// How long the boot may take, from QEMU's start to `ready`.
    pub timeout: Duration,
    /// Where progress is told.
    pub report: Report,
}
