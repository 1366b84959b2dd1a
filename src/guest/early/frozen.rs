//! A frozen machine: `localregistry freeze` boots one that waits here, without disks, networks and randomness, and saves it. `run` starts it
//! again inside a QEMU that has the run's own devices. What follows the wait is a boot like any other: nothing before it has a key, an
//! address, the config or the time.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

use super::mount::{self, MountError};
use super::{clock, console, virtio_serial};
use crate::guest::report::boot_timeline::BootTimeline;

/// The word on the kernel command line that makes the init wait.
const WORD: &str = "localregistry_freeze";
/// What the host looks for on the console before it saves the machine.
const WAITING: &str = "localregistry: waiting to be frozen";
/// Name of the port on which the run's fw_cfg files come.
const PORT: &str = "localregistry.files";
/// Where the kernel shows the files of fw_cfg, in the folder [`mount::FIRMWARE`]. Its driver has listed those of the machine that is frozen.
const BY_NAME: &str = "qemu_fw_cfg/by_name";
/// Longest line in front of a file, and longest file, in bytes.
const LINE_MAX: u64 = 256;
const FILE_MAX: usize = 4 << 20;
const RESCAN: &str = "/sys/bus/pci/rescan";
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
    /// There is no place for the files.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// QEMU lacks the port.
    #[error("there is no port {PORT}, on which the host sends the config")]
    NoPort,
    /// The files do not come.
    #[error("cannot get the config and other files from the port {PORT}")]
    Files(#[source] io::Error),
    /// The devices cannot be found.
    #[error("cannot write {RESCAN}, to find the devices that were not there before the freeze")]
    Devices(#[source] io::Error),
    /// virtio-rng gives no seed.
    #[error("virtio-rng gives no seed within {} s after the freeze", SEED.as_secs())]
    Unseeded,
    /// The time cannot be set.
    #[error("cannot set the clock from {RTC} after the freeze: {0}")]
    Clock(String),
}

/// Whether the machine is to be frozen.
#[must_use]
pub fn is_wanted() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace().any(|word| word == WORD)
}

/// Waits until the host has saved the machine, started it again, and sent the files of fw_cfg. Then finds the devices of that run, takes
/// the time from the real-time clock, and waits for a seed from the run's virtio-rng.
///
/// # Errors
/// Fails if the machine cannot be frozen, or a step after that fails.
pub fn wait(timeline: &mut BootTimeline) -> Result<(), FrozenError> {
    mount::mount_file_system(&mount::FIRMWARE)?;
    let port = virtio_serial::find_port(PORT).ok_or(FrozenError::NoPort)?;
    let port = BufReader::new(File::open(port).map_err(FrozenError::Files)?);
    if getrandom(&mut [0; 1], GetRandomFlags::NONBLOCK).is_ok() {
        return Err(FrozenError::Seeded);
    }
    console::print(WAITING);
    receive(port, &Path::new(mount::FIRMWARE.target).join(BY_NAME)).map_err(FrozenError::Files)?;

    timeline.run("devices", || fs::write(RESCAN, "1")).map_err(FrozenError::Devices)?;
    set_clock()?;
    timeline.run("seed", wait_for_seed)
}

/// Takes the time from the real-time clock. A kernel without its driver gets the host's time from the config later, as at every boot.
fn set_clock() -> Result<(), FrozenError> {
    let now = match fs::read_to_string(RTC) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        now => now.map_err(|error| FrozenError::Clock(error.to_string()))?,
    };
    let now = now.trim_end().parse().map_err(|_| FrozenError::Clock(format!("{now:?} is not a time")))?;
    clock::set(now).map_err(FrozenError::Clock)
}

/// Writes the files that come to the folder `to`, as the kernel shows them: each line has a length and a name, and the content follows. An
/// empty line ends them.
fn receive(mut port: impl BufRead, to: &Path) -> io::Result<()> {
    loop {
        let mut line = String::new();
        port.by_ref().take(LINE_MAX).read_line(&mut line)?;
        if line == "\n" {
            return Ok(());
        }
        let file = line.strip_suffix('\n').and_then(|line| line.split_once(' '));
        let file = file.and_then(|(length, name)| Some((length.parse().ok()?, name)));
        let Some((length @ 0..=FILE_MAX, name)) = file else {
            return Err(io::Error::other(format!("{line:?} is not the length and the name of a file")));
        };
        let mut content = vec![0; length];
        port.read_exact(&mut content)?;
        fs::create_dir_all(to.join(name))?;
        fs::write(to.join(name).join("raw"), content)?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_as_the_kernel_shows_them() {
        let to = tempfile::tempdir().unwrap();
        let sent = b"5 opt/localregistry/config\n{\n\n\n}0 opt/localregistry/tls.key\n\nmore";
        receive(&sent[..], to.path()).unwrap();
        let read = |name: &str| fs::read_to_string(to.path().join("opt/localregistry").join(name).join("raw")).unwrap();
        assert_eq!((read("config").as_str(), read("tls.key").as_str()), ("{\n\n\n}", ""));
    }

    #[test]
    fn files_that_are_cut_short_or_too_long_are_an_error() {
        let to = tempfile::tempdir().unwrap();
        let not = "is not the length and the name of a file";
        for (sent, said) in [
            ("", not),
            ("5 opt/localregistry/config", not),
            ("-5 opt/localregistry/config\n", not),
            ("4194305 opt/localregistry/config\n", not),
            ("5 opt/localregistry/config\n{}", "failed to fill whole buffer"),
            (&"5".repeat(300), not),
        ] {
            let error = receive(sent.as_bytes(), to.path()).unwrap_err().to_string();
            assert!(error.contains(said), "{sent}: {error}");
        }
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    }
}
