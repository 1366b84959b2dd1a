//! The end. What enters is whatever may ask for it: a signal, the power button, a command; what leaves is a [`Stop`] for the
//! server and, at last, a machine without power. It also reaps orphans, PID 1's oldest duty.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::disk;
use super::early::console;

/// How long transfers under way may take where nobody says otherwise.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How long the machine may take to end once it is decided.
const END: Duration = Duration::from_secs(4);
/// How much longer it may take to say that this was not enough: a console that nobody reads must not keep the power on.
const SAY: Duration = Duration::from_millis(200);

/// A request to end in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Who asked.
    pub by: By,
    /// How long transfers under way may take.
    pub drain: Duration,
}

/// Who asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A command on the control port.
    Command,
    /// SIGTERM.
    Terminate,
    /// SIGINT, which is Ctrl-Alt-Del.
    Interrupt,
    /// The ACPI power button.
    Button,
}

impl By {
    /// In words, for the console and the `done` event.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Command => "a command on the control port",
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT (Ctrl-Alt-Del)",
            Self::Button => "the power button",
        }
    }
}

/// Listens for signals and the power button, and reaps orphans from now on. What leaves are the two ends of the channel on which
/// the end is asked for. Must be called within the runtime.
///
/// # Errors
/// When the kernel takes no signal handler.
pub fn watch() -> io::Result<(UnboundedSender<Stop>, UnboundedReceiver<Stop>)> {
    let (stop, stops) = unbounded_channel();
    for (kind, by) in [(SignalKind::terminate(), By::Terminate), (SignalKind::interrupt(), By::Interrupt)] {
        let mut arrivals = signal(kind)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while arrivals.recv().await.is_some() {
                let _ = stop.send(Stop { by, drain: DRAIN });
            }
        });
    }
    reap_orphans()?;
    if let Err(error) = set_cad_enabled(false) {
        console::say(&format!("Ctrl-Alt-Del restarts the machine at once: {error}"));
    }
    input_devices().for_each(|device| watch_button(device, stop.clone()));
    Ok((stop, stops))
}

/// Reaps every child that ends: in a machine with one program those are orphans of nobody, but PID 1 must.
fn reap_orphans() -> io::Result<()> {
    let mut children = signal(SignalKind::child())?;
    tokio::spawn(async move {
        loop {
            // Those, too, that ended before anybody listened. One signal may stand for many.
            while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
            if children.recv().await.is_none() {
                return;
            }
        }
    });
    Ok(())
}

fn input_devices() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("event")).map(|entry| entry.path())
}

fn watch_button(device: PathBuf, stop: UnboundedSender<Stop>) {
    let watch = move || {
        let Ok(mut device) = File::open(device) else { return };
        let mut record = [0; input::SIZE];
        while device.read_exact(&mut record).is_ok() {
            if input::Event::parse(record).is_power_pressed() {
                let _ = stop.send(Stop { by: By::Button, drain: DRAIN });
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("button".to_owned()).spawn(watch) {
        console::say(&format!("the power button does nothing: no thread for it: {error}"));
    }
}

/// Cuts the power in `END` from now, whatever else hangs.
pub fn set_deadline() {
    let cut = || {
        thread::sleep(END);
        let _ =
            thread::Builder::new().spawn(|| console::say(&format!("the end took over {} s: cutting the power", END.as_secs())));
        thread::sleep(SAY);
        let _ = reboot(RebootMode::RB_POWER_OFF);
    };
    if let Err(error) = thread::Builder::new().name("deadline".to_owned()).spawn(cut) {
        console::say(&format!("the end has no deadline: no thread for it: {error}"));
    }
}

/// Writes back what is cached, unmounts the disks and cuts the power.
pub fn off() -> ! {
    nix::unistd::sync();
    // Detached, so that a file that is still open does not keep a disk. Not mounted (EINVAL): nothing to do.
    for root in fs::read_dir(disk::ROOT).into_iter().flatten().flatten().map(|entry| entry.path()) {
        match umount2(&root, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => console::say(&format!("unmount {}: {error}", root.display())),
        }
    }
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    console::say(&format!("the power cannot be cut: {error}"));
    loop {
        thread::park();
    }
}

/// Records of `/dev/input/event*`: `struct input_event` of Linux's `uapi/linux/input.h`.
mod input {
    /// Bytes of a record: two longs of time, type, code, value.
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
        /// The event in `record`.
        pub const fn parse(record: [u8; SIZE]) -> Self {
            let [.., a, b, c, d, e, f, g, h] = record;
            Self { kind: u16::from_ne_bytes([a, b]), code: u16::from_ne_bytes([c, d]), value: i32::from_ne_bytes([e, f, g, h]) }
        }

        /// Whether it is the power button going down.
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
    fn only_the_power_button_going_down_counts() {
        assert!(Event::parse(record(1, 116, 1)).is_power_pressed());
        for (kind, code, value) in [(1, 116, 0), (1, 116, 2), (1, 30, 1), (0, 0, 0), (2, 116, 1), (1, 116, -1)] {
            assert!(!Event::parse(record(kind, code, value)).is_power_pressed(), "{kind} {code} {value}");
        }
    }
}
