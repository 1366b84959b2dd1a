//! A machine for a moment: firmware of five instructions' bytes that ends QEMU with a status of its own. It shows what no file does:
//! that the accelerator runs a guest at all. Nothing is left of it.

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
use crate::host::support::tools::last_words;
use crate::host::vm::accel::Accel;
use crate::host::vm::launch::printable;

/// Size of the firmware: QEMU takes multiples of 64 KiB.
const FIRMWARE: usize = 64 << 10;
/// An x86 processor starts 16 bytes before the end of the firmware, in 16-bit mode: `mov al, 0x10; out 0xf4, al; hlt`.
const START: [u8; 16] = [0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// What QEMU's `isa-debug-exit` makes of 0x10: twice that and 1.
const STATUS: i32 = 0x21;
/// How long it may take. A working machine needs a tenth of a second, on a busy host some seconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time between two looks whether QEMU has ended.
const POLL: Duration = Duration::from_millis(10);

/// Why no machine ran.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// Nothing could be started.
    #[error("cannot start {program}")]
    Start {
        /// QEMU.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// The guest never ran its first instructions.
    #[error("the machine hangs: it had not run five bytes of code after {} s", DEADLINE.as_secs())]
    Hangs,
    /// QEMU ended in another way.
    #[error("QEMU ended with {status}: {said}")]
    Ended {
        /// How.
        status: std::process::ExitStatus,
        /// The end of what it said.
        said: String,
    },
}

/// Starts a machine with `accel` and waits until its processor has run.
///
/// # Errors
/// It did not.
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
    Err(TrialError::Ended { status: output.status, said: printable(last_words(&output.stderr).as_bytes()) })
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
