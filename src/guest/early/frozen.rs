//! A frozen machine: `localregistry freeze` boots one that waits here, without disks, networks and virtio devices, and saves it. `run`
//! starts it again inside a QEMU that has the run's own devices. What follows the wait is a boot like any other: nothing before it has a
//! key, an address, the config or the time.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

use super::modules::{self, ModuleError};
use super::{clock, console};

/// The word on the kernel command line that makes the init wait.
const WORD: &str = "localregistry_freeze";
/// What the host looks for on the console before it saves the machine.
const WAITING: &str = "localregistry: waiting to be frozen";
const RESCAN: &str = "/sys/bus/pci/rescan";
/// The driver of fw_cfg. It lists the files once, when it is loaded.
const FW_CFG: &str = "/sys/bus/platform/drivers/fw_cfg";
/// Its module, which is loaded in the run.
const FW_CFG_MODULE: &str = "qemu_fw_cfg.ko";
/// The real-time clock: seconds since 1970. QEMU's goes on while the machine is frozen.
const RTC: &str = "/sys/class/rtc/rtc0/since_epoch";

/// How long virtio-rng may take to give a seed, and the time between two checks.
const SEED: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// Why a machine cannot be frozen, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrozenError {
    /// Machines that share a seed would draw the same keys.
    #[error("the kernel's random number generator has a seed already, which every machine started from this one would share")]
    Seeded,
    /// The host's signal cannot be read.
    #[error("cannot read the console, on which the host says that the machine goes on")]
    Signal(#[source] io::Error),
    /// The devices cannot be found.
    #[error("cannot write {RESCAN}, to find the devices that were not there before the freeze")]
    Devices(#[source] io::Error),
    /// A module cannot be loaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The config would be that of the machine before the freeze.
    #[error("the kernel has qemu_fw_cfg built in, and would not see the files of a later run")]
    BuiltIn,
    /// virtio-rng gives no seed.
    #[error("virtio-rng gives no seed within {} s after the freeze", SEED.as_secs())]
    Unseeded,
    /// The time cannot be set.
    #[error("cannot set the clock from {RTC} after the freeze: {0}")]
    Clock(String),
}

/// If the machine is to be frozen: loads the modules that do not depend on the run, and waits until the host has saved the machine and
/// started it again. Then finds the devices of that run, takes the time from the real-time clock, and waits for a seed from the run's
/// virtio-rng.
///
/// # Errors
/// Fails if the machine cannot be frozen, or a step after that fails.
pub fn wait() -> Result<(), FrozenError> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !line.split_whitespace().any(|word| word == WORD) {
        return Ok(());
    }
    if getrandom(&mut [0; 1], GetRandomFlags::NONBLOCK).is_ok() {
        return Err(FrozenError::Seeded);
    }
    modules::load_except(FW_CFG_MODULE)?;
    if Path::new(FW_CFG).exists() {
        return Err(FrozenError::BuiltIn);
    }
    console::print(WAITING);
    io::stdin().read_exact(&mut [0; 1]).map_err(FrozenError::Signal)?;

    fs::write(RESCAN, "1").map_err(FrozenError::Devices)?;
    let now = fs::read_to_string(RTC).map_err(|error| FrozenError::Clock(error.to_string()))?;
    let now = now.trim_end().parse().map_err(|_| FrozenError::Clock(format!("{now:?} is not a time")))?;
    clock::set(now).map_err(FrozenError::Clock)?;
    wait_for_seed()
}

/// Waits for a seed that no other machine has. A request that blocks would let the kernel collect jitter instead.
fn wait_for_seed() -> Result<(), FrozenError> {
    let deadline = Instant::now() + SEED;
    while getrandom(&mut [0; 1], GetRandomFlags::NONBLOCK).is_err() {
        if Instant::now() > deadline {
            return Err(FrozenError::Unseeded);
        }
        sleep(POLL);
    }
    Ok(())
}
