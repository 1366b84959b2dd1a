//! The disks of the machine. What enters is `/sys/class/block`; what leaves is each virtio disk and partition that is there, and those
//! of them that are meant. It reads of a disk its first bytes, for its label, and only where labels are asked for.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::disks::{DiskBy, DiskChoice};
use crate::disk::superblock::{HEAD_LEN, label};

/// What the kernel knows of its block devices.
const DEVICES: &str = "/sys/class/block";
/// What the names of virtio disks start with.
const VIRTIO: &str = "vd";

/// A disk, or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name in `/dev`.
    pub name: String,
    /// Its virtio serial; empty where it has none.
    pub serial: String,
    /// The label of its file system, where labels are asked for.
    pub label: Option<String>,
    /// Tells it from one that had its name before: names are given again.
    sequence: String,
}

impl Device {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// Its size in bytes; sysfs counts in sectors of 512 whatever the disk's own are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        attribute(&self.name, "size").parse::<u64>().map_or(0, |sectors| sectors.saturating_mul(512))
    }

    /// Its first bytes, `HEAD_LEN` of them or all there are.
    ///
    /// # Errors
    /// As of reading.
    pub fn start(&self) -> io::Result<Vec<u8>> {
        let mut start = Vec::with_capacity(HEAD_LEN);
        File::open(self.path())?.take(HEAD_LEN as u64).read_to_end(&mut start)?;
        Ok(start)
    }

    /// Whether it is still the same one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (&self.name, &self.sequence) == (&other.name, &other.sequence)
    }

    /// Whether `choice` means it.
    #[must_use]
    pub fn is_meant_by(&self, choice: &DiskChoice) -> bool {
        match &choice.by {
            DiskBy::Serial(serial) => !self.serial.is_empty() && serial.matches(&self.serial),
            DiskBy::Label(wanted) => self.label.as_ref().is_some_and(|label| wanted.matches(label)),
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

/// The virtio disks and what else `choices` names, in order of their names. Labels are read where a choice is by label, but for
/// devices that are `known`.
#[must_use]
pub fn list(choices: &[DiskChoice], known: &[Device]) -> Vec<Device> {
    let labelled = choices.iter().any(|choice| matches!(choice.by, DiskBy::Label(_)));
    let named = |name: &str| choices.iter().any(|choice| matches!(&choice.by, DiskBy::Device(device) if device == name));
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut devices: Vec<Device> = names.filter(|name| name.starts_with(VIRTIO) || named(name)).map(look).collect();
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    for device in devices.iter_mut().filter(|_| labelled) {
        device.label = match known.iter().find(|known| known.is(device)) {
            Some(known) => known.label.clone(),
            None => device.start().ok().and_then(|start| label(&start).map(str::to_owned)),
        };
    }
    devices
}

fn look(name: String) -> Device {
    let sequence = match attribute(&name, "diskseq") {
        // Kernels before 5.15, and partitions.
        none if none.is_empty() => attribute(&name, "dev"),
        sequence => sequence,
    };
    Device { serial: attribute(&name, "serial"), label: None, sequence, name }
}

fn attribute(name: &str, attribute: &str) -> String {
    let path: PathBuf = [DEVICES, name, attribute].iter().collect::<PathBuf>();
    fs::read_to_string(Path::new(&path)).unwrap_or_default().trim_end().to_owned()
}

/// The devices that `choices` mean, in their order: an open one any number, others the first, none twice.
///
/// # Errors
/// The first choice that boot waits for and that means none.
pub fn pick<'c>(choices: &'c [DiskChoice], devices: &[Device]) -> Result<Vec<Device>, &'c DiskChoice> {
    let mut meant: Vec<Device> = Vec::new();
    for choice in choices {
        let mut found = devices.iter().filter(|device| device.is_meant_by(choice)).peekable();
        if found.peek().is_none() && !choice.optional {
            return Err(choice);
        }
        let most = if choice.by.matches_many() { usize::MAX } else { 1 };
        for device in found.take(most) {
            if !meant.contains(device) {
                meant.push(device.clone());
            }
        }
    }
    Ok(meant)
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
    fn choices_pick_disks_in_their_order_and_none_twice() {
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
        let these = |meant: &str| Ok(meant.to_owned());
        assert_eq!(names(&[serial("localregistry"), serial("localregistry-*")]), these("vdc vdb vdd"));
        assert_eq!(names(&[serial("localregistry*")]), these("vdb vdc vdd vde"));
        assert_eq!(names(&[choice(DiskBy::Device("vdf".into())), choice(DiskBy::Device("vdb".into()))]), these("vdf vdb"));
        assert_eq!(names(&[choice(DiskBy::Label(Pattern::parse("images")))]), these("vdb"));
        assert_eq!(names(&[serial("none-*"), serial("root")]), these("vda"));
        assert_eq!(names(&[serial("root"), serial("no")]), Err(DiskBy::Serial(Pattern::parse("no"))));
        assert_eq!(names(&[DiskChoice { optional: true, ..serial("no") }]), these(""));
        assert_eq!(names(&[serial("*")]), these("vda vdb vdc vdd vde"), "one without a serial has none");
    }

    #[test]
    fn a_device_is_called_by_all_that_is_known_of_it() {
        assert_eq!(device("vda", "x", None).to_string(), "/dev/vda (serial \"x\")");
        assert_eq!(device("vda", "x", Some("y")).to_string(), "/dev/vda (serial \"x\", label \"y\")");
        assert_eq!(device("vda1", "", Some("y")).to_string(), "/dev/vda1 (label \"y\")");
        assert_eq!(device("vda", "", None).to_string(), "/dev/vda");
    }
}
