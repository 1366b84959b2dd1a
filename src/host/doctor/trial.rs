//! Boots a VM with five bytes of firmware, which end QEMU with a known exit status. This shows what no file does: whether an
//! accelerator can run a guest.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use command_fds::CommandFdExt;
use nix::sys::signal::Signal;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::host::support::sys;
use crate::host::support::tools::last_lines;
use crate::host::vm::accel::Accel;
use crate::text::printable;

/// Size of the firmware. QEMU requires a multiple of 64 KiB.
const FIRMWARE: usize = 64 << 10;
/// The last 16 bytes of the firmware, where an x86 processor starts in 16-bit mode: `mov al, 0x10; out 0xf4, al; hlt`.
const START: [u8; 16] = [0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The exit status that QEMU's `isa-debug-exit` makes of 0x10: 2 × 0x10 + 1.
const STATUS: i32 = 0x21;
/// Time limit. A working VM needs a tenth of a second, or some seconds on a busy host.
const DEADLINE: Duration = Duration::from_secs(10);
/// Interval of the checks whether QEMU has ended.
const POLL: Duration = Duration::from_millis(10);

/// Why the VM did not run.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// QEMU cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// The QEMU program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// The guest did not run its first instructions in time.
    #[error("the VM hangs: it had not run five bytes of code after {} s", DEADLINE.as_secs())]
    Hangs,
    /// QEMU ended with another status.
    #[error("QEMU ended with {status}: {stderr}")]
    Ended {
        /// The exit status.
        status: std::process::ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
}

/// Boots a VM with `accel`, and waits until its processor has run the firmware.
///
/// # Errors
/// Fails if QEMU cannot be started, hangs or ends with another status.
pub fn run(program: &Path, accel: Accel) -> Result<(), TrialError> {
    let start = |source| TrialError::Start { program: program.display().to_string(), source };
    let firmware = memfd_create("localregistry-trial", MemfdFlags::CLOEXEC).map_err(|error| start(error.into()))?;
    let mut file = File::from(firmware);
    file.write_all(&firmware_bytes()).map_err(start)?;
    let mut command = Command::new(program);
    command.args(arguments(accel, file.as_raw_fd()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    sys::signal_with_parent(&mut command, Signal::SIGKILL);
    command.preserved_fds(vec![file.into()]);
    let mut child = command.spawn().map_err(start)?;
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().map_err(start)?.is_none() {
        if Instant::now() > deadline {
            child.kill().and_then(|()| child.wait()).map_err(start)?;
            return Err(TrialError::Hangs);
        }
        sleep(POLL);
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.code() == Some(STATUS) {
        return Ok(());
    }
    Err(TrialError::Ended { status: output.status, stderr: printable(last_lines(&output.stderr).as_bytes()) })
}

fn firmware_bytes() -> Vec<u8> {
    let mut bytes = vec![0; FIRMWARE - START.len()];
    bytes.extend(START);
    bytes
}

fn arguments(accel: Accel, firmware: i32) -> Vec<OsString> {
    let firmware = format!("/dev/fd/{firmware}");
    let words = ["-machine", "q35", "-accel", accel.as_str(), "-m", "16M", "-nodefaults", "-no-user-config", "-display", "none"];
    let end = ["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios", &firmware];
    words.iter().chain(&end).map(OsString::from).collect()
}
