//! Lists the machine's virtio disks and partitions from `/sys/class/block`, and matches them with the config. It reads a disk's
//! first bytes for its label, and only if the config selects disks by label.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::config::disks::{DiskBy, DiskChoice};
use crate::disk::superblock::{label, read_head};

/// The kernel's block devices.
const DEVICES: &str = "/sys/class/block";
/// Prefix of the names of virtio disks.
const VIRTIO: &str = "vd";

/// A disk or a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name in `/dev`.
    pub name: String,
    /// Its virtio serial. Empty if it has none.
    pub serial: String,
    /// The label of its file system, if the config selects disks by label.
    pub label: Option<String>,
    /// Tells it from an earlier device with the same name.
    sequence: String,
}

impl Device {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// Its size in bytes. sysfs counts sectors of 512 bytes, whatever the disk's own size is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        attribute(&self.name, "size").parse::<u64>().map_or(0, |sectors| sectors.saturating_mul(512))
    }

    /// Its first bytes, as [`read_head`] reads them.
    ///
    /// # Errors
    /// Fails if the device cannot be read.
    pub fn start(&self) -> io::Result<Vec<u8>> {
        read_head(&File::open(self.path())?)
    }

    /// Whether both are the same device.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (&self.name, &self.sequence) == (&other.name, &other.sequence)
    }

    /// Whether `choice` selects it.
    #[must_use]
    pub fn is_selected_by(&self, choice: &DiskChoice) -> bool {
        match &choice.by {
            DiskBy::Serial(serial) => !self.serial.is_empty() && serial.matches(&self.serial),
            DiskBy::Label(pattern) => self.label.as_ref().is_some_and(|label| pattern.matches(label)),
            DiskBy::Device(name) => *name == self.name,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/{}", self.name)?;
        match (self.serial.as_str(), &self.label) {
            ("", None) => Ok(()),
            ("", Some(label)) => write!(f, " (label {label:?})"),
            (serial, None) => write!(f, " (serial {serial:?})"),
            (serial, Some(label)) => write!(f, " (serial {serial:?}, label {label:?})"),
        }
    }
}

/// The virtio disks, and other devices that `choices` name, sorted by name. Labels are read only if a choice needs them, and not
/// again for `known` devices.
#[must_use]
pub fn list(choices: &[DiskChoice], known: &[Device]) -> Vec<Device> {
    let needs_labels = choices.iter().any(|choice| matches!(choice.by, DiskBy::Label(_)));
    let named = |name: &str| choices.iter().any(|choice| matches!(&choice.by, DiskBy::Device(device) if device == name));
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut devices: Vec<Device> = names.filter(|name| name.starts_with(VIRTIO) || named(name)).map(read).collect();
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    for device in devices.iter_mut().filter(|_| needs_labels) {
        device.label = match known.iter().find(|known| known.is(device)) {
            Some(known) => known.label.clone(),
            None => device.start().ok().and_then(|start| label(&start).map(str::to_owned)),
        };
    }
    devices
}

fn read(name: String) -> Device {
    let sequence = match attribute(&name, "diskseq") {
        // Kernels before 5.15 have no `diskseq`, and partitions have none.
        missing if missing.is_empty() => attribute(&name, "dev"),
        sequence => sequence,
    };
    Device { serial: attribute(&name, "serial"), label: None, sequence, name }
}

fn attribute(name: &str, attribute: &str) -> String {
    let path: PathBuf = [DEVICES, name, attribute].iter().collect::<PathBuf>();
    fs::read_to_string(Path::new(&path)).unwrap_or_default().trim_end().to_owned()
}

/// The devices that `choices` select, in the order of the choices and without duplicates. A prefix selects any number of devices,
/// any other choice the first.
///
/// # Errors
/// Returns the first required choice that selects no device.
pub fn pick<'c>(choices: &'c [DiskChoice], devices: &[Device]) -> Result<Vec<Device>, &'c DiskChoice> {
    let mut selected: Vec<Device> = Vec::new();
    for choice in choices {
        let mut found = devices.iter().filter(|device| device.is_selected_by(choice)).peekable();
        if found.peek().is_none() && !choice.optional {
            return Err(choice);
        }
        let count = if choice.by.matches_many() { usize::MAX } else { 1 };
        for device in found.take(count) {
            if !selected.contains(device) {
                selected.push(device.clone());
            }
        }
    }
    Ok(selected)
}

#[cfg(test)]
pub(in crate::guest::disk) mod tests {
    use super::*;
    use crate::config::disks::Pattern;

    pub fn device(name: &str, serial: &str, label: Option<&str>) -> Device {
        Device { name: name.into(), serial: serial.into(), label: label.map(str::to_owned), sequence: name.into() }
    }

    fn choice(by: DiskBy) -> DiskChoice {
        DiskChoice { optional: by.matches_many(), by }
    }

    #[test]
    fn choices_select_disks_in_order_without_duplicates() {
        let devices = [
            device("vda", "root", None),
            device("vdb", "localregistry-2", Some("images")),
            device("vdc", "localregistry", Some("images")),
            device("vdd", "localregistry-1", None),
            device("vde", "localregistry", None),
            device("vdf", "", None),
        ];
        let serial = |text: &str| choice(DiskBy::Serial(Pattern::parse(text)));
        let names = |choices: &[DiskChoice]| {
            let names = |devices: Vec<Device>| devices.into_iter().map(|device| device.name).collect::<Vec<_>>().join(" ");
            pick(choices, &devices).map(names).map_err(|missing| missing.by.clone())
        };
        let these = |names: &str| Ok(names.to_owned());
        assert_eq!(names(&[serial("localregistry"), serial("localregistry-*")]), these("vdc vdb vdd"));
        assert_eq!(names(&[serial("localregistry*")]), these("vdb vdc vdd vde"));
        assert_eq!(names(&[choice(DiskBy::Device("vdf".into())), choice(DiskBy::Device("vdb".into()))]), these("vdf vdb"));
        assert_eq!(names(&[choice(DiskBy::Label(Pattern::parse("images")))]), these("vdb"));
        assert_eq!(names(&[serial("none-*"), serial("root")]), these("vda"));
        assert_eq!(names(&[serial("root"), serial("no")]), Err(DiskBy::Serial(Pattern::parse("no"))));
        assert_eq!(names(&[DiskChoice { optional: true, ..serial("no") }]), these(""));
        assert_eq!(names(&[serial("*")]), these("vda vdb vdc vdd vde"), "a disk without a serial matches no serial");
    }

    #[test]
    fn device_is_described_by_name_serial_and_label() {
        assert_eq!(device("vda", "x", None).to_string(), "/dev/vda (serial \"x\")");
        assert_eq!(device("vda", "x", Some("y")).to_string(), "/dev/vda (serial \"x\", label \"y\")");
        assert_eq!(device("vda1", "", Some("y")).to_string(), "/dev/vda1 (label \"y\")");
        assert_eq!(device("vda", "", None).to_string(), "/dev/vda");
    }
}
