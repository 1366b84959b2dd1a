//! `localregistry freeze`: boots a machine as far as it does not depend on disks, networks and config, and saves it. Runs start from it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

use crate::host::boot::kernel::Flavor;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::report::Report;
use crate::host::vm::accel::AccelChoice;
use crate::host::vm::cpus::Cpus;
use crate::host::vm::launch::{Appliance, BuildError, Builder, MIN_MEMORY};

/// The command line of `localregistry freeze`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry freeze
      Saves a machine for `localregistry run` without flags
  localregistry freeze --memory 512
      Saves one for `localregistry run --memory 512`

`run` starts from the machine that was saved with the same QEMU, kernel, init, memory, processors and accelerator, on q35; with any
disks, networks and config, and with a --qemu-arg that adds devices. Otherwise it boots, says so with --json, and saves such a machine
while it goes on. The cache keeps the last four machines.

Exit status: 0, as that of `run` if the machine cannot be booted, 2 for a wrong command line.")]
pub struct FreezeArgs {
    /// The kernel, one of `localregistry kernel`
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Put this localregistry-init into the initramfs
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,

    /// Memory of the machine in MiB: at least 96, with --flavor full 112, with --flavor own 48
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(i64::from(MIN_MEMORY)..=1 << 20))]
    memory: u32,

    /// Number of virtual processors, or auto: one under TCG, under KVM as many as there are for this program, at most four and one for each 64 MiB
    #[arg(long, value_name = "N", default_value_t)]
    cpus: Cpus,

    /// The accelerator
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    accel: AccelChoice,

    /// Time limit for the boot, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,

    /// The QEMU to start [default: qemu-system-x86_64]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
}

/// Why no machine was frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeCommandError {
    /// It cannot be booted or saved.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The runtime or the signals cannot be set up.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
    /// A signal.
    #[error(transparent)]
    Stopped(#[from] Interrupted),
}

impl FreezeCommandError {
    /// The exit status.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Build(error) => error.exit_status(),
            Self::Stopped(cause) => cause.exit_code(),
            Self::Runtime(_) | Self::Print(_) => 1,
        }
    }
}

/// The machine that was saved.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FreezeResult {
    /// Its folder, an absolute path.
    frozen: String,
    /// Seconds that it took.
    seconds: f64,
}

/// Runs `localregistry freeze`.
///
/// # Errors
/// Fails if the machine cannot be booted or saved, or on a signal. Nothing is left then.
pub fn run(args: &FreezeArgs, report: &Report) -> Result<(), FreezeCommandError> {
    let interrupt = Interrupt::catch().map_err(FreezeCommandError::Runtime)?;
    let mut signals = interrupt.signals();
    // The disk is not part of the machine.
    let mut builder = Appliance::builder("").flavor(args.flavor).memory_mib(args.memory).cpus(args.cpus).accel(args.accel);
    builder = args.init.iter().fold(builder, Builder::init);
    builder = args.qemu.iter().fold(builder, Builder::qemu).timeout(Duration::from_secs(args.timeout));
    let builder = if report.quiet { builder } else { builder.verbose() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(FreezeCommandError::Runtime)?;
    let started = Instant::now();
    let folder = runtime.block_on(async {
        tokio::select! {
            folder = builder.freeze() => Ok(folder?),
            signal = signals.next() => Err(FreezeCommandError::Stopped(Interrupted(signal))),
        }
    });
    runtime.shutdown_background();
    let frozen = folder?.display().to_string();
    let seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    let text = format!("The machine is frozen in {frozen} ({seconds:.1} s)");
    report.result(&FreezeResult { frozen, seconds }, &text).map_err(FreezeCommandError::Print)
}
