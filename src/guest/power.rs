//! Shuts the machine down on a signal, the power button or a command: unmounts the disks and cuts the power. As PID 1 it also reaps
//! orphaned processes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::disk;
use super::early::console;

/// Default time for transfers in progress.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How long the shutdown may take after serving has ended.
const DEADLINE: Duration = Duration::from_secs(4);
/// Extra time to print that the deadline has passed. A console without a reader must not delay the power-off.
const DEADLINE_MESSAGE: Duration = Duration::from_millis(200);

/// A request to shut down gracefully.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// The source of the request.
    pub by: Requester,
    /// How long transfers in progress may take.
    pub drain: Duration,
}

/// The source of a shutdown request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Requester {
    /// A command on the control port.
    Command,
    /// SIGTERM.
    Terminate,
    /// SIGINT, which is Ctrl-Alt-Del.
    Interrupt,
    /// The ACPI power button.
    Button,
}

impl Requester {
    /// A description for the console and the `done` event.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Command => "a command on the control port",
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT (Ctrl-Alt-Del)",
            Self::Button => "the power button",
        }
    }
}

/// What [`watch`] returns: both ends of the channel of shutdown requests, and the children that have ended, with their status.
pub type Watch = (UnboundedSender<ShutdownRequest>, UnboundedReceiver<ShutdownRequest>, UnboundedReceiver<WaitStatus>);

/// Listens for signals and the power button, and reaps children, from now on. Must be called within the runtime.
///
/// # Errors
/// Fails if the kernel refuses a signal handler.
pub fn watch() -> io::Result<Watch> {
    let (sender, requests) = unbounded_channel();
    for (kind, by) in [(SignalKind::terminate(), Requester::Terminate), (SignalKind::interrupt(), Requester::Interrupt)] {
        let mut arrivals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while arrivals.recv().await.is_some() {
                let _ = sender.send(ShutdownRequest { by, drain: DRAIN });
            }
        });
    }
    let ended = reap_children()?;
    if let Err(error) = set_cad_enabled(false) {
        console::log(&format!("cannot take over Ctrl-Alt-Del, which restarts the machine at once: {error}"));
    }
    input_devices().for_each(|device| watch_button(device, sender.clone()));
    Ok((sender, requests, ended))
}

/// Reaps every child that exits. PID 1 inherits all orphans.
fn reap_children() -> io::Result<UnboundedReceiver<WaitStatus>> {
    let mut children = signal(SignalKind::child())?;
    let (sender, ended) = unbounded_channel();
    tokio::spawn(async move {
        loop {
            // Also reap children that exited before the handler was installed. One signal may stand for several children.
            while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG))
                && status != WaitStatus::StillAlive
            {
                let _ = sender.send(status);
            }
            if children.recv().await.is_none() {
                return;
            }
        }
    });
    Ok(ended)
}

fn input_devices() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("event")).map(|entry| entry.path())
}

fn watch_button(device: PathBuf, sender: UnboundedSender<ShutdownRequest>) {
    let watch = move || {
        let Ok(mut device) = File::open(device) else { return };
        let mut record = [0; input::SIZE];
        while device.read_exact(&mut record).is_ok() {
            if input::Event::parse(record).is_power_pressed() {
                let _ = sender.send(ShutdownRequest { by: Requester::Button, drain: DRAIN });
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("button".to_owned()).spawn(watch) {
        console::log(&format!("cannot start a thread for the power button, so it does nothing: {error}"));
    }
}

/// Cuts the power after `DEADLINE`, whatever hangs.
pub fn set_deadline() {
    let cut = || {
        thread::sleep(DEADLINE);
        let _ = thread::Builder::new()
            .spawn(|| console::log(&format!("shutdown took over {} s; cutting the power", DEADLINE.as_secs())));
        thread::sleep(DEADLINE_MESSAGE);
        let _ = reboot(RebootMode::RB_POWER_OFF);
    };
    if let Err(error) = thread::Builder::new().name("deadline".to_owned()).spawn(cut) {
        console::log(&format!("cannot start the thread that limits the time of the shutdown: {error}"));
    }
}

/// Writes cached data back, unmounts the disks and cuts the power.
pub fn off() -> ! {
    nix::unistd::sync();
    // Detach, because open files would keep a disk mounted. EINVAL: nothing is mounted there.
    for root in fs::read_dir(disk::ROOT).into_iter().flatten().flatten().map(|entry| entry.path()) {
        match umount2(&root, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => console::log(&format!("cannot unmount {}: {error}", root.display())),
        }
    }
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    console::log(&format!("cannot cut the power: {error}"));
    loop {
        thread::park();
    }
}

/// Parses records of `/dev/input/event*`: `struct input_event` of Linux's `uapi/linux/input.h`.
mod input {
    /// Bytes of a record: two longs of time, then type, code and value.
    pub const SIZE: usize = 2 * size_of::<usize>() + 8;

    const EV_KEY: u16 = 1;
    const KEY_POWER: u16 = 116;
    const PRESSED: i32 = 1;

    /// One record without its time.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Event {
        kind: u16,
        code: u16,
        value: i32,
    }

    impl Event {
        /// Parses a record.
        pub const fn parse(record: [u8; SIZE]) -> Self {
            let [.., a, b, c, d, e, f, g, h] = record;
            Self { kind: u16::from_ne_bytes([a, b]), code: u16::from_ne_bytes([c, d]), value: i32::from_ne_bytes([e, f, g, h]) }
        }

        /// Whether the power button was pressed.
        pub const fn is_power_pressed(self) -> bool {
            matches!(self, Self { kind: EV_KEY, code: KEY_POWER, value: PRESSED })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::input::{Event, SIZE};

    fn record(kind: u16, code: u16, value: i32) -> [u8; SIZE] {
        let mut record = [0xaa; SIZE];
        record[SIZE - 8..SIZE - 6].copy_from_slice(&kind.to_ne_bytes());
        record[SIZE - 6..SIZE - 4].copy_from_slice(&code.to_ne_bytes());
        record[SIZE - 4..].copy_from_slice(&value.to_ne_bytes());
        record
    }

    #[test]
    fn only_a_press_of_the_power_button_counts() {
        assert!(Event::parse(record(1, 116, 1)).is_power_pressed());
        for (kind, code, value) in [(1, 116, 0), (1, 116, 2), (1, 30, 1), (0, 0, 0), (2, 116, 1), (1, 116, -1)] {
            assert!(!Event::parse(record(kind, code, value)).is_power_pressed(), "{kind} {code} {value}");
        }
    }
}
