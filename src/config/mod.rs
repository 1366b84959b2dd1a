//! The guest's config. It merges up to three sources into one [`Settings`]: `localregistry/config.json` on the disk, fw_cfg
//! `opt/localregistry/config`, and the kernel command line. Later sources win key by key, and a list replaces a list. Each source
//! is validated by itself: an unknown key or an invalid value is an error even if a later source would override it.
//!
//! ```text
//! defaults ◀ disk ◀ fw_cfg ◀ kernel command line ─▶ Settings
//! ```

pub mod cmdline;
pub mod disks;
pub mod guest_config;
pub mod kernel_ip;
pub mod keys;
pub(crate) mod merge;
pub mod partial_config;
pub mod settings;
pub(crate) mod validator;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use partial_config::PartialConfig;
pub use settings::Settings;

/// Longest text of one source, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Directory of the guest's fw_cfg files.
pub const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/localregistry";

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `localregistry/config.json` on the disk.
    Disk,
    /// QEMU's `-fw_cfg name=opt/localregistry/config`.
    FwCfg,
    /// The kernel command line.
    CommandLine,
    /// All sources, merged. Each is valid by itself.
    Together,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "localregistry/config.json on the disk",
            Self::FwCfg => "fw_cfg opt/localregistry/config",
            Self::CommandLine => "kernel command line",
            Self::Together => "config from all sources",
        })
    }
}

/// An unusable config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of a source cannot be read.
    #[error("{origin}: cannot read {path}")]
    Read {
        /// The source.
        origin: Origin,
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The text is longer than [`MAX_BYTES`].
    #[error("{origin} is longer than {MAX_BYTES} bytes")]
    TooLarge {
        /// The source.
        origin: Origin,
    },
    /// The text is not one JSON object.
    #[error("{origin}: {problem}; expected one JSON object")]
    Syntax {
        /// The source.
        origin: Origin,
        /// The parser's message.
        problem: String,
    },
    /// A key that is not in the config's schema.
    #[error("{origin}: unknown key {key}; expected one of {}", keys::list())]
    UnknownKey {
        /// The source.
        origin: Origin,
        /// The key, with nested keys joined by dots.
        key: String,
    },
    /// A value that its key does not accept.
    #[error("{origin}: {key} is {value}; expected {expected}")]
    BadValue {
        /// The source.
        origin: Origin,
        /// The key, with nested keys joined by dots.
        key: String,
        /// The value as JSON, cut if it is long.
        value: String,
        /// The accepted values.
        expected: Cow<'static, str>,
    },
    /// Two disks have different config files.
    #[error("{origin}: {one} and {other} have different configs; put the same one on each disk, or one on a single disk")]
    Disagree {
        /// The source.
        origin: Origin,
        /// The first disk.
        one: String,
        /// The second disk.
        other: String,
    },
    /// Both `disk.serial` and `disks` select disks.
    #[error("{origin}: disk.serial and disks both select disks; set only one of them")]
    DiskTwice {
        /// The source.
        origin: Origin,
    },
    /// The config file on a disk selects disks.
    #[error("{origin}: {key} selects the disk that this file is on; set it in fw_cfg or on the kernel command line")]
    DiskOnDisk {
        /// The source.
        origin: Origin,
        /// The key.
        key: String,
    },
}

/// Reads what the launcher provides: fw_cfg, with the kernel command line merged over it.
///
/// # Errors
/// Fails if either cannot be read or is invalid.
pub fn from_launcher() -> Result<PartialConfig, ConfigError> {
    let fw_cfg = match read(Origin::FwCfg, &Path::new(FW_CFG).join("config/raw"))? {
        Some(text) => PartialConfig::from_json(Origin::FwCfg, &text)?,
        None => PartialConfig::default(),
    };
    let line = read(Origin::CommandLine, Path::new("/proc/cmdline"))?.unwrap_or_default();
    Ok(fw_cfg.overridden_by(PartialConfig::from_command_line(&String::from_utf8_lossy(&line))?))
}

/// Reads the config file on the disk mounted at `root`. A disk without one gives an empty config.
///
/// # Errors
/// Fails if the file cannot be read, is invalid, or selects disks.
pub fn from_disk(root: &Path) -> Result<PartialConfig, ConfigError> {
    match read(Origin::Disk, &root.join("localregistry/config.json"))? {
        Some(text) => PartialConfig::from_json(Origin::Disk, &text)?.without_disk(),
        None => Ok(PartialConfig::default()),
    }
}

/// Reads the config files on several disks, each given by its name and its root.
///
/// # Errors
/// Fails if [`from_disk`] fails for a disk, or if two disks have different configs.
pub fn from_disks<'a>(disks: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<PartialConfig, ConfigError> {
    let mut first: Option<(&str, PartialConfig)> = None;
    for (name, root) in disks {
        let partial = from_disk(root)?;
        match &first {
            _ if partial == PartialConfig::default() => {}
            None => first = Some((name, partial)),
            Some((_, known)) if *known == partial => {}
            Some((one, _)) => {
                return Err(ConfigError::Disagree { origin: Origin::Disk, one: (*one).to_owned(), other: name.to_owned() });
            }
        }
    }
    Ok(first.map(|(_, partial)| partial).unwrap_or_default())
}

/// Reads `path`. Returns `None` if it does not exist.
fn read(origin: Origin, path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    let failed = |source| ConfigError::Read { origin, path: path.display().to_string(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES { Err(ConfigError::TooLarge { origin }) } else { Ok(Some(text)) }
}

#[cfg(test)]
mod tests;
