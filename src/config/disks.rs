//! Which disks to serve: what the config says of them becomes [`DiskChoice`]s. Pure.

use std::fmt;

use super::ConfigError;
use super::settings::Check;
use crate::proto;

/// Longest serial of a virtio disk, in bytes (VIRTIO 1.2, section 5.2.6: `VIRTIO_BLK_T_GET_ID`).
const SERIAL_MAX: usize = 20;
/// Longest label of a file system, in bytes (EROFS and ext4).
const LABEL_MAX: usize = 16;
/// Serial of the disk where nothing is said.
const SERIAL: &str = "localregistry";
/// Serials of the disks that are served besides, then.
const FURTHER: &str = "localregistry-*";

/// A disk to serve, or any number of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChoice {
    /// Which.
    pub by: DiskBy,
    /// Whether boot goes on without it.
    pub optional: bool,
}

/// How a disk is told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskBy {
    /// By its virtio serial.
    Serial(Pattern),
    /// By the label of its file system.
    Label(Pattern),
    /// By its device, a name in `/dev`.
    Device(String),
}

/// A name, or what names begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// Whether more may follow.
    open: bool,
}

impl Pattern {
    /// The pattern in `text`: a `*` at its end stands for anything.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let open = text.strip_suffix('*');
        Self { text: open.unwrap_or(text).to_owned(), open: open.is_some() }
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.open { "*" } else { "" })
    }
}

impl DiskBy {
    /// Whether any number of disks may be meant.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Serial(Pattern { open: true, .. }) | Self::Label(Pattern { open: true, .. }))
    }
}

/// The disks that are chosen; where none are, the one with `serial`, and those that a launcher adds to it.
pub(crate) fn disks(check: Check, serial: &str, given: &[proto::DiskChoice]) -> Result<Vec<DiskChoice>, ConfigError> {
    let by_serial = |serial: &str, optional| DiskChoice { by: DiskBy::Serial(Pattern::of(serial)), optional };
    match (serial, given) {
        ("", []) => Ok(vec![by_serial(SERIAL, false), by_serial(FURTHER, true)]),
        (serial, []) => {
            check.that(is_name(serial, SERIAL_MAX), "disk.serial", serial)?;
            let exact = Pattern { text: serial.to_owned(), open: false };
            Ok(vec![DiskChoice { by: DiskBy::Serial(exact), optional: false }, by_serial(FURTHER, true)])
        }
        ("", given) => given.iter().enumerate().map(|(place, given)| disk(check, place, given)).collect(),
        _ => Err(ConfigError::DiskTwice { origin: check.origin }),
    }
}

fn disk(check: Check, place: usize, given: &proto::DiskChoice) -> Result<DiskChoice, ConfigError> {
    let key = |field: &str| format!("disks.{place}.{field}");
    let proto::DiskChoice { serial, label, path, optional } = given;
    let by = match (serial.as_str(), label.as_str(), path.as_str()) {
        (serial, "", "") => {
            check.that(is_name(serial, SERIAL_MAX), &key("serial"), serial)?;
            DiskBy::Serial(Pattern::of(serial))
        }
        ("", label, "") => {
            check.that(is_name(label, LABEL_MAX), &key("label"), label).map(|()| DiskBy::Label(Pattern::of(label)))?
        }
        ("", "", path) => DiskBy::Device(check.some(device(path), &key("path"), path)?),
        (_, "", path) => return check.some(None, &key("path"), path),
        (_, label, _) => return check.some(None, &key("label"), label),
    };
    Ok(DiskChoice { optional: *optional || by.is_open(), by })
}

/// The name in `/dev` that `path` says.
fn device(path: &str) -> Option<String> {
    let name = path.strip_prefix("/dev/")?;
    let good = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    good.then(|| name.to_owned())
}

fn is_name(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layer, Origin};

    fn parse(json: &str) -> Result<Vec<DiskChoice>, String> {
        let layer = Layer::from_json(Origin::FwCfg, json.as_bytes()).map_err(|error| error.to_string())?;
        layer.settings(Origin::FwCfg).map(|settings| settings.disks).map_err(|error| error.to_string())
    }

    fn serial(text: &str, optional: bool) -> DiskChoice {
        DiskChoice { by: DiskBy::Serial(Pattern::of(text)), optional }
    }

    #[test]
    fn disks_are_chosen_by_serial_label_or_path() {
        let further = serial("localregistry-*", true);
        assert_eq!(parse("{}").unwrap(), [serial("localregistry", false), further.clone()]);
        assert_eq!(parse(r#"{"disk": {"serial": "images"}}"#).unwrap(), [serial("images", false), further]);
        let list = r#"{"disks": [{"serial": "a"}, {"label": "b", "optional": true}, {"path": "/dev/vdb1"}, {"label": "c*"}]}"#;
        let label = |text| DiskChoice { by: DiskBy::Label(Pattern::of(text)), optional: true };
        let path = DiskChoice { by: DiskBy::Device("vdb1".into()), optional: false };
        assert_eq!(parse(list).unwrap(), [serial("a", false), label("b"), path, label("c*")]);
        assert!(Pattern::of("c*").matches("c1") && Pattern::of("c*").matches("c") && !Pattern::of("c").matches("c1"));
    }

    #[test]
    fn what_names_no_disk_or_two_is_refused() {
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
            "fw_cfg opt/localregistry/config: disk.serial and disks both say which disk to serve; expected one of them"
        );
        assert_eq!(
            parse(r#"{"disks": {"serial": "a"}}"#).unwrap_err(),
            "fw_cfg opt/localregistry/config: disks is {\"serial\":\"a\"}; expected a list of disks, numbered from 0 without a gap"
        );
    }
}
