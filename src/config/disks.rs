//! Selects the disks to serve: parses the keys `disk.serial` and `disks` into [`DiskChoice`]s.

use std::fmt;

use super::ConfigError;
use super::validator::Validator;
use crate::proto;

/// Longest serial of a virtio disk, in bytes (VIRTIO 1.2, section 5.2.6: `VIRTIO_BLK_T_GET_ID`).
const MAX_SERIAL: usize = 20;
/// Longest label of a file system, in bytes (EROFS and ext4).
const MAX_LABEL: usize = 16;
/// Serial of the first disk that the launcher attaches by default.
pub(super) const SERIAL: &str = "localregistry";
/// Serials of the further disks that the launcher attaches by default.
const FURTHER_SERIALS: &str = "localregistry-*";

/// One disk to serve, or all disks whose name starts with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChoice {
    /// How the disk is selected.
    pub by: DiskBy,
    /// Whether boot continues without it.
    pub optional: bool,
}

/// How a disk is selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskBy {
    /// By its virtio serial.
    Serial(Pattern),
    /// By the label of its file system.
    Label(Pattern),
    /// By its device name in `/dev`.
    Device(String),
}

/// An exact name, or a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// Whether `text` is only a prefix.
    prefix: bool,
}

impl Pattern {
    /// Parses `text`, in which a trailing `*` makes the rest a prefix.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let prefix = text.strip_suffix('*');
        Self { text: prefix.unwrap_or(text).to_owned(), prefix: prefix.is_some() }
    }

    /// Whether `name` matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.prefix { "*" } else { "" })
    }
}

impl DiskBy {
    /// Whether several disks may match.
    #[must_use]
    pub const fn matches_many(&self) -> bool {
        matches!(self, Self::Serial(Pattern { prefix: true, .. }) | Self::Label(Pattern { prefix: true, .. }))
    }
}

/// The disks in `choices`. If there are none, the disk with `serial` (or the default one), and the further disks that a launcher
/// attaches.
pub(crate) fn disks(validator: Validator, serial: &str, choices: &[proto::DiskChoice]) -> Result<Vec<DiskChoice>, ConfigError> {
    let by_serial = |serial: &str, optional| DiskChoice { by: DiskBy::Serial(Pattern::parse(serial)), optional };
    match (serial, choices) {
        ("", []) => Ok(vec![by_serial(SERIAL, false), by_serial(FURTHER_SERIALS, true)]),
        (serial, []) => {
            validator.require(is_name(serial, MAX_SERIAL), "disk.serial", serial)?;
            let exact = Pattern { text: serial.to_owned(), prefix: false };
            Ok(vec![DiskChoice { by: DiskBy::Serial(exact), optional: false }, by_serial(FURTHER_SERIALS, true)])
        }
        ("", choices) => choices.iter().enumerate().map(|(index, choice)| disk(validator, index, choice)).collect(),
        _ => Err(ConfigError::DiskTwice { origin: validator.origin }),
    }
}

fn disk(validator: Validator, index: usize, choice: &proto::DiskChoice) -> Result<DiskChoice, ConfigError> {
    let key = |field: &str| format!("disks.{index}.{field}");
    let proto::DiskChoice { serial, label, path, optional } = choice;
    let by = match (serial.as_str(), label.as_str(), path.as_str()) {
        (serial, "", "") => {
            validator.require(is_name(serial, MAX_SERIAL), &key("serial"), serial)?;
            DiskBy::Serial(Pattern::parse(serial))
        }
        ("", label, "") => {
            validator.require(is_name(label, MAX_LABEL), &key("label"), label).map(|()| DiskBy::Label(Pattern::parse(label)))?
        }
        ("", "", path) => DiskBy::Device(validator.require_some(device(path), &key("path"), path)?),
        (_, "", path) => return validator.require_some(None, &key("path"), path),
        (_, label, _) => return validator.require_some(None, &key("label"), label),
    };
    Ok(DiskChoice { optional: *optional || by.matches_many(), by })
}

/// The device name of a path such as `/dev/vdb`.
fn device(path: &str) -> Option<String> {
    let name = path.strip_prefix("/dev/")?;
    let valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    valid.then(|| name.to_owned())
}

fn is_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Origin, PartialConfig};

    fn parse(json: &str) -> Result<Vec<DiskChoice>, String> {
        let partial = PartialConfig::from_json(Origin::FwCfg, json.as_bytes()).map_err(|error| error.to_string())?;
        partial.settings(Origin::FwCfg).map(|settings| settings.disks).map_err(|error| error.to_string())
    }

    fn serial(text: &str, optional: bool) -> DiskChoice {
        DiskChoice { by: DiskBy::Serial(Pattern::parse(text)), optional }
    }

    #[test]
    fn disks_are_selected_by_serial_label_or_path() {
        let further = serial("localregistry-*", true);
        assert_eq!(parse("{}").unwrap(), [serial("localregistry", false), further.clone()]);
        assert_eq!(parse(r#"{"disk": {"serial": "images"}}"#).unwrap(), [serial("images", false), further]);
        let list = r#"{"disks": [{"serial": "a"}, {"label": "b", "optional": true}, {"path": "/dev/vdb1"}, {"label": "c*"}]}"#;
        let label = |text| DiskChoice { by: DiskBy::Label(Pattern::parse(text)), optional: true };
        let path = DiskChoice { by: DiskBy::Device("vdb1".into()), optional: false };
        assert_eq!(parse(list).unwrap(), [serial("a", false), label("b"), path, label("c*")]);
        assert!(Pattern::parse("c*").matches("c1") && Pattern::parse("c*").matches("c") && !Pattern::parse("c").matches("c1"));
    }

    #[test]
    fn invalid_and_conflicting_choices_are_rejected() {
        let expected = "expected one of a serial (1 to 20 printable ASCII characters), a label (1 to 16 of them) and a path such as \
                        /dev/vdb";
        for (disk, key, value) in [
            ("{}", "serial", ""),
            (r#"{"serial": "a b"}"#, "serial", "a b"),
            (r#"{"serial": "123456789012345678901"}"#, "serial", "123456789012345678901"),
            (r#"{"label": "12345678901234567"}"#, "label", "12345678901234567"),
            (r#"{"path": "vdb"}"#, "path", "vdb"),
            (r#"{"path": "/dev/../vdb"}"#, "path", "/dev/../vdb"),
            (r#"{"path": "/dev/"}"#, "path", "/dev/"),
            (r#"{"serial": "a", "path": "/dev/vdb"}"#, "path", "/dev/vdb"),
            (r#"{"serial": "a", "label": "b"}"#, "label", "b"),
        ] {
            let error = parse(&format!(r#"{{"disks": [{{"serial": "ok"}}, {disk}]}}"#)).unwrap_err();
            assert_eq!(error, format!("fw_cfg opt/localregistry/config: disks.1.{key} is {value:?}; {expected}"));
        }
        assert_eq!(
            parse(r#"{"disks": [{"serial": "a"}], "disk": {"serial": "b"}}"#).unwrap_err(),
            "fw_cfg opt/localregistry/config: disk.serial and disks both select disks; set only one of them"
        );
        assert_eq!(
            parse(r#"{"disks": {"serial": "a"}}"#).unwrap_err(),
            "fw_cfg opt/localregistry/config: disks is {\"serial\":\"a\"}; expected a list of disks, numbered from 0 without a gap"
        );
    }
}
