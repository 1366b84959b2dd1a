//! Finds the device of a virtio-serial port by its name. Without udev only sysfs has the names, and they appear shortly after the
//! driver is loaded, when the host sends them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The kernel's list of ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// The kernel's list of virtio devices.
const DEVICES: &str = "/sys/bus/virtio/devices";
/// Device ID of virtio-serial (VIRTIO 1.2, section 5: "console").
const CONSOLE: &str = "0x0003";
/// How long a port may take to get its name.
const WAIT: Duration = Duration::from_secs(1);
/// Time between two checks for a port.
const POLL: Duration = Duration::from_millis(10);

/// The device of the port `name`. Waits up to a second for it if the machine has a virtio-serial device.
#[must_use]
pub fn find_port(name: &str) -> Option<PathBuf> {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(device) = find_in(Path::new(PORTS), name) {
            return Some(Path::new("/dev").join(device));
        }
        if !has_serial_device(Path::new(DEVICES)) || Instant::now() >= deadline {
            return None;
        }
        sleep(POLL);
    }
}

fn find_in(ports: &Path, name: &str) -> Option<PathBuf> {
    let mut ports = fs::read_dir(ports).ok()?.flatten();
    let port = ports.find(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|own| own.trim_end() == name))?;
    Some(port.file_name().into())
}

fn has_serial_device(devices: &Path) -> bool {
    let is_serial = |id: String| id.trim_end() == CONSOLE;
    let mut devices = fs::read_dir(devices).into_iter().flatten().flatten();
    devices.any(|device| fs::read_to_string(device.path().join("device")).is_ok_and(is_serial))
}
